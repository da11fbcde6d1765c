"""What a model is made from: its settings, and what the data fixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from attrs import frozen

from cli.recipes.setting import refusal, setting

if TYPE_CHECKING:
    from torch import nn

    from pipeline.sources import Task


@frozen(eq=False)
class Fixed:
    """What the data fixes of a model."""

    source: str
    """The data, as the user named them."""
    inputs: tuple[int, ...]
    """The shape of one sample's inputs."""
    floats: bool
    """Whether they are numbers, not ids."""
    outputs: int
    """How many numbers the model gives for a sample, or for a token of it."""
    task: Task
    sizes: Mapping[str, Any]
    """As the data have them: `vocabulary`, or `categories`."""
    values: tuple[str, ...]
    """What a batch has."""

    @property
    def names(self) -> dict[str, Any]:
        """What a factory may ask for by name."""
        one = self.inputs[0] if len(self.inputs) == 1 else self.inputs
        found: dict[str, Any] = {
            "inputs": one,
            "features": prod(self.inputs),
            "outputs": self.outputs,
            **self.sizes,
        }
        if len(self.inputs) == 3 and self.floats:
            found["channels"] = self.inputs[0]
        if self.task == "classification":
            found["classes"] = self.outputs
        return found

    def need_floats(self, model: str) -> None:
        """Raise ConfigError where inputs are ids."""
        if not self.floats:
            raise refusal(
                f"model {model!r} takes inputs of floats, but {self.source} has token ids or other whole numbers; "
                "convert them, or use --model transformer or lstm"
            )

    def need_images(self, model: str) -> None:
        """Raise ConfigError where inputs are no images."""
        self.need_floats(model)
        if len(self.inputs) != 3:
            raise refusal(
                f"model {model!r} takes images (channels, height, width), but {self.source} has inputs of shape "
                f"{self.inputs}; use --model mlp"
            )


Made: TypeAlias = tuple[Callable[[], "nn.Module"], str, Any]
"""What makes the module, what it is in words, and which values of a batch it is called on."""


@frozen
class Model:
    """A model by name."""

    prefers: ClassVar[Mapping[str, Any]] = {}
    """Settings of the optimizer, where none is chosen."""

    name: str = setting("mlp", "", fixed=True)

    @property
    def title(self) -> str:
        """What a run is called by."""
        return self.name

    def make(self, fixed: Fixed) -> Made:
        """The model for some data. Raises ConfigError where they do not fit."""
        raise NotImplementedError


def dashes(*numbers: int) -> str:
    return "-".join(map(str, numbers))
