"""State, Batch and Report: the values that flow through training.

Letters of shapes, here and in the docstrings of the steps:

    B   samples in a batch          C   classes            D, H, W   features, height, width
    N   samples in a data set       T   positions (tokens) ()        a 0-d tensor

A Batch is a plain mapping, `{"inputs": ..., "targets": ...}`. Its values are tensors whose first dimension is B, nested
dicts and lists of them, numbers, which become 0-d tensors, and strings and other objects, which stay on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree  # the registry that torch.func and torch.compile read

from pipeline import html
from pipeline.direction import Direction, direction, rank
from pipeline.errors import ConfigError, DataError, StateError, did_you_mean
from pipeline.tree import Tree, describe, dtype_name

Batch: TypeAlias = Mapping[str, Any]


def samples(batch: Batch, by: str | None = None) -> int:
    """The number of samples in a batch: the first dimension of the value named `by`.

    Without `by`, the first dimension of all its tensors, or, if they differ, of its targets or inputs. Only if no other
    tensor has one, a list of tensors or dicts counts as one sample an item. Raises DataError if the number is unknown.

    >>> samples({"inputs": {"ids": torch.zeros(4, 7), "scale": torch.ones(())}, "targets": torch.zeros(4)})
    4
    >>> samples({"inputs": [torch.zeros(3, 8, 4), torch.zeros(3, 6, 6)], "targets": [{"box": torch.zeros(4)}] * 2})
    2
    """
    for name in [by] if by is not None else [None, "targets", "inputs"]:
        if name is not None and name not in batch:
            continue
        values = list(batch.values()) if name is None else [batch[name]]
        lists = [v for v in values if lists_samples(v)]
        leaves = pytree.tree_leaves([v for v in values if not lists_samples(v)])
        sizes = [t.shape[0] for t in leaves if isinstance(t, Tensor) and t.ndim > 0] or list(map(len, lists))
        if sizes and all(n == sizes[0] for n in sizes):
            return sizes[0]
        if name is None and not sizes:
            return 1  # numbers alone
    said = f"its {by!r} has no first dimension that is one" if by is not None else f"it has {describe(batch)}"
    raise DataError(
        f"a batch does not say how many samples it has: {said}; name the value that does: load.loader(..., samples=...)"
    )


def lists_samples(value: Any) -> bool:
    """Whether a value is a list of samples."""
    return isinstance(value, list | tuple) and all(
        isinstance(x, Mapping) or (isinstance(x, Tensor) and x.ndim > 0) for x in value
    )


class Lease:
    """Flag of States that share tensors: whether these were donated to a compiled step."""

    __slots__ = ("donated",)

    def __init__(self) -> None:
        self.donated = False


@frozen(eq=False, repr=False)
class State:
    """Everything that lasts from one step to the next.

    `tree` has "params", "buffers" and other names that stages keep, "memory" (by stage), "hyper" (by
    "stage.parameter"), "step" and "seed". It is a pytree, so `torch.func.vmap` maps a step over stacked States.
    """

    _tree: dict[str, Tree]
    lease: Lease = field(factory=Lease)

    @property
    def tree(self) -> dict[str, Tree]:
        if self.lease.donated:
            hint = "use what the step returned, or keep a copy by state.clone() before it, or compile(donate=False)"
            raise StateError(f"this State was donated to a compiled step and no longer holds its values; {hint}")
        return self._tree

    def __getitem__(self, name: str) -> Any:
        """The value of a name: `state["params"]`, `state["teacher"]`."""
        tree = self.tree
        if name not in tree:
            raise StateError(f"State keeps no {name!r}{did_you_mean(name, tree)}")
        value = tree[name]
        return dict(value) if isinstance(value, dict) else value

    @property
    def params(self) -> dict[str, Tensor]:
        """Trained parameters, by the module's own names."""
        return dict(self["params"])

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters, by the module's own names."""
        return dict(self["buffers"])

    @property
    def memory(self) -> dict[str, Tree]:
        return dict(self["memory"])

    @property
    def hyper(self) -> dict[str, Tensor]:
        """Numeric hyperparameters: "update.sgd.lr" -> 0-d float64."""
        return dict(self["hyper"])

    @property
    def step(self) -> Tensor:
        """Steps done so far: 0-d int64."""
        step: Tensor = self["step"]
        return step

    def replace(self, **values: Tree) -> State:
        """A State with other values for some names. This one stays unchanged. Copies of the weights that stages keep,
        such as update.ema(), stay too: weights to begin with go to forward.model(weights=...)."""
        for name, new in values.items():
            old = self[name]
            if isinstance(old, dict) and isinstance(new, dict) and new.keys() == old.keys():
                values[name] = {k: new[k] for k in old}  # in the same order
        # They share tensors, so a donation of one spends both.
        return State({**self.tree, **values}, self.lease)

    def with_hyper(self, values: Mapping[str, float | Tensor] | None = None, /, **short: float | Tensor) -> State:
        """A State with other hyperparameters: `with_hyper(lr=0.01)`, or by full name if two stages have an `lr`.

        A Tensor may have leading dimensions, for a step mapped over many States.
        """
        hyper = self.hyper
        for name, value in {**(values or {}), **short}.items():
            key = find(name, hyper)
            old = hyper[key]
            if isinstance(value, int | float):  # filled on the device, without waiting for it
                hyper[key] = torch.full((), value, dtype=old.dtype, device=old.device)
            else:
                hyper[key] = torch.as_tensor(value, dtype=old.dtype, device=old.device).clone()
        return self.replace(hyper=hyper)

    def clone(self) -> State:
        """A copy with storage of its own."""
        return State(pytree.tree_map(lambda x: x.clone(), self.tree))

    def _repr_html_(self) -> str:
        """The parameters as a table, for notebooks."""
        if self.lease.donated:
            return html.escape(repr(self))
        rows = [(name, "x".join(map(str, t.shape)), dtype_name(t.dtype), t.numel()) for name, t in self.params.items()]
        foot = ("all", "", "", sum(count for *_, count in rows))
        return html.table(["parameter", "shape", "dtype", "numbers"], rows, foot=foot)

    def __repr__(self) -> str:
        if self.lease.donated:
            return "State(donated)"
        numbers = {name: sum(x.numel() for x in pytree.tree_leaves(value)) for name, value in self._tree.items()}
        kept = ", ".join(f"{name}: {n:,}" for name, n in numbers.items() if name not in ("step", "seed"))
        step = self._tree["step"]
        return f"State(step {step.item() if step.ndim == 0 else tuple(step.shape)}, numbers in {kept})"


def find(name: str, hyper: Mapping[str, Any]) -> str:
    """The full name of a hyperparameter, from itself or its last part. Raises StateError."""
    if name in hyper:
        return name
    ends = [key for key in hyper if key.endswith(f".{name}")]
    if not ends:
        known = {*hyper, *(key.rsplit(".", 1)[-1] for key in hyper)}
        raise StateError(f"there is no hyperparameter {name!r}{did_you_mean(name, known)}")
    if len(ends) > 1:
        raise StateError(f"several hyperparameters are called {name!r}; name one of {', '.join(ends)}")
    return ends[0]


pytree.register_pytree_node(
    State,
    lambda state: (list(state.tree.values()), tuple(state.tree)),
    lambda values, names: State(dict(zip(names, values, strict=True))),
    serialized_type_name="pipeline.State",
)


@frozen(eq=False)
class Report:
    """An epoch so far. `train` and `validate` map metric names to floats, or to lists of them. A name with a slash is a
    detail of a metric, such as `update ratio/layers.0`."""

    epoch: int
    """From 1."""
    epochs: int | None
    """Number of epochs of the run, if known before it ends."""
    step: int
    """Steps since the State was new."""
    batch: int
    """Batches done in this epoch."""
    batches: int | None
    """Batches in an epoch, if the data tells."""
    complete: bool
    """Whether the epoch ends here. Its last Report has the validation; others may have one, too."""
    train: Mapping[str, Any]
    validate: Mapping[str, Any] = field(factory=dict)
    seconds: float = 0.0
    """Wall time of training steps, without compiling and validation."""
    samples: int = 0
    state: State = field(default=None, repr=False)
    """The State now. It is donated when `fit` continues: use clone() to keep it."""
    members: int | None = None
    """Members of a sweep: each metric is then a list with a value for each."""
    better: Mapping[str, Direction] = field(factory=dict)
    """The better direction of each metric that declares one."""

    def best(self, metric: str, better: Direction | None = None) -> int:
        """The best member of a sweep, by a metric of the validation, or else of the training; ties go by the loss.

        `better`: "high" or "low"; by default what the metric declares. Raises ConfigError if it declares none, or if
        a member has no number for it.
        """
        known = {k: v for k, v in {**self.train, **self.validate}.items() if isinstance(v, list)}
        if self.members is None or not all(isinstance(v, int | float) for v in known.get(metric, [None])):
            raise ConfigError(f"{metric!r} is no numeric metric of a sweep's members{did_you_mean(metric, known)}")
        better = direction(metric, self.better, better)
        each = [{k: v[i] for k, v in known.items()} for i in range(self.members)]
        return min(range(self.members), key=lambda i: rank(metric, better, each[i]))

    def member(self, i: int) -> Report:
        """The numbers of one member of a sweep, without its State."""
        if self.members is None:
            raise ConfigError("this Report is of one run, which has no members")
        train, validate = (
            {k: v[i] if isinstance(v, list) else v for k, v in metrics.items()}
            for metrics in (self.train, self.validate)
        )
        return evolve(self, train=train, validate=validate, state=None, members=None)  # type: ignore[arg-type]  # no State

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    def _repr_html_(self) -> str:
        """The numbers as a table, for notebooks."""
        both = (("train", self.train), ("validate", self.validate))
        rows = [(kind, name, v) for kind, of in both for name, v in of.items() if isinstance(v, int | float)]
        return f"<p>{html.escape(str(self))}</p>" + html.table(["", "metric", "value"], rows)

    def __str__(self) -> str:
        if self.members is not None:
            known = {k: v for k, v in {**self.train, **self.validate}.items() if k in self.better and "/" not in k}
            best = [format_metric(k, v[self.best(k)]) for k, v in known.items() if all(isinstance(x, float) for x in v)]
            head = evolve(self, train={}, validate={}, members=None, samples=self.samples * self.members)
            return "  ".join([str(head), f"best of {self.members}:", *best])
        shown: dict[str, Any] = {**self.train, **self.validate}
        if "loss" in self.validate:
            shown["loss"], shown["val loss"] = self.train.get("loss"), self.validate["loss"]
        names = sorted(shown, key=lambda name: ("loss" not in name, "." in name, len(name) if "loss" in name else 0))
        numbers = [format_metric(k, shown[k]) for k in names if isinstance(shown[k], int | float) and "/" not in k]
        epoch = f"epoch {self.epoch:>{len(str(self.epochs))}}/{self.epochs}" if self.epochs else f"epoch {self.epoch}"
        return "  ".join([epoch, *numbers, f"{self.samples_per_second:,.0f} samples/s"])


PERCENT = ("accuracy", "balanced accuracy", "top")
"""Metrics with these names, also after a dot, are fractions, shown in percent."""


def format_metric(name: str, value: float) -> str:
    """One metric as text: `loss 0.2311`, `accuracy 94.17 %`, `ema.accuracy 95.00 %`, `skipped 3`."""
    if isinstance(value, int):
        return f"{name} {value:,}"
    if name.rpartition(".")[2].startswith(PERCENT):
        return f"{name} {100 * value:.2f} %"
    return f"{name} {value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{name} {value:.4g}"
