"""Rule: the update rules by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from cli.recipes.setting import at_least, refusal, setting

if TYPE_CHECKING:
    from pipeline.schedules import Schedule
    from pipeline.stage import Stage

Rate: TypeAlias = Callable[[float], "Schedule | float"]
"""From a base to what a rule takes."""
OPTIMIZERS = {
    "sgd": 0.3,
    "asgd": 0.3,
    "adam": 0.003,
    "adamw": 0.003,
    "adamax": 0.01,
    "nadam": 0.003,
    "radam": 0.01,
    "adadelta": 1.0,
    "adafactor": 0.03,
    "adagrad": 0.03,
    "lamb": 0.01,
    "lion": 0.001,
    "muon": 0.05,  # of its matrices; by default, what is left to adamw has REST
    "rmsprop": 0.003,
    "rprop": 0.001,
    "schedule-free-adamw": 0.01,
}
"""Optimizer -> the learning rate that it gets where none is given."""
REST = 0.02
"""The learning rate of what muon leaves to adamw."""
MOMENTA = {"sgd": 0.9, "rmsprop": 0.0}
"""Optimizer -> the momentum that it gets where none is given; with 0, it remembers none."""


@frozen
class Rule:
    """How parameters change."""

    name: str = setting(
        "sgd",
        ", ".join(OPTIMIZERS) + "  [default: adamw for transformer, lstm, gru, huggingface, else sgd]",
        fixed=True,
    )
    lr: float | None = setting(
        None,
        "learning rate  [default: 0.3 for sgd, 0.1 for tables; 0.003 for adam, adamw; 0.05 for muon; others their own]",
        at_least(0, True),
    )
    rest_lr: float | None = setting(
        None, "learning rate of what muon leaves to adamw: embeddings, the last layer, vectors  [default: 0.02]",
        at_least(0, True),
    )  # fmt: skip
    momentum: float | None = setting(None, "of sgd and rmsprop  [default: 0.9 for sgd]", at_least(0))
    weight_decay: float | None = setting(None, "[default: 0; 0.01 for adamw and lamb, 0.1 for muon]", at_least(0))
    no_decay: str | None = setting(
        None, 'parameters without weight decay, by patterns of their names: "*.bias,*norm*"', fixed=True
    )

    def __attrs_post_init__(self) -> None:
        if self.momentum is not None and self.name not in MOMENTA:
            raise refusal(f"--momentum belongs to --optimizer sgd or rmsprop, not to {self.name}; leave it out")
        if self.rest_lr is not None and self.name != "muon":
            raise refusal(f"--rest-lr belongs to --optimizer muon, not to {self.name}; leave it out")
        if self.name == "rprop" and (self.weight_decay is not None or self.no_decay is not None):
            raise refusal("--optimizer rprop has no weight decay; leave out --weight-decay and --no-decay")

    @property
    def own_momentum(self) -> float | None:
        """The momentum that the optimizer gets; None where it has none."""
        return MOMENTA.get(self.name) if self.momentum is None else self.momentum

    @property
    def base(self) -> float:
        """The learning rate that a schedule multiplies."""
        return self.lr or OPTIMIZERS[self.name]

    def stage(self, rate: Rate, inside: Collection[str]) -> Stage:
        """The update, with learning rates by their schedule; `inside` names the matrices inside the network."""
        from pipeline import update

        options = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        made = self._rule(rate, inside, options)
        if self.no_decay is None:
            return made
        if not any(value for name, value in made.hyper.items() if name.endswith("weight_decay")):
            raise refusal(f"--no-decay has nothing to leave out: {self.name} has no --weight-decay here; give one")
        return update.groups({self.no_decay: self._rule(rate, inside, {"weight_decay": 0.0})}, otherwise=made)

    def _rule(self, rate: Rate, inside: Collection[str], options: dict[str, Any]) -> Stage:
        from pipeline import update

        lr = rate(self.base)
        if self.name == "muon":
            if not inside:
                raise refusal("--optimizer muon has no matrix between this model's inputs and outputs; use adamw")
            rest = update.adamw(rate(self.rest_lr or REST), **options)
            return update.muon(lr, matrices=lambda name, _: name in inside, rest=rest, **options)
        if self.own_momentum is not None:
            options = {**options, "momentum": self.own_momentum}
        made: Stage = getattr(update, self.name.replace("-", "_"))(lr, **options)
        return made
