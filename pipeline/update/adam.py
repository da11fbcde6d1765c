"""Adam and its kin: a mean of the gradients, divided by the root of a mean of their squares."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, below_one, mapped, root, zeros

Betas = tuple[Number, Number]


def adam(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
         amsgrad: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Adam, equal to torch.optim.Adam; its weight decay is added to the gradient.

        m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)

    With `amsgrad`, v is there the largest one so far. Sources: Kingma and Ba, Adam: a method for stochastic
    optimization (2015), algorithm 1; Reddi et al., On the convergence of Adam and beyond (2018), algorithm 2.
    """
    return _adam("update.adam", False, lr, betas, eps, weight_decay, amsgrad, maximize)


def adamw(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.01,
          amsgrad: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with decoupled weight decay, p * (1 - lr * weight_decay), equal to torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 2.
    """
    return _adam("update.adamw", True, lr, betas, eps, weight_decay, amsgrad, maximize)


def _adam(name: str, decoupled: bool, lr: Number, betas: Betas, eps: Number, decay: Number, amsgrad: bool,
          maximize: bool) -> Stage:  # fmt: skip
    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        p, g = _decayed(p, g, lr, weight_decay, decoupled)
        m, v = _moments(g, memory, beta1, beta2)
        after = {"first": m, "second": v}
        if amsgrad:
            after["largest"] = v = torch.maximum(memory["largest"], v)
        rate, scale = lr / (1.0 - beta1**t), 1.0 / torch.sqrt(1.0 - beta2**t)
        return p - rate * (m / (root(v) * scale + eps)), after

    fields = ("first", "second", "largest") if amsgrad else ("first", "second")
    return mapped(name, rule, _hyper(name, lr, betas, eps, decay), memory=zeros(*fields), maximize=maximize)


def adamax(lr: Number = 2e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
           maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with the largest size of the gradients in the place of the root of their squares, as torch.optim.Adamax.

        m = beta1 * m + (1 - beta1) * g;  u = max(beta2 * u, |g| + eps);  p = p - lr * m / (1 - beta1**t) / u

    Source: Kingma and Ba (2015), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        m = memory["first"] + (1.0 - beta1) * (g - memory["first"])
        u = torch.maximum(beta2 * memory["largest"], g.abs() + eps)
        return p - lr / (1.0 - beta1**t) * (m / u), {"first": m, "largest": u}

    hyper = _hyper("update.adamax", lr, betas, eps, weight_decay)
    return mapped("update.adamax", rule, hyper, memory=zeros("first", "largest"), maximize=maximize)


def nadam(lr: Number = 2e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
          momentum_decay: Number = 4e-3, decoupled_weight_decay: bool = False,
          maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with Nesterov's momentum, equal to torch.optim.NAdam.

        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2);  product = mu(1) * ... * mu(t)
        p = p - lr * ((1 - mu(t)) / (1 - product) * g + mu(t + 1) / (1 - product * mu(t + 1)) * m)
                / (sqrt(v / (1 - beta2**t)) + eps)

    Source: Dozat, Incorporating Nesterov momentum into Adam (2016), in torch's form.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor, momentum_decay: Tensor) -> Any:  # fmt: skip
        p, g = _decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m, v = _moments(g, memory, beta1, beta2)
        mu, following = (beta1 * (1.0 - 0.5 * 0.96 ** (s * momentum_decay)) for s in (t, t + 1))
        product = memory["product"] * mu
        denominator = root(v / (1.0 - beta2**t)) + eps
        own, mean = (1.0 - mu) / (1.0 - product), following / (1.0 - product * following)
        p = p - lr * own * (g / denominator) - lr * mean * (m / denominator)
        return p, {"first": m, "second": v, "product": product}

    def memory(p: Tensor) -> dict[str, Tensor]:
        return {**zeros("first", "second")(p), "product": p.new_ones((), dtype=torch.float64)}

    hyper = {**_hyper("update.nadam", lr, betas, eps, weight_decay), "momentum_decay": momentum_decay}
    return mapped("update.nadam", rule, hyper, memory=memory, maximize=maximize)


def radam(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
          decoupled_weight_decay: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Adam, rectified: with momentum alone as long as the variance of its rate is unbounded, as torch.optim.RAdam.

    Source: Liu et al., On the variance of the adaptive learning rate and beyond (2020), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        p, g = _decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m, v = _moments(g, memory, beta1, beta2)
        corrected = 1.0 - beta2**t
        most = 2.0 / (1.0 - beta2) - 1.0
        length = most - 2.0 * t * beta2**t / corrected
        bounded = length > 5.0
        rectified = (length - 4.0) * (length - 2.0) * most / ((most - 4.0) * (most - 2.0) * length)
        rectified = torch.where(bounded, rectified, 1.0).sqrt() * corrected.sqrt()
        adaptive = torch.where(bounded, rectified / (root(v) + eps), 1.0)
        return p - lr * (m / (1.0 - beta1**t) * adaptive), {"first": m, "second": v}

    hyper = _hyper("update.radam", lr, betas, eps, weight_decay)
    return mapped("update.radam", rule, hyper, memory=zeros("first", "second"), maximize=maximize)


def lamb(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-6, weight_decay: Number = 0.01,
         maximize: bool = False) -> Stage:  # fmt: skip
    """LAMB: each parameter's step, as of AdamW, scaled to the norm of the parameter.

        r = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p;  p = p - lr * |p| / |r| * r

    Where one of the norms is 0, their ratio is 1. Source: You et al., Large batch optimization for deep learning:
    training BERT in 76 minutes (2020), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        m, v = _moments(g, memory, beta1, beta2)
        r = m / (1.0 - beta1**t) / (root(v / (1.0 - beta2**t)) + eps) + weight_decay * p
        size, length = root(p.square().sum()), root(r.square().sum())
        some = (p != 0).any() & (r != 0).any()
        return p - lr * torch.where(some, size / length, 1.0) * r, {"first": m, "second": v}

    hyper = _hyper("update.lamb", lr, betas, eps, weight_decay)
    return mapped("update.lamb", rule, hyper, memory=zeros("first", "second"), maximize=maximize, elementwise=False)


def schedule_free_adamw(lr: Number = 2.5e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8,
                        weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """AdamW whose steps are averaged, which takes the place of a schedule that falls; a warm-up still helps.

        rate = lr * sqrt(1 - beta2**t);  base = base - rate * (g / (sqrt(v) + eps) + weight_decay * p)
        average = average + rate**2 / (the sum of all rate**2 so far) * (base - average)
        p = (1 - beta1) * base + beta1 * average

    The average is what to evaluate and to save: `fit` reports it as "schedule_free_adamw.loss", and pipe.averaged()
    gives it. Source: Defazio et al., The road less scheduled (2024), algorithm 1, with schedules.warmup for its own.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        v = beta2 * memory["second"] + (1.0 - beta2) * g * g
        rate = lr * (1.0 - beta2**t).sqrt()
        base = memory["base"] - rate * (g / (root(v) + eps) + weight_decay * p)
        total = memory["total"] + rate**2
        average = memory["average"] + rate**2 / torch.where(total > 0, total, 1.0) * (base - memory["average"])
        after = {"second": v, "base": base, "average": average, "total": total}
        return (1.0 - beta1) * base + beta1 * average, after

    def memory(p: Tensor) -> dict[str, Tensor]:
        total = p.new_zeros((), dtype=torch.float64)
        return {**zeros("second")(p), "base": p.clone(), "average": p.clone(), "total": total}

    def view(params: Params, memory: Any) -> dict[str, Params]:
        average = memory["average"]
        return {"params": {k: torch.view_as_complex(x) if params[k].is_complex() else x for k, x in average.items()}}

    name = "update.schedule_free_adamw"
    made = mapped(name, rule, _hyper(name, lr, betas, eps, weight_decay), memory=memory, maximize=maximize)
    return evolve(made, view=view, anew=True)


def _decayed(p: Tensor, g: Tensor, lr: Tensor, weight_decay: Tensor, decoupled: bool) -> tuple[Tensor, Tensor]:
    """The parameter and its gradient after weight decay, which works on one of them."""
    return (p * (1.0 - lr * weight_decay), g) if decoupled else (p, g + weight_decay * p)


def _moments(g: Tensor, memory: Any, beta1: Tensor, beta2: Tensor) -> tuple[Tensor, Tensor]:
    """The running means of the gradients and of their squares."""
    m, v = memory["first"], memory["second"]
    return m + (1.0 - beta1) * (g - m), beta2 * v + (1.0 - beta2) * g * g


def _hyper(name: str, lr: Number, betas: Betas, eps: Number, weight_decay: Number) -> dict[str, Number]:
    below_one(name, beta1=betas[0], beta2=betas[1])
    return {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
