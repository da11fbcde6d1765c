"""Tables: the keyed draw for each random operator and function of torch, or a replacement to write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import dropout, numbers
from pipeline.random import normal, uniform

_FILLS: dict[str, Callable[..., Tensor]] = {
    "bernoulli_": numbers.bernoulli_fill,
    "exponential_": numbers.exponential,
    "normal_": numbers.normal_fill,
    "uniform_": numbers.uniform,
}
_MAKERS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": numbers.bernoulli,
    "multinomial": numbers.multinomial,
    "normal": numbers.normal,
    "rand": numbers.of_size(uniform),
    "rand_like": numbers.of_input(uniform),
    "randint": numbers.randint,
    "randint_like": numbers.randint_like,
    "randn": numbers.of_size(normal),
    "randn_like": numbers.of_input(normal),
    "randperm": numbers.randperm,
}
_INSTEAD = {
    "binomial": "torch.bernoulli(p.expand(count, *p.shape)).sum(0)",
    "cauchy": "torch.tan(math.pi * (torch.rand(shape) - 0.5))",
    "geometric": "torch.empty(shape).exponential_(-math.log1p(-p)).ceil()",
    "log_normal": "torch.exp(mean + std * torch.randn(shape))",
    "poisson": "torch.normal(rate, rate.sqrt()).round() (close for rates above 10)",
    "random": "torch.randint(low, high, shape)",
    "rrelu_with_noise": "nn.LeakyReLU()",
}
_REFUSED = {name: numbers.refused(name, instead) for name, instead in _INSTEAD.items()}

OPERATORS: dict[str, Callable[..., Any]] = {
    **_MAKERS,
    **{name: numbers.in_place(draw) for name, draw in _FILLS.items()},
    "exponential": numbers.cast(numbers.exponential),
    "uniform": numbers.cast(numbers.uniform),
    "native_dropout": dropout.native_dropout,
    "_standard_gamma": numbers.gamma,
    "_sample_dirichlet": numbers.dirichlet,
    **_REFUSED,
    **{f"{name}_": refuse for name, refuse in _REFUSED.items()},
}
"""By the names of torch's operators."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): draw for name, draw in _MAKERS.items()},
    **{getattr(Tensor, name): numbers.in_place(draw) for name, draw in _FILLS.items()},
    Tensor.bernoulli: numbers.bernoulli,
    Tensor.multinomial: numbers.multinomial,
    F.dropout: dropout.dropout,
    F.dropout1d: dropout.channel_dropout(2),
    F.dropout2d: dropout.channel_dropout(0),  # torch reads three dimensions as a batch here
    F.dropout3d: dropout.channel_dropout(4),
    F.alpha_dropout: dropout.alpha_dropout(channels=False),
    F.feature_alpha_dropout: dropout.alpha_dropout(channels=True),
    F.gumbel_softmax: numbers.gumbel_softmax,
    F.rrelu: _REFUSED["rrelu_with_noise"],
    F.scaled_dot_product_attention: dropout.attention,
    torch.dropout: dropout.dropout,
    torch.dropout_: functools.partial(dropout.dropout, inplace=True),
    torch.binomial: _REFUSED["binomial"],
    torch.poisson: _REFUSED["poisson"],
    **{getattr(Tensor, f"{name}_"): _REFUSED[name] for name in ("cauchy", "geometric", "log_normal", "random")},
    **{getattr(torch._VF, n): dropout.recurrent(getattr(torch._VF, n), 1) for n in ("gru", "rnn_tanh", "rnn_relu")},
    torch._VF.lstm: dropout.recurrent(torch._VF.lstm, 2),
}
"""By torch's functions, as Python calls them."""
