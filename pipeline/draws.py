"""Draws: whatever a module or a stage draws becomes a function of (seed, step, stage, draw).

`keyed` catches draws where they are made: at torch's Python functions, which know what a vmapped shape is, and behind
them at the dispatcher, where all of torch's operators pass, those that C++ calls among them. What can't be keyed is
refused there, eager and compiled alike: torch's global generator is never asked.
"""

from __future__ import annotations

import functools
import math
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

from pipeline.errors import ImpureError
from pipeline.random import MASK, bits, key, mix, normal, settled, uniform
from pipeline.tree import paths

Key = Callable[[], Tensor]
"""The key of the next draw."""


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

    def __init__(self, seed: Tensor, step: Tensor, salt: int, given: Mapping[str, Any] | None = None) -> None:
        self._parts = salt, seed, step
        self._base: Tensor | None = None
        self._draws = 0
        self._given = given or {}
        self._modes = _Operators(self._key, self._given), _Functions(self._key, self._given)

    def __enter__(self) -> None:
        self._others = _other_generators()
        self._recomputed = _Recomputed(self._again)
        self._recomputed.__enter__()
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]  # torch's

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


class _Recomputed:
    """Within it, what activation checkpointing computes a second time draws what it drew the first time.

    The reentrant kind becomes the other one, which gives the same and goes with torch.autograd.grad.
    """

    def __init__(self, again: Callable[[], keyed]) -> None:
        def generator(function: Any, preserve: bool, *args: Any, **kwargs: Any) -> Any:
            draws = again()

            def recomputed(*inputs: Any, **more: Any) -> Any:
                with draws:
                    return function(*inputs, **more)

            return kept(recomputed, False, *args, **kwargs)  # torch's own generator is never drawn from

        class Reentrant:
            @staticmethod
            def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
                return checkpoint.checkpoint(function, *inputs, use_reentrant=False)

        kept = checkpoint._checkpoint_without_reentrant_generator
        self._changed = {"_checkpoint_without_reentrant_generator": generator, "CheckpointFunction": Reentrant}

    def __enter__(self) -> None:
        self._before = {name: getattr(checkpoint, name) for name in self._changed}
        for name, function in self._changed.items():
            setattr(checkpoint, name, function)

    def __exit__(self, *error: Any) -> None:
        for name, function in self._before.items():
            setattr(checkpoint, name, function)


def _other_generators() -> tuple[Any, ...]:
    """What changes when Python's or NumPy's generator is drawn from."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


class _Functions(TorchFunctionMode):
    def __init__(self, key: Key, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.key, self.given = key, given

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _SET_DATA:
            raise ImpureError("assigns to a tensor's .data, which no transformation sees; use copy_() under no_grad")
        if func in _ASKS and (name := _given(self.given, [args[0]])) is not None:
            raise ImpureError(f"sets requires_grad of {name!r}, which it was given; use .detach().requires_grad_()")
        draw = _FUNCTIONS.get(func)
        if draw is not None:
            result = _drawn(func, draw, self.key, args, kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        plain = all(t in (Tensor, nn.Parameter) for t in types)
        inside = _opened(func) if plain and isinstance(func, FunctionType) else None
        if inside is None:
            return func(*args, **kwargs)
        with self:
            return inside(*args, **kwargs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    def __init__(self, key: Key, given: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.key, self.given = key, given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("c10d", "_c10d_functional") and torch.compiler.is_compiling():
            raise ImpureError(f"calls the collective {func}, but a graph is of one process; use fallback='eager'")
        if func._schema.is_mutable:
            self._look(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs):
            draw = _OPERATORS.get(func.overloadpacket.__name__)
            if draw is None:
                raise ImpureError(
                    f"draws random numbers through {func}, which can't be made a function of (seed, step)"
                )
            return _drawn(func, draw, self.key, args, kwargs)
        return func(*args, **kwargs)

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse an operator that would write into what was given."""
        written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.is_write]
        written += [kwargs[s.name] for s in func._schema.arguments if s.is_write and s.name in kwargs]
        name = _given(self.given, pytree.tree_leaves(written))
        if name is not None:
            instead = _INSTEAD.get(name.split(".")[0], "return a new tensor instead")
            if "renorm" in str(func):
                instead = "leave out max_norm, or scale the rows in a stage after the update"
            raise ImpureError(f"writes into {name!r} in place ({func}); {instead}")


def _given(given: Mapping[str, Any], tensors: list[Any]) -> str | None:
    """The name of a value that was given, where one of the tensors is it, or a view of it."""
    places = {_place(t) for t in tensors if isinstance(t, Tensor)}
    for path, t in paths(dict(given)):
        if isinstance(t, Tensor) and _place(t) in places:
            return path.replace("/", ".")
    return None


_INSTEAD = {
    "params": "do so in a stage after the update",
    "held": "a tensor that a module holds is State's only as a buffer: use register_buffer()",
}
"""What to write instead of writing into a value that was given."""


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


def _without_dropout(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is an attention or a recurrent layer that drops nothing: these could draw, and do not."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            p = kwargs.get(argument.name, args[i] if i < len(args) else argument.default_value)
            return not p
    return "sdp_choice" in func.__name__


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

_INSIDE = {"dropout", "scaled_dot_product_attention", "rand"}
"""What such functions draw by."""


# -- dropout


def _mask(k: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    return bits(k, shape) >= int(p * 2**32)


def _drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    return torch.where(keep, x * (1.0 / (1.0 - p)), 0.0) if p < 1.0 else x * 0.0


def _dropout(k: Key, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    dropped = _drop(input, _mask(k(), tuple(input.shape), p), p)
    return input.copy_(dropped) if inplace else dropped


def _native_dropout(k: Key, input: Tensor, p: float, train: bool | None = True) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    keep = _mask(k(), tuple(input.shape), p)
    return _drop(input, keep, p), keep


def _channel_dropout(unbatched: int) -> Callable[..., Tensor]:
    """Whole channels dropped; an input of `unbatched` dimensions has its channels first."""

    def draw(k: Key, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        lead = 1 if input.ndim == unbatched else 2
        shape = (*input.shape[:lead], *(1 for _ in input.shape[lead:]))
        dropped = _drop(input, _mask(k(), shape, p), p)
        return input.copy_(dropped) if inplace else dropped

    return draw


def _alpha_dropout(channels: bool) -> Callable[..., Tensor]:
    def draw(k: Key, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        # Klambauer et al., Self-Normalizing Neural Networks (2017), section "New dropout technique".
        alpha = -1.7580993408473766
        a = 0.0 if p == 1 else ((1 - p) * (1 + p * alpha**2)) ** -0.5
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if channels else tuple(input.shape)
        dropped = torch.where(_mask(k(), shape, p), input, alpha) * a - a * alpha * p if p < 1 else input * 0.0
        return input.copy_(dropped) if inplace else dropped

    return draw


def _attention(k: Key, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> Any:  # fmt: skip
    if dropout_p == 0.0:
        return NotImplemented
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return _dropout(k, torch.softmax(scores, -1), dropout_p) @ value


def _recurrent(layer: Callable[..., Any], states: int) -> Callable[..., Any]:
    """Layers one by one, with the dropout between them."""

    def draw(k: Key, *args: Any) -> Any:
        # Of the two forms of arguments, the other one is for packed sequences: it has weights where this has a flag.
        if not isinstance(args[3], bool):
            return NotImplemented
        x, hx, weights, biases, layers, p, train, both, batch_first = args
        if not p or not train or layers == 1:
            return NotImplemented
        first = hx if states == 2 else (hx,)
        each, ways = len(weights) // layers, 2 if both else 1
        last: list[tuple[Tensor, ...]] = []
        for i in range(layers):
            begin = tuple(h[i * ways : (i + 1) * ways] for h in first)
            own = weights[i * each : (i + 1) * each]
            x, *end = layer(x, begin if states == 2 else begin[0], own, biases, 1, 0.0, train, both, batch_first)
            last.append(tuple(end))
            x = _dropout(k, x, p) if i < layers - 1 else x
        return (x, *[torch.cat(h) for h in zip(*last, strict=True)])

    return draw


# -- numbers


def _shape(size: tuple[Any, ...], names: dict[str, Any]) -> tuple[int, ...]:
    size = size or (names.pop("size"),)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _real(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(k: Key, *size: Any, dtype: Any = None, **names: Any) -> Tensor:
        return _asked(draw(k(), _shape(size, names), dtype or torch.get_default_dtype()), names)

    return made


def _alike(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(k: Key, input: Tensor, *, dtype: Any = None, **names: Any) -> Tensor:
        return _asked(draw(k(), tuple(input.shape), dtype or input.dtype), names)

    return made


def _asked(made: Tensor, names: Mapping[str, Any]) -> Tensor:
    return made.requires_grad_() if names.get("requires_grad") else made


def _below(k: Key, shape: tuple[int, ...], low: Any, high: Any) -> Tensor:
    """Whole numbers from low to below high."""
    span = high - low
    if isinstance(span, int) and span > 2**31:
        wide = (bits(k(), shape) << 31) ^ bits(k(), shape)  # 63 bits
        return wide % span + low if span < 2**63 else wide
    number: Tensor = low + (bits(k(), shape) * span >> 32)
    return number


def _randint(k: Key, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    *numbers, size = [*bounds, *([names["size"]] if "size" in names else [])]
    low, high = names.get("low", 0), names.get("high")
    if len(numbers) == 2:
        low, high = numbers
    elif numbers:
        low, high = (low, numbers[0]) if high is None else (numbers[0], high)
    return _below(k, tuple(size), low, high).to(dtype or torch.int64)


def _randint_like(k: Key, input: Tensor, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    low, high = bounds if len(bounds) == 2 else (names.get("low", 0), *(bounds or (names.get("high"),)))
    return _below(k, tuple(input.shape), low, high).to(dtype or input.dtype)


def _randperm(k: Key, n: int, *, dtype: Any = None, **names: Any) -> Tensor:
    # Sorting 63 bits: that two are equal is less likely than one in a million up to two million numbers.
    return ((bits(k(), (n,)) << 31) ^ bits(k(), (n,))).argsort().to(dtype or torch.int64)


def _bernoulli(k: Key, input: Tensor, p: float | None = None) -> Tensor:
    return (uniform(k(), tuple(input.shape)) < (input if p is None else p)).to(input.dtype)


def _normal(k: Key, mean: Any, std: Any = 1.0, size: Any = None, *, dtype: Any = None, **names: Any) -> Tensor:
    if size is None:  # one of them is a tensor
        size, dtype = (mean + std).shape, (mean if isinstance(mean, Tensor) else std).dtype
    made: Tensor = normal(k(), tuple(size), dtype or torch.get_default_dtype()) * std + mean
    return made


def _multinomial(k: Key, input: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    weights = input.to(torch.float64)
    if replacement:
        total = weights.cumsum(-1)
        u = _fine(k, (*input.shape[:-1], num_samples)) * total[..., -1:]
        return torch.searchsorted(total, u, right=True).clamp(max=input.shape[-1] - 1)
    # Who is first in a race of exponential clocks: Efraimidis and Spirakis (2006).
    clocks = -torch.log1p(-_fine(k, tuple(input.shape))) / weights
    return clocks.topk(num_samples, -1, largest=False).indices


def _fine(k: Key, shape: tuple[int, ...]) -> Tensor:
    """float64 in [0, 1), multiples of 2**-52."""
    return ((bits(k(), shape) << 20) ^ (bits(k(), shape) >> 12)).to(torch.float64) * 2.0**-52


def _exponential(k: Key, like: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-_fine(k, tuple(like.shape))) / lambd


def _geometric(k: Key, like: Tensor, p: float) -> Tensor:
    return torch.floor(torch.log1p(-_fine(k, tuple(like.shape))) / (math.log1p(-p) if p < 1 else -math.inf)) + 1


def _cauchy(k: Key, like: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (_fine(k, tuple(like.shape)) - 0.5))


def _log_normal(k: Key, like: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return torch.exp(normal(k(), tuple(like.shape)) * std + mean)


def _uniform(k: Key, like: Tensor, a: float = 0.0, b: float = 1.0, **names: Any) -> Tensor:
    low, high = names.get("from", a), names.get("to", b)
    made: Tensor = uniform(k(), tuple(like.shape), like.dtype) * (high - low) + low
    return made


def _any_number(k: Key, like: Tensor, *bounds: Any, **names: Any) -> Tensor:
    whole = 2 ** round(1 - math.log2(torch.finfo(like.dtype).eps)) if like.is_floating_point() else None
    most = whole + 1 if whole else torch.iinfo(like.dtype).max
    low, high = bounds if len(bounds) == 2 else (names.get("from", 0), *(bounds or (names.get("to"),)))
    return _below(k, tuple(like.shape), low, most if high is None else high)


def _poisson(k: Key, rate: Tensor) -> Tensor:
    """By inversion: the least count whose probability, of it or fewer, is above a uniform number."""
    mean, u = rate.to(torch.float64), _fine(k, tuple(rate.shape))
    low, high = torch.full_like(mean, -1.0), torch.ceil(mean + 12 * mean.sqrt() + 40)
    for _ in range(60):
        middle = torch.floor((low + high) / 2)
        enough = torch.where(mean > 0, torch.special.gammaincc(middle + 1, mean), 1.0) > u
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high.to(rate.dtype)


def _gamma(k: Key, alpha: Tensor) -> Tensor:
    """G. Marsaglia and W. Tsang, "A simple method for generating gamma variables" (2000), the first of 12 tries that
    is accepted: one is with at least 0.95."""
    shape, a = tuple(alpha.shape), alpha.to(torch.float64)
    d = torch.where(a < 1, a + 1, a) - 1 / 3
    made, found = d, torch.zeros(shape, dtype=torch.bool, device=alpha.device)
    for _ in range(12):
        x, u = normal(k(), shape, torch.float64), _fine(k, shape)
        v = (1 + x / torch.sqrt(9 * d)) ** 3
        accepted = (v > 0) & (torch.log(u) < 0.5 * x * x + d - d * v + d * torch.log(v.clamp(min=1e-300)))
        made, found = torch.where(accepted & ~found, d * v, made), found | accepted
    return (made * torch.where(a < 1, (1 - _fine(k, shape)) ** (1 / a), 1.0)).to(alpha.dtype)


def _dirichlet(k: Key, alpha: Tensor) -> Tensor:
    parts = _gamma(k, alpha.to(torch.float64))
    return (parts / parts.sum(-1, keepdim=True)).to(alpha.dtype)


def _gumbel_softmax(
    k: Key, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    noise = -torch.log(_exponential(k, logits)).to(logits.dtype)
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


def _rrelu(
    k: Key, input: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Tensor:
    slopes = _slopes(k, input, lower, upper, training)
    noise.copy_(slopes)
    return input * slopes


def _rrelu_function(
    k: Key, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    made = input * _slopes(k, input, lower, upper, training)
    return input.copy_(made) if inplace else made


def _slopes(k: Key, input: Tensor, lower: float, upper: float, training: bool) -> Tensor:
    """What each number is multiplied by: one that is not above 0, in training, by one of its own."""
    slopes = (
        uniform(k(), tuple(input.shape), input.dtype) * (upper - lower) + lower if training else (lower + upper) / 2
    )
    return torch.where(input <= 0, slopes, 1.0).to(input.dtype)


def _into(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, written into its first tensor."""

    def made(k: Key, input: Tensor, *args: Any, **names: Any) -> Tensor:
        return input.copy_(draw(k, input, *args, **names))

    return made


def _shaped(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same in the dtype of its first tensor."""
    return lambda k, input, *args, **names: draw(k, input, *args, **names).to(input.dtype)


def _normal_like(k: Key, like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return normal(k(), tuple(like.shape), like.dtype) * std + mean


def _chance(k: Key, input: Tensor, p: Any = 0.5) -> Tensor:
    return _bernoulli(k, input, p)


_FILLS: dict[str, Callable[..., Tensor]] = {
    "bernoulli_": _chance,
    "cauchy_": _cauchy,
    "exponential_": _exponential,
    "geometric_": _geometric,
    "log_normal_": _log_normal,
    "normal_": _normal_like,
    "random_": _any_number,
    "uniform_": _uniform,
}
_MAKERS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "normal": _normal,
    "poisson": _poisson,
    "rand": _real(uniform),
    "rand_like": _alike(uniform),
    "randint": _randint,
    "randint_like": _randint_like,
    "randn": _real(normal),
    "randn_like": _alike(normal),
    "randperm": _randperm,
}
_OPERATORS: dict[str, Callable[..., Any]] = {
    **_MAKERS,
    **{name: _into(draw) for name, draw in _FILLS.items()},
    **{name.rstrip("_"): _shaped(draw) for name, draw in _FILLS.items() if name not in ("bernoulli_", "normal_")},
    "native_dropout": _native_dropout,
    "rrelu_with_noise": _rrelu,
    "rrelu_with_noise_": _into(_rrelu),
    "_standard_gamma": _gamma,
    "_sample_dirichlet": _dirichlet,
}
"""By the names of torch's operators."""

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): draw for name, draw in _MAKERS.items()},
    **{getattr(Tensor, name): _into(draw) for name, draw in _FILLS.items()},
    Tensor.bernoulli: _bernoulli,
    Tensor.multinomial: _multinomial,
    F.dropout: _dropout,
    F.dropout1d: _channel_dropout(2),
    F.dropout2d: _channel_dropout(0),  # torch reads three dimensions as a batch here
    F.dropout3d: _channel_dropout(4),
    F.alpha_dropout: _alpha_dropout(channels=False),
    F.gumbel_softmax: _gumbel_softmax,
    F.rrelu: _rrelu_function,
    F.feature_alpha_dropout: _alpha_dropout(channels=True),
    F.scaled_dot_product_attention: _attention,
    torch.dropout: _dropout,
    torch.dropout_: functools.partial(_dropout, inplace=True),
    **{getattr(torch._VF, n): _recurrent(getattr(torch._VF, n), 1) for n in ("gru", "rnn_tanh", "rnn_relu")},
    torch._VF.lstm: _recurrent(torch._VF.lstm, 2),
}
"""By torch's functions, as they are called from Python."""
