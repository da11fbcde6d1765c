"""Modes: within `keyed`, every draw of a module or a stage is a function of (seed, step, stage, draw).

Draws are intercepted twice: at torch's Python functions, which know shapes under vmap, and at the dispatcher, which
also sees the operators that C++ code calls. A draw without a key is refused, eager and compiled: torch's global
generator is never used.
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
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import mesh
from pipeline.draws import tables
from pipeline.draws.checkpointing import Recomputed
from pipeline.draws.inputs import Inputs
from pipeline.errors import ImpureError
from pipeline.ids import refused
from pipeline.random import MASK, Key, computed, key, known, mix, settled


class keyed:  # noqa: N801 - used as a word of its own: `with keyed(...)`
    """Context in which the i-th draw is a function of (seed, step, salt, i).

    Raises ImpureError for a draw without a key, and for a write into the named values `given`.

    >>> import torch
    >>> with keyed(torch.tensor(0), torch.tensor(7), 1):
    ...     first = torch.randint(10, (3,)), torch.randperm(4)
    >>> with keyed(torch.tensor(0), torch.tensor(7), 1):
    ...     again = torch.randint(10, (3,)), torch.randperm(4)
    >>> all(map(torch.equal, first, again))
    True
    """

    def __init__(self, seed: Tensor, step: Tensor, salt: int, given: Mapping[str, Any] | Inputs | None = None) -> None:
        self._seeds = salt, seed, step
        self._base: int | Tensor | None = None
        self._draws = 0
        self._given = given if isinstance(given, Inputs) else Inputs(given or {})
        self._modes = _Operators(self._key, self._given), _Functions(self._key, self._given)

    def __enter__(self) -> keyed:
        self._others, self._torchs = _other_generators(), torch.default_generator.get_state() if computed() else None
        self._recomputed = Recomputed(self.again)
        self._recomputed.__enter__()
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, *error)  # type: ignore[no-untyped-call]  # torch's
        self._recomputed.__exit__()
        if kind is None and self._others != _other_generators():
            raise ImpureError(
                "draws from Python's or NumPy's random module, whose numbers are no function of (seed, step); use "
                "torch.rand or the like"
            )
        torchs = self._torchs
        if kind is None and torchs is not None and not torch.equal(torchs, torch.default_generator.get_state()):
            raise ImpureError(
                "sets torch's generator, as by manual_seed(), which has no effect: draws follow (seed, step); leave it "
                "out, or hold the numbers, drawn before, as a buffer"
            )

    @property
    def drew(self) -> bool:
        """Whether anything was drawn."""
        return self._draws > 0

    def again(self) -> keyed:
        """The draws that follow from here, for code that runs a second time."""
        copy = keyed(*self._seeds[1:], self._seeds[0], self._given)
        copy._base, copy._draws = self._base, self._draws
        return copy

    def _key(self) -> int | Tensor:
        if self._base is None:  # most stages draw nothing
            salt, *numbers = self._seeds
            ints = [*map(known, numbers)]  # one number on a device, and one on the host, are an error
            self._base = key(salt, *(ints if all(isinstance(n, int) for n in ints) else numbers))
        self._draws += 1
        k: int | Tensor = settled(mix((self._base + self._draws * 0x3504F333) & MASK))
        return k


class Watched:
    """Records in `drew` whether torch's, Python's or NumPy's global generator was used."""

    def __enter__(self) -> Watched:
        self._before = _other_generators(), torch.random.get_rng_state()
        return self

    def __exit__(self, *error: Any) -> None:
        others, torchs = self._before
        self.drew = others != _other_generators() or not torch.equal(torchs, torch.random.get_rng_state())


def _other_generators() -> tuple[Any, ...]:
    """The states of Python's and NumPy's global generators."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


class _Functions(TorchFunctionMode):
    """Keys draws by torch's Python functions."""

    def __init__(self, key: Key, given: Inputs) -> None:
        super().__init__()
        self.key, self.given = key, given
        self.level = torch._C._functorch.maybe_current_level() or 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _SPECIAL:
            return func(*args, **kwargs)
        if func == _SET_DATA:
            raise ImpureError("assigns to a tensor's .data, which no transformation sees; use copy_() under no_grad")
        if func in _SET_GRAD and not self._transformed(args[0]) and (name := self.given.name([args[0]])) is not None:
            raise ImpureError(f"sets requires_grad of {name!r}, which it was given; use .detach().requires_grad_()")
        at = _SPARSE.get(func)
        if at is not None:
            args = args if len(args) <= at else (*args[:at], False, *args[at + 1 :])
            kwargs = {**kwargs, "sparse": False} if "sparse" in kwargs else kwargs
        if func is F.one_hot and (encoded := _one_hot(*args, **kwargs)) is not None:
            return encoded
        draw = tables.FUNCTIONS.get(func)
        if draw is not None and not self._randomised():
            result = _drawn(func, draw, self.key, args, kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        inner = _TRANSPARENT.get(func)
        if inner is None or not all(t in (Tensor, nn.Parameter) for t in types):
            return func(*args, **kwargs)
        with self:
            return inner(*args, **kwargs)

    def _randomised(self) -> bool:
        """Whether a vmap in this code refuses draws, or has one for each sample: torch does that by itself, and the
        dispatcher sees the draw of all samples."""
        return any(
            level.key() == _FUNCTORCH.TransformType.Vmap
            and level.level() > self.level
            and _FUNCTORCH.CVmapInterpreterPtr(level).randomness() != _FUNCTORCH.RandomnessType.Same
            for level in _FUNCTORCH.get_interpreter_stack() or ()
        )

    def _transformed(self, t: Tensor) -> bool:
        """Whether a torch.func.grad in this code wrapped the tensor, so that nothing outside sees the change."""
        return torch._C._functorch.maybe_get_level(t) > self.level


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Keys draws at the dispatcher, and refuses writes into inputs."""

    def __init__(self, key: Key, given: Inputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.key, self.given = key, given

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the wrapper takes longer than most operations, and no graph of Dynamo's runs in here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_plain(func):
            collective = func.namespace == "c10d" or (func.namespace == "_c10d_functional" and mesh.here() is None)
            if collective and torch.compiler.is_compiling():
                raise ImpureError(
                    f"calls the collective {func}; place.mesh() and mesh.summed() or gathered() do it in a graph"
                )
            if func._schema.is_mutable:
                self.given.refuse_write(func, args, kwargs)
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
            message = "" if torch.compiler.is_compiling() else refused(func, args, kwargs)
            if not message:
                raise
            raise IndexError(message) from e


@functools.cache
def _is_plain(func: Any) -> bool:
    """Whether an operation neither communicates, writes nor draws."""
    seeded = torch.Tag.nondeterministic_seeded in func.tags
    return not (func.namespace in ("c10d", "_c10d_functional") or func._schema.is_mutable or seeded)


def _drawn(func: Any, draw: Callable[..., Any], k: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if kwargs.get("generator") is not None or any(isinstance(a, torch.Generator) for a in args):
        name = getattr(func, "__name__", func)
        raise ImpureError(f"draws by a torch.Generator of its own ({name}); leave it out: draws follow (seed, step)")
    out = kwargs.get("out")
    result = draw(k, *args, **{n: v for n, v in kwargs.items() if n not in ("generator", "out")})
    return result if out is None else out.copy_(result)


def drops_nothing(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is an attention or a recurrent layer with a dropout of 0, which draws nothing."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            p = kwargs.get(argument.name, args[i] if i < len(args) else argument.default_value)
            return not p
    return "sdp_choice" in func.__name__


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor | None:
    """F.one_hot by a gather, whose ids graphs check; torch reads values on the host, or doesn't check their range."""
    if num_classes < 1 or tensor.dtype != torch.int64:
        return None
    classes = torch.arange(num_classes, device=tensor.device)
    return (classes.gather(0, tensor.flatten()).view(*tensor.shape, 1) == classes).long()


def _transparent() -> dict[Any, FunctionType]:
    """Copies of the functions of torch.nn.functional that draw by others.

    torch dispatches such a function as a whole; the copy doesn't, so that its inner draws are intercepted.
    """
    names = {**F.__dict__, **{n: lambda *_: False for n in F.__dict__ if n.startswith("has_torch_function")}}
    copies: dict[Any, FunctionType] = {}
    for f in F.__dict__.values():
        own = isinstance(f, FunctionType) and f.__globals__ is F.__dict__
        if own and {"dropout", "scaled_dot_product_attention", "rand"}.intersection(f.__code__.co_names):
            copies[f] = FunctionType(f.__code__, names, f.__name__, f.__defaults__)
            copies[f].__kwdefaults__ = f.__kwdefaults__
    return copies


_FUNCTORCH = torch._C._functorch
_TRANSPARENT = _transparent()
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a property of C's
_SET_GRAD = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]  # as that

_SPARSE = {F.embedding: 6, F.embedding_bag: 7}
"""Position of `sparse`, which becomes False: rules and graphs take dense gradients, which are the same numbers."""

_SPECIAL = frozenset((_SET_DATA, *_SET_GRAD, *_SPARSE, F.one_hot, *tables.FUNCTIONS, *_TRANSPARENT))
"""The functions that are not simply called."""
