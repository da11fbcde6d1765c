"""Loss: one number to make small. Each writes the batch's mean and its weight, the count that the mean was taken over.

The weight makes means over unequal batches exact: an epoch's loss is sum(loss * weight) / sum(weight).
A loss of your own is a plain function: `@stage(writes="loss")`, or `loss.function(f)`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline import means
from pipeline.errors import DataError, StageError, WiringError
from pipeline.stage import Stage, by_class, fitted, stage
from pipeline.state import samples

WRITES = ("loss", "loss.weight")


@frozen(eq=False, repr=False)
class Loss(Stage):
    """A loss that knows what outputs mean, and so how those of several models are one: (M, B, ...) -> (B, ...)."""

    join: Callable[[Tensor], Tensor] = field(kw_only=True)
    vote: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    """Where outputs tell classes: outputs whose largest is the class that most models tell."""


def mean_probabilities(outputs: Tensor, dim: int | None = 1) -> Tensor:
    """Logits of classes (M, B, C, ...) -> (B, C, ...), whose softmax over `dim` is the mean of that of each.

    >>> mean_probabilities(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()).softmax(1)
    tensor([[0.7000, 0.3000]])
    """
    return outputs.log_softmax(_within(outputs, dim)).logsumexp(0) - math.log(len(outputs))


def mean_chances(outputs: Tensor) -> Tensor:
    """Logits (M, B, ...) -> (B, ...), whose sigmoid is the mean of that of each."""
    return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


def mean_outputs(outputs: Tensor) -> Tensor:
    """Values (M, B, ...) -> (B, ...), their mean."""
    return outputs.mean(0)


def votes(outputs: Tensor, dim: int | None = 1) -> Tensor:
    """Logits of classes (M, B, C, ...) -> (B, C, ...), for how many models each class is the likeliest. Of as many
    votes, those for what is likelier by the mean probabilities count as more, by less than half of one.

    >>> votes(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]]).log()).round()
    tensor([[1., 2.]])
    """
    at = _within(outputs, dim)
    kinds = torch.arange(outputs.shape[at], device=outputs.device)
    chosen = outputs.movedim(at, -1).argmax(-1, keepdim=True) == kinds
    share = mean_probabilities(outputs, dim).softmax(at)
    return chosen.sum(0).movedim(-1, at).to(share.dtype) + 0.49 * share


def _within(outputs: Tensor, dim: int | None) -> int:
    """A dimension, from the last, of outputs where those of several models are stacked, and so of each."""
    if dim is None and outputs.ndim > 3:
        shape = tuple(outputs.shape[1:])
        raise StageError("loss.cross_entropy", f"can't join outputs {shape}: pass dim=1, or dim=-1 if classes are last")
    dim = 1 if dim is None else dim
    return dim if dim < 0 else dim + 1 - outputs.ndim


def cross_entropy(
    *, smoothing: float = 0.0, weight: Tensor | None = None, ignore_index: int = -100, dim: int | None = None
) -> Loss:
    """Cross entropy of logits and class indices, or probabilities, as torch.nn.CrossEntropyLoss.

    Shapes: outputs (B, C, ...) or (B, ..., C) float, targets (B, ...) integers, or floats as the outputs -> (). `dim`
    is the dimension of the classes; it need be said only where shapes leave it open, as (B, C, C) and (B, C) do.
    `smoothing` is the label smoothing, `weight` (C,) weighs the classes, targets equal to `ignore_index` do not count.

    >>> value, count = cross_entropy()(torch.zeros(4, 10), torch.arange(4))
    >>> round(value.item(), 4), count.item()
    (2.3026, 4.0)
    """

    def function(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, goals = _by_class(outputs, targets, dim)
        given = logits, goals, None if weight is None else weight.to(logits)
        total = means.weight(F.cross_entropy, given, {"ignore_index": ignore_index})
        value = F.cross_entropy(*given, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
        # Where nothing counts the loss is 0, not torch's 0 / 0.
        return value / torch.where(total > 0, total, 1.0).to(value.dtype), total

    def check(outputs: Tensor, targets: Tensor) -> None:
        logits, goals = _by_class(outputs, targets, dim)
        classes = logits.shape[1]
        wrong = ((goals < 0) | (goals >= classes)) & (goals != ignore_index)
        if not goals.is_floating_point() and bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            said = f"label {goals[tuple(at)].item()} in sample {at[0]} is outside the {classes} classes that the model"
            raise DataError(f"{said} gives (0 to {classes - 1}); give it more outputs or correct the labels")

    join, vote = partial(mean_probabilities, dim=dim), partial(votes, dim=dim)
    return Loss("loss.cross_entropy", function, writes=WRITES, join=join, vote=vote, check=check)


def _by_class(outputs: Tensor, targets: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...), with class indices (B, ...) or probabilities (B, C, ...). Raises DataError for others."""
    if outputs.ndim < 2:
        raise DataError(f"outputs are {tuple(outputs.shape)}, but loss.cross_entropy() takes logits (B, C, ...)")
    logits, goals = by_class("loss.cross_entropy", outputs, targets, dim)
    has = f"targets are {tuple(targets.shape)} {targets.dtype}, but loss.cross_entropy() takes class indices (B, ...)"
    if targets.is_floating_point():
        if goals.shape != logits.shape:
            raise DataError(f"{has}: take targets.long() if they are, or use loss.mse() for values")
        return logits, goals
    at = 1 if dim is None else dim
    if targets.ndim == outputs.ndim and targets.shape[at] == 1:
        raise DataError(f"{has}: take targets.squeeze({at})")
    if targets.shape == outputs.shape:
        raise DataError(f"{has}: of one-hot rows take targets.argmax({at}), or targets.float()")
    return logits, targets.long()


def _mean(name: str, per_element: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Any:
    values = per_element(fitted(name, outputs, targets), targets.to(outputs.dtype))
    return values.mean(), means.number(values.numel(), values)


def _elementwise(name: str, per_element: Callable[[Tensor, Tensor], Tensor], join: Any = mean_outputs) -> Loss:
    return Loss(name, lambda outputs, targets: _mean(name, per_element, outputs, targets), writes=WRITES, join=join)


def mse() -> Loss:
    """Mean squared error. Shapes: outputs and targets alike, or (B, 1) and (B,) -> ()."""
    return _elementwise("loss.mse", lambda x, y: (x - y) ** 2)


def l1() -> Loss:
    """Mean absolute error. Shapes as mse."""
    return _elementwise("loss.l1", lambda x, y: (x - y).abs())


def huber(delta: float = 1.0) -> Loss:
    """Squared within `delta`, linear beyond (Huber, 1964), as torch.nn.HuberLoss. Shapes as mse.

    >>> huber(1.0)(torch.tensor([3.0]), torch.tensor([0.0]), delta=1.0)[0]
    tensor(2.5000)
    """

    def function(outputs: Tensor, targets: Tensor, delta: Any) -> Any:
        def per_element(x: Tensor, y: Tensor) -> Tensor:
            error = (x - y).abs()
            return torch.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))

        return _mean("loss.huber", per_element, outputs, targets)

    return Loss("loss.huber", function, writes=WRITES, join=mean_outputs, hyper={"delta": delta})


def binary_cross_entropy() -> Loss:
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss. Shapes as mse; targets in [0, 1] of any dtype."""
    per_element = partial(F.binary_cross_entropy_with_logits, reduction="none")
    return _elementwise("loss.binary_cross_entropy", per_element, mean_chances)


def function(
    f: Callable[..., Tensor], name: str | None = None, weight: Callable[..., Any] | str | None = None
) -> Stage:
    """Any function of named values that returns a mean over the batch, 0-d; or a loss of torch, of outputs and targets,
    such as nn.CrossEntropyLoss() or F.cross_entropy. A module with parameters is trained along: State has these under
    the stage's name, "loss.ArcFace".

    What `f` is a mean of is known if its result is that of a loss of torch. Of others `weight` says it, so that means
    over unequal batches or parts are those of the whole: a function of named values that gives how many are counted,
    as a number or a mask, or "samples"; or "sum", if it is a sum over the samples. Without one it is taken for a mean
    over samples.

    >>> function(lambda outputs, inputs: ((outputs - inputs) ** 2).mean(), "loss.reconstruction").reads
    ('outputs', 'inputs')
    >>> masked = function(lambda outputs, mask: outputs[mask].mean(), weight=lambda mask: mask)
    >>> masked(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False]))
    (tensor(1.5000), tensor(2., dtype=torch.float64))
    >>> function(torch.nn.CrossEntropyLoss(label_smoothing=0.1)).name
    'loss.CrossEntropyLoss'
    """
    if isinstance(f, type):
        raise WiringError(f"loss.function() takes a function or a module, not a class: write {f.__name__}()")
    if not (weight is None or callable(weight) or weight in ("samples", "sum")):
        raise WiringError(f"loss.function(weight={weight!r}): write a function of named values, 'samples' or 'sum'")
    if isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()):
        from pipeline.forward import model  # a step imports no other, but such a loss is a model

        name = name or f"loss.{type(f).__name__}"
        return model(f, inputs=("outputs", "targets"), outputs="loss", params=name, name=name)
    of, reduction = (f.func, f.keywords.get("reduction")) if isinstance(f, partial) else (f, None)
    if type(f).__module__ == "torch.nn.modules.loss":
        reduction = getattr(f, "reduction", None)
    if isinstance(f, nn.Module) or any(of is known for known in means.LOSSES):
        name = name or f"loss.{type(f).__name__ if isinstance(f, nn.Module) else of.__name__}"
        f = _of_outputs(name, f)
    name = name or getattr(f, "__name__", "loss.function")
    if reduction == "none":
        raise WiringError(f"{name} has reduction='none', where a loss is one number: use 'mean' or 'sum'")
    sums, counts = "sum" in (weight, reduction), weight
    if sums or weight == "samples":
        counts = wraps(f)((lambda **_: 1) if sums else lambda **given: samples(given))
    made: Stage = stage(_weighed(f, counts) if counts else f, writes=WRITES if counts else "loss", name=name)
    return evolve(made, sums=sums)


def weight(f: Callable[..., Any], of: str = "loss") -> Stage:
    """What the loss `of` is a mean of, where a model or a stage of your own writes that: a function of named values
    that gives how many are counted, as a number or a mask.

    >>> weight(lambda labels: labels != -100)(torch.tensor([3, 1, -100]))
    tensor(2., dtype=torch.float64)
    """

    @wraps(f)
    def count(*args: Any, **given: Any) -> Tensor:
        like = next((x for x in (*args, *given.values()) if isinstance(x, Tensor)), None)
        return means.number(f(*args, **given), like)

    made: Stage = stage(writes=f"{of}.weight", name=f"{of}.weight")(count)
    return made


def _of_outputs(name: str, f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A module, or a loss of torch, as a function of outputs and targets."""
    parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters.values()
    needs = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needs) > 2:
        takes = ", ".join(needs)
        raise WiringError(f"{name} takes {takes}: write loss.function(lambda ...: criterion({takes})) of named values")
    if not isinstance(f, nn.Module):
        return lambda outputs, targets: f(outputs, targets)
    if any(True for _ in f.parameters()):
        raise WiringError(f"{name} has frozen parameters: write forward.model(..., frozen=True, outputs='loss')")

    def called(outputs: Tensor, targets: Tensor) -> Tensor:
        # Copies beside the outputs, as of cross_entropy's weight: a stage holds them, so place does not know them.
        held = {name: b.clone().to(outputs.device) for name, b in f.named_buffers()}
        return functional_call(f, held, (outputs, targets))  # type: ignore[no-any-return]  # torch's

    return called


def _weighed(f: Callable[..., Any], weight: Any) -> Callable[..., Any]:
    """A loss and its weight as one function of what either reads."""
    own, others = (dict(inspect.signature(g).parameters) for g in (f, weight))
    parameters = sorted({**own, **others, **own}.values(), key=lambda p: (p.kind, p.default is not p.empty))
    whole = inspect.Signature(parameters)

    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = whole.bind(*args, **kwargs).arguments
        value, count = (g(**{k: given[k] for k in of if k in given}) for g, of in ((f, own), (weight, others)))
        return value, means.number(count, value)

    both.__signature__ = whole  # type: ignore[attr-defined]  # what inspect.signature() gives
    return both
