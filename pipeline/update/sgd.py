"""Stochastic gradient descent, with momentum, with averaging, and by signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.stage import Number, Stage
from pipeline.update.rule import below_one, mapped, positive, zeros


def sgd(lr: Number = 1e-3, *, momentum: Number = 0.0, dampening: Number = 0.0, weight_decay: Number = 0.0,
        nesterov: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Stochastic gradient descent, equal to torch.optim.SGD; a momentum of 0 builds it without a memory.

        g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g  (at first m = g);  p = p - lr * m

    With `nesterov` the last line is p - lr * (g + momentum * m). Source: Sutskever et al., On the importance of
    initialization and momentum in deep learning (2013), in torch's form.
    """
    positive("update.sgd", lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ConfigError("update.sgd: nesterov=True needs a momentum above 0 and no dampening")

    def plain(p: Tensor, g: Tensor, lr: Tensor, weight_decay: Tensor) -> Tensor:
        return p - lr * (g + weight_decay * p)

    def heavy(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, momentum: Tensor, dampening: Tensor,
              weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        m = momentum * memory["velocity"] + torch.where(t == 1, 1.0, 1.0 - dampening) * g
        return p - lr * (g + momentum * m if nesterov else m), {"velocity": m}

    hyper = {"lr": lr, "weight_decay": weight_decay}
    if momentum == 0:
        return mapped("update.sgd", plain, hyper, maximize=maximize)
    hyper |= {"momentum": momentum, "dampening": dampening}
    return mapped("update.sgd", heavy, hyper, memory=zeros("velocity"), maximize=maximize)


def asgd(lr: Number = 1e-2, *, lambd: Number = 1e-4, alpha: Number = 0.75, t0: Number = 1e6,
         weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """Averaged stochastic gradient descent, equal to torch.optim.ASGD; its memory "average" is the averaged weights.

        g = grad + weight_decay * p;  eta = lr / (1 + lambd * lr * (t - 1))**alpha;  p = p * (1 - lambd * eta) - eta * g
        average = average + (p - average) / max(1, t - 1 - t0)

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992), in torch's form.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, lambd: Tensor, alpha: Tensor, t0: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        eta = lr / (1.0 + lambd * lr * (t - 1)) ** alpha
        p = p * (1.0 - lambd * eta) - eta * g
        mu = 1.0 / (t - 1 - t0).clamp(min=1.0)
        # Where it does not average yet it is the weights themselves, also where they and it are far apart.
        return p, {"average": torch.where(mu == 1.0, p, memory["average"] + mu * (p - memory["average"]))}

    hyper = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
    return mapped("update.asgd", rule, hyper, memory=zeros("average"), maximize=maximize)


def rprop(lr: Number = 1e-2, *, etas: tuple[Number, Number] = (0.5, 1.2),
          step_sizes: tuple[Number, Number] = (1e-6, 50.0), maximize: bool = False) -> Stage:  # fmt: skip
    """Resilient backpropagation, equal to torch.optim.Rprop: for whole data sets, since it goes by signs alone.

        size = size * etas[1] where the gradient has the sign that it had, * etas[0] where it has the other one,
        within step_sizes (at first lr);  p = p - size * sign(grad), and where the sign changed not at all

    Source: Riedmiller and Braun, A direct adaptive method for faster backpropagation learning (1993).
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, eta_minus: Tensor, eta_plus: Tensor,
             step_min: Tensor, step_max: Tensor) -> Any:  # fmt: skip
        turned = g * memory["before"]
        factor = torch.where(turned > 0, eta_plus, torch.where(turned < 0, eta_minus, 1.0)).to(p.dtype)
        size = torch.where(t == 1, lr.to(p.dtype), memory["size"]) * factor
        size = torch.minimum(torch.maximum(size, step_min.to(p.dtype)), step_max.to(p.dtype))
        g = torch.where(turned < 0, 0.0, g)
        return p - size * g.sign(), {"before": g, "size": size}

    hyper = {"lr": lr, "eta_minus": etas[0], "eta_plus": etas[1], "step_min": step_sizes[0], "step_max": step_sizes[1]}
    return mapped("update.rprop", rule, hyper, memory=zeros("before", "size"), maximize=maximize)


def lion(lr: Number = 1e-4, *, betas: tuple[Number, Number] = (0.9, 0.99), weight_decay: Number = 0.0,
         maximize: bool = False) -> Stage:  # fmt: skip
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

        p = p * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * g);  m = beta2 * m + (1 - beta2) * g

    Source: Chen et al., Symbolic discovery of optimization algorithms (2023), algorithm 2.
    """
    below_one("update.lion", beta1=betas[0], beta2=betas[1])

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, beta1: Tensor, beta2: Tensor, weight_decay: Tensor) -> Any:
        m = memory["first"]
        step = (beta1 * m + (1.0 - beta1) * g).sign()
        return p * (1.0 - lr * weight_decay) - lr * step, {"first": beta2 * m + (1.0 - beta2) * g}

    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}
    return mapped("update.lion", rule, hyper, memory=zeros("first"), maximize=maximize)
