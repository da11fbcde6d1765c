"""Loss check: compare the loss of a batch with the losses of its parts, on the user's own data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from pipeline.backward import Gradients
from pipeline.backward.accumulate import Written
from pipeline.backward.gradients import leaves_of
from pipeline.errors import StageError
from pipeline.forward import Model
from pipeline.module.leftovers import read_by, same
from pipeline.programs.segments import run_stages
from pipeline.stage import Stage
from pipeline.state import Batch, lists_samples
from pipeline.tree import Tree, tree_map

_CLOSE, _CLOSE_LOW = 1e-4, 2e-2
"""Relative tolerance in float32, and in lower precision."""


@frozen
class Difference:
    """A loss that differs from the mean of its parts."""

    stage: str
    """Name of the stage that writes the loss."""
    said: str
    instead: str
    """Suggested code; empty if no weight makes them equal."""


def differs(
    g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
    memory: Mapping[str, Tree], batch: Batch, size: int, parts: int, low: bool,
) -> Difference | None:  # fmt: skip
    """Difference between the loss of `size` samples and the mean loss of their parts, if any.

    Only stages after the models are computed in parts: dropout and BatchNorm differ in parts by hand too. A model that
    computes its own loss is called in eval mode.
    """
    writer = next(s for s in reversed(stages) if g.of in s.writes)
    last = max((i for i, s in enumerate(stages) if isinstance(s, Model) and s is not writer), default=-1)
    after = stages[last + 1 :]
    training = not any(isinstance(s, Model) for s in after)

    def loss(own: Mapping[str, Any], count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        given = {**values, **own, "training": training, "seed": values["seed"] + seed}
        like = values["step"]
        weigh = torch.full((), count, dtype=torch.float64, device=like.device)
        written, _, sums = run_stages([*after, g], given, hyper, memory, lambda: weigh)
        return written[g.of].double(), sums[g.name]["weight"].double()

    with torch.enable_grad():
        outputs = run_stages(stages[: last + 1], values, hyper, memory)[0]
        # A model that has learned nothing yet may give all samples the same loss: other outputs are tried too.
        given = {name for s in stages[: last + 1] if isinstance(s, Model) for name in s.writes if name != s.buffers}
        moved = {name: tree_map(_moved, value) for name, value in outputs.items() if name in given}
        for made in ({**batch, **outputs}, {**batch, **outputs, **moved}):
            try:
                whole, _ = loss(made, size)
                if not whole.isfinite() or not torch.equal(whole, loss(made, size, seed=1)[0]):
                    return None  # it draws
            except StageError:
                return None  # a model has no loss in eval mode, or a loss none of such outputs
            for count in dict.fromkeys(min(n, size) for n in (parts, parts + 1)):  # even ones may agree by chance
                with suppress(StageError):  # there may be no loss of so few samples
                    each = [loss(part, n) for part, n in _parts(made, size, count)]
                    if (found := _apart(g, writer.name, whole, size, each, _CLOSE_LOW if low else _CLOSE)) is not None:
                        return found
    return None


def _moved(x: Any) -> Any:
    """A tensor of other numbers, of a size as its own; chances stay chances, as a GPU ends at others."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel() or not x.ndim:
        return x
    x, generator = x.detach(), torch.Generator().manual_seed(0)
    if float(x.min()) >= 0 and float(x.max()) <= 1:
        return torch.rand(x.shape, generator=generator).to(x)
    return x + torch.randn(x.shape, generator=generator).to(x) * (1 + x.abs().mean())


def _apart(
    g: Gradients, writer: str, whole: Tensor, size: int, each: Sequence[tuple[Tensor, Tensor]], tolerance: float
) -> Difference | None:
    """Difference between a loss and its parts, given as (loss, weight)."""
    losses, weights = (torch.stack(x) for x in zip(*[x for x in each if not x[0].isnan()] or each, strict=True))
    total = losses.sum() if g.sums else (losses * weights).sum() / weights.sum()
    if total.isnan():
        return None  # nothing counts
    close = tolerance * max(whole.abs(), losses.abs().max())
    if (total - whole).abs() <= close:
        return None
    said = f"makes a loss of {whole:.6g} of {size} samples, and of {total:.6g} of them in {len(each)} parts"
    why, instead = "it compares samples", ""
    if (losses.sum() - whole).abs() <= close:
        why, instead = "it is a sum", "say so, as by loss.function(..., weight='sum')"
    elif losses.min() <= whole <= losses.max():
        why = "it is not a mean over samples"
        instead = "say of what by a stage behind it, such as loss.weight(lambda targets: (targets != -100).sum())"
    return Difference(writer, f"{said}: {why}", instead)


def _parts(values: Mapping[str, Any], size: int, count: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Split the values of a batch into `count` parts of nearly equal size, the longer ones first."""
    begin = 0
    for i in range(count):
        end = begin + size // count + (i < size % count)
        rows = slice(begin, end)

        def own(value: Any, rows: slice = rows) -> Any:
            if lists_samples(value) and len(value) == size:
                return value[rows]
            return tree_map(lambda x: x[rows] if isinstance(x, Tensor) and x.ndim and len(x) == size else x, value)

        yield {name: own(value) for name, value in values.items()}, end - begin
        begin = end


def check_held(s: Stage, given: Mapping[str, Any], made: Mapping[str, Any], again: Callable[[], Written]) -> None:
    """Raise StageError if a stage holds tensors that require gradients, which nothing would train; of a model, warn.
    Tensors that the stage creates, as for a gradient penalty, are others when it runs `again`."""
    first = leaves_of(made)
    if not first or (isinstance(s, Model) and s.module.frozen):
        return
    before, second = ({id(x) for x in leaves_of(values)} for values in (given, again()[0]))
    if held := [x for x in first if id(x) in second - before]:
        shapes = ", ".join(str(tuple(x.shape)) for x in held[:3])
        why = f"holds tensors that require gradients, {shapes}, and nothing trains them"
        if isinstance(s, Model):  # as in torch, where an optimizer of module.parameters() leaves them
            instead = "register them in the module, or write requires_grad_(False)"
            warnings.warn(f"the module of stage {s.name!r} {why}: {instead}", stacklevel=5)
            return
        raise StageError(
            s.name,
            f"{why}: write forward.model(module, params=...), loss.function(module) of outputs and targets, or "
            "requires_grad_(False)",
        )


def check_called(s: Stage, models: Iterable[Model], made: Written, again: Callable[[], Written]) -> None:
    """Raise StageError if what a stage writes depends on the weights of a trained module that it holds: State has the
    trained ones, and the module keeps the first."""
    for m in models:
        module = m.module.build
        if isinstance(s, Model) or m.module.frozen or not isinstance(module, nn.Module):
            continue
        if read_by(s.function, module) is None:
            continue
        first = {p: p.detach().clone() for p in module.parameters() if p.requires_grad}
        other = made
        try:
            with torch.no_grad():
                for p, x in first.items():
                    p.copy_(_moved(x))
            with suppress(StageError):  # it may fail on such weights
                other = again()
        finally:
            with torch.no_grad():
                for p, x in first.items():
                    p.copy_(x)
        if not same(made, other):
            why = f"reads the weights of the module of {m.name!r}, which stay the first: State has those in training"
            instead = f"call it by .again(...), or read {m.params!r} (for the first, copy.deepcopy() the module)"
            raise StageError(s.name, f"{why}; {instead}")
