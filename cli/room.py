"""Whether a model fits in memory, checked before it is created."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pipeline import memory, place
from pipeline.errors import ConfigError
from pipeline.programs.segments import first_memory
from pipeline.stage import Stage


def check(build: Callable[[], nn.Module], rules: Sequence[Stage], members: int, device: str) -> None:
    """Raise ConfigError if a model does not fit in memory; with update rules, its gradients and their memory as well.

    A module that can't be created on the meta device is not checked.
    """
    available = free(device)
    try:
        with torch.device("meta"):
            params = dict(build().named_parameters())
        need = sum(p.nbytes for p in params.values())
        if rules:
            params = {name: p for name, p in params.items() if p.requires_grad}
            need += sum(p.nbytes for p in params.values())
            # Even square matrices of a small model fit, and torch takes long to import what the sizes are taken from.
            for s in rules if members * need**2 > available else ():
                with suppress(KeyError):  # its memory depends on other values too
                    need += sum(t.nbytes for t in pytree.tree_leaves(first_memory(s, {"params": params})))
    except (RuntimeError, ValueError, OverflowError) as e:
        if "overflow" not in str(e):
            return
        need = 1 << 63
    except Exception:  # an error of a user's module
        return
    if members * need > available:
        what = "its weights, gradients and the optimizer's memory" if rules else "its weights"
        model = f"{members:,} members of this model need" if members > 1 else "this model needs"
        raise ConfigError(
            f"{model} {memory.size(members * need)} for {what}, and {memory.size(available)} are free; make it smaller"
        )


def free(device: str | torch.device) -> int:
    """Free bytes of a device's memory."""
    device = torch.device(device)
    return memory.free() if device.type == "cpu" else place.free_memory(device)
