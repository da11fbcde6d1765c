"""Per-example gradients, by vmapping the gradient of a batch of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from pipeline import random
from pipeline.backward.accumulate import Written
from pipeline.backward.gradients import Gradients
from pipeline.errors import PipeError, StageError, WiringError, first_line, place_of
from pipeline.stage import Stage
from pipeline.state import Batch
from pipeline.tree import Tree, parted, paths, tree_map

_INSTEAD = "use nn.GroupNorm instead of BatchNorm, or leave it in eval mode"

_SHARED = "Batch norm got a batched|Expected more than 1 value|vmap: inplace|doesn't match the broadcast shape"
"""torch's errors for a sample that depends on others, or writes into a shared tensor."""


def check(g: Gradients, stages: Iterable[Stage]) -> None:
    """Raise WiringError for stages before a per-example backward that can't run on a single sample."""
    for s in stages if g.per_example else ():
        each = f"{g.name!r} takes a gradient for each"
        if s.sums and g.of in s.writes:
            raise WiringError(f"stage {s.name!r} makes a sum over samples, and {each}: make it a mean")
        if s.remembers and s.finish is None:
            why = "remembers something, which no sample alone can"
            raise WiringError(f"stage {s.name!r} {why}, and {each} sample: put it after the backward")


def each_sample(
    g: Gradients, stages: Sequence[Stage], one: Callable[[Mapping[str, Any]], Written], values: Mapping[str, Any],
    batch: Batch, size: int, kept: Collection[str],
) -> Written:  # fmt: skip
    """Map `one`, which runs the stages and their backward on a batch of one, over `size` samples; join the results.

    Raises StageError if a sample changes State (the names `kept`), which all share, or if torch can't vmap a stage.
    """
    of_samples = {k: v for k, v in values.items() if k in batch or (isinstance(v, Tensor) and k not in kept)}
    leaves, spec = pytree.tree_flatten(of_samples)
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == size]
    back: list[Any] = []

    def sample(seed: Tensor, own: list[Tensor]) -> list[Tensor]:
        rows = {i: x.unsqueeze(0) for i, x in zip(at, own, strict=True)}
        single = pytree.tree_unflatten([rows.get(i, x) for i, x in enumerate(leaves)], spec)
        written, _, sums = one({**values, **single, "seed": seed})
        for name in written.keys() & kept:
            _refuse_batched(name, written[name], stages)
        tensors, unflatten = parted((written, sums))
        back[:] = [unflatten]
        return tensors

    seeds = random.key(values["seed"], torch.arange(size, device=values["seed"].device))
    # torch can't vmap the CPU's fused attention: it would loop over samples.
    attention = sdpa_kernel(SDPBackend.MATH) if seeds.device.type == "cpu" else nullcontext()
    try:
        with attention:
            tensors = vmap(sample)(seeds, [leaves[i] for i in at])
    except StageError as e:
        if re.search(_SHARED, str(e.__cause__)):
            said = "has no gradient for each sample: it reads or writes what all samples share, as BatchNorm does"
            raise StageError(e.stage, f"{said}{place_of(e)}; {_INSTEAD}") from e
        raise
    except PipeError:
        raise
    except Exception as e:  # refused by torch.func, or raised in the backward
        raise StageError(g.name, f"can't take a gradient for each sample: {first_line(e)}{place_of(e)}") from e
    written, sums = back[0](tensors)
    weight = sums[g.name]["weight"]  # of the loss, even if it writes none
    joined = {k: _joined(k, x, written.get(f"{k}.weight", weight), kept) for k, x in written.items() if k != g.grads}
    return {**joined, g.grads: written[g.grads]}, {}, tree_map(lambda x: x.sum(0, dtype=x.dtype), sums)


def _refuse_batched(name: str, value: Tree, stages: Sequence[Stage]) -> None:
    """Raise StageError for a value of State that differs by sample."""
    level = torch._C._functorch.current_level()
    for path, x in paths({name: value}):
        if isinstance(x, Tensor) and torch._C._functorch.maybe_get_level(x) == level:
            [writer] = [s.name for s in stages if name in s.writes][-1:]
            raise StageError(writer, f"has no gradient for each sample: it writes {path!r} by the batch; {_INSTEAD}")


def _joined(name: str, value: Tree, weight: Tensor, kept: Collection[str]) -> Tree:
    """The batch's value from the samples' values (B, ...)."""

    def join(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if name.endswith(".weight"):
            return x.sum(0)
        if name in kept or (x.ndim > 1 and x.shape[1] != 1):
            return x[-1]
        if x.ndim > 1:
            return x.flatten(0, 1)
        if not x.is_floating_point():
            return x[-1]
        total = weight.sum()  # if nothing counts, a mean of zeros stays zero
        return ((x * weight).sum() / torch.where(total > 0, total, 1.0)).to(x.dtype)

    return tree_map(join, value)
