"""Layout: the tensors of State keep their shapes and dtypes, as a graph that writes them in place needs it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.description import Description
from pipeline.errors import StageError
from pipeline.tree import Tree, dtype_name, paths, tree_map


def in_layout_of(old: Mapping[str, Tree], new: Mapping[str, Tree], pipe: Description) -> dict[str, Tree]:
    """Values of State after a step. Raises StageError if a tensor changes its shape or its dtype; but a 0-d float is
    rounded: a 0-d parameter times a learning rate, which is 0-d float64, is float64."""
    for i, (x, y) in enumerate(zip(pytree.tree_leaves(new), pytree.tree_leaves(old), strict=False)):
        if isinstance(x, Tensor) and x is not y and (x.shape != y.shape or (x.dtype != y.dtype and not _rounds(x, y))):
            path = paths(dict(new))[i][0]
            name, _, rest = path.partition("/")
            writer = [s.name for s in pipe.graph if name in s.writes or rest.startswith(f"{s.name}/")][-1]
            raise StageError(writer, _changed(path, x, y, any(g.per_example for g in pipe.backwards)))
    rounded: dict[str, Tree] = tree_map(_in_dtype_of, dict(new), dict(old))
    return rounded


def _changed(path: str, x: Tensor, y: Tensor, per_example: bool) -> str:
    if x.shape == y.shape:
        now, was = dtype_name(x.dtype), dtype_name(y.dtype)
        return f"makes {path!r} {now} of {was}; return .to(torch.{was}), or let its init make it {now}"
    instead = "return it as it was"
    if per_example and x.shape[1:] == y.shape:
        instead = "gradients are of each sample: put update.clip_per_example() or mean_gradients() before"
    return f"makes {path!r} {tuple(x.shape)} of {tuple(y.shape)}; {instead}"


def _rounds(x: Tensor, y: Tensor) -> bool:
    return x.ndim == 0 and x.is_floating_point() and y.is_floating_point()


def _in_dtype_of(new: Tree, old: Tree) -> Tree:
    return new.to(old.dtype) if isinstance(new, Tensor) and new is not old else new
