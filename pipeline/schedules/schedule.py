"""Schedule: a base value and a factor for each step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from pipeline.errors import ConfigError, StateError
from pipeline.html import escape
from pipeline.schedules.lengths import Length, fill


@frozen(eq=False, repr=False)
class Schedule:
    """`base * factor(step, **numbers)`, or `base * factor(step, memory=..., **numbers)` with a memory."""

    base: float
    factor: Callable[..., Any]
    numbers: Mapping[str, float]
    """Kept in State beside the base; `init` fills in a Length."""
    memory: Mapping[str, float] = field(factory=dict, kw_only=True)
    """Initial memory of metrics: int becomes int64, float becomes float64."""
    observe: Callable[..., dict[str, Tensor]] | None = field(default=None, kw_only=True)
    """`observe(memory, metrics, **numbers)` returns the memory after an epoch with these metrics."""
    watches: tuple[str, ...] = field(default=(), kw_only=True)
    """Metrics that `observe` reads."""

    def __repr__(self) -> str:
        """As `Schedule(cosine of 0.1, warmup=0, floor=0)`, without lengths that are unknown until a run."""
        ours = getattr(self.factor, "__module__", "").startswith("pipeline.")
        name = getattr(self.factor, "__qualname__", "").split(".")[0 if ours else -1].strip("_")
        known = [f"{k}={v:g}" for k, v in self.numbers.items() if not math.isnan(v)]
        of = f"{name if name.isidentifier() else 'factor'} of {self.base:g}"
        return f"Schedule({', '.join([of, *known])})"

    def _repr_html_(self) -> str:
        """Its curve, over a run of ten epochs."""
        from pipeline.plot import svg
        from pipeline.schedules.picture import plot

        return f"<p>{escape(repr(self))}: 1,000 steps, 100 an epoch</p>{svg(plot(self, 1_000, batches=100))}"

    def at(self, step: int, steps: int | None = None, batches: int | None = None) -> float:
        """The value at one step, without observations.

        `steps` is the run's length and `batches` an epoch's, for schedules that need them.

        >>> from pipeline import schedules
        >>> [round(schedules.cosine(0.1, steps=4).at(s), 4) for s in range(5)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0]
        """
        return float(self.values(torch.tensor([step]), steps, batches))

    def values(self, at: Tensor, steps: int | None = None, batches: int | None = None) -> Tensor:
        """Values at many steps: (N,) int64 -> (N,) float64."""
        numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.filled(steps, batches).items()}
        base, memory = torch.tensor(self.base, dtype=torch.float64), self.first()
        return torch.vmap(lambda step: base * self.apply(step, numbers, memory))(at)  # type: ignore[no-any-return]  # vmap has no types

    def apply(self, step: Tensor, numbers: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Any:
        """The factor at a step, from numbers and memory as tensors."""
        return self.factor(step, **({"memory": memory} if self.memory else {}), **numbers)

    def first(self) -> dict[str, Tensor]:
        """The initial memory."""
        kinds = {int: torch.int64, float: torch.float64}
        return {k: torch.tensor(v, dtype=kinds[type(v)]) for k, v in self.memory.items()}

    def filled(self, steps: int | None, batches: int | None, name: str = "") -> dict[str, float]:
        """The numbers, with the lengths of the run and of an epoch filled in. Raises StateError if one is missing."""
        which = f"the schedule of {name}" if name else "the schedule"
        run = partial(_known, steps, f"{which} needs the run's length: pass steps= to it, or init(steps=...)")
        epoch = partial(
            _known,
            batches,
            f"{which} needs an epoch's number of batches, which the data does not tell: pass it steps in place of "
            "epochs",
        )
        filled = {k: fill(v, run, epoch) for k, v in self.numbers.items()}
        for k, v in filled.items():
            if math.isnan(v):
                raise StateError(f"{which} has {k}=nan; for the length of the run, write schedules.RUN")
        return filled


def _known(length: int | None, otherwise: str) -> float:
    if length is None:
        raise StateError(otherwise)
    return float(length)


def schedule(base: float, factor: Callable[..., Any]) -> Schedule:
    """Make a schedule: `factor(step, name=default, ...)` returns the factor; State keeps the defaults as numbers.

    >>> halve = schedule(0.1, lambda step, every=10.0: 0.5 ** (step // every))
    >>> halve.at(0), halve.at(10)
    (0.1, 0.05)
    """
    numbers = {n: number(n, p.default) for n, p in inspect.signature(factor).parameters.items() if n != "step"}
    return Schedule(base, factor, numbers)


def number(name: str, value: Any) -> float:
    """A schedule's number as a float; a Length as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"a schedule's {name}={value!r} is not a number")
    return value if isinstance(value, Length) else float(value)


def at_least(low: float, above: bool = False, **numbers: float) -> None:
    """Raise ConfigError for numbers below a bound; an unknown Length passes."""
    for name, value in numbers.items():
        if not isinstance(number(name, value), Length) and not (value > low if above else value >= low):
            raise ConfigError(f"a schedule's {name}={value} is not {'above' if above else 'at least'} {low}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError for an unknown choice."""
    if value not in known:
        raise ConfigError(f"a schedule's {name}={value!r} is unknown; known: {', '.join(known)}")
