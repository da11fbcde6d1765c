"""Backends: a new one is a file here and a line in this table, or anything that torch.compile takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.compile.backends.backend import Backend
from pipeline.compile.backends.native import Native
from pipeline.compile.backends.torch import Torch, known
from pipeline.errors import ConfigError, did_you_mean

BACKENDS: dict[str, Callable[[], Backend]] = {
    "native": Native,
    "inductor": lambda: Torch("inductor", cached=True),
}
"""In the order in which "auto" tries them."""


def candidates(backend: str | Callable[..., Any], device: str) -> list[Backend]:
    """The backends to try on a device, in order. Raises ConfigError for an unknown name."""
    if backend == "auto":
        every = [make() for make in BACKENDS.values()]
        return [b for b in every if b.devices is None or device in b.devices]
    if not isinstance(backend, str):
        return [Torch(backend)]
    if backend in BACKENDS:
        return [BACKENDS[backend]()]
    if backend not in known():
        names = {"auto", *BACKENDS, *known()}
        raise ConfigError(f"backend={backend!r} is unknown{did_you_mean(backend, names)}")
    return [Torch(backend)]
