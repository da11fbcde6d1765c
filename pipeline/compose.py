"""Pipeline: stages in order, checked when built, and the two pure programs that come out of them.

    train    values = the stages up to a backward, on {state, batch}, with the loss and all values beside it
             grads  = d loss / d params of exactly that
             values = the stages after it, on {values, grads}
             -> the new State (every name that lasts), and the metrics of this batch
    measure  the stages that the metrics need, in eval mode, without gradients -> sums

Nothing here compiles, and nothing names a device.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline import evaluate, html, load, place
from pipeline.backward import Gradients
from pipeline.direction import Direction
from pipeline.errors import StageError, StateError, WiringError, did_you_mean
from pipeline.evaluate import HostMetric
from pipeline.forward import Model
from pipeline.hyper import check_watched, hyper_names, hyper_numbers, hyper_value, observed, remembering, scheduled
from pipeline.joint import by_model
from pipeline.load import Load
from pipeline.mesh import ROWS
from pipeline.place import Place
from pipeline.run import Segment, counted, first_memory, segments, through
from pipeline.sharding import Sharding, sharding
from pipeline.stage import Part, Stage
from pipeline.state import Batch, State, samples
from pipeline.tree import Tree, paths, tree_map
from pipeline.update import Finite
from pipeline.whole import Difference, check_held, differs, untried
from pipeline.wiring import (
    LASTS,
    check_changed,
    check_names,
    check_trained,
    check_wiring,
    needed_to_measure,
    resolved,
    without_gradients,
)


@frozen(eq=False, init=False, repr=False)
class Composition:
    """An immutable sequence of stages. Raises WiringError where two do not fit.

    It is what a Pipeline is without the way to compile it.

    >>> import torch
    >>> from pipeline import Pipeline, forward, loss, models, update, backward
    >>> model = forward.model(lambda: models.mlp(4, 2))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> state, metrics = pipe.step(pipe.init(seed=0), {"inputs": torch.zeros(8, 4), "targets": torch.arange(8) % 2})
    >>> sorted(metrics), int(state.step)
    (['loss'], 1)
    """

    given: tuple[Part, ...]
    """The stages as they were given, before the models of each backward were filled in."""
    stages: tuple[Part, ...]
    load: Load | None
    place: Place
    host: tuple[Stage, ...]
    """Stages before place, on the batch alone."""
    graph: tuple[Stage, ...]
    """Stages after place: the compiled step."""
    evaluation: tuple[Stage, ...]
    """The stages of the evaluation program."""
    segments: tuple[Segment, ...]
    """`graph`, parted after each backward: what a step runs, one after the other."""
    sharding: Sharding | None
    """How the step runs on a mesh, where it does."""
    metrics: tuple[Stage, ...]
    on_host: tuple[HostMetric, ...]

    def __init__(self, *given: Part) -> None:
        check_names(given)
        stages = resolved(given)
        loads = [s for s in stages if isinstance(s, Load)]
        places = [s for s in stages if isinstance(s, Place)]
        border = stages.index(places[0]) if places else -1
        host, graph = (
            [s for s in part if isinstance(s, Stage)] for part in (stages[: max(border, 0)], stages[border + 1 :])
        )
        check_wiring(stages, loads[0] if loads else None, host, graph)
        made = {m: m.module.build for m in stages if isinstance(m, Model) and isinstance(m.module.build, nn.Module)}
        check_trained(stages, lambda m: m in made and any(p.requires_grad for p in made[m].parameters()))
        measured = needed_to_measure(graph)
        host, graph = ([s for s in part if not isinstance(s, HostMetric)] for part in (host, graph))
        source, where = loads[0] if loads else None, places[0] if places else place.on("cpu")
        trained = [s for s in graph if s.runs(True)]
        metrics = tuple(s for s in trained if s.finish is not None)
        on_host = tuple(s for s in stages if isinstance(s, HostMetric) and s.runs(False))
        on = sharding(where.mesh, stages, graph)
        own = segments(trained), on, metrics, on_host
        self.__attrs_init__(given, stages, source, where, tuple(host), tuple(graph), measured, *own)

    # -- what comes out of it

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State:
        """The first State, on the device.

        `steps` is the run's length, for schedules that ask for it; the data tells an epoch's. `batch` is one to look
        at, for modules that are lazy, where the pipeline has no data of its own.
        """
        hyper = hyper_numbers(self.graph, steps, None if self.load is None else self.load.batches)
        schedules = {full: s.first() for full, s in remembering(self.graph).items()}
        numbers = {
            "hyper": {k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()},
            "step": torch.zeros((), dtype=torch.int64),
            "seed": torch.tensor(seed, dtype=torch.int64),
        }
        tree: dict[str, Tree] = {}
        waiting = [s for s in self.stages if s.create is not None]
        while waiting:
            # An average stands late, but is made as soon as what it is of: models before it may be called with it.
            averages = [s for s in waiting if isinstance(s, Stage) and s.view and s.average_of in tree]
            s = averages[0] if averages else next(s for s in waiting if not isinstance(s, Stage) or not s.view)
            waiting.remove(s)
            assert s.create is not None
            tree.update(s.create(seed, partial(self._before, s, {**tree, "memory": schedules, **numbers}, batch), tree))
        check_trained(self.stages, lambda m: bool(tree[m.params]))
        own = tree if self.sharding is None else self.sharding.part(tree)
        of = {s: own if s.sharded else tree for s in self.graph if s.remembers}
        memory = {s.name: first_memory(s, {**seen, **numbers}) for s, seen in of.items()}
        return State(self.place.tree({**own, "memory": {**memory, **schedules}, **numbers}))

    def _before(self, stage: Part, tree: dict[str, Tree], batch: Batch | None) -> dict[str, Any]:
        """The values that a stage finds, on the host, at the first samples of the data."""
        if batch is None and self.load is None:
            why = "has a lazy module, which is made by a look at a batch"
            raise WiringError(f"stage {stage.name!r} {why}: pass init(batch=...)")
        if batch is None:
            source = self.over()
            batch = self.prepared(load.first(source, source.size), True)
        values = {**self._kept(tree), "training": False, **place.host(self.place.batch(batch))}
        grads = {s.grads for s in self.graph if isinstance(s, Gradients)}
        before = self.graph[: self.graph.index(stage)]
        earlier = [s for s in before if s.runs(True) and not s.remembers and not grads & {*s.reads}]
        with torch.no_grad():
            return {**values, **through(earlier, values, self.hyper(tree), {})[0]}

    def step(self, state: State, batch: Batch | None = None) -> tuple[State, dict[str, Tensor]]:
        """One train step, uncompiled: the new State and the batch's metrics, 0-d tensors on the device.

        Without a batch: on that of the pipeline's own data which comes at `state.step`.
        Pure: neither argument changes. `pipe.compile()` gives the same function as one graph.
        """
        if batch is None:
            batch = self.batch_at(state)
        tree, metrics = self.train(state.tree, self.placed(batch))
        return State(tree), metrics

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        """Every metric over all of `data` (a Source, tensors, or an iterable of batches), exact, as Python numbers.

        In eval mode, without gradients; changes nothing. Without `data`, over the pipeline's own data set.
        """
        sums, seen = self.zeros(), {s.name: list[Any]() for s in self.on_host}
        batches = (self.prepared(b, False) for b in self.epoch(self.over(data), 0, 0))
        if not self.on_host:
            for batch in self.place.ahead(batches):
                sums = self.measure(state.tree, sums, batch)
            return evaluate.read(self.finish(self.total(sums)))
        for batch in batches:
            placed = self.place.batch(batch)
            added, written = self.sums(self._carried(state.tree, sums), placed)
            sums = _summed(sums, added)
            values = {**self._kept(state.tree), **batch, **written}
            for s in self.on_host:
                read = {v: values[v] for v in (*s.reads, *s.optional) if v in values}
                mine = batch.get(ROWS) is None or batch[ROWS].count
                seen[s.name] += [s.measured(place.host(read))] if mine else []
        if self.place.mesh is not None:
            each = self.place.mesh.everyone(seen)
            seen = {name: [x for other in each for x in other[name]] for name in seen}
        more = [s.summary(seen[s.name]) for s in self.on_host]
        return {**evaluate.read(self.finish(self.total(sums))), **{k: v for found in more for k, v in found.items()}}

    def begin(self) -> None:
        """Have the modules made, outside of what is keyed, transformed or traced: making one draws and writes."""
        for m in self.models:
            m.module.skeleton()

    # -- the two programs, on plain trees

    def train(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        """The train step as a function of a State's tree."""
        self.begin()
        batch = self._own(batch)
        on, rows, batch = self.sharding, batch.get(ROWS), _without_rows(batch)
        hyper, memory = self.hyper(tree), dict(tree["memory"])
        values = {**self._kept(tree), **self._of_a_step(tree, hyper), "training": True, **batch}
        sums: dict[str, Tree] = {}
        unreached = {model for g in self.backwards for model in g.wrt if tree[model]}
        for segment in self.segments:
            self._try_parts(segment, values, hyper, memory, batch)
            with self.place.computing():
                options = self.samples, self.place.autocast, on, rows
                written, remembered, added = segment.run(values, hyper, memory, batch, *options)
            if (g := segment.gradients) is not None:
                like = {model: tree[model] for model in g.wrt}
                unreached -= {model for model, grads in by_model(written[g.grads], like).items() if grads}
            values |= written
            memory |= remembered
            sums |= added
        if unreached:
            name = next(m.name for m in self.models if m.params in unreached)
            why = f"is not trained: no loss depends on a parameter in {', '.join(sorted(unreached))}"
            raise StageError(name, f"{why}; if that is meant, write forward.model(..., frozen=True)")
        if on is not None and rows is not None:
            sums = on.totals(rows, sums)
            on.forget()
        memory |= {name: tree_map(torch.add, memory[name], s) for name, s in sums.items()}
        lasting = {name: values[name] for name in tree if name not in LASTS}
        for name, before in tree["memory"].items():
            if pytree.tree_structure(memory[name]) != pytree.tree_structure(before):
                raise StageError(name, "returned a memory of another structure than its init made")
        old = {name: tree[name] for name in lasting}
        self._check_shapes({**lasting, "memory": memory}, {**old, "memory": tree["memory"]})
        lasting, memory = tree_map(_as_it_was, (lasting, memory), (old, tree["memory"]))
        new = {**tree, **lasting, "memory": memory, "step": tree["step"] + 1}
        for s in self.graph:
            if isinstance(s, Finite):
                new = s.choose(values[s.writes[0]], tree, new)
        return new, self.finish(sums)

    def _try_parts(
        self, segment: Segment, values: Mapping[str, Any], hyper: Any, memory: Mapping[str, Tree], batch: Batch,
        parts: int = 0,
    ) -> Difference | None:  # fmt: skip
        """How a loss differs from that of its parts, at first. Raises StageError if its backward takes these."""
        g = segment.gradients
        if g is None or self.sharding is not None or max(parts, g.accumulate) == 1 or not untried(g):
            return None
        low, size = self.place.precision in ("bf16", "fp16"), samples(batch, self.samples)
        final, parts = not parts or g.accumulate == 1, max(parts, g.accumulate)  # a step's own batch says it at last
        with self.place.computing(), self.place.autocast():
            found = differs(g, segment.stages, values, hyper, memory, batch, size, parts, low, final)
        if found is not None and g.accumulate > 1:
            instead = f"{found.instead}, or " if found.instead else ""
            raise StageError(found.stage, f"{found.said}; {instead}leave out accumulate={g.accumulate}")
        return found

    def _of_a_step(self, tree: dict[str, Tree], hyper: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """What telemetry may read, as far as a stage here does: in a loop of parts, each value is carried along. And
        the factors of losses."""
        read = {name for s in self.graph for name in (*s.reads, *s.optional)}
        given: dict[str, Any] = {"before": self._kept(tree)} if "before" in read else {}
        if "hyper" in read:
            given["hyper"] = {f"{name}.{key}": value for name, of in hyper.items() for key, value in of.items()}
        scales = {s.scaled: tree["memory"][s.name]["scale"] for s in self.graph if isinstance(s, Finite) and s.scales}
        return {**given, **scales}

    def _check_shapes(self, new: dict[str, Tree], old: dict[str, Tree]) -> None:
        """Raise StageError where what State holds comes out in another shape."""
        for i, (x, y) in enumerate(zip(pytree.tree_leaves(new), pytree.tree_leaves(old), strict=False)):
            if isinstance(x, Tensor) and x is not y and x.shape != y.shape:
                path = paths(new)[i][0]
                name, _, rest = path.partition("/")
                writer = [s.name for s in self.graph if name in s.writes or rest.startswith(f"{s.name}/")][-1]
                each = any(isinstance(s, Gradients) and s.per_example for s in self.graph)
                instead = "return it as it was"
                if each and x.shape[1:] == y.shape:
                    instead = "gradients are of each sample: put update.clip_per_example() or mean_gradients() before"
                raise StageError(writer, f"makes {path!r} {tuple(x.shape)} of {tuple(y.shape)}; {instead}")

    def measure(self, tree: dict[str, Tree], sums: dict[str, Tree], batch: Batch) -> dict[str, Tree]:
        """The evaluation program: `sums` with those of one more batch added."""
        return _summed(sums, self.sums(self._carried(tree, sums), batch)[0])

    def _carried(self, tree: dict[str, Tree], sums: dict[str, Tree]) -> dict[str, Tree]:
        """A State's tree with the buffers that are carried as the batch before left them."""
        new = dict(tree)
        for (name, k), (how, _) in _carrying(self.evaluation).items():
            begun, now = sums[CARRIED]["begun"], sums[CARRIED][name, k]
            first = tree[name][k] if how == "run" else torch.zeros_like(now)
            begun = begun.reshape((*begun.shape, *[1] * (now.ndim - begun.ndim)))  # of members, (M, 1, ...)
            new[name] = {**new[name], k: torch.where(begun > 0, now, first)}
        return new

    def sums(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Any]]:
        """The sums of one batch in eval mode, and what the stages wrote."""
        return self.sums_by(self.evaluation, tree, batch)

    def sums_by(
        self, stages: Sequence[Stage], tree: dict[str, Tree], batch: Batch
    ) -> tuple[dict[str, Tree], dict[str, Any]]:
        """The same by some stages of the evaluation, where the batch has what the others would write."""
        self.begin()
        on, rows, batch = self.sharding, batch.get(ROWS), _without_rows(batch)
        values = {**self._kept(tree), "training": False, **batch}
        if on is not None:
            values = {**on.given(None, values)}
            on.forget()
        # Nothing here has a gradient but what asks for one: a derivative may be part of a model's outputs.
        with torch.enable_grad(), self.place.autocast(), self.place.computing():
            weigh = counted(batch, self.samples, tree["step"])
            written, _, added = through(stages, values, self.hyper(tree), tree["memory"], weigh)
        if rows is not None and not rows.count:
            added = tree_map(lambda x: x * 0, added)
        if carried := {(name, k): written[name][k].detach() for name, k in _carrying(stages)}:
            added[CARRIED] = {"begun": torch.ones_like(tree["step"]), **carried}
        return added, written

    @property
    def samples(self) -> str | None:
        """The value of a batch that says how many samples it has, where one was named."""
        return self.load.samples if self.load is not None else None

    # -- the pieces that loops are made of

    def epoch(self, source: Load, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch on the host, from batch `start` on: on a mesh, this process's part of each."""
        return source.epoch(seed, epoch, start, None if self.place.mesh is None else self.place.mesh.rows)

    def placed(self, batch: Batch) -> Batch:
        """A batch on the device: on a mesh, this process's part of it."""
        return self.place.batch(self._own(batch))

    def _own(self, batch: Batch) -> Batch:
        mesh = self.place.mesh
        return batch if mesh is None or ROWS in batch else mesh.rows(samples(batch, self.samples)).of(batch)

    def counted(self, batch: Batch) -> int:
        """How many samples a batch has, on a mesh in all processes together."""
        return batch[ROWS].whole if ROWS in batch else samples(batch, self.samples)

    def total(self, sums: dict[str, Tree]) -> dict[str, Tree]:
        """Sums over batches, of all processes."""
        return sums if self.sharding is None else self.sharding.total(sums)

    def whole(self, state: State) -> State:
        """The State with whole tensors where a mesh keeps them in shards; all processes have to call it."""
        return state if self.sharding is None else State(self.sharding.whole(state.tree), state.lease)

    def batch_at(self, state: State) -> Batch:
        """The batch that comes at `state.step`: number step % batches of epoch step // batches."""
        if self.load is None or not self.load.batches:
            raise WiringError("a step needs a batch: this pipeline has no load stage that knows how many there are")
        epoch, start = divmod(int(state.step), self.load.batches)
        return self.prepared(next(self.epoch(self.load, self.shuffled_by(state.tree), epoch, start)), True)

    @property
    def members(self) -> int:
        """How many models are trained side by side."""
        return 1

    @property
    def runs(self) -> int | None:
        """Of a sweep, how many runs it is: its metrics are of each."""
        return None

    def stopped(self, state: State) -> tuple[Composition, State, int] | None:
        """Where update.finite() stopped a run: that run, its State, and which of its members it was.

        Of a sweep, members that were stopped stay as they are, and their metrics are no numbers; the others go on.
        """
        if self.runs is None and any(int(state.memory[name]["stopped"]) for name in self.stops):
            return self, state, 0
        return None

    def alike(self, other: Composition) -> bool:
        """Whether the programs of the other one are this one's too."""
        return other is self

    @property
    def orders(self) -> int | None:
        """Of a step that gathers batches for several members, each in its own order, how many these are."""
        return None

    def shuffled_by(self, tree: Mapping[str, Tree]) -> Any:
        """The seed of the order in which samples come."""
        return int(tree["seed"])

    def over(self, data: Any = None) -> Load:
        """A load stage for evaluation, over `data` or the pipeline's own data set."""
        if data is None and self.load is None:
            raise WiringError("evaluation needs data: this pipeline has no load stage of its own")
        own = self.load or load.loader(())
        return own.over(own if data is None else data)

    def first_and_last(self, source: Load, training: bool) -> Iterator[Batch]:
        """The two batches of an epoch that may differ in shape, on the device; none where the data does not tell."""
        if source.known and source.batches:
            for k in sorted({0, source.batches - 1}):
                yield self.place.batch(self.prepared(next(self.epoch(source, 0, 0, k)), training))

    def prepared(self, batch: Batch, training: bool) -> Batch:
        """A batch after the stages that run on the host."""
        host = [s for s in self.host if s.runs(training)]
        return {**batch, **through(host, {**batch, "training": training}, {}, {})[0]} if host else batch

    def zeros(self) -> dict[str, Tree]:
        """The sums of the evaluation program before any batch, on the device."""
        sums = {s.name: first_memory(s, {}) for s in self.evaluation if s.finish}
        if carried := {at: torch.zeros(t.shape, dtype=t.dtype) for at, (_, t) in _carrying(self.evaluation).items()}:
            sums[CARRIED] = {"begun": torch.zeros((), dtype=torch.int64), **carried}
        made: dict[str, Tree] = self.place.tree(sums)
        return made

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        """Metrics from sums, on the device."""
        done: dict[str, Any] = {}
        for s in self.graph:
            if s.name in sums and s.finish is not None:
                # Two metrics of one name, as of two heads: the second is told apart by its stage.
                done.update({f"{s.name}.{k}" if k in done else k: v for k, v in s.finish(sums[s.name]).items()})
        return done

    def better(self, state: State) -> dict[str, Direction | None]:
        """What metrics declare of their results, by the names of `finish`; under "" those on the host, whose results
        have names when they are taken."""
        found: dict[str, Direction | None] = {}
        for sums in ({s.name: state.memory[s.name] for s in self.metrics}, self.zeros()):
            names: dict[str, Direction | None] = {}
            for s in (s for s in self.metrics if s.name in sums):
                for k in self.finish({s.name: sums[s.name]}):
                    said = s.better.get(k) if isinstance(s.better, Mapping) else s.better
                    names[f"{s.name}.{k}" if k in names else k] = said
            found |= names
        others = [s.better for s in self.on_host]
        alike = {said for said in others if not isinstance(said, Mapping)}
        found[""] = alike.pop() if len(alike) == 1 else None
        return {**found, **{k: v for said in others if isinstance(said, Mapping) for k, v in said.items()}}

    def results(self, state: State) -> dict[str, Any]:
        """The metrics of the steps since they were restarted, as Python numbers; waits for the device."""
        return evaluate.read(self.finish({s.name: state.memory[s.name] for s in self.metrics}))

    def observed(self, state: State, metrics: Mapping[str, Any]) -> State:
        """The State after its schedules have seen an epoch's metrics, such as `reduce_on_plateau`; `fit` calls it.

        Pure: the State given stays as it is. Raises ConfigError where a schedule reads a metric that is not there.
        """
        new = observed(self.graph, state.tree, metrics)
        return state.replace(memory={**state.memory, **new}) if new else state

    @property
    def watches(self) -> bool:
        """Whether a schedule reads metrics."""
        return any(s.watches for s in scheduled(self.graph).values())

    def check_watched(self, state: State, sets: Collection[str]) -> None:
        """Raise ConfigError where a schedule reads a metric that an epoch will not have, as far as that is known.

        `sets` are the names of what is validated on, "" that of one alone. Of several, a metric is known by its whole
        name only, as the training's of that name is another one.
        """
        if self.watches and not ("" in sets and self.on_host):  # whose metrics have names when they are taken
            found = self.finish({s.name: state.memory[s.name] for s in self.metrics})
            for name, value in (self.finish(self.zeros()) if sets else {}).items():
                found = {k: v for k, v in found.items() if k != name}
                found |= {f"{of}.{name}" if of else name: value for of in sets}
            check_watched(scheduled(self.graph), {k for k, v in found.items() if v.ndim == 0})

    def restart_metrics(self, state: State) -> State:
        """The same State at the beginning of an epoch."""
        zero = {id(t) for t in self.of_an_epoch(state.tree)}
        return state.replace(**tree_map(lambda t: torch.zeros_like(t) if id(t) in zero else t, state.tree))

    def of_an_epoch(self, tree: Mapping[str, Tree]) -> list[Tensor]:
        """What is zero when an epoch begins: sums of metrics, and buffers that are carried through one."""
        sums = [tree["memory"][s.name] for s in self.metrics]
        carried = [tree[name][k] for (name, k), (how, _) in _carrying(self.graph).items() if how == "epoch"]
        return pytree.tree_leaves((sums, carried))

    def hyper(self, tree: dict[str, Tree]) -> dict[str, dict[str, Tensor]]:
        """Each stage's hyperparameters at this step, schedules applied: 0-d float64."""
        return {s.name: {h: hyper_value(f"{s.name}.{h}", n, tree) for h, n in s.hyper.items()} for s in self.graph}

    def check(self, state: State, data: Any = None) -> None:
        """Try the stages on a batch, and let each look at the data: what can fail, fails now.

        On the pipeline's own data in training mode, as far as they need no gradients; on others as an evaluation.
        Raises StageError where the model can't take the inputs, and DataError for labels that do not fit. Warns of a
        loss that is not a mean over samples, as its mean over batches is not that of all.
        """
        if data is None and self.load is None:
            return
        training, source = data is None, self.over(data)
        if training:
            check_changed(self.stages, lambda m: bool(state.tree[m.params]))
        at_once = max([g.accumulate for g in self.backwards], default=1) if training else 1
        batch = self.place.batch(self.prepared(load.first(source, -(-source.size // at_once)), training))
        hyper, weigh = self.hyper(state.tree), counted(batch, self.samples, state.step)
        tree = self.whole(state).tree
        of_a_step = self._of_a_step(tree, hyper) if training else {}
        values = {**self._kept(tree), **of_a_step, "training": training, **batch}
        whole = source.data.batch(list(source.data.tensors.values())) if source.in_memory and not self.host else {}
        tried = without_gradients(self.graph, True) if training else self.evaluation
        for segment in self.segments if training else [None]:
            if segment is not None and segment.gradients in tried:
                segment = evolve(segment, stages=tuple(s for s in segment.stages if s in tried))
                g = segment.gradients
                said = g is not None and any(f"{g.of}.weight" in s.writes for s in segment.stages)
                found = self._try_parts(segment, values, hyper, state.memory, batch, 1 if said else 2)
                if found is not None and found.instead:
                    why = f"{found.said}, so its mean over batches is not that of all samples"
                    warnings.warn(f"stage {found.stage!r} {why}; {found.instead}", stacklevel=3)
            with torch.enable_grad(), self.place.autocast():
                for s in tried if segment is None else [s for s in segment.all if s in tried]:
                    if s.check is not None:
                        given = {p: values[v] for p, v in s.parameters if v in values and v not in whole}
                        labels = {p: whole[v] for p, v in s.parameters if v in whole}
                        if labels:  # all of them, beside as many outputs: a check reads the shape of these alone
                            count = len(source.data)
                            given = {
                                p: x[:1].expand(count, *x.shape[1:]) if isinstance(x, Tensor) and x.ndim else x
                                for p, x in given.items()
                            }
                        s.look(**given, **labels)
                    run = partial(through, [s], values, hyper, state.memory, weigh)
                    made, *_ = run()
                    check_held(s, values, made, run)
                    values.update(made)
                    whole = {k: x for k, x in whole.items() if k not in made}

    def check_state(self, state: State) -> None:
        """Raise StateError unless `state` has the names that this pipeline's `init` would give it."""
        kept = {k for s in self.stages for k in s.keeps} | set(LASTS)
        hyper = hyper_names(self.graph)
        memory = {s.name for s in self.graph if s.remembers} | set(remembering(self.graph))
        wanted = {"keeps": (state.tree, kept), "hyper": (state.hyper, hyper), "memory": (state.memory, memory)}
        for what, (has, wants) in wanted.items():
            if names := ", ".join(sorted(has.keys() ^ wants)):
                why = f"they differ in {what} at {names}"
                raise StateError(f"the State does not fit this pipeline: {why}; make one with pipe.init()")

    def _kept(self, tree: dict[str, Tree]) -> dict[str, Any]:
        return {name: value for name, value in tree.items() if name not in ("memory", "hyper")}

    # -- other pipelines

    @property
    def averages(self) -> dict[str, Stage]:
        """The stages through which a State is seen with other weights, by the last part of their names."""
        found: dict[str, Stage] = {}
        for s in self.graph:
            if s.view is not None:
                short = s.name.rpartition(".")[2]
                found[s.name if short in found else short] = s
        return found

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that bring parameters into State."""
        return tuple(s for s in self.stages if isinstance(s, Model) and s.create is not None)

    @property
    def backwards(self) -> tuple[Gradients, ...]:
        return tuple(s for s in self.graph if isinstance(s, Gradients))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stages that stop a State at the first step that is not finite."""
        return tuple(s.name for s in self.graph if isinstance(s, Finite) and s.stops)

    def of(self, stages: Sequence[Part]) -> Self:
        """The same of other stages."""
        return type(self)(*stages)

    def replace(self, name: str, stage: Part) -> Self:
        """A Pipeline with another stage in the place of `name`."""
        i = self._index(name)
        return self.of([*self.given[:i], stage, *self.given[i + 1 :]])

    def insert(self, stage: Part, *, before: str | None = None, after: str | None = None) -> Self:
        """A Pipeline with one more stage, before or after the named one."""
        if (before is None) == (after is None):
            raise WiringError(f"insert({stage.name!r}) needs either before= or after= the name of a stage")
        i = self._index(before) if before is not None else self._index(after or "") + 1
        return self.of([*self.given[:i], stage, *self.given[i:]])

    def without(self, name: str) -> Self:
        """A Pipeline without the named stage."""
        i = self._index(name)
        return self.of([*self.given[:i], *self.given[i + 1 :]])

    def __getitem__(self, name: str) -> Any:
        return self.given[self._index(name)]

    def _index(self, name: str) -> int:
        names = [s.name for s in self.stages]
        if name not in names:
            raise WiringError(f"the pipeline has no stage {name!r}{did_you_mean(name, names)}")
        return names.index(name)

    def __str__(self) -> str:
        """The stages as a table: name, reads, writes, keeps."""
        rows = [_HEAD, *self._table()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same table, for notebooks."""
        return html.table(_HEAD, self._table())

    def _table(self) -> Iterator[tuple[str, str, str, str]]:
        for s in self.stages:
            keeps = (*s.keeps, *s.hyper, *(["sums"] if s.finish else ["memory"] if s.remembers else []))
            by = " (by tape)" if isinstance(s, Gradients) and s.taken == "tape" else ""
            by += f" ({s.when} only)" if isinstance(s, Stage) and s.when else ""
            yield s.name + by, ", ".join(s.values_read), ", ".join(s.values_written), ", ".join(keeps)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(s.name for s in self.stages)})"


_HEAD = ("stage", "reads", "writes", "keeps")

CARRIED = "buffers carried"
"""Beside the sums of an evaluation: the buffers that it carries, and whether it has begun."""


def _carrying(stages: Sequence[Stage]) -> dict[tuple[str, str], tuple[str, Tensor]]:
    """The buffers that evaluation carries, by the names in State: through what, and one of the same shape."""
    calls = (s for s in stages if isinstance(s, Model) and s.buffers in s.writes)
    return {(s.buffers, k): x for s in calls for k, x in s.module.carried.items()}


def _without_rows(batch: Batch) -> Batch:
    return {k: v for k, v in batch.items() if k != ROWS} if ROWS in batch else batch


def _summed(sums: dict[str, Tree], added: dict[str, Tree]) -> dict[str, Tree]:
    with torch.no_grad():
        return {k: s if k == CARRIED else tree_map(torch.add, sums[k], s) for k, s in added.items()}


def _as_it_was(new: Any, old: Any) -> Any:
    """In the dtype that State has for it: a 0-d parameter times a learning rate, which is 0-d float64, is float64."""
    number = isinstance(new, Tensor) and isinstance(old, Tensor) and new.ndim == 0
    return new.to(old.dtype) if number and new.dtype != old.dtype else new
