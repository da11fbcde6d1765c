"""Update rules by name: one line each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from cli.recipes.setting import at_least, below_one, flag, refusal, setting

if TYPE_CHECKING:
    from pipeline.schedules import Schedule
    from pipeline.stage import Stage

Rate: TypeAlias = Callable[[float], "Schedule | float"]
"""Base learning rate -> learning rate of a rule."""
NUMBERS = ("lr", "rest_lr", "momentum", "weight_decay", "beta2", "nesterov")
"""Settings that suit one rule alone."""


@frozen
class Optimizer:
    """An update rule that the command knows."""

    home: str
    """Its function, `module:function`, called as f(lr), with weight_decay= and momentum= if it has them."""
    lr: float
    """The default learning rate."""
    momentum: float | None = None
    """The default momentum, of a rule that has one; at 0 it keeps no memory."""
    decays: bool = True
    """Whether it has weight decay."""
    betas: bool = False
    """Whether it, or muon's adamw, takes `betas`."""
    schedule_free: bool = False
    """Whether its learning rate needs no schedule."""


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer("pipeline.update:sgd", 0.3, momentum=0.9),
    "asgd": Optimizer("pipeline.update:asgd", 0.3),
    "adam": Optimizer("pipeline.update:adam", 0.003, betas=True),
    "adamw": Optimizer("pipeline.update:adamw", 0.003, betas=True),
    "adamax": Optimizer("pipeline.update:adamax", 0.01),
    "nadam": Optimizer("pipeline.update:nadam", 0.003),
    "radam": Optimizer("pipeline.update:radam", 0.01),
    "adadelta": Optimizer("pipeline.update:adadelta", 1.0),
    "adafactor": Optimizer("pipeline.update:adafactor", 0.03),
    "adagrad": Optimizer("pipeline.update:adagrad", 0.03),
    "lamb": Optimizer("pipeline.update:lamb", 0.01),
    "lion": Optimizer("pipeline.update:lion", 0.001),
    "muon": Optimizer("pipeline.update:muon", 0.05, betas=True),  # for its matrices; REST is for all other parameters
    "rmsprop": Optimizer("pipeline.update:rmsprop", 0.003, momentum=0.0),
    "rprop": Optimizer("pipeline.update:rprop", 0.001, decays=False),
    "schedule-free-adamw": Optimizer("pipeline.update:schedule_free_adamw", 0.01, schedule_free=True),
}
BETA2 = 0.999
REST = 0.02
"""The default learning rate of the parameters that muon leaves to adamw."""


@frozen
class Rule:
    """The update of the parameters."""

    name: str = setting(
        "sgd",
        ", ".join(OPTIMIZERS) + "  [default: muon for transformer, and resnet from 16x16 on; adamw for realmlp, "
        "tabm, lstm, gru, huggingface; else sgd]",
        fixed=True,
    )
    lr: float | None = setting(
        None,
        "learning rate  [default: realmlp 0.04, of values 0.2; tabm 0.002; sgd 0.3, of tables 0.1; adam, adamw 0.003; "
        "muon 0.05, of transformer 0.02; others their own]",
        at_least(0, True),
    )
    rest_lr: float | None = setting(
        None, "learning rate for muon's other parameters: embeddings, the last layer, vectors  [default: 0.02; resnet "
        "0.01; transformer 0.01, less of a wider one]",
        at_least(0, True),
    )  # fmt: skip
    momentum: float | None = setting(None, "of sgd and rmsprop  [default: 0.9 for sgd, 0 for rmsprop]", at_least(0))
    weight_decay: float | None = setting(
        None, "[default: realmlp 0.02, tabm 0.0003; adamw, lamb 0.01; muon 0.1; else 0]", at_least(0)
    )
    nesterov: bool = setting(False, "Nesterov's momentum for sgd", fixed=True)
    beta2: float | None = setting(
        None, "of adam, adamw and muon's: decay of the mean squared gradient  [default: 0.999]", below_one
    )
    no_decay: str | None = setting(
        None, 'parameters without weight decay, by patterns of their names: "*.bias,*norm*"', fixed=True
    )

    def __attrs_post_init__(self) -> None:
        if self.momentum is not None and OPTIMIZERS[self.name].momentum is None:
            fitting = " or ".join(name for name, known in OPTIMIZERS.items() if known.momentum is not None)
            raise refusal(f"--momentum belongs to --optimizer {fitting}, not to {self.name}; leave it out")
        if self.beta2 is not None and not OPTIMIZERS[self.name].betas:
            raise refusal(
                f"{flag('beta2')} belongs to --optimizer adam, adamw or muon, not to {self.name}; leave it out"
            )
        if self.nesterov and (self.name != "sgd" or not self.own_momentum):
            raise refusal(f"{flag('nesterov')} belongs to --optimizer sgd with --momentum; leave it out")
        if self.rest_lr is not None and self.name != "muon":
            raise refusal(f"{flag('rest_lr')} belongs to --optimizer muon, not to {self.name}; leave it out")
        if not OPTIMIZERS[self.name].decays and (self.weight_decay is not None or self.no_decay is not None):
            raise refusal(f"--optimizer {self.name} has no weight decay; leave out --weight-decay and --no-decay")

    @property
    def own_momentum(self) -> float | None:
        """The momentum, chosen or default; None if the rule has none."""
        return OPTIMIZERS[self.name].momentum if self.momentum is None else self.momentum

    @property
    def base(self) -> float:
        """The learning rate that a schedule multiplies."""
        return self.lr or OPTIMIZERS[self.name].lr

    @property
    def numbers(self) -> dict[str, float | None]:
        """The learning rate and the momentum, chosen or default."""
        return {"lr": self.base, "momentum": self.own_momentum}

    @property
    def schedule_free(self) -> bool:
        return OPTIMIZERS[self.name].schedule_free

    def stage(
        self, rate: Rate, hidden: Collection[str], fading: Rate = lambda value: value,
        factors: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> Stage:  # fmt: skip
        """The update, with learning rates and weight decays by their schedules. `hidden` names the weight matrices of
        hidden layers; `factors` are a model's own: number -> pattern of parameters -> factor."""
        from pipeline import update

        def rule(options: dict[str, Any]) -> Stage:
            stage = self._rule(rate, hidden, options)
            own = {number: f for number, f in factors.items() if number in stage.hyper and self.name != "muon"}
            return update.scaled(stage, **own) if own else stage

        stage = rule({} if self.weight_decay is None else {"weight_decay": self.weight_decay})
        stage = stage.with_hyper(**{name: fading(value) for name, value in decays(stage).items()})
        if self.no_decay is None:
            return stage
        if not decays(stage):
            raise refusal(f"--no-decay has nothing to leave out: {self.name} has no --weight-decay here; give one")
        return update.groups({self.no_decay: rule({"weight_decay": 0.0})}, otherwise=stage)

    def _rule(self, rate: Rate, hidden: Collection[str], options: dict[str, Any]) -> Stage:
        if self.name == "muon":
            from pipeline import update

            if not hidden:
                raise refusal("--optimizer muon has no matrix between this model's inputs and outputs; use adamw")
            beta2 = BETA2 if self.beta2 is None else self.beta2
            rest = update.adamw(rate(self.rest_lr or REST), betas=(0.9, beta2), **options)
            return update.muon(rate(self.base), matrices=lambda name, _: name in hidden, rest=rest, **options)
        if self.own_momentum is not None:
            options = {**options, "momentum": self.own_momentum}
        if self.nesterov:
            options = {**options, "nesterov": True}
        if self.beta2 is not None:
            options = {**options, "betas": (0.9, self.beta2)}
        stage: Stage = resolve_name(OPTIMIZERS[self.name].home)(rate(self.base), **options)
        return stage


def decays(rule: Stage) -> dict[str, Any]:
    """The weight decays of a rule, by the names of its hyperparameters."""
    return {name: value for name, value in rule.hyper.items() if name.endswith("weight_decay") and value}
