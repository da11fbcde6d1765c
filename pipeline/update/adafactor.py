"""Adafactor: second moments factored by rows and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.stage import Stage
from pipeline.update.rule import mapped, number, positive, root


def adafactor(lr: Number = 1e-2, *, beta2_decay: Number = -0.8, eps: tuple[float | None, Number] = (None, 1e-3),
              d: Number = 1.0, weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """Adafactor, equal to torch.optim.Adafactor; for a matrix it keeps row and column means of the squared gradients.

        v = v + t**beta2_decay * (mean of g**2 - v) by rows and by columns;  V = rows * columns / mean(rows)
        u = g / sqrt(V);  p = p * (1 - lr * weight_decay) - max(eps[1], rms(p)) * min(lr, 1 / sqrt(t)) * u / max(1, rms(u) / d)

    `eps[0]` is the minimum of sqrt(V); None means the dtype's epsilon. Source: Shazeer and Stern, Adafactor: adaptive
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
        rate = t**beta2_decay
        scale = torch.maximum(eps2, _rms(p)) * torch.minimum(lr, 1.0 / t.double().sqrt())
        squares = g * g

        def mean(field: str, new: Tensor) -> Tensor:
            return memory[field] + rate * (new - memory[field])  # type: ignore[no-any-return]  # a Tensor

        if p.ndim > 1:
            rows, columns = mean("rows", squares.mean(-1, True)), mean("columns", squares.mean(-2, True))
            after = {"rows": rows, "columns": columns}
            v = rows * columns / rows.mean(-2, True).clamp(min=least)
        else:
            v = mean("second", squares)
            after = {"second": v}
        step = g * v.clamp(min=least * least).rsqrt()
        step = step * (scale / (_rms(step) / d).clamp(min=1.0))
        return p * (1.0 - lr * weight_decay) - step, after

    def memory(p: Tensor) -> dict[str, Tensor]:
        if p.ndim > 1:
            return {"rows": torch.zeros_like(p[..., :1]), "columns": torch.zeros_like(p[..., :1, :])}
        return {"second": torch.zeros_like(p)}

    hyper = {"lr": lr, "beta2_decay": beta2_decay, "eps2": eps[1], "d": d, "weight_decay": weight_decay}
    signed = ("beta2_decay",)
    return mapped(name, rule, hyper, memory=memory, maximize=maximize, elementwise=False, signed=signed)


def _rms(x: Tensor) -> Tensor:
    """Root mean square, 0-d float64."""
    return root(x.square().mean().double())
