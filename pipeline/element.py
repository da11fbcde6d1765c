"""Element: a named member of a pipeline, with its wiring and hyperparameters."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Self, SupportsIndex

from attrs import evolve, field, frozen

from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.tree import Tree

Number = int | float | Schedule

OF_A_STEP = ("hyper", "before")
"""Names given in the train step alone."""
GIVEN = ("step", "seed", "training", *OF_A_STEP)


def is_count(value: object) -> bool:
    """Whether a value is a positive whole number."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and operator.index(value) > 0


def counts(where: str, **values: object) -> None:
    """Raise ConfigError unless each is a positive whole number."""
    for name, value in values.items():
        if not is_count(value):
            raise ConfigError(f"{where}{name}={value!r} is not a positive whole number")


def is_number(value: object) -> bool:
    """Whether a value is a hyperparameter."""
    return isinstance(value, int | float | Schedule) and not isinstance(value, bool)


@frozen(eq=False, repr=False)
class Element:
    """An element of a Pipeline, with its wiring: a Stage, or Load or Place, which work before the step."""

    name: str
    writes: tuple[str, ...] = field(default=(), kw_only=True)
    init: Callable[..., Tree] | None = field(default=None, kw_only=True)
    """Makes the first memory from values in State, which it reads by its parameter names."""
    create: Callable[[int, Callable[[], Mapping[str, Any]], Mapping[str, Tree]], dict[str, Tree]] | None = field(
        default=None, kw_only=True
    )
    """Makes the values that this element brings into State, named by `keeps`, from the seed, a function that gives
    example values of earlier stages on the host, and the values that State has so far."""
    keeps: tuple[str, ...] = field(default=(), kw_only=True)
    finish: Callable[[Tree], dict[str, Any]] | None = field(default=None, kw_only=True)
    """Makes a stage a metric: its function returns sums, memory adds them up, and this divides at the end."""
    hyper: Mapping[str, Number] = field(factory=dict, kw_only=True)
    reads: tuple[str, ...] = field(default=(), init=False)
    optional: tuple[str, ...] = field(default=(), init=False)

    @property
    def values_read(self) -> tuple[str, ...]:
        """Names read from earlier stages, the batch and State, without names that the pipeline gives to all."""
        return tuple(name for name in self.reads if name not in GIVEN)

    @property
    def values_written(self) -> tuple[str, ...]:
        return self.writes

    @property
    def remembers(self) -> bool:
        return self.init is not None

    def __repr__(self) -> str:
        """Name, wiring and hyperparameters.

        >>> from pipeline import stage
        >>> stage(writes="loss")(lambda outputs, scale=2.0: scale * outputs.mean()).named("mean")
        mean(outputs -> loss, scale=2.0)
        """
        wiring = " -> ".join(filter(None, (", ".join(self.values_read), ", ".join(self.values_written))))
        numbers = [f"{name}={v if isinstance(v, int | float) else 'scheduled'}" for name, v in self.hyper.items()]
        return f"{self.name}({', '.join(filter(None, (wiring, *numbers)))})"

    def named(self, name: str) -> Self:
        """The same under another name; no two stages of a pipeline have one name."""
        return evolve(self, name=name)
