"""A model: its settings, and its sizes, determined by the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from attrs import frozen

from cli.recipes.setting import DEEP, at_least, refusal, setting

if TYPE_CHECKING:
    from torch import nn

    from cli.config import TrainConfig
    from pipeline.sources import Prepared, Task


@frozen(eq=False)
class Fixed:
    """A model's sizes, determined by the data."""

    source: str
    """The data, as the user named them."""
    inputs: tuple[int, ...]
    """The shape of one sample's inputs."""
    floats: bool
    """Whether they are floats, not ids."""
    outputs: int
    """Outputs of a sample, or of a token of it."""
    task: Task
    sizes: Mapping[str, Any]
    """`vocabulary`, or `categories`, if the data have them."""
    values: tuple[str, ...]
    """Names of a batch's values."""

    @property
    def names(self) -> dict[str, Any]:
        """Values that a user's own function gets by parameter name."""
        one = self.inputs[0] if len(self.inputs) == 1 else self.inputs
        names = {"inputs": one, "features": prod(self.inputs), "outputs": self.outputs, **self.sizes}
        if len(self.inputs) == 3 and self.floats:
            names["channels"] = self.inputs[0]
        if self.task == "classification":
            names["classes"] = self.outputs
        return names

    @property
    def instead(self) -> str:
        """Models that take these data."""
        if self.task == "language modelling":
            return "transformer"
        if not self.floats:
            return "lstm or gru"
        return {3: "mlp or convnet", 2: "lstm or mlp", 1: "table or mlp"}.get(len(self.inputs), "mlp")

    def need_floats(self, model: str) -> None:
        """Raise ConfigError if inputs are ids."""
        if not self.floats:
            raise refusal(
                f"model {model!r} takes inputs of floats, but {self.source} has token ids or other whole numbers; "
                f"use --model {self.instead}, or convert them"
            )

    def need(self, model: str, ndim: int) -> None:
        """Raise ConfigError unless inputs are a table's columns (`ndim` 1) or images (3)."""
        self.need_floats(model)
        if len(self.inputs) != ndim:
            what = "images (channels, height, width)" if ndim == 3 else "the columns of a table"
            raise refusal(
                f"model {model!r} takes {what}, but {self.source} has inputs of shape {self.inputs}; "
                f"use --model {self.instead}"
            )


Made: TypeAlias = tuple[Callable[[], "nn.Module"], str, Any]
"""A function that makes the module, its description, and the values of a batch that it is called on."""


@frozen
class Model:
    """A model by name."""

    prefers: ClassVar[Mapping[str, Any]] = {}
    """Settings of the optimizer, if none is chosen."""
    picks: ClassVar[bool] = False
    """Whether it stands for another model, by the data."""
    members: ClassVar[bool] = False
    """Whether its outputs in training are of several members, (B, M, ...)."""
    whole_batches: ClassVar[bool] = False
    """Whether an epoch leaves out a shorter last batch, if it has others."""

    name: str = setting("mlp", "", fixed=True)

    @property
    def title(self) -> str:
        """Its share of a run's name."""
        return self.name

    @staticmethod
    def imply(values: dict[str, dict[str, Any]], data: type) -> None:
        """Set what the model chooses of other tables, if it is not given; `data` is the recipe of the data."""

    def make(self, fixed: Fixed) -> Made:
        """The model for some data. Raises ConfigError if it does not fit them."""
        raise NotImplementedError

    def fit(self, fixed: Fixed, data: Prepared) -> Made:
        """As `make`, with first values fitted to the training samples. A run that is restored needs none."""
        return self.make(fixed)

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        """Settings of any table that are the model's choice for so many training samples, by full name."""
        return {}

    @property
    def factors(self) -> Mapping[str, Mapping[str, float]]:
        """Number of the optimizer -> pattern of parameters -> factor of that number."""
        return {}

    @property
    def numbers(self) -> Mapping[str, float]:
        """Numbers that the module takes in training by argument, scheduled as `regularization` says."""
        return {}


def text_depth() -> Any:
    """The setting of a model of columns."""
    help = "blocks of a transformer over a text, so that the order of its words counts  [default: 0: their mean]"
    return setting(0, help, at_least(0, most=DEEP), fixed=True)


def counted(categories: Sequence[Any]) -> str:
    """`3 categories and 1 text`, by their sizes."""
    texts = sum(not isinstance(size, int) for size in categories)
    counts = {"categories": len(categories) - texts, "text" if texts == 1 else "texts": texts}
    return " and ".join(f"{count} {word}" for word, count in counts.items() if count)


def dashes(*numbers: int) -> str:
    return "-".join(map(str, numbers))
