"""Lengths: numbers of steps as multiples of RUN and EPOCH, which are unknown until a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from pipeline.errors import ConfigError

Known: TypeAlias = Callable[[], float]
"""Returns the length of the run or of an epoch, or raises; called only if it is needed."""


class Length(float):
    """A number of steps that `fit` (or `init(steps=...)`) fills in; NaN until then.

    Lengths support arithmetic: `5 * EPOCH`, `0.1 * RUN`, `RUN - 100`.
    """

    of: Callable[[Known, Known], float]
    """(length of the run, length of an epoch) -> this length."""

    def __new__(cls, of: Callable[[Known, Known], float]) -> Length:
        """NaN, with the function that fills it in."""
        length = super().__new__(cls, math.nan)
        length.of = of
        return length

    def __add__(self, other: float) -> Length:
        return Length(lambda run, epoch: self.of(run, epoch) + fill(other, run, epoch))

    def __mul__(self, by: float) -> Length:
        return Length(lambda run, epoch: float(round(self.of(run, epoch) * by)))

    def __truediv__(self, by: float) -> Length:
        return Length(lambda run, epoch: float(round(self.of(run, epoch) / by)))

    def __floordiv__(self, by: float) -> Length:
        return Length(lambda run, epoch: self.of(run, epoch) // by)

    def __neg__(self) -> Length:
        return self * -1

    def __sub__(self, other: float) -> Length:
        return self + -other

    def __rsub__(self, other: float) -> Length:
        return -self + other

    def _unknown(self, *_: Any) -> NoReturn:
        raise ConfigError(
            "RUN and EPOCH are unknown until a run starts: they can't be compared (by min), divided by or raised to "
            "a power; write multiples of them, or numbers of steps"
        )

    __radd__, __rmul__ = __add__, __mul__
    __lt__ = __le__ = __gt__ = __ge__ = __rtruediv__ = __rfloordiv__ = __mod__ = __rmod__ = _unknown
    __pow__ = __rpow__ = _unknown


RUN = Length(lambda run, epoch: run())
"""The length of the run, in steps; inside another schedule, the length of that segment."""

EPOCH = Length(lambda run, epoch: epoch())
"""The number of batches in an epoch."""


def fill(number: float, run: Known, epoch: Known) -> float:
    """A number; a Length is filled in."""
    return number.of(run, epoch) if isinstance(number, Length) else float(number)


def within(number: float, length: float) -> float:
    """A number inside a segment of the run: there, RUN means this length (at least 1)."""
    if not isinstance(number, Length):
        return number
    return Length(lambda run, epoch: number.of(lambda: max(fill(length, run, epoch), 1.0), epoch))


def share(number: float, length: float) -> float:
    """A number below 1 as a fraction of a length, rounded to steps; others unchanged.

    >>> share(0.1, 77), share(5, 77)
    (8.0, 5)
    """
    if isinstance(number, Length) or not 0 < number < 1:
        return number
    return number * length if isinstance(length, Length) else float(round(number * length))
