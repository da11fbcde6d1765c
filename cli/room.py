"""Room: whether a model fits in memory, told before any of it is made."""

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


def check(build: Callable[[], nn.Module], rules: Sequence[Stage] = (), members: int = 1, device: str = "cpu") -> None:
    """Raise ConfigError if the weights of so many members, with their gradients and what rules remember of them where
    they are trained, do not fit. A module that can't be made without memory is not looked at."""
    try:
        with torch.device("meta"):
            params = dict(build().named_parameters())
        need = sum(p.nbytes for p in params.values())
        if rules:
            need += need
            for s in rules:
                with suppress(KeyError):  # it remembers other values too
                    need += sum(t.nbytes for t in pytree.tree_leaves(first_memory(s, {"params": params})))
    except (RuntimeError, ValueError, OverflowError) as e:
        if "overflow" not in str(e):
            return
        need = 1 << 63
    except Exception:  # a module of a user's own
        return
    there = free(device)
    if members * need > there:
        what = "its weights, gradients and the optimizer's memory" if rules else "its weights"
        of = f"{members:,} members of this model need" if members > 1 else "this model needs"
        raise ConfigError(
            f"{of} {memory.size(members * need)} for {what}, and {memory.size(there)} are free; make it smaller"
        )


def free(device: str | torch.device) -> int:
    """Bytes that are free where a model is trained."""
    where = torch.device(device)
    return memory.free() if where.type == "cpu" else place.free_memory(where)
