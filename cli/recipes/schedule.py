"""Schedule: the courses of the learning rate by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen

from cli.recipes.setting import at_least, refusal, setting

if TYPE_CHECKING:
    from pipeline.schedules import Schedule

SCHEDULES = {
    "auto": "cosine; constant for schedule-free-adamw",
    "constant": "",
    "cosine": "down to 0",
    "cosine-restarts": "3 cosines, each twice as long as the last",
    "exponential": "to 1/100",
    "linear": "up from 1/3 in the first tenth",
    "multi-step": "/10 at 1/2 and 3/4 of the run",
    "one-cycle": "up from 1/25 in the first 0.3, then down to 0",
    "plateau": "halved after 3 epochs without a lower held-out loss",
    "polynomial": "a line down to 0",
    "step": "/10 in each third",
    "wsd": "up from 0 in the first 0.05 or in the --warmup, down to 0 in the last 0.2",
}
"""Schedule -> what it does to the learning rate in a run."""


def _warmup(_: object, attribute: object, value: float) -> None:
    if value >= 1 and value % 1:
        raise refusal(f"--warmup {value} is neither a share of the run, below 1, nor a whole number of steps")


@frozen
class Course:
    """How the learning rate goes over a run."""

    name: str = setting(
        "auto",
        "of the learning rate: " + "; ".join(f"{name} ({what})" if what else name for name, what in SCHEDULES.items()),
    )
    warmup: float = setting(
        0.0, "in front of any schedule, up from 0: a share of the run where below 1, else steps", at_least(0), _warmup
    )

    def learning_rate(self, lr: float, steps: int, *, free: bool = False) -> Schedule | float:
        """The schedule of a run of so many steps, behind its warm-up; `free`: the rule needs none."""
        from pipeline import schedules

        warmup = round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)
        if warmup and warmup >= steps:
            raise refusal(f"--warmup {self.warmup:g} is no shorter than the run, which has {steps:,} steps")
        made = self._course(lr, steps - warmup, free)
        # A plateau has one in any case, of 0 steps: so State has the same names where a run goes on with another.
        return schedules.warmup(made, steps=warmup) if warmup or self.name == "plateau" else made

    def _course(self, lr: float, steps: int, free: bool) -> Schedule | float:
        from pipeline import schedules

        made: dict[str, Callable[[], Schedule | float]] = {
            "auto": lambda: lr if free else schedules.cosine(lr, steps=steps),
            "constant": lambda: lr,
            "cosine": lambda: schedules.cosine(lr, steps=steps),
            "cosine-restarts": lambda: schedules.cosine_restarts(lr, period=max(steps / 7, 1), mult=2),
            "exponential": lambda: schedules.exponential(lr, gamma=0.01, every=steps),
            "linear": lambda: schedules.linear(lr, steps=max(steps / 10, 1)),
            "multi-step": lambda: schedules.multi_step(lr, [steps / 2, 3 * steps / 4]),
            "one-cycle": lambda: schedules.one_cycle(lr, steps=steps),
            "plateau": lambda: schedules.reduce_on_plateau(lr, factor=0.5, patience=3),
            "polynomial": lambda: schedules.polynomial(lr, steps=steps),
            "step": lambda: schedules.step(lr, every=max(steps // 3, 1)),
            "wsd": lambda: schedules.warmup_stable_decay(lr, steps=steps, warmup=0 if self.warmup else 0.05),
        }
        return made[self.name]()
