"""Module: an nn.Module without its tensors; each call gets an instance of its own.

So a call is a pure function: attributes set by a module on itself, such as an activation, last until the end of the
call, and recomputation in a backward uses the tensors of its forward.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pipeline.errors import ImpureError, WiringError, did_you_mean, place_of
from pipeline.module.leftovers import leaves, other_numbers, same
from pipeline.module.skeleton import Skeleton, overlapping
from pipeline.text import some
from pipeline.tree import tree_map

NO_MODULE = "takes an nn.Module or a function that makes one, not"
Build = Callable[[], nn.Module]
Tensors = dict[str, Tensor]
Example = Callable[[], tuple[Sequence[Any], Mapping[str, Any]]]
"""Arguments of a first call, for lazy modules."""


@frozen(eq=False)
class Module:
    """A module, or a function that makes one. Three fields cache skeletons and checks."""

    build: Build | nn.Module
    frozen: bool
    train: bool | None = None
    """Train mode for submodules that came in eval mode: True, False, or None, to leave them in it with a warning."""
    carry: Mapping[str, str | None] = field(factory=dict)
    """Pattern of buffers -> span over which evaluation carries them: a "run", an "epoch", or None."""
    _skeletons: dict[bool, Skeleton] = field(factory=dict, init=False, repr=False)
    """By train mode; made on first use."""
    _unannounced: list[str] = field(factory=list, init=False, repr=False)
    """Submodules in eval mode, until training has warned of them."""
    left: set[str] = field(factory=set, init=False, repr=False)
    """Attributes that a first call in train or eval mode set, on a copy."""
    _checked: set[bool] = field(factory=set, init=False, repr=False)
    """Train modes in which a first call was found to leave nothing behind."""

    def real(self, seed: int, example: Example | None = None) -> nn.Module:
        """The module with its first weights: an instance as it is, a factory's initialised from the seed.

        A lazy module is called on an example's arguments.
        """
        build = self.build
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                result = build if isinstance(build, nn.Module) else build()
            except TypeError as e:
                if not isinstance(build, type):
                    raise
                hint = f"write lambda: {build.__name__}(...)"
                raise WiringError(f"forward.model() can't make the module: {e}; {hint}") from e
            if not isinstance(result, nn.Module):
                raise WiringError(f"forward.model() {NO_MODULE} {type(result).__name__}")
            module: nn.Module = getattr(result, "_orig_mod", result)  # the module that torch.compile wraps
            if any(isinstance(submodule, torch.jit.ScriptModule) for submodule in module.modules()):
                raise WiringError("the module is a torch.jit script, whose tensors are its own: pass it as it was")
            lazies = [t for t in (*module.parameters(), *module.buffers()) if nn.parameter.is_lazy(t)]
            return _materialised(module, lazies, example) if lazies else module

    def skeleton(self, training: bool = False, real: nn.Module | None = None) -> Skeleton:
        """The module without storage, in train or eval mode. Made once."""
        if not self._skeletons:
            real = real or self.real(0)
            evaluated, trained = Skeleton.of(real), Skeleton.of(real)
            evaluated.module.eval()
            in_eval = {k: m for k, m in trained.module.named_modules() if not m.training}
            trained.module.train(not self.frozen)  # its submodules too, by train(), which users may override
            still = [k for k, m in in_eval.items() if m.training and not self.train]
            still = [] if self.train is None and "" in still else still
            for k in still:  # probably on purpose, such as frozen BatchNorms
                in_eval[k].training = False
            self._skeletons.update({False: evaluated, True: trained})
            self._unannounced.extend(k for k in still if self.train is None and k.rpartition(".")[0] not in still)
        if training and self._unannounced:
            names = some(map(repr, self._unannounced), 3)
            message = f"forward.model(): {names} came in eval mode and stays in it while the rest trains"
            warnings.warn(
                f"{message}; write train=True to train it as the rest, or train=False to leave it", stacklevel=2
            )
            self._unannounced.clear()
        return self._skeletons[training]

    @property
    def carried(self) -> dict[str, tuple[str, Tensor]]:
        """Buffers that evaluation carries from batch to batch: ("run" or "epoch", a meta tensor of the shape)."""
        if not self.carry:
            return {}
        module = self.skeleton().module
        fixed = [] if self.frozen else [(k, p) for k, p in module.named_parameters() if not p.requires_grad]
        return {k: (how, t) for k, t in (*module.named_buffers(), *fixed) if (how := self._carry_of(k))}

    def _carry_of(self, name: str) -> str | None:
        """The entry of `carry` for a buffer; "" without one."""
        return next((how for pattern, how in self.carry.items() if fnmatchcase(name, pattern)), "")

    def create(self, seed: int, example: Example | None = None) -> tuple[Tensors, Tensors]:
        """Copies of (trained parameters, buffers with the parameters that have requires_grad=False)."""
        module = self.real(seed, example)
        self.skeleton(real=module)
        named = dict(module.named_parameters())
        for name, p in named.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                hint = "remove it, and put a stage that changes grads[...] after backward.gradients()"
                raise WiringError(f"parameter {name!r} has a hook, which a function of State can't call: {hint}")
        whole = {**named, **dict(module.named_buffers())}
        trained = {} if self.frozen else {k: p for k, p in named.items() if p.requires_grad}
        for a, b in overlapping(trained, whole):
            if a != b:
                hint = "assign the Parameter itself to both, or compute one from the other in forward()"
                raise WiringError(f"{a!r} and {b!r} share memory, and State would have a copy of each: {hint}")
        tensors = {k: t.detach().clone() for k, t in whole.items()}
        params = {k: tensors[k] for k in (named if self.frozen else trained)}
        buffers = {k: t for k, t in tensors.items() if k not in params}
        for pattern, how in self.carry.items():
            if how and not any(fnmatchcase(k, pattern) for k in buffers):
                raise WiringError(f"carry={pattern!r} is no buffer of the module{did_you_mean(pattern, buffers)}")
        if example is not None and any(not t.numel() for t in buffers.values()):
            with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):  # a step will report errors
                buffers |= self._shaped(params, buffers, example)
        return params, buffers

    def _shaped(self, params: Tensors, buffers: Tensors, example: Example) -> Tensors:
        """Empty buffers in the shapes of a first call, such as observers' minima, if later calls can use them."""

        def buffers_after(buffers: Tensors, change: Callable[[Any], Any]) -> Tensors:
            args, kwargs = tree_map(change, example())
            module = self._skeletons[True].instance(tree_map(copied, {**params, **buffers}))
            module(*args, **kwargs)
            return {k: _tensor_at(module, k) for k in buffers}

        new = {k: t for k, t in buffers_after(buffers, copied).items() if t.shape != buffers[k].shape}
        first = buffers_after(buffers, other_numbers)
        later = buffers_after({**buffers, **new}, other_numbers)
        if not all(same(first[k], later[k]) for k in new):
            return {}
        for k, t in new.items():
            for skeleton in self._skeletons.values():
                _tensor_at(skeleton.module, k).resize_(t.shape)
        return new

    def whole(self, tensors: Tensors) -> nn.Module:
        """The module in eval mode, with these tensors as its own."""
        skeleton = self.skeleton()
        params = dict(skeleton.module.named_parameters())
        own = {k: nn.Parameter(t, params[k].requires_grad) if k in params else t for k, t in tensors.items()}
        return skeleton.instance(own).eval()

    def call(
        self, params: Tensors, buffers: Tensors, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Tensors]:
        """The module's result on these tensors, and its buffers after the call; in evaluation, only carried ones
        change.

        Raises ImpureError if the call leaves anything that State can't hold, or that evaluation doesn't carry.
        """
        training = training and not self.frozen
        skeleton = self.skeleton(training)
        # Clones, because the module may write into them; a compiled graph drops unneeded ones.
        given = {k: b.clone() for k, b in buffers.items()}
        module = skeleton.instance({**params, **given})
        submodules = list(module.modules())
        generators = skeleton.generator_states()
        result = module(*args, **kwargs)
        if generators != skeleton.generator_states():
            raise ImpureError("draws by a generator that the module holds; use torch.rand: draws follow (seed, step)")
        checked = training in self._checked
        unchecked = not checked and not torch.compiler.is_compiling()
        if unchecked and (left := leaves(skeleton, submodules, {**params, **given}, args, kwargs)) is not None:
            self.left.update(left)
            if training:  # in evaluation, once its buffers were compared too
                self._checked.add(training)
        if not training and get_proxy_mode() is None:
            # Not every in-place write bumps a version: the first call compares values.
            after = {k: _tensor_at(module, k) for k in given if self._carry_of(k) == ""}
            if changed := [k for k, t in after.items() if _differs(buffers[k], given[k], t, checked)]:
                how = changed[0] if len(changed) == 1 else "*"
                hint = f"write forward.model(..., carry={how!r}) to carry it, or carry=() to give each batch State's"
                raise ImpureError(f"changes its buffer {changed[0]!r} in evaluation; {hint}")
            self._checked.add(training)
        kept = buffers if training else self.carried
        return result, {**buffers, **{name: _after(name, buffers[name], module) for name in kept}}


def _materialised(module: nn.Module, lazies: Sequence[Any], example: Example | None) -> nn.Module:
    """A copy of a lazy module with shapes from the example, and initial statistics."""
    if example is None:
        raise WiringError("the module is lazy, and was not looked at with a batch yet: call pipe.init() first")
    # torch can't copy lazy buffers.
    module = copy.deepcopy(module, {id(t): type(t)(device=t.device, dtype=t.dtype) for t in lazies})
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    args, kwargs = example()
    try:
        with torch.no_grad():
            module.eval()(*args, **kwargs)
    except Exception as e:
        raise WiringError(f"the module is lazy, and fails on the first samples: {e}{place_of(e)}") from e
    for submodule, mode in modes:
        submodule.training = mode
    return module


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensor_at(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last, None)


def _differs(before: Tensor, given: Tensor, after: Any, by_version: bool) -> bool:
    """Whether a call changed `given`, its copy of a buffer; `by_version`: trust torch's version of an unchanged one."""
    if by_version and after is given and not given.is_inference() and given._version == 0:
        return False
    if not isinstance(after, Tensor) or after.shape != before.shape:
        return True
    unequal = (after != before).any()
    while torch._C._functorch.is_functorch_wrapped_tensor(unequal):
        unequal = torch._C._functorch.get_unwrapped(unequal)
    return bool(unequal.any())


def _after(name: str, before: Tensor, module: nn.Module) -> Tensor:
    """A buffer or frozen parameter after a call. Raises ImpureError if its shape or dtype changed."""
    after = _tensor_at(module, name)
    if not isinstance(after, Tensor):
        raise ImpureError(f"leaves {name!r} as {type(after).__name__}; it has to stay a tensor")
    if (after.shape, after.dtype) != (before.shape, before.dtype):
        was, now = (f"{tuple(t.shape)} {t.dtype}" for t in (before, after))
        hint = "register it as what it becomes, or call the module once on a batch"
        raise ImpureError(f"makes {name!r} {now} of {was}, but what State holds keeps its shape and dtype: {hint}")
    return after
