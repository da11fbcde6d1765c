"""Losses from functions and modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from attrs import evolve
from torch import Tensor, nn
from torch.func import functional_call

from pipeline import means
from pipeline.errors import ImpureError, WiringError
from pipeline.loss.joint import WRITES
from pipeline.stage import Stage, stage
from pipeline.state import samples


def function(
    f: Callable[..., Tensor], name: str | None = None, weight: Callable[..., Any] | str | None = None
) -> Stage:
    """A loss from any function of named values that returns the batch's mean, 0-d, or from a loss of torch, of outputs
    and targets: nn.CrossEntropyLoss(), F.cross_entropy. A module with parameters is trained too; State keeps them under
    the stage's name, "loss.ArcFace".

    `weight` is the count that `f` averages over, which makes means over unequal batches exact: a function of named
    values that returns a number or a mask, or "samples"; or "sum", if `f` is a sum over samples. For torch's
    losses it is known; without one, `f` counts as a mean over samples.

    >>> function(lambda outputs, inputs: ((outputs - inputs) ** 2).mean(), "loss.reconstruction").reads
    ('outputs', 'inputs')
    >>> import torch
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
        from pipeline.forward import model  # the only step that imports another: a loss with parameters is a model

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
    """The weight of the loss `of`, written by a model or by your own stage: a function of named values that returns the
    count averaged over, as a number or a mask.

    >>> import torch
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
    """A module or a loss of torch as a function of outputs and targets."""
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
        # Copied to the outputs' device, as cross_entropy's weight: the stage holds them, so place does not move them.
        held = {name: b.clone().to(outputs.device) for name, b in f.named_buffers()}
        given = dict(held)
        result = functional_call(f, held, (outputs, targets))
        for name, b in given.items():
            if held[name] is not b or not (b.is_inference() or b._version == 0):
                instead = "write forward.model(module, inputs=('outputs', 'targets'), outputs='loss')"
                raise ImpureError(f"changes the buffer {name!r} of its module, which a loss does not keep; {instead}")
        return result  # type: ignore[no-any-return]  # torch's

    return called


def _weighed(f: Callable[..., Any], weight: Any) -> Callable[..., Any]:
    """A loss and its weight as one function of the values that they read."""
    own, others = (dict(inspect.signature(g).parameters) for g in (f, weight))
    parameters = sorted({**own, **others, **own}.values(), key=lambda p: (p.kind, p.default is not p.empty))
    whole = inspect.Signature(parameters)

    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = whole.bind(*args, **kwargs).arguments
        value, count = (g(**{k: given[k] for k in of if k in given}) for g, of in ((f, own), (weight, others)))
        return value, means.number(count, value)

    both.__signature__ = whole  # type: ignore[attr-defined]  # the result of inspect.signature()
    return both
