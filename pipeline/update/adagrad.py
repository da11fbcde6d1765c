"""Rates by the squares of past gradients: their sum, their running mean, or their means by rows and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.stage import Number, Stage
from pipeline.update.rule import mapped, number, positive, root, zeros


def adagrad(lr: Number = 1e-2, *, lr_decay: Number = 0.0, weight_decay: Number = 0.0,
            initial_accumulator_value: float = 0.0, eps: Number = 1e-10, maximize: bool = False) -> Stage:  # fmt: skip
    """Adagrad, equal to torch.optim.Adagrad.

        g = grad + weight_decay * p;  sum = sum + g**2;  p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps)

    Source: Duchi et al., Adaptive subgradient methods for online learning and stochastic optimization (2011).
    """
    positive("update.adagrad", initial_accumulator_value=initial_accumulator_value)

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, lr_decay: Tensor, weight_decay: Tensor,
             eps: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        total = memory["sum"] + g * g
        return p - lr / (1.0 + (t - 1) * lr_decay) * (g / (root(total) + eps)), {"sum": total}

    def memory(p: Tensor) -> dict[str, Tensor]:
        return {"sum": torch.full_like(p, initial_accumulator_value)}

    hyper = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
    return mapped("update.adagrad", rule, hyper, memory=memory, maximize=maximize)


def adadelta(lr: Number = 1.0, *, rho: Number = 0.9, eps: Number = 1e-6, weight_decay: Number = 0.0,
             maximize: bool = False) -> Stage:  # fmt: skip
    """Adadelta, equal to torch.optim.Adadelta.

        g = grad + weight_decay * p;  v = rho * v + (1 - rho) * g**2;  d = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d**2;  p = p - lr * d

    Source: Zeiler, Adadelta: an adaptive learning rate method (2012), algorithm 1.
    """
    first = number("update.adadelta", "rho", rho)
    if not isinstance(first, Schedule) and not 0 <= first <= 1:
        raise ConfigError(f"update.adadelta: rho={first} is not in [0, 1]")

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, rho: Tensor, eps: Tensor, weight_decay: Tensor) -> Any:
        g = g + weight_decay * p
        v = rho * memory["second"] + (1.0 - rho) * g * g
        step = root(memory["steps"] + eps) / root(v + eps) * g
        return p - lr * step, {"second": v, "steps": rho * memory["steps"] + (1.0 - rho) * step * step}

    hyper = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
    return mapped("update.adadelta", rule, hyper, memory=zeros("second", "steps"), maximize=maximize)


def rmsprop(lr: Number = 1e-2, *, alpha: Number = 0.99, eps: Number = 1e-8, weight_decay: Number = 0.0,
            momentum: Number = 0.0, centered: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """RMSprop, equal to torch.optim.RMSprop; a momentum of 0 builds it without one.

        g = grad + weight_decay * p;  v = alpha * v + (1 - alpha) * g**2;  d = g / (sqrt(v) + eps);  p = p - lr * d

    With `centered` the variance stands in the place of v. With a momentum, p = p - lr * b with b = momentum * b + d.
    Sources: Hinton, lecture 6e of Neural networks for machine learning (2012); Graves, Generating sequences with
    recurrent neural networks (2013), equations 38 to 41.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, alpha: Tensor, eps: Tensor, weight_decay: Tensor,
             momentum: Tensor | None = None) -> Any:  # fmt: skip
        g = g + weight_decay * p
        after = {"second": alpha * memory["second"] + (1.0 - alpha) * g * g}
        v = after["second"]
        if centered:
            after["first"] = m = memory["first"] + (1.0 - alpha) * (g - memory["first"])
            v = v - m * m
        step = g / (root(v) + eps)
        if momentum is not None:
            after["velocity"] = step = momentum * memory["velocity"] + step
        return p - lr * step, after

    hyper = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
    fields = ["second", *(["first"] if centered else [])]
    if momentum != 0:
        hyper["momentum"] = momentum
        fields.append("velocity")
    return mapped("update.rmsprop", rule, hyper, memory=zeros(*fields), maximize=maximize)


def adafactor(lr: Number = 1e-2, *, beta2_decay: Number = -0.8, eps: tuple[float | None, Number] = (None, 1e-3),
              d: Number = 1.0, weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """Adafactor, equal to torch.optim.Adafactor: of the squares of a matrix' gradients, it keeps the means by rows and
    columns.

        v = v + t**beta2_decay * (mean of g**2 - v), by rows and columns, whose product over their mean is V
        u = g / sqrt(V);  p = p * (1 - lr * weight_decay) - max(eps[1], rms(p)) * min(lr, 1 / sqrt(t)) * u / max(1, rms(u) / d)

    `eps[0]` is the least of the root of V; None is the dtype's epsilon. Source: Shazeer and Stern, Adafactor: adaptive
    learning rates with sublinear memory cost (2018), algorithms 4 and 5, in torch's form.
    """  # noqa: E501 - the formula
    name = "update.adafactor"
    positive(name, **({} if eps[0] is None else {"eps1": eps[0]}))
    for key, value, sign, bound in (("d", d, 1, "at least 1"), ("beta2_decay", beta2_decay, -1, "at most 0")):
        first = number(name, key, value)
        if not isinstance(first, Schedule) and not sign * first >= max(sign, 0):
            raise ConfigError(f"{name}: {key}={first} is not {bound}")

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta2_decay: Tensor, eps2: Tensor, d: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        least = torch.finfo(p.dtype).eps if eps[0] is None else eps[0]
        share = t**beta2_decay
        rate = torch.maximum(eps2, _rms(p)) * torch.minimum(lr, 1.0 / t.double().sqrt())
        squares = g * g

        def mean(field: str, new: Tensor) -> Tensor:
            return memory[field] + share * (new - memory[field])  # type: ignore[no-any-return]  # a Tensor

        if p.ndim > 1:
            rows, columns = mean("rows", squares.mean(-1, True)), mean("columns", squares.mean(-2, True))
            after = {"rows": rows, "columns": columns}
            v = rows * columns / rows.mean(-2, True).clamp(min=least)
        else:
            v = mean("second", squares)
            after = {"second": v}
        step = g * v.clamp(min=least * least).rsqrt()
        step = step * (rate / (_rms(step) / d).clamp(min=1.0))
        return p * (1.0 - lr * weight_decay) - step, after

    def memory(p: Tensor) -> dict[str, Tensor]:
        if p.ndim > 1:
            return {"rows": torch.zeros_like(p[..., :1]), "columns": torch.zeros_like(p[..., :1, :])}
        return {"second": torch.zeros_like(p)}

    hyper = {"lr": lr, "beta2_decay": beta2_decay, "eps2": eps[1], "d": d, "weight_decay": weight_decay}
    signed = ("beta2_decay",)
    return mapped(name, rule, hyper, memory=memory, maximize=maximize, elementwise=False, signed=signed)


def _rms(x: Tensor) -> Tensor:
    """The root of the mean square: 0-d float64."""
    return root(x.square().mean().double())
