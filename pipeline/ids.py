"""Ids: which operations read integers as the places of rows, of how many, and which of those there are not."""

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
class Taken:
    """Integers that `operation` takes as ids of `size` rows, -1 for the last where it `wraps`; `ignored` is none."""

    operation: str
    ids: Any
    size: Any
    wraps: bool
    ignored: Any = None
    of: tuple[Any, int | None] = (None, None)
    """The tensor of the rows, and their dimension."""

    def refused(self, ids: Tensor) -> str:
        """What is wrong with the first that is out of range, in words; empty where none is."""
        low = -self.size if self.wraps else 0
        wrong = (ids < low) | (ids >= self.size)
        wrong = wrong if self.ignored is None else wrong & (ids != self.ignored)
        if not bool(wrong.any()):
            return ""
        told = f"that {self.operation} takes ({low} to {self.size - 1})"
        return f"id {ids[wrong][0].item()} is outside the {self.size} rows {told}"


def taken(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], value: Callable[[Any], Any] = lambda x: x
) -> Iterator[Taken]:
    """What an operator of torch takes as ids. `value` gives a tensor for an argument.

    >>> import torch
    >>> call = torch.ops.aten.gather.default, (torch.zeros(3), 0, torch.tensor([0, 3]))
    >>> [one.refused(one.ids) for one in taken(*call, {})]
    ['id 3 is outside the 3 rows that gather takes (0 to 2)']
    """
    name = func.overloadpacket.__name__.strip("_")
    if name not in _KNOWN:
        return
    given = {**dict(zip([a.name for a in func._schema.arguments], args, strict=False)), **kwargs}
    x = given.get("self", given.get("weight"))
    shape = () if x is None else tuple(value(x).shape)
    if name in _LISTS:
        at = 0
        for ids in given["indices"]:
            mask = ids is not None and value(ids).dtype.itemsize == 1  # bool, or uint8 as one
            if ids is not None and not mask:
                yield Taken(name, ids, shape[at], True, of=(x, at))
            at += value(ids).ndim if mask else 1
    elif name in _CLASSES:
        at = min(1, len(shape) - 1)
        yield Taken(name, given["target"], shape[at], False, given.get("ignore_index"), (x, at))
    elif name in (*_TABLES, *_TABLES_BACK):
        size = given["num_weights"] if name in _TABLES_BACK else shape[0]
        yield Taken(name, given["indices"], size, False, of=(x, 0))
    else:
        dim = given.get("dim")
        size = value(x).numel() if dim is None else shape[dim] if shape else 1
        yield Taken(name, given["index"], size, name in _WRAPPING, of=(x, dim))


def refused(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Which id an operator was given that is out of range, in words; empty where none is."""
    return next(filter(None, (one.refused(one.ids) for one in taken(func, args, kwargs))), "")
