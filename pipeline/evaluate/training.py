"""Metrics of training: gradients, learning rates and updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError, StageError
from pipeline.evaluate.metric import FLOAT, INT, count_of, metric
from pipeline.stage import Stage
from pipeline.tree import Tree, tree_map


def gradient_norm() -> Stage:
    """Mean norm of the gradients over all parameters, `gradient norm`, and its root mean square, `gradient norm/root
    mean square`: of the samples' gradients if the backward is per_example, otherwise of the batches'.

    Put it after the backward; before clipping, to see the norms that clipping sees. Training only.
    """

    def measure(params: Tree, grads: Tree) -> Tree:
        squares = _squared_norms(params, grads)
        return {"norm": squares.sqrt().sum(), "square": squares.sum(), "count": count_of(squares)}

    def finish(sums: Any) -> dict[str, Any]:
        mean, square = (sums[k] / sums["count"] for k in ("norm", "square"))
        return {"gradient norm": mean, "gradient norm/root mean square": square.sqrt()}

    return metric("evaluate.gradient_norm", measure, finish, {"norm": FLOAT, "square": FLOAT, "count": INT})


def learning_rate() -> Stage:
    """Mean learning rate of the steps, `learning rate`, or `learning rate/<stage or group>` for each. Training only."""

    def measure(hyper: Mapping[str, Tensor], step: Tensor) -> Tree:
        rates = {name.removesuffix(".lr"): value for name, value in hyper.items() if name.endswith(".lr")}
        return {"rates": rates, "count": torch.ones_like(step)}

    def init(hyper: Mapping[str, Tensor], step: Tensor) -> Tree:
        first = measure(hyper, step)
        if not first["rates"]:
            raise ConfigError("evaluate.learning_rate() finds no hyperparameter called lr in this pipeline")
        return tree_map(torch.zeros_like, first)

    def finish(sums: Any) -> dict[str, Any]:
        means = {k: v / sums["count"] for k, v in sums["rates"].items()}
        return {"learning rate" if len(means) == 1 else f"learning rate/{k}": v for k, v in means.items()}

    return Stage("evaluate.learning_rate", measure, init=init, finish=finish)


def update_ratio(of: str = "params") -> Stage:
    """Norm of the update over norm of the weights before it, as a mean over the steps: of all parameters,
    `update ratio`, and by layer, `update ratio/<layer>`. About 0.001 is usual; weights of 0 give 0.

    Put it after the update of the parameters `of`. Training only. Source: A. Karpathy, A recipe for training
    neural networks (2019), and Stanford's CS231n notes, "Ratio of weights:updates".
    """

    def layers(params: Tree) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in params:
            names.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return names

    def init(params: Tree) -> Tree:
        zero = torch.zeros((), dtype=FLOAT)
        return {"all": zero, "layers": {k: zero.clone() for k in layers(params)}, "count": torch.zeros((), dtype=INT)}

    def measure(params: Tree, before: Mapping[str, Tree], step: Tensor) -> Tree:
        old, ratios = before[of], {}
        updates = weights = torch.zeros_like(step, dtype=FLOAT)
        for name, inside in layers(params).items():
            update, weight = _square(params[n] - old[n] for n in inside), _square(old[n] for n in inside)
            ratios[name] = _root_ratio(update, weight)
            updates, weights = updates + update, weights + weight
        return {"all": _root_ratio(updates, weights), "layers": ratios, "count": torch.ones_like(step)}

    def finish(sums: Any) -> dict[str, Any]:
        by_layer = {f"update ratio/{k}": v / sums["count"] for k, v in sums["layers"].items()}
        return {"update ratio": sums["all"] / sums["count"], **by_layer}

    name = "evaluate.update_ratio" if of == "params" else f"evaluate.update_ratio.{of}"
    return Stage(name, measure, init=init, finish=finish, names={"params": of})


def noise_scale() -> Stage:
    """Gradient noise scale tr(S) / |G|^2, reported as `noise scale`: about the batch size beyond which larger batches
    save few steps. G is the true gradient, S the covariance of single samples' gradients.

    Put it after backward.gradients(per_example=True) and before the reduction to one gradient. Each batch of B gives
    unbiased estimates of both, from batch sizes 1 and B; the result is the ratio of their sums. It is noisy over few
    batches, negative if the estimate of |G|^2 is, and undefined for batches of one sample. Training only.

    Source: McCandlish et al., An empirical model of large-batch training (2018), appendix A.1.
    """

    def measure(params: Tree, grads: Tree) -> Tree:
        one = {k: g.mean(0) for k, g in grads.items()}
        if any(g.shape != params[k].shape for k, g in one.items()):
            hint = "write backward.gradients(per_example=True), and put it before the reduction to one"
            raise StageError("evaluate.noise_scale", f"takes a gradient for each sample; {hint}")
        small, [large] = _squared_norms(params, grads), _squared_norms(params, one)
        count = count_of(small).to(FLOAT)
        more = (count - 1).clamp(min=1)  # for one sample, both differences are 0
        return {"signal": (count * large - small.mean()) / more, "noise": (small.mean() - large) * count / more}

    def finish(sums: Any) -> dict[str, Any]:
        return {"noise scale": sums["noise"] / sums["signal"]}

    return metric("evaluate.noise_scale", measure, finish, {"signal": FLOAT, "noise": FLOAT})


def _squared_norms(params: Tree, grads: Tree) -> Tensor:
    """Squared norms over all parameters, float64: (B,) of per-sample gradients, (1,) of the batch's."""
    if all(g.ndim == params[k].ndim for k, g in grads.items()):
        return _square(grads.values()).unsqueeze(0)
    each = [torch.linalg.vector_norm(g.unsqueeze(-1).flatten(1), dim=1).to(FLOAT) for g in grads.values()]
    return (torch.stack(each) ** 2).sum(0)


def _square(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of squares, 0-d float64."""
    squares = ((t * t.conj()).real if t.is_complex() else t * t for t in tensors)
    total: Tensor = sum(s.sum().to(FLOAT) for s in squares)  # type: ignore[assignment]  # there are some
    return total


def _root_ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, (a / b).sqrt(), 0.0)
