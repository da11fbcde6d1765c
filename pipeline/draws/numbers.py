"""Numbers as torch draws them, each from a key: the shapes, dtypes and arguments are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline import random
from pipeline.random import Key, bits


def _shape(size: tuple[Any, ...], names: dict[str, Any]) -> tuple[int, ...]:
    size = size or (names.pop("size"),)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def real(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(k: Key, *size: Any, dtype: Any = None, **names: Any) -> Tensor:
        return _asked(draw(k(), _shape(size, names), dtype or torch.get_default_dtype()), names)

    return made


def alike(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
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


def randint(k: Key, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    *numbers, size = [*bounds, *([names["size"]] if "size" in names else [])]
    low, high = names.get("low", 0), names.get("high")
    if len(numbers) == 2:
        low, high = numbers
    elif numbers:
        low, high = (low, numbers[0]) if high is None else (numbers[0], high)
    return _below(k, tuple(size), low, high).to(dtype or torch.int64)


def _bounds(given: tuple[Any, ...], low: Any, high: Any) -> tuple[Any, Any]:
    """The bounds of a draw: one that is given alone is the lower one where the other has its name."""
    if len(given) == 2:
        return given[0], given[1]
    if given:
        return (given[0], high) if high is not None else (low or 0, given[0])
    return low or 0, high


def randint_like(k: Key, input: Tensor, *bounds: Any, dtype: Any = None, **names: Any) -> Tensor:
    low, high = _bounds(bounds, names.get("low"), names.get("high"))
    return _below(k, tuple(input.shape), low, high).to(dtype or input.dtype)


def randperm(k: Key, n: int, *, dtype: Any = None, **names: Any) -> Tensor:
    # Sorting 63 bits: that two are equal is less likely than one in a million up to two million numbers.
    return ((bits(k(), (n,)) << 31) ^ bits(k(), (n,))).argsort().to(dtype or torch.int64)


def bernoulli(k: Key, input: Tensor, p: float | None = None) -> Tensor:
    return (random.uniform(k(), tuple(input.shape)) < (input if p is None else p)).to(input.dtype)


def normal(k: Key, mean: Any, std: Any = 1.0, size: Any = None, *, dtype: Any = None, **names: Any) -> Tensor:
    if size is None:  # one of them is a tensor
        size, dtype = (mean + std).shape, (mean if isinstance(mean, Tensor) else std).dtype
    made: Tensor = random.normal(k(), tuple(size), dtype or torch.get_default_dtype()) * std + mean
    return made


def multinomial(k: Key, input: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
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


def exponential(k: Key, like: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-_fine(k, tuple(like.shape))) / lambd


def geometric(k: Key, like: Tensor, p: float) -> Tensor:
    return torch.floor(torch.log1p(-_fine(k, tuple(like.shape))) / (math.log1p(-p) if p < 1 else -math.inf)) + 1


def cauchy(k: Key, like: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (_fine(k, tuple(like.shape)) - 0.5))


def log_normal(k: Key, like: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return torch.exp(random.normal(k(), tuple(like.shape)) * std + mean)


def uniform(k: Key, like: Tensor, a: float = 0.0, b: float = 1.0, **names: Any) -> Tensor:
    low, high = names.get("from", a), names.get("to", b)
    made: Tensor = random.uniform(k(), tuple(like.shape), like.dtype) * (high - low) + low
    return made


def any_number(k: Key, like: Tensor, *bounds: Any, **names: Any) -> Tensor:
    whole = 2 ** round(1 - math.log2(torch.finfo(like.dtype).eps)) if like.is_floating_point() else None
    most = whole + 1 if whole else torch.iinfo(like.dtype).max
    low, high = _bounds(bounds, names.get("from"), names.get("to"))
    return _below(k, tuple(like.shape), low, most if high is None else high)


def poisson(k: Key, rate: Tensor) -> Tensor:
    """By inversion: the least count whose probability, of it or fewer, is above a uniform number."""
    mean, u = rate.to(torch.float64), _fine(k, tuple(rate.shape))
    low, high = torch.full_like(mean, -1.0), torch.ceil(mean + 12 * mean.sqrt() + 40)
    for _ in range(60):
        middle = torch.floor((low + high) / 2)
        enough = torch.where(mean > 0, torch.special.gammaincc(middle + 1, mean), 1.0) > u
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high.to(rate.dtype)


def gamma(k: Key, alpha: Tensor) -> Tensor:
    """G. Marsaglia and W. Tsang, "A simple method for generating gamma variables" (2000), the first of 12 tries that
    is accepted: one is with at least 0.95."""
    shape, a = tuple(alpha.shape), alpha.to(torch.float64)
    d = torch.where(a < 1, a + 1, a) - 1 / 3
    made, found = d, torch.zeros(shape, dtype=torch.bool, device=alpha.device)
    for _ in range(12):
        x, u = random.normal(k(), shape, torch.float64), _fine(k, shape)
        v = (1 + x / torch.sqrt(9 * d)) ** 3
        accepted = (v > 0) & (torch.log(u) < 0.5 * x * x + d - d * v + d * torch.log(v.clamp(min=1e-300)))
        made, found = torch.where(accepted & ~found, d * v, made), found | accepted
    return (made * torch.where(a < 1, (1 - _fine(k, shape)) ** (1 / a), 1.0)).to(alpha.dtype)


def dirichlet(k: Key, alpha: Tensor) -> Tensor:
    parts = gamma(k, alpha.to(torch.float64))
    return (parts / parts.sum(-1, keepdim=True)).to(alpha.dtype)


def gumbel_softmax(
    k: Key, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    noise = -torch.log(exponential(k, logits)).to(logits.dtype)
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


def rrelu(
    k: Key, input: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Tensor:
    slopes = _slopes(k, input, lower, upper, training)
    noise.copy_(slopes)
    return input * slopes


def rrelu_function(
    k: Key, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    made = input * _slopes(k, input, lower, upper, training)
    return input.copy_(made) if inplace else made


def _slopes(k: Key, input: Tensor, lower: float, upper: float, training: bool) -> Tensor:
    """What each number is multiplied by: one that is not above 0, in training, by one of its own."""
    slopes = (
        random.uniform(k(), tuple(input.shape), input.dtype) * (upper - lower) + lower
        if training
        else (lower + upper) / 2
    )
    return torch.where(input <= 0, slopes, 1.0).to(input.dtype)


def into(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, written into its first tensor."""

    def made(k: Key, input: Tensor, *args: Any, **names: Any) -> Tensor:
        return input.copy_(draw(k, input, *args, **names))

    return made


def shaped(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same in the dtype of its first tensor."""
    return lambda k, input, *args, **names: draw(k, input, *args, **names).to(input.dtype)


def normal_like(k: Key, like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return random.normal(k(), tuple(like.shape), like.dtype) * std + mean


def chance(k: Key, input: Tensor, p: Any = 0.5) -> Tensor:
    return bernoulli(k, input, p)
