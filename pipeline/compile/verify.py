"""Check: a newly built program is run once on copies, beside the plain functions, before it is used.

Compilers have silently dropped writes and reordered reads here; what a test can't foresee is seen on the user's own
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.errors import CaptureError

_CLOSE, _CLOSE_LOW = 1e-3, 5e-2
"""How far a tensor may be off, relative to the largest change of it: in float32 and float64, and below."""
_NUDGE, _NUDGE_LOW = 1e-6, 1e-2
"""The relative size of a change of the inputs that rounding might make in the middle of a step."""
_TRIES, _TIMES = 3, 10.0
"""What is further off may be no further than so many times what such changes, tried so often, move it."""


class Runnable(Protocol):
    """Anything that does a step on the tensors it is given, in place, and returns more."""

    def __call__(self, args: Sequence[Tensor]) -> Sequence[Tensor]: ...


def check(
    built: Runnable, plain: Callable[..., Any], args: Sequence[Tensor], written: Sequence[int], low: bool,
    agree: Callable[[bool], bool] = bool,
) -> None:  # fmt: skip
    """Raise CaptureError where `built` and `plain` differ by more than rounding, on copies of what they write into.

    `written` are the places of the arguments that they write into, `low` says whether they compute in less than
    float32. Where the two talk with other processes, all go on alike: `agree` says whether something is so for all.
    """
    close, nudge = (_CLOSE_LOW, _NUDGE_LOW) if low else (_CLOSE, _NUDGE)
    before = [args[i] for i in written]

    def after(run: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor]) -> list[Tensor]:
        own = list(inputs)
        for i in written:
            own[i] = own[i].clone()
        made = run(own)
        return [*[own[i] for i in written], *made]

    def plainly(inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            return plain(*inputs)

    expected = after(plainly, args)
    got = after(built, args)
    off = [distance(e, g) for e, g in zip(expected, got, strict=True)]
    changed = [_largest(_numbers(e) - _numbers(b)) for e, b in zip(expected, before, strict=False)]
    changed += [_largest(e) for e in expected[len(before) :]]
    limits = [close * c + _rounding(e) for e, c in zip(expected, changed, strict=True)]
    if agree(_within(off, limits)):
        return
    for k in range(_TRIES):
        moved = after(plainly, [_nudged(t, nudge, k) for t in args])
        moves = [distance(e, m) for e, m in zip(expected, moved, strict=True)]
        limits = [max(limit, _TIMES * move) for limit, move in zip(limits, moves, strict=True)]
    if not agree(_within(off, limits)):
        worst = max(range(len(off)), key=lambda i: off[i] - limits[i])
        one = f"a tensor of shape {tuple(expected[worst].shape)} is off by {off[worst]:.3g}"
        raise CaptureError(f"its results are not those of the plain functions: {one}")


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of one shape; what is not finite in one alone is infinitely far."""
    if a.shape != b.shape or not a.numel():
        return 0.0 if a.shape == b.shape else float("inf")
    x, y = _numbers(a), _numbers(b)
    same = (x == y) | (x.isnan() & y.isnan())
    gap = torch.where(same, 0.0, (x - y).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(gap.max())


def _within(off: Sequence[float], limits: Sequence[float]) -> bool:
    return all(o <= limit for o, limit in zip(off, limits, strict=True))


def _numbers(t: Tensor) -> Tensor:
    """As float64; a complex number is two."""
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double()


def _largest(t: Tensor) -> float:
    """The largest size of what is finite."""
    return float(_numbers(t).abs().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).max()) if t.numel() else 0.0


def _inexact(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _rounding(t: Tensor) -> float:
    """How far rounding moves a tensor, and the smallest normal number: a program may take what is below it as 0."""
    return 8 * torch.finfo(t.dtype).eps * _largest(t) + torch.finfo(t.dtype).tiny if _inexact(t) else 0.0


def _nudged(t: Tensor, size: float, seed: int) -> Tensor:
    """A tensor of numbers, each changed a little."""
    if not _inexact(t) or t.ndim == 0:
        return t
    noise = torch.randn(t.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return t * (1 + size * noise.to(t.device)).to(t.dtype)
