"""Rule: the update rules by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from cli.recipes.setting import at_least, refusal, setting

if TYPE_CHECKING:
    from pipeline.schedules import Schedule
    from pipeline.stage import Stage

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
    "muon": 0.02,
    "rmsprop": 0.003,
    "rprop": 0.001,
    "schedule-free-adamw": 0.01,
}
"""Optimizer -> the learning rate that it gets where none is given."""
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
        "learning rate  [default: 0.3 for sgd, 0.1 for tables; 0.003 for adam and adamw; others their own]",
        at_least(0, True),
    )
    momentum: float | None = setting(None, "of sgd and rmsprop  [default: 0.9 for sgd]", at_least(0))
    weight_decay: float | None = setting(None, "[default: 0; 0.01 for adamw and lamb, 0.1 for muon]", at_least(0))
    no_decay: str | None = setting(
        None, 'parameters without weight decay, by patterns of their names: "*.bias,*norm*"', fixed=True
    )

    def __attrs_post_init__(self) -> None:
        if self.momentum is not None and self.name not in MOMENTA:
            raise refusal(f"--momentum belongs to --optimizer sgd or rmsprop, not to {self.name}; leave it out")
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

    def stage(self, lr: Schedule | float) -> Stage:
        """The update, with a learning rate."""
        from pipeline import update

        options = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        made = self._rule(lr, options)
        if self.no_decay is None:
            return made
        if not any(value for name, value in made.hyper.items() if name.endswith("weight_decay")):
            raise refusal(f"--no-decay has nothing to leave out: {self.name} has no --weight-decay here; give one")
        return update.groups({self.no_decay: self._rule(lr, {"weight_decay": 0.0})}, otherwise=made)

    def _rule(self, lr: Schedule | float, options: dict[str, Any]) -> Stage:
        from pipeline import update

        if self.name == "muon":  # so that one learning rate is for both of its rules
            return update.muon(lr, adjust_lr_fn="match_rms_adamw", rest=update.adamw(lr, **options), **options)
        if self.own_momentum is not None:
            options = {**options, "momentum": self.own_momentum}
        made: Stage = getattr(update, self.name.replace("-", "_"))(lr, **options)
        return made
