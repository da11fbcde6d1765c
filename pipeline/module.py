"""Module: an nn.Module parted from its tensors, of which each call is given an instance of its own.

So a call is a function of what it is given: whatever a module keeps on itself, such as an activation, ends with the
call, and what is computed again in a backward finds the tensors of its forward.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from pipeline.draws import keyed
from pipeline.errors import ImpureError, WiringError, did_you_mean, place_of
from pipeline.skeleton import Skeleton
from pipeline.tree import tree_map

NO_MODULE = "takes an nn.Module or a function that makes one, not"
Build = Callable[[], nn.Module]
Tensors = dict[str, Tensor]
Example = Callable[[], tuple[Sequence[Any], Mapping[str, Any]]]
"""Arguments of a first call, for modules that are lazy."""

_FORGETFUL: WeakSet[Skeleton] = WeakSet()
"""Skeletons of which a call was seen to leave nothing to the next one but their tensors."""


@frozen(eq=False)
class Module:
    """A module as it is, or a function that makes one, and the skeletons that were made of it."""

    build: Build | nn.Module
    frozen: bool
    train: bool | None = None
    """Whether parts that came in eval mode train as the whole does; None warns of them, which stay as they came."""
    carry: Mapping[str, str | None] = field(factory=dict)
    """Through what evaluation carries buffers from batch to batch, by patterns: a "run", an "epoch", or nothing."""

    def real(self, seed: int, example: Example | None = None) -> nn.Module:
        """The module with its first weights: an instance as it is, a factory's initialised from the seed.

        One that is lazy is called on an example's arguments.
        """
        made = self.build
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                made = made if isinstance(made, nn.Module) else made()
            except TypeError as e:
                if not isinstance(made, type):
                    raise
                hint = f"write lambda: {made.__name__}(...)"
                raise WiringError(f"forward.model() can't make the module: {e}; {hint}") from e
            if not isinstance(made, nn.Module):
                raise WiringError(f"forward.model() {NO_MODULE} {type(made).__name__}")
            module: nn.Module = getattr(made, "_orig_mod", made)  # of what torch.compile returned, the module itself
            if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
                raise WiringError("the module is a torch.jit script, whose tensors are its own: pass it as it was")
            lazies = [t for t in (*module.parameters(), *module.buffers()) if nn.parameter.is_lazy(t)]
            return _materialised(module, lazies, example) if lazies else module

    def skeleton(self, training: bool = False, real: nn.Module | None = None) -> Skeleton:
        """The module without storage, in train or eval mode. Made once."""
        if self not in _SKELETONS:
            real = real or self.real(0)
            evaluated, trained = Skeleton.of(real), Skeleton.of(real)
            evaluated.module.eval()
            came = {k: p for k, p in trained.module.named_modules() if not p.training}
            trained.module.train(not self.frozen)  # also where all parts train: it may be the user's own
            still = [k for k, p in came.items() if p.training and not self.train]
            still = [] if self.train is None and "" in still else still
            for k in still:  # they may be meant so, as frozen BatchNorms are
                came[k].training = False
            top = [k for k in still if self.train is None and k.rpartition(".")[0] not in still]
            _SKELETONS[self] = evaluated, trained, top
        evaluated, trained, top = _SKELETONS[self]
        if training and top:
            names = ", ".join(map(repr, top[:3])) + ", ..." * (len(top) > 3)
            said = f"forward.model(): {names} came in eval mode and stays in it while the rest trains"
            warnings.warn(f"{said}; write train=True to train it as the rest, or train=False to leave it", stacklevel=2)
            top.clear()
        return trained if training else evaluated

    @property
    def carried(self) -> dict[str, tuple[str, Tensor]]:
        """The buffers that evaluation carries from batch to batch: through what, and one of the same shape."""
        if not self.carry:
            return {}
        module = self.skeleton().module
        fixed = [] if self.frozen else [(k, p) for k, p in module.named_parameters() if not p.requires_grad]
        return {k: (how, t) for k, t in (*module.named_buffers(), *fixed) if (how := self._through(k))}

    def _through(self, name: str) -> str | None:
        """Through what a buffer is carried; "" where nothing says that."""
        return next((how for pattern, how in self.carry.items() if fnmatchcase(name, pattern)), "")

    def create(self, seed: int, example: Example | None = None) -> tuple[Tensors, Tensors]:
        """Copies of the trained parameters, and of the buffers and what `requires_grad=False` has frozen."""
        module = self.real(seed, example)
        self.skeleton(real=module)
        named = dict(module.named_parameters())
        for name, p in named.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                hint = "remove it, and put a stage that changes grads[...] after backward.gradients()"
                raise WiringError(f"parameter {name!r} has a hook, which a function of State can't call: {hint}")
        tensors = {k: t.detach().clone() for k, t in (*named.items(), *module.named_buffers())}
        params = {k: tensors[k] for k, p in named.items() if p.requires_grad or self.frozen}
        buffers = {k: t for k, t in tensors.items() if k not in params}
        for pattern, how in self.carry.items():
            if how and not any(fnmatchcase(k, pattern) for k in buffers):
                raise WiringError(f"carry={pattern!r} is no buffer of the module{did_you_mean(pattern, buffers)}")
        if example is not None and any(not t.numel() for t in buffers.values()):
            with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):  # a step says what is wrong
                buffers |= self._shaped(params, buffers, example)
        return params, buffers

    def _shaped(self, params: Tensors, buffers: Tensors, example: Example) -> Tensors:
        """The buffers shaped by a first call, as observers' minima, if a later call leaves what a first would."""

        def left(buffers: Tensors, change: Callable[[Any], Any]) -> Tensors:
            args, kwargs = tree_map(change, example())
            module = _SKELETONS[self][1].instance(tree_map(copied, {**params, **buffers}))
            module(*args, **kwargs)
            return {k: _at(module, k) for k in buffers}

        new = {k: t for k, t in left(buffers, copied).items() if t.shape != buffers[k].shape}
        first, later = left(buffers, _other), left({**buffers, **new}, _other)
        if not all(_same(first[k], later[k]) for k in new):
            return {}
        for k, t in new.items():
            for skeleton in _SKELETONS[self][:2]:
                _at(skeleton.module, k).resize_(t.shape)
        return new

    def whole(self, tensors: Tensors) -> nn.Module:
        """The module in eval mode with these tensors, which become its own."""
        skeleton = self.skeleton()
        params = dict(skeleton.module.named_parameters())
        own = {k: nn.Parameter(t, params[k].requires_grad) if k in params else t for k, t in tensors.items()}
        return skeleton.instance(own).eval()

    def call(
        self, params: Tensors, buffers: Tensors, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Tensors]:
        """What the module returns on these tensors, and its buffers as it leaves them: in evaluation those it carries.

        Raises ImpureError where it would keep something that State can't, or that evaluation is not said to carry.
        """
        training = training and not self.frozen
        skeleton = self.skeleton(training)
        # It may write into what it is given, so those are copies; a compiled graph drops what it does not need.
        given = {k: b.clone() for k, b in buffers.items()}
        module = skeleton.instance({**params, **given})
        parts = list(module.modules())
        drawn = skeleton.drawn()
        result = module(*args, **kwargs)
        if drawn != skeleton.drawn():
            raise ImpureError("draws by a generator that the module holds; use torch.rand: draws follow (seed, step)")
        if training and skeleton not in _FORGETFUL and not torch.compiler.is_compiling():
            self._judge(skeleton, parts, {**params, **given}, args, kwargs)
        if not training and get_proxy_mode() is None:
            # Not all that writes in place says so: values are compared in a first call.
            seen, after = skeleton in _FORGETFUL, {k: _at(module, k) for k in given if self._through(k) == ""}
            if changed := [k for k, t in after.items() if _differs(buffers[k], given[k], t, seen)]:
                how = changed[0] if len(changed) == 1 else "*"
                hint = f"write forward.model(..., carry={how!r}) to carry it, or carry=() to give each batch State's"
                raise ImpureError(f"changes its buffer {changed[0]!r} in evaluation; {hint}")
            _FORGETFUL.add(skeleton)
        kept = buffers if training else self.carried
        return result, {**buffers, **{name: _kept(name, buffers[name], module) for name in kept}}

    def _judge(self, skeleton: Skeleton, parts: list[nn.Module], tensors: Tensors, args: Any, kwargs: Any) -> None:
        """Raise ImpureError where what a call left on its instance, an activation or a count, would change later ones.

        The next one is done, on other numbers, with it and without it.
        """
        levels = torch._C._functorch.get_interpreter_stack() or []
        if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
            return  # no value can be compared
        _FORGETFUL.add(skeleton)
        fresh = skeleton.instance(tensors).modules()
        left = [(i, *at) for i, (old, new) in enumerate(zip(fresh, parts, strict=False)) for at in _left(old, new)]
        numbers = [t for t in pytree.tree_leaves((tensors, args, kwargs)) if isinstance(t, Tensor)]
        if not left or not numbers:
            return
        zero = numbers[0].detach().new_zeros((), dtype=torch.int64)

        def following(after: bool, args: Any, kwargs: Any) -> tuple[list[nn.Module], list[Tensor]]:
            module = skeleton.instance({name: t.detach().clone() for name, t in tensors.items()})
            new = list(module.modules())
            for i, home, key in left if after else ():
                value = home(parts[i])[key]
                home(new[i])[key] = value if isinstance(value, Tensor) else copy.copy(value)
            with torch.no_grad(), keyed(zero, zero, 0):
                made = module(*args, **kwargs)
            return new, [t.nan_to_num() for t in pytree.tree_leaves(made) if isinstance(t, Tensor)]

        try:
            args, kwargs = tree_map(_other, (args, kwargs))
            plain, expected = following(False, args, kwargs)
        except Exception:  # not all code takes other numbers
            _FORGETFUL.discard(skeleton)
            return
        try:
            new, made = following(True, args, kwargs)
            same = all(map(torch.equal, made, expected))
            # A count goes on from where it was, whether or not it is read by now.
            counts = [(i, key) for i, home, key in left if isinstance(v := home(new[i]).get(key), int | float)
                      and not _same(home(plain[i]).get(key), v)]  # fmt: skip
        except Exception:  # it can't even be called twice
            same, counts = False, []
        if not same or counts:
            _FORGETFUL.discard(skeleton)
            i, key = counts[0] if counts else (left[0][0], left[0][2])
            attribute = f"{[*dict(skeleton.module.named_modules())][i]}.{key}".lstrip(".")
            said = "for later calls, which State does not hold; give it a first value by register_buffer()"
            raise ImpureError(f"changes its attribute {attribute!r} {said}")


def _left(before: nn.Module, after: nn.Module) -> Iterator[tuple[Callable[[nn.Module], dict[str, Any]], str]]:
    """Where a call left something: in attributes of a part, or in buffers that were None."""
    for key, value in after.__dict__.items():
        if key not in _OWN and value is not None and not _same(before.__dict__.get(key), value):
            yield vars, key
    for key, value in after._buffers.items():
        if value is not None and before._buffers.get(key) is None:
            yield attrgetter("_buffers"), key


_OWN = ("training", "_parameters", "_buffers", "_modules")
"""Attributes that torch itself changes, or that are looked at apart."""


def _same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two copies of an attribute hold the same, as far as can be seen."""
    if a is b or not depth:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, int | float | complex | str):
        return a == b or a != a
    if isinstance(a, dict):
        a, b = [*a.values()], [*b.values()]
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(_same(x, y, depth - 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, nn.Module | MethodType | FunctionType) or not hasattr(a, "__dict__"):
        return True
    return _same(vars(a), vars(b), depth - 1)


def _other(value: Any) -> Any:
    """Other numbers of the same kind, in another order."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.flip(0) * 0.75 if value.is_floating_point() else value.flip(0)


def _materialised(module: nn.Module, lazies: Sequence[Any], example: Example | None) -> nn.Module:
    """A copy of a lazy module with the shapes that the example has, and statistics as new ones have them."""
    if example is None:
        raise WiringError("the module is lazy, and was not looked at with a batch yet: call pipe.init() first")
    # torch has no copies of lazy buffers.
    module = copy.deepcopy(module, {id(t): type(t)(device=t.device, dtype=t.dtype) for t in lazies})
    modes = [(part, part.training) for part in module.modules()]
    args, kwargs = example()
    try:
        with torch.no_grad():
            module.eval()(*args, **kwargs)
    except Exception as e:
        raise WiringError(f"the module is lazy, and fails on the first samples: {e}{place_of(e)}") from e
    for part, mode in modes:
        part.training = mode
    return module


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _at(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last, None)


def _differs(before: Tensor, given: Tensor, after: Any, quick: bool) -> bool:
    """Whether a call changed a copy of a buffer that it was given; `quick`, where torch has not noted a write."""
    if quick and after is given and not given.is_inference() and given._version == 0:
        return False
    if not isinstance(after, Tensor) or after.shape != before.shape:
        return True
    unequal = (after != before).any()
    while torch._C._functorch.is_functorch_wrapped_tensor(unequal):
        unequal = torch._C._functorch.get_unwrapped(unequal)
    return bool(unequal.any())


def _kept(name: str, before: Tensor, module: nn.Module) -> Tensor:
    """A buffer or a frozen parameter as a call leaves it."""
    after = _at(module, name)
    if not isinstance(after, Tensor):
        raise ImpureError(f"leaves {name!r} as {type(after).__name__}; it has to stay a tensor")
    if (after.shape, after.dtype) != (before.shape, before.dtype):
        was, now = (f"{tuple(t.shape)} {t.dtype}" for t in (before, after))
        hint = "register it as what it becomes, or call the module once on a batch"
        raise ImpureError(f"makes {name!r} {now} of {was}, but what State holds keeps its shape and dtype: {hint}")
    return after


_SKELETONS: WeakKeyDictionary[Module, tuple[Skeleton, Skeleton, list[str]]] = WeakKeyDictionary()
"""In eval mode and in train mode, and the parts in eval mode that are to be warned of when training begins."""
