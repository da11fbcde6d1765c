"""Which draw stands for which of torch's operators and functions."""

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
    "bernoulli_": numbers.chance,
    "cauchy_": numbers.cauchy,
    "exponential_": numbers.exponential,
    "geometric_": numbers.geometric,
    "log_normal_": numbers.log_normal,
    "normal_": numbers.normal_like,
    "random_": numbers.any_number,
    "uniform_": numbers.uniform,
}
_MAKERS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": numbers.bernoulli,
    "multinomial": numbers.multinomial,
    "normal": numbers.normal,
    "poisson": numbers.poisson,
    "rand": numbers.real(uniform),
    "rand_like": numbers.alike(uniform),
    "randint": numbers.randint,
    "randint_like": numbers.randint_like,
    "randn": numbers.real(normal),
    "randn_like": numbers.alike(normal),
    "randperm": numbers.randperm,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    **_MAKERS,
    **{name: numbers.into(draw) for name, draw in _FILLS.items()},
    **{
        name.rstrip("_"): numbers.shaped(draw) for name, draw in _FILLS.items() if name not in ("bernoulli_", "normal_")
    },
    "native_dropout": dropout.native_dropout,
    "rrelu_with_noise": numbers.rrelu,
    "rrelu_with_noise_": numbers.into(numbers.rrelu),
    "_standard_gamma": numbers.gamma,
    "_sample_dirichlet": numbers.dirichlet,
}
"""By the names of torch's operators."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): draw for name, draw in _MAKERS.items()},
    **{getattr(Tensor, name): numbers.into(draw) for name, draw in _FILLS.items()},
    Tensor.bernoulli: numbers.bernoulli,
    Tensor.multinomial: numbers.multinomial,
    F.dropout: dropout.dropout,
    F.dropout1d: dropout.channel_dropout(2),
    F.dropout2d: dropout.channel_dropout(0),  # torch reads three dimensions as a batch here
    F.dropout3d: dropout.channel_dropout(4),
    F.alpha_dropout: dropout.alpha_dropout(channels=False),
    F.gumbel_softmax: numbers.gumbel_softmax,
    F.rrelu: numbers.rrelu_function,
    F.feature_alpha_dropout: dropout.alpha_dropout(channels=True),
    F.scaled_dot_product_attention: dropout.attention,
    torch.dropout: dropout.dropout,
    torch.dropout_: functools.partial(dropout.dropout, inplace=True),
    **{getattr(torch._VF, n): dropout.recurrent(getattr(torch._VF, n), 1) for n in ("gru", "rnn_tanh", "rnn_relu")},
    torch._VF.lstm: dropout.recurrent(torch._VF.lstm, 2),
}
"""By torch's functions, as they are called from Python."""
