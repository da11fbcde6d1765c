"""Pipeline: stages in order, checked when built, and the two pure programs that come out of them.

    train    values = the stages up to a backward, on {state, batch}, with the loss and all values beside it
             grads  = d loss / d params of exactly that
             values = the stages after it, on {values, grads}
             -> the new State (every name that lasts), and the metrics of this batch
    measure  the stages that the metrics need, in eval mode, without gradients -> sums

Nothing here compiles, and nothing names a device.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import evaluate, load, place, random
from pipeline.backward import Gradients
from pipeline.errors import StateError, WiringError, did_you_mean
from pipeline.forward import Model
from pipeline.load import Load
from pipeline.place import Place
from pipeline.schedules import Schedule
from pipeline.stage import GIVEN, Stage, Tree
from pipeline.state import Batch, State, tree_map

if TYPE_CHECKING:
    from pipeline.compiled import Compiled

HINTS = {
    "grads": "backward.gradients()",
    "outputs": "forward.model(...)",
    "loss": "a loss such as loss.cross_entropy()",
    "params": "forward.model(...)",
}
LASTS = ("memory", "hyper", "step", "seed")

Written = tuple[dict[str, Any], dict[str, Tree], dict[str, Tree]]
"""What stages wrote, the new memory of those that remember, and the sums of those that are metrics."""


@frozen(eq=False, init=False, repr=False)
class Pipeline:
    """An immutable sequence of stages. Raises WiringError where two do not fit.

    >>> from pipeline import forward, loss, models, update, backward
    >>> pipe = Pipeline(forward.model(lambda: models.mlp(4, 2)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> state, metrics = pipe.step(pipe.init(seed=0), {"inputs": torch.zeros(8, 4), "targets": torch.arange(8) % 2})
    >>> sorted(metrics), int(state.step)
    (['loss'], 1)
    """

    stages: tuple[Stage, ...]
    load: Load | None
    place: Place
    host: tuple[Stage, ...]
    """Stages before place, on the batch alone."""
    graph: tuple[Stage, ...]
    """Stages after place: the compiled step."""
    measured: tuple[Stage, ...]
    """The stages of the evaluation program."""
    metrics: tuple[Stage, ...] = field(init=False)

    def __init__(self, *stages: Stage) -> None:
        for s in stages:
            if not isinstance(s, Stage):
                hint = "; make one with @stage" if callable(s) else ""
                raise WiringError(f"a Pipeline is made of stages, not {type(s).__name__}{hint}")
        _check_names(stages)
        loads = [s for s in stages if isinstance(s, Load)]
        places = [s for s in stages if isinstance(s, Place)]
        border = stages.index(places[0]) if places else -1
        host, graph = ([s for s in part if not isinstance(s, Load | Place)] for part in (stages[: max(border, 0)], stages[border + 1 :]))
        _check_wiring(stages, loads[0] if loads else None, host, graph)
        self.__attrs_init__(
            stages, loads[0] if loads else None, places[0] if places else place.on("cpu"), tuple(host), tuple(graph), _needed_to_measure(graph)
        )
        object.__setattr__(self, "metrics", tuple(s for s in graph if s.finish is not None))

    # -- what comes out of it

    def init(self, seed: int = 0, *, steps: int | None = None) -> State:
        """The first State, on the device. `steps` is the run's length, for schedules that ask for it."""
        tree: dict[str, Tree] = {}
        for s in self.stages:
            if s.create is not None:
                tree.update(s.create(seed))
        hyper = {k: v for s in self.graph for k, v in _numbers(s, steps)}
        tree |= {
            "memory": {s.name: _remember(s, tree) for s in self.graph if s.remembers},
            "hyper": {k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()},
            "step": torch.zeros((), dtype=torch.int64),
            "seed": torch.tensor(seed, dtype=torch.int64),
        }
        return State(self.place.tree(tree))

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One train step, uncompiled: the new State and the batch's metrics, 0-d tensors on the device.

        Pure: neither argument changes. `pipe.compile()` gives the same function as one graph.
        """
        tree, metrics = self.train(state.tree, self.place.batch(batch))
        return State(tree), metrics

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        """Every metric over all of `data` (a Source, tensors, or an iterable of batches), exact, as Python numbers.

        In eval mode, without gradients; changes nothing. Without `data`, over the pipeline's own data set.
        """
        return self.measure_all(state, data, self.measure)

    def compile(self, **options: Any) -> Compiled:
        """The same step as one compiled graph: see pipeline.compiled.Compiled."""
        from pipeline.compiled import Compiled  # the one import against the arrows: compiled is built on this module

        return Compiled(self, **options)

    # -- the two programs, on plain trees

    def train(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        """The train step as a function of a State's tree."""
        values = {**self._kept(tree), "training": True, **batch}
        hyper, memory = self.hyper(tree), dict(tree["memory"])
        sums: dict[str, Tree] = {}
        pending: list[Stage] = []
        for s in (*self.graph, None):
            if s is not None and not isinstance(s, Gradients):
                pending.append(s)
                continue
            run = _forward if s is None else _accumulated(s, tuple(batch))
            written, remembered, added = run(pending, values, hyper, memory)
            values.update(written)
            memory.update(remembered)
            sums.update(added)
            pending = []
        memory.update({name: tree_map(torch.add, memory[name], s) for name, s in sums.items()})
        lasting = {name: values[name] for name in tree if name not in LASTS}
        return {**tree, **lasting, "memory": memory, "step": tree["step"] + 1}, self.finish(sums)

    def measure(self, tree: dict[str, Tree], sums: dict[str, Tree], batch: Batch) -> dict[str, Tree]:
        """The evaluation program: `sums` with those of one more batch added."""
        values = {**self._kept(tree), "training": False, **batch}
        with torch.no_grad():
            _, _, added = _forward(self.measured, values, self.hyper(tree), tree["memory"])
            return {name: tree_map(torch.add, sums[name], s) for name, s in added.items()}

    # -- the pieces that loops are made of

    def measure_all(self, state: State, data: Any, measure: Callable[..., dict[str, Tree]]) -> dict[str, Any]:
        """`evaluate` by some implementation of `measure`."""
        sums = self.zeros()
        for batch in self.batches_of(data):
            sums = measure(state.tree, sums, batch)
        return evaluate.read(self.finish(sums))

    def batches_of(self, data: Any = None) -> Iterable[Batch]:
        """The batches of `data` in its own order, ready for the graph, on the device."""
        if data is None and self.load is None:
            raise WiringError("evaluate() needs data: this pipeline has no load stage of its own")
        source = (self.load or load.loader(())).over(self.load.data if data is None and self.load else data)
        return self.place.ahead(self.prepared(batch, False) for batch in source.epoch(0, 0))

    def prepared(self, batch: Batch, training: bool) -> Batch:
        """A batch after the stages that run on the host."""
        if not self.host:
            return batch
        written, _, _ = _forward(self.host, {**batch, "training": training}, {}, {})
        return {**batch, **written}

    def zeros(self) -> dict[str, Tree]:
        """The sums of the evaluation program before any batch, on the device."""
        sums: dict[str, Tree] = self.place.tree({s.name: _remember(s, {}) for s in self.measured if s.finish})
        return sums

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        """Metrics from sums, on the device."""
        done: dict[str, Any] = {}
        for s in self.metrics:
            if s.name in sums and s.finish is not None:
                done.update(s.finish(sums[s.name]))
        return done

    def restart_metrics(self, state: State) -> State:
        """The same State with the sums of its metrics at zero: the beginning of an epoch."""
        zeros = {s.name: tree_map(torch.zeros_like, state.memory[s.name]) for s in self.metrics}
        return state.replace(memory={**state.memory, **zeros})

    def hyper(self, tree: dict[str, Tree]) -> dict[str, dict[str, Tensor]]:
        """Each stage's hyperparameters at this step, schedules applied: 0-d float64."""
        return {s.name: {h: _value(f"{s.name}.{h}", n, tree) for h, n in s.hyper.items()} for s in self.graph}

    def check(self, state: State, data: Any = None) -> None:
        """Try the model on two samples of `data`, and let each stage look at the data: what can fail, fails now.

        Raises StageError where the model can't take the inputs, and DataError for labels that do not fit.
        """
        if data is None and self.load is None:
            return
        source = (self.load or load.loader(())).over(self.load.data if data is None and self.load else data)
        batch = self.place.batch(self.prepared(load.first(source, 2), False))
        values = {**self._kept(state.tree), "training": False, **batch}
        whole = self.place.batch(source.data.tensors) if hasattr(source.data, "tensors") and not self.host else {}
        with torch.no_grad():
            written, _, _ = _forward(self.measured, values, self.hyper(state.tree), state.memory)
        for s in self.measured:
            if s.check is not None:
                s.check(**{p: {**values, **written, **whole}[v] for p, v in s.parameters})

    def check_state(self, state: State) -> None:
        """Raise StateError unless `state` has the names that this pipeline's `init` would give it."""
        kept = {k for s in self.stages for k in s.keeps} | set(LASTS)
        hyper = {k for s in self.graph for k, _ in _numbers(s, 1)}
        memory = {s.name for s in self.graph if s.remembers}
        for what, has, wants in (("keeps", set(state.tree), kept), ("hyper", set(state.hyper), hyper), ("memory", set(state.memory), memory)):
            if has != wants:
                names = ", ".join(sorted(has ^ wants))
                raise StateError(f"the State does not fit this pipeline: they differ in {what} at {names}; make one with pipe.init()")

    def _kept(self, tree: dict[str, Tree]) -> dict[str, Any]:
        return {name: value for name, value in tree.items() if name not in ("memory", "hyper")}

    # -- other pipelines

    @property
    def models(self) -> tuple[Model, ...]:
        return tuple(s for s in self.stages if isinstance(s, Model))

    def replace(self, name: str, stage: Stage) -> Pipeline:
        """A Pipeline with another stage in the place of `name`."""
        i = self._index(name)
        return Pipeline(*self.stages[:i], stage, *self.stages[i + 1 :])

    def insert(self, stage: Stage, *, before: str | None = None, after: str | None = None) -> Pipeline:
        """A Pipeline with one more stage, before or after the named one."""
        if (before is None) == (after is None):
            raise WiringError(f"insert({stage.name!r}) needs either before= or after= the name of a stage")
        i = self._index(before) if before is not None else self._index(after or "") + 1
        return Pipeline(*self.stages[:i], stage, *self.stages[i:])

    def without(self, name: str) -> Pipeline:
        """A Pipeline without the named stage."""
        i = self._index(name)
        return Pipeline(*self.stages[:i], *self.stages[i + 1 :])

    def __getitem__(self, name: str) -> Stage:
        return self.stages[self._index(name)]

    def _index(self, name: str) -> int:
        names = [s.name for s in self.stages]
        if name not in names:
            raise WiringError(f"the pipeline has no stage {name!r}{did_you_mean(name, names)}")
        return names.index(name)

    def __str__(self) -> str:
        """The stages as a table: name, reads, writes, keeps."""
        rows = [("stage", "reads", "writes", "keeps")]
        for s in self.stages:
            keeps = [*s.keeps, *s.hyper, *(["sums"] if s.finish else ["memory"] if s.remembers else [])]
            writes = (*s.writes, s.grads) if isinstance(s, Gradients) else s.writes
            reads = [s.wrt] if isinstance(s, Gradients) else []
            rows.append((s.name, ", ".join((*s.reads, *reads)), ", ".join(writes), ", ".join(keeps)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(s.name for s in self.stages)})"


# -- running stages


def _forward(stages: Iterable[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree]) -> Written:
    values = dict(values)
    written: dict[str, Any] = {}
    remembered: dict[str, Tree] = {}
    sums: dict[str, Tree] = {}
    for s in stages:
        if isinstance(s, Gradients):
            values.setdefault(f"{s.of}.weight", _batch_size(values))
        new, kept = s.run(values, hyper.get(s.name, {}), memory.get(s.name))
        values.update(new)
        written.update(new)
        if s.remembers:
            (sums if s.finish is not None else remembered)[s.name] = kept
    return written, remembered, sums


def _batch_size(values: Mapping[str, Any]) -> Tensor:
    """The weight of a loss that states none: the samples in the batch, which is what `outputs` or `inputs` have."""
    skip = {*GIVEN}
    tensors = [v for k, v in values.items() if isinstance(v, Tensor) and v.ndim > 0 and k not in skip]
    first = tensors[0]
    return torch.full((), first.shape[0], dtype=torch.float64, device=first.device)


def _differentiated(g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
                    memory: Mapping[str, Tree]) -> tuple[Tree, Written]:  # fmt: skip
    """The gradients of what `stages` compute, and what they wrote."""
    rest: list[Any] = []

    def objective(params: Tree) -> tuple[Tensor, Tree]:
        written, remembered, sums = _forward([*stages, g], {**values, g.wrt: params}, hyper, memory)
        leaves, spec = pytree.tree_flatten((written, remembered, sums))
        # Only tensors may leave a transformed function beside the loss; the rest is constant, and goes around it.
        rest[:] = [spec, [None if isinstance(x, Tensor) else x for x in leaves]]
        return written[g.of], {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor)}

    grads, tensors = g.differentiate(objective, values[g.wrt])
    spec, leaves = rest
    return grads, pytree.tree_unflatten([tensors.get(i, x) for i, x in enumerate(leaves)], spec)


def _accumulated(g: Gradients, names: Sequence[str]) -> Callable[..., Written]:
    """`_forward` through a backward, over the parts of the batch that it asks for."""

    def run(stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree]) -> Written:
        size = min((values[n].shape[0] for n in names), default=1)
        count = max(min(g.accumulate, size), 1)
        if count == 1:
            grads, (written, remembered, sums) = _differentiated(g, stages, values, hyper, memory)
            return {**written, g.grads: grads}, remembered, sums
        parts = [values[n].tensor_split(count) for n in names]
        values, memory = dict(values), dict(memory)
        total: Tree = None
        all_sums: dict[str, Tree] = {}
        history: list[dict[str, Any]] = []
        for i in range(count):
            values |= {n: part[i] for n, part in zip(names, parts, strict=True)}
            if i:
                values["seed"] = random.key(values["seed"], i)  # other dropout for each part
            grads, (written, remembered, sums) = _differentiated(g, stages, values, hyper, memory)
            weight = sums[g.name]["weight"]
            weighted = tree_map(lambda x, w=weight: x * w, grads)
            total = weighted if total is None else tree_map(torch.add, total, weighted)
            all_sums = sums if not all_sums else tree_map(torch.add, all_sums, sums)
            memory |= remembered
            values |= {k: v for k, v in written.items() if k in values and k not in names}
            history.append(written)
        whole = all_sums[g.name]["weight"]
        grads = tree_map(lambda x: x / whole, total)
        remembered = {s.name: memory[s.name] for s in stages if s.remembers and s.finish is None}
        return {**_joined(history, size), g.of: all_sums[g.name]["sum"] / whole, g.grads: grads}, remembered, all_sums

    return run


def _joined(history: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """What the parts wrote, as the whole batch would have: per-sample values one after the other, others as they were last."""
    joined = dict(history[-1])
    for name, last in joined.items():
        parts = [written[name] for written in history]
        if isinstance(last, Tensor) and last.ndim > 0 and sum(p.shape[0] for p in parts) == size:
            joined[name] = torch.cat(parts)
        elif name.endswith(".weight"):
            joined[name] = sum(parts)
    return joined


# -- hyperparameters and memory


def _numbers(s: Stage, steps: int | None) -> Iterable[tuple[str, float]]:
    for name, value in s.hyper.items():
        full = f"{s.name}.{name}"
        if not isinstance(value, Schedule):
            yield full, float(value)
            continue
        yield full, float(value.base)
        for k, number in value.numbers.items():
            if math.isnan(number):
                if steps is None:
                    raise StateError(f"the schedule of {full} needs the run's length: pass {k}= to it, or init(steps=...)")
                number = float(steps)
            yield f"{full}.{k}", number


def _value(full: str, number: Any, tree: dict[str, Tree]) -> Tensor:
    hyper = tree["hyper"]
    value: Tensor = hyper[full]
    if isinstance(number, Schedule):
        value = value * number.factor(tree["step"], **{k: hyper[f"{full}.{k}"] for k in number.numbers})
    return value


def _remember(s: Stage, tree: Mapping[str, Tree]) -> Tree:
    assert s.init is not None
    read = {p: tree[s.names.get(p, p)] for p in inspect.signature(s.init).parameters}
    return s.init(**read)


# -- wiring


def _check_names(stages: Sequence[Stage]) -> None:
    if not stages:
        raise WiringError("a Pipeline needs at least one stage")
    seen: set[str] = set()
    for s in stages:
        if s.name in seen:
            raise WiringError(f"two stages are named {s.name!r}; give one another name: .named({s.name + '.2'!r})")
        seen.add(s.name)
    for kind, cls in (("load", Load), ("place", Place)):
        found = [s.name for s in stages if isinstance(s, cls)]
        if len(found) > 1:
            raise WiringError(f"a Pipeline has one {kind} stage, not {len(found)}: {', '.join(found)}")
    owners: dict[str, str] = {}
    for s in stages:
        for k in s.keeps:
            if k in owners or k in LASTS or k in GIVEN:
                raise WiringError(f"stages {owners.get(k, 'State')!r} and {s.name!r} both keep {k!r}; give one other names (params=...)")
            owners[k] = s.name


def _check_wiring(stages: Sequence[Stage], source: Load | None, host: Sequence[Stage], graph: Sequence[Stage]) -> None:
    if source is not None and stages[0] is not source and host and stages.index(source) > stages.index(host[0]):
        raise WiringError(f"stage {host[0].name!r} stands before {source.name!r}, which it needs; put {source.name!r} first")
    known = source.writes if source is not None and source.known else None
    available: set[str] = {*GIVEN, *(known or ()), *(k for s in stages for k in s.keeps)}
    since: set[str] = set()
    for s in (*host, *graph):
        if s in host and (s.remembers or s.hyper or s.create):
            raise WiringError(f"stage {s.name!r} keeps something in State, so it can't stand before place; put it after")
        reads = {*s.reads, s.wrt} if isinstance(s, Gradients) else set(s.reads)
        for name in sorted(reads - available):
            _explain_unread(s, name, stages, available, known)
        if isinstance(s, Gradients):
            if s.of not in since:
                raise WiringError(
                    f"stage {s.name!r} differentiates {s.of!r}, which no stage since the backward before it writes; put the "
                    "stages that compute it between the two"
                )
            since = set()
            available.add(s.grads)
        available.update(s.writes)
        since.update(s.writes)


def _explain_unread(s: Stage, name: str, stages: Sequence[Stage], available: set[str], known: Sequence[str] | None) -> None:
    later = [t.name for t in stages if name in t.writes or (isinstance(t, Gradients) and name == t.grads)]
    if later:
        raise WiringError(f"stage {s.name!r} reads {name!r}, which no earlier stage writes; put {later[0]!r}, which does, before it")
    if name in HINTS:
        raise WiringError(f"stage {s.name!r} reads {name!r}, which no earlier stage writes; put {HINTS[name]} before it")
    if known is not None:
        raise WiringError(f"stage {s.name!r} reads {name!r}, which neither the data nor an earlier stage has{did_you_mean(name, available - {*GIVEN})}")
    # Without a data set of known names, what no stage writes must come with the batch.
    available.add(name)


def _needed_to_measure(graph: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages that metrics need where there are no gradients, in order."""
    possible: list[Stage] = []
    absent: set[str] = set()
    for s in graph:
        kept = {k for t in graph for k in t.keeps}
        if absent & set(s.reads):
            absent |= set(s.writes) - kept
            continue
        possible.append(s)
        if isinstance(s, Gradients):
            absent.add(s.grads)
    needed: set[str] = set()
    chosen: list[Stage] = []
    for s in reversed(possible):
        if s.finish is not None or needed & set(s.writes):
            chosen.append(s)
            needed |= {*s.reads, *s.optional}
    return tuple(reversed(chosen))
