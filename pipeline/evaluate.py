"""Evaluate: metrics as sums over batches and one division at the end, so that unequal batches are exact.

A metric stage returns the sums of one batch; State adds them up; `finish` turns them into named numbers. The same stage
serves training and evaluation. Counts are int64, other sums float64.

Shapes: outputs (B, C, ...) or (B, ..., C) logits and targets (B, ...) int64, or floats as the outputs, for classes
(`dim` is theirs, where shapes leave it open); outputs and targets alike, or (B, 1) and (B,), for values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn import functional as F

from pipeline import means
from pipeline.direction import Better, Direction
from pipeline.errors import ConfigError, DataError, StageError
from pipeline.stage import Stage, by_class, classes_at, fitted
from pipeline.tree import Tree, tree_map

INT, FLOAT = torch.int64, torch.float64
_SCORES: Mapping[str, Direction] = {"precision": "high", "recall": "high", "f1": "high"}


def metric(name: str, measure: Callable[..., Tree], finish: Callable[[Any], dict[str, Any]],
           sums: Mapping[str, Any], *, better: Better = None) -> Stage:  # fmt: skip
    """Any metric: `measure(named values)` gives a batch's sums, `finish(sums)` the named results.

    `sums` describes the sums: a dtype for a 0-d sum, or (dtype, shape). `better`: "high", "low", or a mapping from
    results to these; a result without one can't choose a best epoch.

    >>> seen = metric("seen", lambda targets: {"n": torch.tensor(len(targets))}, lambda s: {"seen": s["n"]}, {"n": INT})
    >>> seen.finish(seen(torch.zeros(3)))
    {'seen': tensor(3)}
    """

    def init() -> dict[str, Tensor]:
        described = {k: v if isinstance(v, tuple) else (v, ()) for k, v in sums.items()}
        return {k: torch.zeros(shape, dtype=dtype) for k, (dtype, shape) in described.items()}

    return Stage(name, measure, init=init, finish=finish, draws=True, better=better)


@frozen(eq=False, repr=False)
class HostMetric(Stage):
    """A metric that is taken on the host, a batch at a time, where a pipeline is evaluated."""

    summary: Callable[[list[Any]], dict[str, Any]] = field(kw_only=True)

    def measured(self, values: Mapping[str, Any]) -> Any:
        """What its function makes of a batch."""
        given = self.arguments(values)
        with self.blamed(given):
            return self.function(**given)


def on_host(
    name: str, measure: Callable[..., Any], summary: Callable[[list[Any]], dict[str, Any]], *, better: Better = None
) -> HostMetric:
    """A metric of what no graph can read: strings, ids, or by a function of another library.

    `measure(named values)` is given a batch's values on the host, with what stayed there, and returns anything;
    `summary(all of them)` gives the named results. Evaluation only, which then runs uncompiled. `better` as in
    `metric`; of several on the host that differ in it, by the names of results.

    >>> longest = on_host("longest", lambda words: max(map(len, words)), lambda seen: {"longest": max(seen)})
    >>> longest.summary([longest(["pure", "step"]), longest(["function"])])
    {'longest': 8}
    """
    return HostMetric(name, measure, summary=summary, better=better)


def _count(x: Tensor) -> Tensor:
    return torch.full((), x.numel(), dtype=INT, device=x.device)


def _ratio(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda sums: {name: sums["sum"].to(FLOAT) / sums["count"]}


def accuracy(*, dim: int | None = None, ignore_index: int = -100, several: bool | None = None) -> Stage:
    """The fraction of targets that have the largest logit; of several labels (B, L), of logits on the right side of 0.

    Floats of the outputs' shape may be either: they are probabilities of classes if those of each sample sum to 1, in
    all that is evaluated. `several` says it.

    >>> metric, soft = accuracy(), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> metric.finish(metric(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), soft))["accuracy"]
    tensor(0.5000, dtype=torch.float64)
    """

    def tell(outputs: Tensor, targets: Tensor, at: int | None) -> Tree:
        right, counted = _right(outputs, targets, at, ignore_index)
        return {"sum": right.sum(), "count": counted.sum()}

    sums = {"sum": INT, "count": INT}
    return _told("evaluate.accuracy", tell, _ratio("accuracy"), sums, dim, several, better="high")


def _right(outputs: Tensor, targets: Tensor, at: int | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which targets are told rightly, by the largest logit in dimension `at` or by the side of 0, and which count."""
    guess = (outputs > 0).to(targets.dtype) if at is None else outputs.argmax(at)
    counted = targets != ignore_index
    return (guess == targets) & counted, counted


def _told(name: str, tell: Callable[..., Tree], finish: Callable[[Any], dict[str, Any]], sums: Mapping[str, Any],
          dim: int | None, several: bool | None, better: Direction) -> Stage:  # fmt: skip
    """A metric of classes, or of several labels; of targets that may be either, the sums of both."""
    both = {**sums, **{f"classes.{k}": v for k, v in sums.items()}, "like": INT}

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        alike = outputs.shape == targets.shape
        soft = alike and several is False
        if alike and several is None and targets.is_floating_point() and targets.ndim > 1:  # or of one class, labels
            soft = (min(targets.shape[1], targets.shape[-1]) if dim is None else targets.shape[dim]) > 1
        hint = ", or several=True if each is a label of its own" if alike else ""
        at = classes_at(name, outputs, targets, dim, hint) if soft or not alike else None
        if at is not None and outputs.shape[at] == 1:
            outputs, at = outputs.squeeze(at), None
        rows = each = tell(outputs, targets.argmax(at) if soft else targets, at)
        if several is not None:
            return each
        like = rows["count"]
        if soft:
            each = tell(outputs, targets, None)
            like = like - ((targets.sum(at, dtype=FLOAT) - 1).abs() > 1e-4).sum()
        return {**each, **{f"classes.{k}": x for k, x in rows.items()}, "like": like}

    def chosen(s: Any) -> dict[str, Any]:
        of_classes = s["like"] == s["classes.count"]
        shaped = {k: of_classes.reshape(of_classes.shape + (1,) * (s[k].ndim - of_classes.ndim)) for k in sums}
        return finish({k: torch.where(of, s[f"classes.{k}"], s[k]) for k, of in shaped.items()})

    return metric(name, measure, *((chosen, both) if several is None else (finish, sums)), better=better)


def _likeliest(name: str, outputs: Tensor, targets: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...) and classes (B, ...): of probabilities, the likeliest."""
    logits, goals = by_class(name, outputs, targets, dim)
    return logits, goals.argmax(1) if goals.shape == logits.shape else goals


def calibration_error(
    bins: int = 15, *, dim: int | None = None, ignore_index: int = -100, several: bool | None = None
) -> Stage:
    """The expected calibration error, reported as `calibration error`, over `bins` of equal width of the probability:
    sum over bins of n(bin) / n * |accuracy(bin) - mean probability(bin)|.

    Shapes and `several` as accuracy; of logits on the right side of 0, the probability is that of the side.

    Source: Guo et al., On calibration of modern neural networks (2017), equation 3.

    >>> metric = calibration_error()
    >>> metric.finish(metric(torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log(), torch.tensor([0, 1])))["calibration error"]
    tensor(0.3000, dtype=torch.float64)
    """
    if bins < 1:
        raise ConfigError(f"evaluate.calibration_error: bins={bins} is not a positive whole number")

    def tell(outputs: Tensor, targets: Tensor, at: int | None) -> Tree:
        right, counted = _right(outputs, targets, at, ignore_index)
        sure = outputs.abs().sigmoid() if at is None else outputs.softmax(at).amax(at)
        edges = torch.arange(1, bins, device=outputs.device) / bins
        bin = (sure.unsqueeze(-1) > edges).sum(-1, keepdim=True)
        inside = (bin == torch.arange(bins, device=outputs.device)) & counted.unsqueeze(-1)
        inside = inside.flatten(0, -2).to(FLOAT)
        told, sure = right.flatten().to(FLOAT), sure.flatten().to(FLOAT)
        return {"right": told @ inside, "sure": sure @ inside, "count": counted.sum()}

    def finish(sums: Any) -> dict[str, Any]:
        return {"calibration error": (sums["right"] - sums["sure"]).abs().sum(-1) / sums["count"]}

    sums = {"right": (FLOAT, (bins,)), "sure": (FLOAT, (bins,)), "count": INT}
    return _told("evaluate.calibration_error", tell, finish, sums, dim, several, better="low")


def top_k(k: int = 5, *, dim: int | None = None, ignore_index: int = -100) -> Stage:
    """The fraction of targets, or of the likeliest classes, among the k largest logits; reported as `top<k>`."""
    if k < 1:
        raise ConfigError(f"evaluate.top_k: k={k} is not a positive whole number")

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        logits, goals = _likeliest(f"evaluate.top_{k}", outputs, targets, dim)
        right, counted = (logits.topk(k, 1).indices == goals.unsqueeze(1)).any(1), goals != ignore_index
        return {"sum": (right & counted).sum(), "count": counted.sum()}

    return metric(f"evaluate.top_{k}", measure, _ratio(f"top{k}"), {"sum": INT, "count": INT}, better="high")


def confusion(classes: int, *, dim: int | None = None) -> Stage:
    """The confusion matrix (C, C), rows true and columns predicted, with each class's precision, recall and F1 (C,). Of
    probabilities, the likeliest is the true one.

    A class without samples, or never predicted, has 0 where the division would be 0 / 0. Labels outside the classes
    do not count; `fit` refuses data with such labels before it begins.
    """

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        logits, goals = _likeliest("evaluate.confusion", outputs, targets, dim)
        if logits.shape[1] > classes:
            raise ValueError(f"the model gives {logits.shape[1]} classes, more than {classes}")
        # A product of one-hot matrices rather than bincount: its shape is static and it vmaps. They are made by
        # comparing, because F.one_hot looks at the labels, which nothing before the backward may do.
        kinds = torch.arange(classes, device=targets.device)
        true = (goals.reshape(-1, 1) == kinds).to(FLOAT)
        guess = (logits.argmax(1).reshape(-1, 1) == kinds).to(FLOAT)
        return {"matrix": (true.T @ guess).to(INT)}

    def check(outputs: Tensor, targets: Tensor) -> None:
        goals = _likeliest("evaluate.confusion", outputs, targets, dim)[1]
        wrong = goals[(goals < 0) | (goals >= classes)]
        if len(wrong):
            raise DataError(f"label {wrong[0].item()} is outside the {classes} classes of evaluate.confusion()")

    def finish(sums: Any) -> dict[str, Any]:
        m = sums["matrix"].to(FLOAT)
        return {"confusion": sums["matrix"], **_scores(m.diagonal(dim1=-2, dim2=-1), m.sum(-2), m.sum(-1))}

    made = metric("evaluate.confusion", measure, finish, {"matrix": (INT, (classes, classes))}, better=_SCORES)
    return evolve(made, check=check)


def labels(count: int) -> Stage:
    """Of several labels (B, L), each one's precision, recall and F1 (L,), of logits on the right side of 0; 0 where the
    division would be 0 / 0."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        guess, true = outputs > 0, targets > 0.5
        return {"right": (guess & true).sum(0), "guessed": guess.sum(0), "true": true.sum(0)}

    def finish(sums: Any) -> dict[str, Any]:
        return _scores(*(sums[k].to(FLOAT) for k in ("right", "guessed", "true")))

    sums = dict.fromkeys(("right", "guessed", "true"), (INT, (count,)))
    return metric("evaluate.labels", measure, finish, sums, better=_SCORES)


def _scores(right: Tensor, guessed: Tensor, true: Tensor) -> dict[str, Any]:
    both = (true + guessed).clamp(min=1)
    return {"precision": right / guessed.clamp(min=1), "recall": right / true.clamp(min=1), "f1": 2 * right / both}


def _mean_error(name: str, short: str, of: Callable[[Tensor], Tensor]) -> Stage:
    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        error = fitted(name, outputs, targets).to(FLOAT) - targets.to(FLOAT)
        return {"sum": of(error).sum(), "count": _count(targets)}

    return metric(name, measure, _ratio(short), {"sum": FLOAT, "count": INT}, better="low")


def mean_absolute_error() -> Stage:
    """The mean of |output - target| over all values; reported as `mae`."""
    return _mean_error("evaluate.mean_absolute_error", "mae", torch.abs)


def mean_squared_error() -> Stage:
    """The mean of (output - target)^2 over all values; reported as `mse`."""
    return _mean_error("evaluate.mean_squared_error", "mse", torch.square)


def r2() -> Stage:
    """1 - residual sum of squares / total sum of squares about the mean of the targets, over all values."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        y = targets.to(FLOAT)
        residual = ((fitted("evaluate.r2", outputs, targets).to(FLOAT) - y) ** 2).sum()
        return {"residual": residual, "y": y.sum(), "y2": (y * y).sum(), "count": _count(targets)}

    def finish(s: Any) -> dict[str, Any]:
        return {"r2": 1.0 - s["residual"] / (s["y2"] - s["y"] * s["y"] / s["count"])}

    sums = {"residual": FLOAT, "y": FLOAT, "y2": FLOAT, "count": INT}
    return metric("evaluate.r2", measure, finish, sums, better="high")


def perplexity(*, dim: int | None = None, ignore_index: int = -100) -> Stage:
    """Exp of the mean negative log likelihood of the targets, or of their probabilities."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        given = by_class("evaluate.perplexity", outputs, targets, dim)
        total = F.cross_entropy(*given, ignore_index=ignore_index, reduction="sum")
        count = means.weight(F.cross_entropy, given, {"ignore_index": ignore_index})
        return {"sum": total.to(FLOAT), "count": count.to(INT)}

    def finish(sums: Any) -> dict[str, Any]:
        return {"perplexity": torch.exp(sums["sum"] / sums["count"])}

    return metric("evaluate.perplexity", measure, finish, {"sum": FLOAT, "count": INT}, better="low")


def gradient_norm() -> Stage:
    """The mean norm of the gradients over all parameters, `gradient norm`, and its root mean square, `gradient
    norm/root mean square`: of the samples' where the backward takes a gradient for each, otherwise of the batches'. Put
    it after the backward, and before clipping to see what there is to clip. Evaluation does without."""

    def measure(params: Tree, grads: Tree) -> Tree:
        squares = _squared_norms(params, grads)
        return {"norm": squares.sqrt().sum(), "square": squares.sum(), "count": _count(squares)}

    def finish(sums: Any) -> dict[str, Any]:
        mean, square = (sums[k] / sums["count"] for k in ("norm", "square"))
        return {"gradient norm": mean, "gradient norm/root mean square": square.sqrt()}

    return metric("evaluate.gradient_norm", measure, finish, {"norm": FLOAT, "square": FLOAT, "count": INT})


def learning_rate() -> Stage:
    """The mean learning rate of the steps, `learning rate`, or where several stages or groups have one,
    `learning rate/<stage or group>`. Evaluation does without."""

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
    """The norm of a step's update over that of the weights before it, as a mean over the steps: of all parameters,
    `update ratio`, and of each layer's, `update ratio/<layer>`. About 0.001 is usual; 0 where weights are 0.

    Put it after what updates the parameters `of`. Evaluation does without. Source: A. Karpathy, A recipe for training
    neural networks (2019), and Stanford's CS231n notes, "Ratio of weights:updates".
    """

    def layers(params: Tree) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in params:
            found.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return found

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


def _square(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of all numbers: 0-d float64."""
    total: Tensor = sum((t * t).sum().to(FLOAT) for t in tensors)  # type: ignore[assignment]  # there are some
    return total


def _root_ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, (a / b).sqrt(), 0.0)


def noise_scale() -> Stage:
    """The gradient noise scale tr(S) / |G|^2, reported as `noise scale`: about the batch size beyond which a larger one
    saves few steps. G is the true gradient, and S the covariance of the gradients of single samples.

    Put it after backward.gradients(per_example=True), and before what makes one gradient of those. Both are estimated
    without bias on each batch, as those of batches of 1 and of B; their ratio is that of the sums. It is noisy over few
    batches, and below 0 where the estimate of |G|^2 is; batches of one sample tell nothing. Evaluation does without.

    Source: McCandlish et al., An empirical model of large-batch training (2018), appendix A.1.
    """

    def measure(params: Tree, grads: Tree) -> Tree:
        one = {k: g.mean(0) for k, g in grads.items()}
        if any(g.shape != params[k].shape for k, g in one.items()):
            hint = "write backward.gradients(per_example=True), and put it before what makes one of them"
            raise StageError("evaluate.noise_scale", f"takes a gradient for each sample; {hint}")
        small, [large] = _squared_norms(params, grads), _squared_norms(params, one)
        count = _count(small).to(FLOAT)
        more = (count - 1).clamp(min=1)  # of one sample, both differences are 0
        return {"signal": (count * large - small.mean()) / more, "noise": (small.mean() - large) * count / more}

    def finish(sums: Any) -> dict[str, Any]:
        return {"noise scale": sums["noise"] / sums["signal"]}

    return metric("evaluate.noise_scale", measure, finish, {"signal": FLOAT, "noise": FLOAT})


def _squared_norms(params: Tree, grads: Tree) -> Tensor:
    """The squared norms over all parameters: (B,) float64 of B samples' gradients, (1,) of the batch's."""
    if all(g.ndim == params[k].ndim for k, g in grads.items()):
        return _square(grads.values()).unsqueeze(0)
    each = [torch.linalg.vector_norm(g.unsqueeze(-1).flatten(1), dim=1).to(FLOAT) for g in grads.values()]
    return (torch.stack(each) ** 2).sum(0)


def read(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as Python numbers, or lists of them: the one place where metrics leave the device."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in results.items()}
