"""Module: an nn.Module parted from its tensors, of which each call is given an instance of its own.

So a call is a function of what it is given: whatever a module keeps on itself, such as an activation, ends with the
call, and what is computed again in a backward finds the tensors of its forward.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from pipeline.errors import ImpureError, WiringError

Build = Callable[[], nn.Module]
Tensors = dict[str, Tensor]

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


@frozen(eq=False)
class Module:
    """A module as it is, or a function that makes one, and the skeletons that were made of it."""

    build: Build | nn.Module
    frozen: bool

    def real(self, seed: int) -> nn.Module:
        """The module with its first weights: an instance as it is, a factory's initialised from the seed."""
        made = self.build
        if not isinstance(made, nn.Module):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made = made()
        if not isinstance(made, nn.Module):
            raise WiringError(
                f"forward.model() takes an nn.Module or a function that makes one, not {type(made).__name__}"
            )
        module: nn.Module = getattr(made, "_orig_mod", made)  # of what torch.compile returned, the module itself
        return module

    def skeleton(self, training: bool = False, real: nn.Module | None = None) -> Skeleton:
        """The module without storage, in train or eval mode. Made once."""
        if self not in _SKELETONS:
            real = real or self.real(0)
            evaluated = Skeleton.of(real)
            evaluated.module.eval()
            trained = evaluated if self.frozen else Skeleton.of(real)
            # Where the module as a whole trains, parts of it that do not, such as frozen BatchNorms, were meant so.
            if not trained.module.training and not self.frozen:
                trained.module.train()
            _SKELETONS[self] = evaluated, trained
        return _SKELETONS[self][training]

    def create(self, seed: int) -> tuple[Tensors, Tensors]:
        """Copies of the trained parameters, and of the buffers and what `requires_grad=False` has frozen."""
        module = self.real(seed)
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
            raise WiringError("the module has lazy parameters; call it once on a batch, then pass the instance")
        self.skeleton(real=module)
        named = dict(module.named_parameters())
        for name, p in named.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise WiringError(
                    f"parameter {name!r} has a hook, which a function of State can't call: remove it, and put a stage "
                    "that changes grads[...] after backward.gradients()"
                )
        params = {k: p.detach().clone() for k, p in named.items() if p.requires_grad or self.frozen}
        buffers = {
            k: p.detach().clone() for k, p in {**named, **dict(module.named_buffers())}.items() if k not in params
        }
        return params, buffers

    def call(
        self, params: Tensors, buffers: Tensors, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Tensors]:
        """What the module returns on these tensors, and in training its buffers as it leaves them.

        Raises ImpureError where it would keep something that State can't.
        """
        skeleton = self.skeleton(training and not self.frozen)
        module = skeleton.instance({**params, **buffers})
        parts = list(module.modules())
        drawn = [_position(g) for g in skeleton.generators]
        result = module(*args, **kwargs)
        if drawn != [_position(g) for g in skeleton.generators]:
            raise ImpureError("draws by a generator that the module holds; use torch.rand: draws follow (seed, step)")
        if self.frozen or not training:
            return result, {}
        for i, name, attribute, number in skeleton.numbers:
            after = parts[i].__dict__.get(attribute)
            if type(after) is not type(number) or after != number:
                raise ImpureError(
                    f"changes the attribute {attribute!r} of {name or 'the module'} from {number} to {after}, which "
                    "State does not hold; make it a tensor by register_buffer()"
                )
        return result, {name: _kept(name, b, module) for name, b in buffers.items()}


def _kept(name: str, before: Tensor, module: nn.Module) -> Tensor:
    """A buffer or a frozen parameter as a call leaves it."""
    owner, _, last = name.rpartition(".")
    after = getattr(module.get_submodule(owner), last, None)
    if not isinstance(after, Tensor):
        raise ImpureError(f"leaves {name!r} as {type(after).__name__}; it has to stay a tensor")
    if (after.shape, after.dtype) != (before.shape, before.dtype):
        raise ImpureError(
            f"makes {name!r} {tuple(after.shape)} {after.dtype} of {tuple(before.shape)} {before.dtype}, but what State "
            "holds keeps its shape and dtype: register it as what it becomes"
        )
    return after


@frozen(eq=False)
class Skeleton:
    """A module whose tensors have no storage (meta device), so that nothing can change them."""

    module: nn.Module
    names: Mapping[str, int]
    """The identity of each parameter and buffer; of tied ones, under one name."""
    shared: Mapping[int, Any]
    """What all instances have in common: held tensors, and what can't be copied, such as locks."""
    generators: Sequence[Any]
    """Generators of random numbers that it holds."""
    numbers: Sequence[tuple[int, str, str, Any]]
    """Numbers that it holds: which part, its name, the attribute, and the number."""

    @classmethod
    def of(cls, real: nn.Module) -> Skeleton:
        """A copy on the meta device, of a module that is not touched."""
        own: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in real.buffers()}
        for p in real.parameters():
            own[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        memo: dict[int, Any] = dict(own)
        shared: list[Any] = []
        for held in _held(real, set()):
            if id(held) in memo:
                continue
            if isinstance(held, Tensor):
                memo[id(held)] = held.detach().clone()
            elif isinstance(held, np.ndarray):
                memo[id(held)] = held.copy()
            elif isinstance(held, _GENERATORS):
                memo[id(held)] = held
            else:
                try:
                    copy.deepcopy(held, memo)
                    continue
                except Exception:  # whatever an object says that can't be copied
                    memo[id(held)] = held
            shared.append(memo[id(held)])
        module = copy.deepcopy(real, memo)
        for part in module.modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                part.sparse = False  # dense gradients are the same numbers, and every rule takes them
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        numbers = [
            (i, name, k, v)
            for i, (name, part) in enumerate(module.named_modules())
            for k, v in part.__dict__.items()
            if type(v) in (int, float, bool) and k != "training"
        ]
        return cls(
            module,
            {name: id(t) for name, t in named.items()},
            {id(x): x for x in shared},
            [x for x in shared if isinstance(x, _GENERATORS)],
            numbers,
        )

    def instance(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A copy that has these tensors, by name."""
        return copy.deepcopy(self.module, {**self.shared, **{i: tensors[name] for name, i in self.names.items()}})


_SKELETONS: WeakKeyDictionary[Module, tuple[Skeleton, Skeleton]] = WeakKeyDictionary()
"""In eval mode and in train mode."""


def _held(value: Any, seen: set[int]) -> Iterator[Any]:
    """What is held at any depth of modules, containers and bound functions."""
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[Any]
    if isinstance(value, nn.Module):
        parts = list(value.__dict__.values())
    elif isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    else:
        yield value
        return
    for part in parts:
        yield from _held(part, seen)


def _position(generator: Any) -> Any:
    """Where a generator is, as something that can be compared."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    state = generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()
    return repr(state)
