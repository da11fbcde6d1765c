"""A module of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import refusal


@frozen
class Custom(Model):
    """A function of the user's, called with its settings, and with the values of `Fixed.names` named like its
    parameters."""

    options: Mapping[str, Any] = field(factory=dict, metadata={"fixed": True})

    @property
    def title(self) -> str:
        return self.name.rpartition(":")[2]

    def make(self, fixed: Fixed) -> Made:
        import inspect

        import torch
        from torch import nn

        factory = code.load(self.name)

        def build() -> nn.Module:
            module = code.called(self.name, factory, self.options, fixed.names, "model")
            if not isinstance(module, nn.Module):
                raise refusal(f"{self.name} made {type(module).__name__}, not an nn.Module")
            return module

        with torch.random.fork_rng(devices=[]):
            module = build()  # once, to find its type
        first, *others = inspect.signature(module.forward).parameters
        more = {n: n for n in fixed.values if n in others and n != "targets"}
        return build, f"{self.name}: {type(module).__name__}", {first: "inputs", **more} if more else "inputs"
