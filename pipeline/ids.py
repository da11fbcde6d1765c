"""Ids: operations that read integers as indices of rows, and the check of their range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import Tensor

_ALONG = [
    *("gather", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add", "index_copy"),
    *("index_reduce", "index_fill"),
]
_CLASSES = ["nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward", "multi_margin_loss"]
_TABLES = ["embedding", "embedding_bag", "embedding_bag_forward_only", "embedding_bag_per_sample_weights_backward"]
_TABLES_BACK = ["embedding_dense_backward", "embedding_bag_dense_backward", "embedding_bag_backward"]
_LISTS = ["index", "index_put", "index_put_impl", "unsafe_index", "unsafe_index_put"]
_KNOWN = {*_ALONG, *_CLASSES, *_TABLES, *_TABLES_BACK, *_LISTS, "take", "put"}
_WRAPPING = {*_LISTS, "take", "put", "index_fill"}


@frozen
class Ids:
    """An argument of ids: integers from 0 below `size`; from -size, if `operation` counts from the end too."""

    operation: str
    ids: Any
    size: Any
    wraps: bool
    ignored: Any = None
    """An integer that is no id."""
    rows: tuple[Any, int | None] = (None, None)
    """The tensor of rows, and their dimension."""

    def error(self, ids: Tensor) -> str:
        """The first id out of range, in words; empty if there is none."""
        low = -self.size if self.wraps else 0
        wrong = (ids < low) | (ids >= self.size)
        wrong = wrong if self.ignored is None else wrong & (ids != self.ignored)
        if not bool(wrong.any()):
            return ""
        taken = f"that {self.operation} takes ({low} to {self.size - 1})"
        return f"id {ids[wrong][0].item()} is outside the {self.size} rows {taken}"


def id_arguments(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], value: Callable[[Any], Any] = lambda x: x
) -> Iterator[Ids]:
    """The ids among the arguments of an operator. `value` gives the tensor of an argument.

    >>> import torch
    >>> call = torch.ops.aten.gather.default, (torch.zeros(3), 0, torch.tensor([0, 3]))
    >>> [argument.error(argument.ids) for argument in id_arguments(*call, {})]
    ['id 3 is outside the 3 rows that gather takes (0 to 2)']
    """
    name = func.overloadpacket.__name__.strip("_")
    if name not in _KNOWN:
        return
    given = {**dict(zip([a.name for a in func._schema.arguments], args, strict=False)), **kwargs}
    x = given.get("self", given.get("weight"))
    shape = () if x is None else tuple(value(x).shape)
    if name in _LISTS:
        dim = 0
        for ids in given["indices"]:
            mask = ids is not None and value(ids).dtype.itemsize == 1  # bool, or uint8 as a mask
            if ids is not None and not mask:
                yield Ids(name, ids, shape[dim], True, rows=(x, dim))
            dim += value(ids).ndim if mask else 1
    elif name in _CLASSES:
        dim = min(1, len(shape) - 1)
        yield Ids(name, given["target"], shape[dim], False, given.get("ignore_index"), (x, dim))
    elif name in (*_TABLES, *_TABLES_BACK):
        size = given["num_weights"] if name in _TABLES_BACK else shape[0]
        yield Ids(name, given["indices"], size, False, rows=(x, 0))
    else:
        along = given.get("dim")
        size = value(x).numel() if along is None else shape[along] if shape else 1
        yield Ids(name, given["index"], size, name in _WRAPPING, rows=(x, along))


def refused(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The first id out of range among an operator's arguments, in words; empty if there is none."""
    return next(filter(None, (argument.error(argument.ids) for argument in id_arguments(func, args, kwargs))), "")
