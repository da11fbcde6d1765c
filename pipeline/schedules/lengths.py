"""Lengths: numbers of steps that are not known before the run is, written as multiples of RUN and EPOCH."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Known: TypeAlias = Callable[[], float]
"""Gives the length of the run or of an epoch, or raises where nobody knows it: asked only where it is needed."""


class Length(float):
    """A whole number of steps that `fit` (or `init(steps=...)`) fills in, and NaN until then.

    Lengths are added, subtracted and multiplied by numbers: `5 * EPOCH`, `0.1 * RUN`, `RUN - 100`.
    """

    of: Callable[[Known, Known], float]
    """From the lengths of the run and of an epoch, this one."""

    def __new__(cls, of: Callable[[Known, Known], float]) -> Length:
        """NaN, which knows what it will be."""
        made = super().__new__(cls, math.nan)
        made.of = of
        return made

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

    __radd__, __rmul__ = __add__, __mul__


RUN = Length(lambda run, epoch: run())
"""In place of a number of steps: the length of the whole run; in a part of another schedule, that of the part."""

EPOCH = Length(lambda run, epoch: epoch())
"""In place of a number of steps: the number of batches of an epoch."""


def fill(number: float, run: Known, epoch: Known) -> float:
    """A number, or a length once it is known."""
    return number.of(run, epoch) if isinstance(number, Length) else float(number)


def within(number: float, length: float) -> float:
    """The same number in a part of the run: there, RUN means this length, of at least a step."""
    if not isinstance(number, Length):
        return number
    return Length(lambda run, epoch: number.of(lambda: max(fill(length, run, epoch), 1.0), epoch))


def share(number: float, length: float) -> float:
    """A number below 1 as that share of a length, to whole steps; any other as it is.

    >>> share(0.1, 77), share(5, 77)
    (8.0, 5)
    """
    if isinstance(number, Length) or not 0 < number < 1:
        return number
    return number * length if isinstance(length, Length) else float(round(number * length))
