"""Verify: run a new program once on copies, beside the plain functions, before it is used.

Compilers have silently dropped writes and reordered reads here; no test foresees all of that, but the user's own step
shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline import memory
from pipeline.errors import CaptureError

_CLOSE, _CLOSE_LOW = 1e-3, 5e-2
"""Tolerance relative to a tensor's largest change: from float32 on, and below."""
_NUDGE, _NUDGE_LOW = 1e-6, 1e-2
"""Relative perturbations of the inputs, as large as rounding inside a step."""
_TRIES, _TIMES = 3, 10.0
"""Perturbations to try, and the multiple of their effect that an error may have."""
_PIECE = 2**20
"""Elements to compare at a time: each takes tens of bytes meanwhile."""


def check(
    compiled: Callable[[Sequence[Tensor]], Any], plain: Callable[..., Any], args: Sequence[Tensor],
    written: Sequence[int], low: bool,
    agree: Callable[[bool], bool] = bool,
) -> None:  # fmt: skip
    """Raise CaptureError if `compiled(args)` and `plain(*args)` differ by more than rounding.

    Both write into copies of the arguments at the places `written`, and return more tensors. `low` says that they
    compute in less than float32. With collectives inside, `agree` tells whether a condition holds in all processes.
    """
    close, nudge = (_CLOSE_LOW, _NUDGE_LOW) if low else (_CLOSE, _NUDGE)
    before = [args[i] for i in written]
    large = sum(t.nbytes for t in args) > memory.LARGE

    def after(run: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor]) -> list[Tensor]:
        """What a run on copies writes and returns. What it frees is given back before the next needs as much."""
        copies = list(inputs)
        for i in written:
            copies[i] = copies[i].clone() if copies[i] is args[i] else copies[i]
        results = [*[copies[i] for i in written], *run(copies)]
        if large:
            memory.trim()
        return results

    def plainly(inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            return plain(*inputs)

    def distances(others: Sequence[Tensor]) -> list[float]:
        return [distance(e, o) for e, o in zip(expected, others, strict=True)]

    if large:
        memory.give_back()  # the compiler's
    expected = after(plainly, args)
    off = distances(after(compiled, args))  # one copy of State beside `expected` at a time
    changed = [_largest(e, b) for e, b in zip(expected, before, strict=False)]
    changed += [_largest(e) for e in expected[len(before) :]]
    limits = [close * c + _rounding(e) for e, c in zip(expected, changed, strict=True)]
    if agree(_within(off, limits)):
        return
    for k in range(_TRIES):
        moves = distances(after(plainly, [_nudged(t, nudge, k) for t in args]))
        limits = [max(limit, _TIMES * move) for limit, move in zip(limits, moves, strict=True)]
    if not agree(_within(off, limits)):
        worst = max(range(len(off)), key=lambda i: off[i] - limits[i])
        error = f"a tensor of shape {tuple(expected[worst].shape)} is off by {off[worst]:.3g}"
        raise CaptureError(f"its results are not those of the plain functions: {error}")


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors; infinite if their shapes differ, or a value is finite in only one."""
    if a.shape != b.shape or not a.numel():
        return 0.0 if a.shape == b.shape else float("inf")
    return max(_gap(_numbers(x), _numbers(y)) for x, y in _pieces(a, b))


def _gap(x: Tensor, y: Tensor) -> float:
    same = (x == y) | (x.isnan() & y.isnan())
    gap = torch.where(same, 0.0, (x - y).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(gap.max())


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, some elements at a time."""
    return zip(*(torch.split(t.reshape(-1), _PIECE) for t in tensors), strict=True)


def _within(off: Sequence[float], limits: Sequence[float]) -> bool:
    return all(o <= limit for o, limit in zip(off, limits, strict=True))


def _numbers(t: Tensor) -> Tensor:
    """As float64; a complex number becomes two."""
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double()


def _largest(t: Tensor, less: Tensor | None = None) -> float:
    """The largest finite magnitude, of a tensor or of its difference from another one."""
    pieces = _pieces(t) if less is None else _pieces(t, less)
    numbers = (_numbers(x) - _numbers(y[0]) if y else _numbers(x) for x, *y in pieces if x.numel())
    return max((float(n.abs().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).max()) for n in numbers), default=0.0)


def _inexact(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _rounding(t: Tensor) -> float:
    """Some units in the last place, and the smallest normal number: a program may flush subnormal ones to 0."""
    return 8 * torch.finfo(t.dtype).eps * _largest(t) + torch.finfo(t.dtype).tiny if _inexact(t) else 0.0


def _nudged(t: Tensor, size: float, seed: int) -> Tensor:
    """A tensor with random relative perturbations."""
    if not _inexact(t) or t.ndim == 0:
        return t
    noise = torch.randn(t.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return t * (1 + size * noise.to(t.device)).to(t.dtype)
