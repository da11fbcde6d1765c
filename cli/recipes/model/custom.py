"""A module of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import refusal


@frozen
class Custom(Model):
    """What a function of the user's makes, called with settings, and with what the data fixes where it asks for it."""

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
            made = code.called(self.name, factory, self.options, fixed.names)
            if not isinstance(made, nn.Module):
                raise refusal(f"{self.name} made {type(made).__name__}, not an nn.Module")
            return made

        with torch.random.fork_rng(devices=[]):
            module = build()  # once, to see what it is
        there = [*inspect.signature(module.forward).parameters]
        also = [n for n in fixed.values if n in there[1:] and n != "targets"]
        called = {there[0]: "inputs", **{n: n for n in also}} if also else "inputs"
        return build, f"{self.name}: {type(module).__name__}", called
