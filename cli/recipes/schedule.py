"""Schedules of the learning rate by name: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cli.recipes.setting import at_least, one_of, refusal, setting

if TYPE_CHECKING:
    from pipeline.schedules import Schedule


@frozen
class Shape:
    """A schedule that the command knows."""

    help: str
    home: str = ""
    """Its function, `module:function`, called as f(lr, **options(steps))."""
    options: Callable[[float], Mapping[str, Any]] = lambda steps: {"steps": steps}
    """Its other arguments in a run of so many steps."""


SCHEDULES: dict[str, Shape] = {
    "auto": Shape(
        "cosine; coslog4 for realmlp; trapezoid for transformer; polynomial for resnet; constant for tabm and "
        "schedule-free-adamw"
    ),
    "constant": Shape(""),
    "cosine": Shape("down to 0", "pipeline.schedules:cosine"),
    "coslog4": Shape("4 cosines from 0 and back, each twice as long as the last", "pipeline.schedules:coslog"),
    "cosine-restarts": Shape(
        "3 cosines, each twice as long as the last", "pipeline.schedules:cosine_restarts",
        lambda steps: {"period": max(steps / 7, 1), "mult": 2},
    ),
    "exponential": Shape(
        "to 1/100", "pipeline.schedules:exponential", lambda steps: {"gamma": 0.01, "every": steps}
    ),
    "flat-cos": Shape("constant for a half, then a cosine down to 0", "pipeline.schedules:flat_cosine"),
    "linear": Shape(
        "up from 1/3 in the first tenth", "pipeline.schedules:linear", lambda steps: {"steps": max(steps / 10, 1)}
    ),
    "multi-step": Shape(
        "/10 at 1/2 and 3/4 of the run", "pipeline.schedules:multi_step",
        lambda steps: {"milestones": [steps / 2, 3 * steps / 4]},
    ),
    "one-cycle": Shape("up from 1/25 in the first 0.3, then down to 0", "pipeline.schedules:one_cycle"),
    "plateau": Shape(
        "halved after 3 epochs without a lower held-out loss", "pipeline.schedules:reduce_on_plateau",
        lambda steps: {"factor": 0.5, "patience": 3},
    ),
    "polynomial": Shape("a line down to 0", "pipeline.schedules:polynomial"),
    "step": Shape("/10 in each third", "pipeline.schedules:step", lambda steps: {"every": max(steps // 3, 1)}),
    "trapezoid": Shape(
        "constant, then a line down to 0 over the last 0.6", "pipeline.schedules:warmup_stable_decay",
        lambda steps: {"steps": steps, "warmup": 0, "decay": 0.6},
    ),
    "wsd": Shape(
        "up from 0 in the first 0.05 or in the --warmup, down to 0 in the last 0.2",
        "pipeline.schedules:warmup_stable_decay", lambda steps: {"steps": steps, "warmup": 0.05},
    ),
}  # fmt: skip


def _warmup(_: object, attribute: object, value: float) -> None:
    if value >= 1 and value % 1:
        raise refusal(f"--warmup {value} is neither a share of the run, below 1, nor a whole number of steps")


@frozen
class Course:
    """The learning rate over a run."""

    name: str = setting(
        "auto",
        "of the learning rate: " + "; ".join(f"{n} ({s.help})" if s.help else n for n, s in SCHEDULES.items()),
    )
    warmup: float = setting(
        0.0,
        "linear warm-up from 0 before the schedule: a share of the run if below 1, else steps",
        at_least(0),
        _warmup,
    )
    regularization: str = setting(
        "constant",
        "of weight decay, and of realmlp's dropout, over the run: constant or flat-cos",
        one_of(("constant", "flat-cos")),
    )

    def fading(self, value: float, steps: int) -> Schedule | float:
        """Weight decay or dropout over a run of so many steps."""
        return _shaped(self.regularization, value, steps)

    def learning_rate(self, lr: float, steps: int, *, free: bool = False) -> Schedule | float:
        """The schedule of a run of so many steps, after its warmup; `free`: the rule needs none."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)
        if warmup and warmup >= steps:
            raise refusal(f"--warmup {self.warmup:g} is no shorter than the run, which has {steps:,} steps")
        rate = self._after_warmup(lr, steps - warmup, free)
        if not warmup and self.name != "plateau":
            return rate
        from pipeline import schedules

        # A plateau always has a warmup, perhaps of 0 steps, so that State has the same names if a resumed run adds one.
        return schedules.warmup(rate, steps=warmup)

    def _after_warmup(self, lr: float, steps: int, free: bool) -> Schedule | float:
        name = self.name if self.name != "auto" else "constant" if free else "cosine"
        return _shaped(name, lr, steps, **({"warmup": 0} if self.warmup else {}))  # one is enough


def _shaped(name: str, base: float, steps: int, **others: float) -> Schedule | float:
    """A schedule by name; `others` override its options."""
    if name == "constant" or not steps:
        return base
    options = {**SCHEDULES[name].options(steps)}
    shaped: Schedule = resolve_name(SCHEDULES[name].home)(
        base, **options | {k: others[k] for k in others if k in options}
    )
    return shaped
