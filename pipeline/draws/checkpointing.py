"""Checkpointing: code that activation checkpointing runs a second time draws the same numbers again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils import checkpoint

_GENERATOR = "_checkpoint_without_reentrant_generator"
"""torch's non-reentrant checkpointing; its second argument is whether to preserve torch's global generator."""


class _NotReentrant:
    """torch's non-reentrant checkpointing, under the interface of the reentrant one."""

    @staticmethod
    def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
        return checkpoint.checkpoint(function, *inputs, use_reentrant=False)


class Recomputed:
    """While entered, recomputation in a backward repeats the forward's draws.

    Reentrant checkpointing becomes non-reentrant: the same results, and torch.autograd.grad accepts it. `again` gives
    the draws that follow, as a context manager with the same method.
    """

    def __init__(self, again: Callable[[], Any]) -> None:
        def generator(function: Any, *args: Any, **kwargs: Any) -> Any:
            first = again()

            def recomputed(*inputs: Any, **more: Any) -> Any:
                with first.again():  # a backward of a backward computes it a third time
                    return function(*inputs, **more)

            # Nothing draws from torch's global generator: it need not be preserved.
            if name == _GENERATOR:
                return original(recomputed, False, *args[1:], **kwargs)
            return original(recomputed, *args, **{**kwargs, "preserve_rng_state": False})

        name = f"{_GENERATOR}_impl" if hasattr(checkpoint, f"{_GENERATOR}_impl") else _GENERATOR  # since torch 2.14
        original = getattr(checkpoint, name)
        self._patches = {name: generator, "CheckpointFunction": _NotReentrant}

    def __enter__(self) -> None:
        self._originals = {name: getattr(checkpoint, name) for name in self._patches}
        for name, function in self._patches.items():
            setattr(checkpoint, name, function)

    def __exit__(self, *error: Any) -> None:
        for name, function in self._originals.items():
            setattr(checkpoint, name, function)
