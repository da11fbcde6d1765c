"""LoRA: frozen layers with trained low-rank additions. Source: Hu et al., LoRA (2021), section 4.1."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.module.weights import changed
from pipeline.text import some


class Adapted(nn.Module):
    """A layer whose weight W is W + lora_B lora_A alpha / rank: `base` is frozen, A and B are trained.

    Shapes: as the layer's; A is (rank, inputs), B is (outputs, rank).
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        weight: Any = base.weight
        self.base, self.scale, self.dropout = base, alpha / rank, nn.Dropout(dropout)
        self.looks_up = isinstance(base, nn.Embedding)
        self.transposed = self.looks_up or type(base).__name__ == "Conv1D"
        inputs, outputs = weight.shape if self.transposed else weight.shape[::-1]
        self.lora_A = nn.Parameter(weight.new_empty(rank, inputs))
        self.lora_B = nn.Parameter(weight.new_empty(outputs, rank))
        if self.looks_up:
            nn.init.zeros_(self.lora_A)
            nn.init.normal_(self.lora_B)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    @property
    def weight(self) -> Tensor:
        """The weight of the plain layer, for code that reads it instead of calling the layer."""
        change = self.lora_B @ self.lora_A * self.scale
        weight: Any = self.base.weight
        merged: Tensor = weight + (change.T if self.transposed else change)
        return merged

    @property
    def bias(self) -> Any:
        return self.base.bias

    def forward(self, inputs: Tensor) -> Tensor:
        if self.looks_up:
            low = F.embedding(inputs, self.lora_A.T, padding_idx=getattr(self.base, "padding_idx", None))
        else:
            low = F.linear(self.dropout(inputs), self.lora_A)
        result: Tensor = self.base(inputs) + F.linear(low, self.lora_B) * self.scale
        return result


def lora(
    module: Any, rank: int = 8, targets: str | Sequence[str] | None = None, *, alpha: float | None = None,
    dropout: float = 0.0, full: str | Sequence[str] = (),
) -> Any:  # fmt: skip
    """A copy of a module with adapted layers; or, of a function that makes one, a function that makes it adapted.

    Only the adapters are trained, and parameters that `full` names. `forward.model` keeps the others as they are.

    - `targets`: layers by name, by the end of it, or by pattern: ("q_proj", "blocks.*.mlp.0"). By default, all linear
      ones, except inside nn.MultiheadAttention.
    - `alpha`: the additions count alpha / rank; rank by default, which is 1.
    - `dropout`: of the inputs of the adapters, in training.
    - `full`: modules that are trained in full instead, such as a new head, likewise by name.

    Raises ConfigError for a target that is no nn.Linear, nn.Embedding, or Conv1D of transformers.

    >>> net = lora(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), rank=1, targets="0", full="2")
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['0.lora_A', '0.lora_B', '2.weight', '2.bias']
    """
    wanted, whole = _patterns(targets), _patterns(full)

    def change(module: nn.Module) -> nn.Module:
        kept = [*_found(module, whole).values()]
        return adapted(module, _chosen(module, wanted, kept), kept, rank, rank if alpha is None else alpha, dropout)

    return changed(module, change)


def adapted(
    module: nn.Module, chosen: Mapping[str, nn.Module], full: Sequence[nn.Module], rank: int, alpha: float,
    dropout: float,
) -> nn.Module:  # fmt: skip
    """A module with these layers adapted, in place, and all else frozen but the modules in `full`."""
    if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        wrong = f"lora(rank={rank}, alpha={alpha}, dropout={dropout})"
        raise ConfigError(f"{wrong}: rank is at least 1, alpha above 0, dropout from 0 to below 1")
    if any(isinstance(m, Adapted) for m in module.modules()):
        raise ConfigError("lora: the module has adapters already; a function has to make a new one in each call")
    module.requires_grad_(False)
    for m in full:
        m.requires_grad_(True)
    layers = {m: Adapted(m, rank, alpha, dropout) for m in dict.fromkeys(chosen.values())}
    return _replaced(module, {name: layers[m] for name, m in chosen.items()})


def without_adapters(module: nn.Module) -> nn.Module:
    """A copy of a module without its adapters. Layers that share a tensor go on to share it."""
    result = copy.deepcopy(module)
    layers = {name: m for name, m in result.named_modules(remove_duplicate=False) if isinstance(m, Adapted)}
    return _replaced(result, {name: m.base for name, m in layers.items()})


def merged(module: nn.Module) -> nn.Module:
    """A copy with the plain architecture, not frozen: each adapter is added to the weight of its layer.

    >>> import torch
    >>> net = lora(nn.Linear(2, 2))
    >>> torch.equal(merged(net).weight, net.weight)
    True
    """
    layers = {name: m for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, Adapted)}
    plain = {m: copy.deepcopy(m.base) for m in layers.values()}
    for m, base in plain.items():
        base.weight = nn.Parameter(m.weight.detach().clone())
    result = _replaced(copy.deepcopy(module), {name: plain[m] for name, m in layers.items()})
    for p in result.parameters():
        p.requires_grad_(p.is_floating_point() or p.is_complex())
    return result


def _replaced(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A module with other submodules, by name, in place."""
    for name, part in parts.items():
        if not name:
            return part
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, part)
    return module


def _patterns(given: str | Sequence[str] | None) -> tuple[str, ...]:
    given = given.split(",") if isinstance(given, str) else given or ()
    return tuple(p.strip() for p in given)


def _found(module: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Submodules by patterns of their names, or by the ends of these. Raises ConfigError for one that finds nothing."""
    every = dict(module.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for p in patterns:
        own = {k: m for k, m in every.items() if fnmatchcase(k, p) or k.endswith(f".{p}")}
        if not own:
            raise ConfigError(f"lora: {p!r} is no part of the module; it has {some(k for k in every if k)}")
        found |= own
    return found


def _chosen(module: nn.Module, wanted: Sequence[str], full: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Layers to adapt, by each of their names."""
    every = dict(module.named_modules(remove_duplicate=False))
    barred = {part for m in every.values() if isinstance(m, nn.MultiheadAttention) for part in m.modules()}
    barred |= {part for m in full for part in m.modules()}
    able = {k: m for k, m in every.items() if _is_able(m) and m not in barred}
    for name, m in _found(module, [p for p in wanted if "*" not in p]).items():
        if isinstance(m, nn.MultiheadAttention) or isinstance(every[name.rpartition(".")[0]], nn.MultiheadAttention):
            raise ConfigError(f"lora: {name!r} is of nn.MultiheadAttention, which calls no layers; name others")
        if name not in able:
            raise ConfigError(f"lora: {name!r} is {type(m).__name__}, which has no adapter; name {some(able)}")
    found = _found(module, wanted) if wanted else {k: m for k, m in able.items() if not isinstance(m, nn.Embedding)}
    chosen = {k: m for k, m in found.items() if k in able}
    if not chosen:
        raise ConfigError(f"lora: no layer to adapt is chosen; name some of {some(able)}")
    return chosen


def _is_able(m: nn.Module) -> bool:
    """Whether a layer has an adapter: Conv1D is the transformers library's linear layer, its weight transposed."""
    weight: Any = getattr(m, "weight", None)
    able = isinstance(m, nn.Linear | nn.Embedding) or type(m).__name__ == "Conv1D"
    return able and not nn.parameter.is_lazy(weight)
