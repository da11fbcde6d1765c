"""Keyed draws of common distributions, with the arguments, shapes and dtypes of torch's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline import random
from pipeline.errors import ImpureError
from pipeline.random import Key, bits


def of_size(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A draw of (key, shape, dtype) with the arguments of torch.rand."""

    def sized(k: Key, *size: Any, dtype: Any = None, **names: Any) -> Tensor:
        size = size or (names["size"],)
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
        return _with_grad(draw(k(), shape, dtype or torch.get_default_dtype()), names)

    return sized


def of_input(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A draw of (key, shape, dtype) with the arguments of torch.rand_like."""

    def like(k: Key, input: Tensor, *, dtype: Any = None, **names: Any) -> Tensor:
        return _with_grad(draw(k(), tuple(input.shape), dtype or input.dtype), names)

    return like


def _with_grad(x: Tensor, names: Mapping[str, Any]) -> Tensor:
    return x.requires_grad_() if names.get("requires_grad") else x


def in_place(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The draw, written into its first tensor."""
    return lambda k, input, *args, **names: input.copy_(draw(k, input, *args, **names))


def cast(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The draw in the dtype of its first tensor."""
    return lambda k, input, *args, **names: draw(k, input, *args, **names).to(input.dtype)


def refused(name: str, instead: str) -> Callable[..., Tensor]:
    """A draw that raises ImpureError, with a replacement to write."""

    def refuse(k: Key, *args: Any, **names: Any) -> Tensor:
        raise ImpureError(f"draws by {name}, which is no function of (seed, step); write {instead} instead")

    return refuse


def _require(x: Any, good: Callable[[Any], Any], said: str) -> None:
    """Raise RuntimeError, as torch does, unless an argument is good: a number, or a tensor on the host that is computed
    now."""
    if type(x) is Tensor and x.device.type == "cpu" and random.computed():
        if not good(x.detach()).all():
            raise RuntimeError(said)
    elif isinstance(x, int | float) and not good(x):
        raise RuntimeError(f"{said}, but got {x}")


def _fixed(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _constant(x: Tensor, *given: Any) -> Tensor:
    """A draw whose gradients with respect to the tensors given are zeros, as torch's."""
    for t in given:
        x = x + 0 * t if isinstance(t, Tensor) and t.requires_grad else x
    return x


def randint(k: Key, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    *numbers, size = [*bounds, *([names["size"]] if "size" in names else [])]
    return _integers(k, tuple(size), numbers, names).to(dtype or torch.int64)


def randint_like(k: Key, input: Tensor, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    return _integers(k, tuple(input.shape), bounds, names).to(dtype or input.dtype)


def _integers(k: Key, shape: tuple[int, ...], bounds: Any, names: Mapping[str, Any]) -> Tensor:
    """Integers in [low, high). A lone positional bound is `low` if `high` is a keyword."""
    low, high = names.get("low", 0), names.get("high")
    if len(bounds) == 2:
        low, high = bounds
    elif bounds:
        low, high = (low, bounds[0]) if high is None else (bounds[0], high)
    span = high - low
    _require(span, lambda n: n > 0, "randint expects low to be less than high, by 1 or more")
    if isinstance(span, int) and span > 2**31:
        wide = (bits(k(), shape) << 31) ^ bits(k(), shape)  # 63 bits
        return wide % span + low if span < 2**63 else wide
    number: Tensor = low + (bits(k(), shape) * span >> 32)
    return number


def randperm(k: Key, n: int, *, dtype: Any = None, **names: Any) -> Tensor:
    # Sort 63-bit keys: for up to two million of them, the chance of a tie is below one in a million.
    return ((bits(k(), (n,)) << 31) ^ bits(k(), (n,))).argsort().to(dtype or torch.int64)


def bernoulli(k: Key, input: Tensor, p: float | None = None) -> Tensor:
    chance = input if p is None else p
    _require(chance, lambda p: (p >= 0) & (p <= 1), "bernoulli expects p to be in [0, 1]")
    return _constant((random.uniform(k(), tuple(input.shape)) < chance).to(input.dtype), chance)


def bernoulli_fill(k: Key, input: Tensor, p: Any = 0.5) -> Tensor:
    return bernoulli(k, input, p)


def normal(k: Key, mean: Any, std: Any = 1.0, size: Any = None, *, dtype: Any = None, **names: Any) -> Tensor:
    if size is None:  # mean or std is a tensor
        size, dtype = (mean + std).shape, (mean if isinstance(mean, Tensor) else std).dtype
    _require(std, lambda std: std >= 0, "normal expects std >= 0.0")
    x: Tensor = random.normal(k(), tuple(size), dtype or torch.get_default_dtype()) * _fixed(std) + _fixed(mean)
    return _constant(x, mean, std)


def normal_fill(k: Key, input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return normal(k, mean, std, input.shape, dtype=input.dtype)


def uniform(k: Key, input: Tensor, a: float = 0.0, b: float = 1.0, **names: Any) -> Tensor:
    low, high = names.get("from", a), names.get("to", b)
    x: Tensor = random.uniform(k(), tuple(input.shape), input.dtype) * (high - low) + low
    return x


def exponential(k: Key, input: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-_fine(k, tuple(input.shape))) / lambd


def multinomial(k: Key, input: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    weights = input.to(torch.float64)
    _require(weights, lambda w: (w >= 0) & (w < torch.inf), "multinomial expects weights >= 0, neither inf nor nan")
    _require(weights, lambda w: w.sum(-1) > 0, "multinomial expects a weight above 0 in each row")
    if replacement:
        total = weights.cumsum(-1)
        u = _fine(k, (*input.shape[:-1], num_samples)) * total[..., -1:]
        return torch.searchsorted(total, u, right=True).clamp(max=input.shape[-1] - 1)
    # The first of exponential clocks: Efraimidis and Spirakis (2006).
    clocks = -torch.log1p(-_fine(k, tuple(input.shape))) / weights
    return clocks.topk(num_samples, -1, largest=False).indices


def _fine(k: Key, shape: tuple[int, ...]) -> Tensor:
    """float64 in [0, 1), multiples of 2**-52."""
    return ((bits(k(), shape) << 20) ^ (bits(k(), shape) >> 12)).to(torch.float64) * 2.0**-52


def gamma(k: Key, alpha: Tensor) -> Tensor:
    """The first accepted of 12 proposals, each of which is accepted with probability of at least 0.95.

    Source: Marsaglia and Tsang, A simple method for generating gamma variables (2000).
    """
    shape, a = tuple(alpha.shape), alpha.to(torch.float64)
    d = torch.where(a < 1, a + 1, a) - 1 / 3
    result, done = d, torch.zeros(shape, dtype=torch.bool, device=alpha.device)
    for _ in range(12):
        x, u = random.normal(k(), shape, torch.float64), _fine(k, shape)
        v = (1 + x / torch.sqrt(9 * d)) ** 3
        accepted = (v > 0) & (torch.log(u) < 0.5 * x * x + d - d * v + d * torch.log(v.clamp(min=1e-300)))
        result, done = torch.where(accepted & ~done, d * v, result), done | accepted
    return (result * torch.where(a < 1, (1 - _fine(k, shape)) ** (1 / a), 1.0)).to(alpha.dtype)


def dirichlet(k: Key, alpha: Tensor) -> Tensor:
    x = gamma(k, alpha.to(torch.float64))
    return (x / x.sum(-1, keepdim=True)).to(alpha.dtype)


def gumbel_softmax(
    k: Key, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    noise = -torch.log(exponential(k, logits)).to(logits.dtype)
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft
