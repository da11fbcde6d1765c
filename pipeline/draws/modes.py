"""Modes: within `keyed`, whatever a module or a stage draws is a function of (seed, step, stage, draw).

Draws are caught where they are made: at torch's Python functions, which know what a vmapped shape is, and behind them
at the dispatcher, where all of torch's operators pass, those that C++ calls among them. What can't be keyed is refused
there, eager and compiled alike: torch's global generator is never asked.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import mesh
from pipeline.draws import tables
from pipeline.errors import ImpureError
from pipeline.ids import refused
from pipeline.random import MASK, Key, key, mix, settled
from pipeline.tree import paths


class keyed:  # noqa: N801 - used as a word of its own: `with keyed(...)`
    """Within it, all draws come from a key: the i-th one from (seed, step, salt, i).

    What is `given`, named values, may not be written into. Raises ImpureError where it is, or where a draw has no key.

    >>> import torch
    >>> with keyed(torch.tensor(0), torch.tensor(7), 1):
    ...     first = torch.randint(10, (3,)), torch.randperm(4)
    >>> with keyed(torch.tensor(0), torch.tensor(7), 1):
    ...     again = torch.randint(10, (3,)), torch.randperm(4)
    >>> all(map(torch.equal, first, again))
    True
    """

    def __init__(self, seed: Tensor, step: Tensor, salt: int, given: Mapping[str, Any] | _Given | None = None) -> None:
        self._parts = salt, seed, step
        self._base: Tensor | None = None
        self._draws = 0
        self._given = given if isinstance(given, _Given) else _Given(given or {})
        self._modes = _Operators(self._key, self._given), _Functions(self._key, self._given)

    def __enter__(self) -> keyed:
        self._others = _other_generators()
        self._recomputed = _Recomputed(self._again)
        self._recomputed.__enter__()
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    @property
    def drew(self) -> bool:
        """Whether anything drew."""
        return self._draws > 0

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, *error)  # type: ignore[no-untyped-call]  # torch's
        self._recomputed.__exit__()
        if kind is None and self._others != _other_generators():
            raise ImpureError(
                "draws from Python's or NumPy's random module, whose numbers are no function of (seed, step); use "
                "torch.rand or the like"
            )

    def _again(self) -> keyed:
        """The draws that follow, for code that runs a second time."""
        again = keyed(*self._parts[1:], self._parts[0], self._given)
        again._base, again._draws = self._base, self._draws
        return again

    def _key(self) -> Tensor:
        if self._base is None:  # most stages draw nothing
            self._base = key(*self._parts)
        self._draws += 1
        k: Tensor = settled(mix((self._base + self._draws * 0x3504F333) & MASK))
        return k


class _NotReentrant:
    """In the place of torch's reentrant kind of checkpointing: the other one."""

    @staticmethod
    def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
        return checkpoint.checkpoint(function, *inputs, use_reentrant=False)


_GENERATOR = "_checkpoint_without_reentrant_generator"
"""What torch's checkpointing goes through, with the preservation of its own generator as the second argument."""


class _Recomputed:
    """Within it, what activation checkpointing computes a second time draws what it drew the first time.

    The reentrant kind becomes the other one, which gives the same and goes with torch.autograd.grad.
    """

    def __init__(self, again: Callable[[], keyed]) -> None:
        def generator(function: Any, *args: Any, **kwargs: Any) -> Any:
            first = again()

            def recomputed(*inputs: Any, **more: Any) -> Any:
                with first._again():  # a backward of a backward computes it a third time
                    return function(*inputs, **more)

            # torch's own generator is never drawn from: it need not be preserved
            if own == _GENERATOR:
                return kept(recomputed, False, *args[1:], **kwargs)
            return kept(recomputed, *args, **{**kwargs, "preserve_rng_state": False})

        own = f"{_GENERATOR}_impl" if hasattr(checkpoint, f"{_GENERATOR}_impl") else _GENERATOR  # since torch 2.14
        kept = getattr(checkpoint, own)
        self._changed = {own: generator, "CheckpointFunction": _NotReentrant}

    def __enter__(self) -> None:
        self._before = {name: getattr(checkpoint, name) for name in self._changed}
        for name, function in self._changed.items():
            setattr(checkpoint, name, function)

    def __exit__(self, *error: Any) -> None:
        for name, function in self._before.items():
            setattr(checkpoint, name, function)


class Watched:
    """Within it, whether torch's, Python's or NumPy's own generator is drawn from is seen."""

    def __enter__(self) -> Watched:
        self._before = _other_generators(), torch.random.get_rng_state()
        return self

    def __exit__(self, *error: Any) -> None:
        others, own = self._before
        self.drew = others != _other_generators() or not torch.equal(own, torch.random.get_rng_state())


def _other_generators() -> tuple[Any, ...]:
    """What changes when Python's or NumPy's generator is drawn from."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


class _Functions(TorchFunctionMode):
    def __init__(self, key: Key, given: _Given) -> None:
        super().__init__()
        self.key, self.given = key, given
        self.level = torch._C._functorch.maybe_current_level() or 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _SET_DATA:
            raise ImpureError("assigns to a tensor's .data, which no transformation sees; use copy_() under no_grad")
        if func in _ASKS and not self._transformed(args[0]) and (name := self.given.name([args[0]])) is not None:
            raise ImpureError(f"sets requires_grad of {name!r}, which it was given; use .detach().requires_grad_()")
        at = _SPARSE.get(func)
        if at is not None:
            args = args if len(args) <= at else (*args[:at], False, *args[at + 1 :])
            kwargs = {**kwargs, "sparse": False} if "sparse" in kwargs else kwargs
        if func is F.one_hot and (made := _one_hot(*args, **kwargs)) is not None:
            return made
        draw = tables.FUNCTIONS.get(func)
        if draw is not None:
            result = _drawn(func, draw, self.key, args, kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        plain = all(t in (Tensor, nn.Parameter) for t in types)
        inside = _opened(func) if plain and isinstance(func, FunctionType) else None
        if inside is None:
            return func(*args, **kwargs)
        with self:
            return inside(*args, **kwargs)

    def _transformed(self, t: Tensor) -> bool:
        """Whether it is what a torch.func.grad in this code made of a tensor, so that nothing else sees the change."""
        return torch._C._functorch.maybe_get_level(t) > self.level


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    def __init__(self, key: Key, given: _Given) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.key, self.given = key, given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        collective = func.namespace == "c10d" or (func.namespace == "_c10d_functional" and mesh.here() is None)
        if collective and torch.compiler.is_compiling():
            raise ImpureError(
                f"calls the collective {func}; place.mesh() and mesh.summed() or gathered() do it in a graph"
            )
        if func._schema.is_mutable:
            self._look(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and not drops_nothing(func, args, kwargs):
            draw = tables.OPERATORS.get(func.overloadpacket.__name__)
            if draw is None:
                raise ImpureError(
                    f"draws random numbers through {func}, which can't be made a function of (seed, step)"
                )
            return _drawn(func, draw, self.key, args, kwargs)
        try:
            return func(*args, **kwargs)
        except (IndexError, RuntimeError) as e:
            said = "" if torch.compiler.is_compiling() else refused(func, args, kwargs)
            if not said:
                raise
            raise IndexError(said) from e

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse an operator that would write into what was given."""
        written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.is_write]
        written += [kwargs[s.name] for s in func._schema.arguments if s.is_write and s.name in kwargs]
        name = self.given.name(pytree.tree_leaves(written))
        if name is not None:
            instead = _INSTEAD.get(name.split(".")[0], "return a new tensor instead")
            if "renorm" in str(func):
                instead = "leave out max_norm, or scale the rows in a stage after the update"
            raise ImpureError(f"writes into {name!r} in place ({func}); {instead}")


class _Given:
    """What a stage was given, found by where its tensors lie."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @functools.cached_property
    def _places(self) -> dict[int, str]:
        return {_place(t): path for path, t in reversed(paths(dict(self.values))) if _strided(t)}

    def name(self, tensors: list[Any]) -> str | None:
        """The name of the value that one of the tensors is, or is a view of."""
        found = (self._places.get(_place(t)) for t in tensors if _strided(t))
        name = next(filter(None, found), None)
        return name and name.replace("/", ".")


_INSTEAD = {
    "params": "do so in a stage after the update",
    "held": "a tensor that a module holds is State's only as a buffer: use register_buffer()",
}
"""What to write instead of writing into a value that was given."""


def _strided(t: Any) -> bool:
    return isinstance(t, Tensor) and t.layout is torch.strided


def _place(t: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    place: int = t.untyped_storage()._cdata
    return place


def _drawn(func: Any, draw: Callable[..., Any], k: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if kwargs.get("generator") is not None or any(isinstance(a, torch.Generator) for a in args):
        name = getattr(func, "__name__", func)
        raise ImpureError(f"draws by a torch.Generator of its own ({name}); leave it out: draws follow (seed, step)")
    out = kwargs.get("out")
    result = draw(k, *args, **{n: v for n, v in kwargs.items() if n not in ("generator", "out")})
    return result if out is None else out.copy_(result)


def drops_nothing(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is an attention or a recurrent layer that drops nothing: these could draw, and do not."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            p = kwargs.get(argument.name, args[i] if i < len(args) else argument.default_value)
            return not p
    return "sdp_choice" in func.__name__


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor | None:
    """F.one_hot by ids, as graphs check these; torch reads their values, or compares without a look at their range."""
    if num_classes < 1 or tensor.dtype != torch.int64:
        return None
    classes = torch.arange(num_classes, device=tensor.device)
    return (classes.gather(0, tensor.flatten()).view(*tensor.shape, 1) == classes).long()


@functools.cache
def _opened(func: FunctionType) -> FunctionType | None:
    """A function of torch.nn.functional that draws by others, so that those are seen; None where it doesn't.

    torch hands it over as a whole: in this copy of it, it does not.
    """
    if func.__globals__ is not F.__dict__ or not _INSIDE.intersection(func.__code__.co_names):
        return None
    itself = dict.fromkeys((n for n in F.__dict__ if n.startswith("has_torch_function")), lambda *_: False)
    copy = FunctionType(func.__code__, {**F.__dict__, **itself}, func.__name__, func.__defaults__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a property of C's
_ASKS = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]  # as that

_SPARSE = {F.embedding: 6, F.embedding_bag: 7}
"""Where they are told to make sparse gradients; dense ones are the same numbers, and all rules and graphs take them."""

_INSIDE = {"dropout", "scaled_dot_product_attention", "rand"}
"""What such functions draw by."""
