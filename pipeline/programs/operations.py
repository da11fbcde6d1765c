"""Operations: the first one in a stage that makes NaN or infinity of finite numbers, with its operands, submodule and
line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pipeline.errors import running
from pipeline.stage import Stage


class Operations(TorchFunctionMode):
    """Notes the first operation of a stage that makes NaN, and the first that makes infinity, of operands without.

    Minus infinity may be meant: it masks attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        with suppress(RuntimeError):  # under vmap no value can be read
            made, given = _worst(result), list(_floats((args, kwargs)))
            if made and made not in self._found and not any(map(_worst, given)):
                self._found[made] = _words(func, given)
        return result

    def taken(self) -> str:
        """The words for the stage that has ended; empty if there was no such operation."""
        found, self._found = self._found, {}
        return found.get("NaN") or found.get("infinity") or ""


def _floats(tree: Any) -> Iterator[Tensor]:
    for x in pytree.tree_leaves(tree):
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            yield x.detach()


def _worst(tree: Any) -> str:
    """NaN or infinity, if a tensor has it; not minus infinity."""
    found = ""
    for x in _floats(tree):
        if x.isnan().any():
            return "NaN"
        found = "infinity" if found or x.isposinf().any() else ""
    return found


def _words(func: Any, given: list[Tensor]) -> str:
    """`log of values from -1.2 to 3 in 'head' (net.py:12)`."""
    ranges = [f"{float(x.min()):.3g} to {float(x.max()):.3g}" for x in given[:2]]
    name = getattr(func, "__name__", str(func)).strip("_")
    of = f" of values from {' and from '.join(ranges)}" if ranges else ""
    return f"{name}{of}{running((frame, frame.f_lineno) for frame in _frames())}"


def _frames() -> Iterator[FrameType]:
    """The frames of the running stage, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Stage._run.__code__:
        yield frame
        frame = frame.f_back
