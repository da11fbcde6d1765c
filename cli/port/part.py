"""A part of a training script, and the text of what it is here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from attrs import define, field


class Text(str):
    """An expression as it is to be written."""

    def __repr__(self) -> str:
        return str(self)


def written(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as text."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


@define(eq=False)
class Part:
    """A part of a script."""

    line: int
    what: str
    there: str
    here: str
    option: str = ""
    missing: list[str] = field(factory=list)
    """What is not translated."""
    notes: list[str] = field(factory=list)
    """What differs."""
    arguments: dict[str, Any] = field(factory=dict)
    """Values by the names of our parameters."""
    call: ast.Call | None = None
    trained: bool = False
    """Whether it is the loss, or the loader, of the training."""
