"""Single: the program of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import load, place, random
from pipeline.backward import Gradients
from pipeline.description import Description
from pipeline.element import Element
from pipeline.errors import StageError, WiringError
from pipeline.forward import Model
from pipeline.joint import by_model
from pipeline.mesh import Shard
from pipeline.names import LASTS
from pipeline.programs import data
from pipeline.programs.hyper import hyper_numbers, hyper_values, lasting, remembering
from pipeline.programs.layout import in_layout_of
from pipeline.programs.loss_check import Difference, differs
from pipeline.programs.program import Program, Sums
from pipeline.programs.segments import Hyper, Segment, batch_weight, first_memory, run_stages, segments
from pipeline.random import computed
from pipeline.stage import Stage
from pipeline.state import Batch, State, samples
from pipeline.tree import Tree, tree_map
from pipeline.wiring import check_apart, check_read, check_trained, warn_of_twins

CARRIED, COUNT = "buffers carried", "batches measured"
"""Key among the sums of an evaluation: its carried buffers, and whether it has begun."""


@frozen(eq=False, slots=False)
class Single:
    """The program of a pipeline."""

    pipe: Description
    tried: set[Gradients] = field(factory=set, init=False)
    """Backwards with a loss already compared with its parts: once, before the first step."""

    single = property(lambda self: self)
    members = 1
    runs = orders = None

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return segments(s for s in self.pipe.graph if s.runs(True))

    def of(self, stages: Sequence[Element]) -> Self:
        return evolve(self, pipe=Description(*stages))

    def same(self, other: Program) -> bool:
        return other.pipe is self.pipe and other.single is other

    def seed(self, tree: Mapping[str, Tree]) -> int:
        return int(tree["seed"])

    def member(self, state: State, i: int) -> State:
        return state

    def stacked(self, states: Iterable[State]) -> State:
        [state] = states
        return state

    # -- init

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State:
        pipe = self.pipe
        if pipe.backwards:
            check_apart(pipe.models)
        hyper = hyper_numbers(pipe.graph, steps, None if pipe.load is None else pipe.load.batches)
        schedules = {full: s.first() for full, s in remembering(pipe.graph).items()}
        numbers = {
            "hyper": {k: torch.tensor(v, dtype=torch.float64) for k, v in hyper.items()},
            "step": torch.zeros((), dtype=torch.int64),
            "seed": torch.tensor(seed, dtype=torch.int64),
        }
        tree: dict[str, Tree] = {}
        waiting = [s for s in pipe.stages if s.create is not None]
        while waiting:
            # An average stands late, but is created as soon as its weights: models before it may be called with it.
            averages = [s for s in waiting if isinstance(s, Stage) and s.average and s.average_of in tree]
            s = averages[0] if averages else next(s for s in waiting if not isinstance(s, Stage) or not s.average)
            waiting.remove(s)
            assert s.create is not None
            earlier = partial(self._before, s, {**tree, "memory": schedules, **numbers}, batch)
            tree.update(s.create(seed, earlier, tree))
        check_trained(pipe.stages, lambda m: bool(tree[m.params]))
        warn_of_twins(pipe.models, tree)
        local = self._local(tree)
        seen = {s: local if s.sharded else tree for s in lasting(pipe.graph)}
        memory = {s.name: first_memory(s, {**values, **numbers}) for s, values in seen.items()}
        return State(pipe.place.tree({**local, "memory": {**memory, **schedules}, **numbers}))

    def _local(self, tree: dict[str, Tree]) -> dict[str, Tree]:
        """The values of a new State in this process."""
        return tree

    def _before(self, stage: Element, tree: dict[str, Tree], batch: Batch | None) -> dict[str, Any]:
        """Values before a stage, on the host, for the first samples of the data."""
        pipe = self.pipe
        if batch is None and pipe.load is None:
            why = "has a lazy module, which is made by a look at a batch"
            raise WiringError(f"stage {stage.name!r} {why}: pass init(batch=...)")
        if batch is None:
            of = data.source(pipe)
            batch = load.first(of, of.size)
        batch = data.prepared(pipe, batch, True)
        values = {**kept(tree), "training": False, **place.host(pipe.place.batch(batch))}
        grads = {s.grads for s in pipe.backwards}
        before = pipe.graph[: pipe.graph.index(stage)] if isinstance(stage, Stage) else ()
        earlier = [s for s in before if s.runs(True) and not s.remembers and not grads & {*s.reads}]
        with torch.no_grad():
            return {**values, **run_stages(earlier, values, hyper_values(pipe.graph, tree), {})[0]}

    # -- train

    def train(self, tree: dict[str, Tree], shard: Shard) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        build_modules(self.pipe)
        hyper, memory = hyper_values(self.pipe.graph, tree), dict(tree["memory"])
        values = {**kept(tree), **self.telemetry(tree, hyper), "training": True, **shard.values}
        sums: Sums = {}
        gradients: list[tuple[Gradients, Tree]] = []
        for segment in self.segments:
            written, remembered, added = self.run(segment, values, hyper, memory, shard)
            values |= written
            memory |= remembered
            sums |= added
            gradients += [(g, written[g.grads]) for g in (segment.gradients,) if g is not None]
        self._check_reached(gradients, tree)
        check_read(self.pipe.graph)
        memory |= {name: tree_map(torch.add, memory[name], s) for name, s in sums.items()}
        return self._next(tree, values, memory), self.finish(sums)

    def run(
        self, segment: Segment, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree], shard: Shard
    ) -> tuple[dict[str, Any], dict[str, Tree], Sums]:
        """One segment of a step."""
        self.compare_parts(segment, values, hyper, memory, shard.values)
        with self.pipe.place.computing():
            return segment.run(values, hyper, memory, shard.values, self.pipe.samples, self.pipe.place.autocast)

    def _next(self, tree: dict[str, Tree], values: Mapping[str, Any], memory: dict[str, Tree]) -> dict[str, Tree]:
        """The tree after a step."""
        lasting = {name: values[name] for name in tree if name not in LASTS}
        for name, before in tree["memory"].items():
            if pytree.tree_structure(memory[name]) != pytree.tree_structure(before):
                raise StageError(name, "returned a memory of another structure than its init made")
        old = {name: tree[name] for name in lasting}
        lasting = in_layout_of({**old, "memory": tree["memory"]}, {**lasting, "memory": memory}, self.pipe)
        new = {**tree, **lasting, "step": tree["step"] + 1}
        for s in self.pipe.finite:
            new = s.choose(values[s.writes[0]], tree, new)
        return new

    def telemetry(self, tree: dict[str, Tree], hyper: Hyper) -> dict[str, Any]:
        """Values for telemetry, if a stage reads them (in a loop of parts each value is carried along), and the factors
        of scaled losses."""
        read = {name for s in self.pipe.graph for name in (*s.reads, *s.optional)}
        given: dict[str, Any] = {"before": kept(tree)} if "before" in read else {}
        if "hyper" in read:
            given["hyper"] = {f"{name}.{key}": value for name, of in hyper.items() for key, value in of.items()}
        return {**given, **{s.scaled: tree["memory"][s.name]["scale"] for s in self.pipe.finite if s.scales}}

    # -- measure

    def zeros(self) -> Sums:
        sums: Sums = {COUNT: torch.zeros((), dtype=torch.int64)}  # first here and in `measured`: graphs go by the order
        sums |= {s.name: first_memory(s, {}) for s in self.pipe.evaluation if s.finish}
        buffers = carried_buffers(self.pipe.evaluation)
        if carried := {at: torch.zeros(t.shape, dtype=t.dtype) for at, (_, t) in buffers.items()}:
            sums[CARRIED] = {"begun": torch.zeros((), dtype=torch.int64), **carried}
        placed: Sums = self.pipe.place.tree(sums)
        return placed

    def measure(self, tree: dict[str, Tree], sums: Sums, shard: Shard) -> Sums:
        return self.measured(tree, sums, shard)[0]

    def measured(self, tree: dict[str, Tree], sums: Sums, shard: Shard) -> tuple[Sums, dict[str, Any]]:
        """The sums after one more batch, and the outputs of the stages."""
        tree = _with_carried(tree, sums, carried_buffers(self.pipe.evaluation))
        tree["seed"] = random.key(tree["seed"], sums[COUNT])  # so that each batch has draws of its own
        added, written = self.batch_sums(tree, shard, self.pipe.evaluation)
        return summed(sums, {COUNT: torch.ones_like(tree["step"]), **added}), written

    def batch_sums(self, tree: dict[str, Tree], shard: Shard, stages: Sequence[Stage]) -> tuple[Sums, dict[str, Any]]:
        """Sums of one batch by stages of the evaluation, and their outputs. A loss keeps its gradient."""
        build_modules(self.pipe)
        values = {**kept(tree), "training": False, **shard.values}
        # No stage needs gradients here unless it computes one itself: a derivative may be part of a model's outputs.
        with torch.enable_grad(), self.pipe.place.autocast(), self.pipe.place.computing():
            added, written = self._evaluate(stages, values, tree, shard)
        if carried := {(name, k): written[name][k].detach() for name, k in carried_buffers(stages)}:
            added[CARRIED] = {"begun": torch.ones_like(tree["step"]), **carried}
        return added, written

    def _evaluate(
        self, stages: Sequence[Stage], values: dict[str, Any], tree: dict[str, Tree], shard: Shard
    ) -> tuple[Sums, dict[str, Any]]:
        """Sums and outputs of the stages on complete values."""
        weight = batch_weight(shard.values, self.pipe.samples, tree["step"])
        written, _, added = run_stages(stages, values, hyper_values(self.pipe.graph, tree), tree["memory"], weight)
        return added, written

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        done: dict[str, Any] = {}
        for s in self.pipe.graph:
            if s.name in sums and s.finish is not None:
                with s.blamed({"sums": sums[s.name]}):
                    named = s.finish(sums[s.name])
                # If two metrics have one name, as with two heads, the second gets its stage's name in front.
                done.update({f"{s.name}.{k}" if k in done else k: v for k, v in named.items()})
        return done

    # -- checks while a step runs

    def untried(self, g: Gradients) -> bool:
        """Whether the loss can and must still be compared with its parts."""
        return g not in self.tried and computed()

    def compare_parts(
        self, segment: Segment, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree], batch: Batch,
        parts: int = 0,
    ) -> Difference | None:  # fmt: skip
        """Compare a loss with the loss of its parts, once. Raises StageError if its backward accumulates and they
        differ."""
        g = segment.gradients
        if g is None or max(parts, g.accumulate) == 1 or not self.untried(g):
            return None
        low, size = self.pipe.place.precision in ("bf16", "fp16"), samples(batch, self.pipe.samples)
        final, parts = not parts or g.accumulate == 1, max(parts, g.accumulate)
        with self.pipe.place.computing(), self.pipe.place.autocast():
            found = differs(g, segment.stages, values, hyper, memory, batch, size, parts, low)
        if final and found is None:  # a check of a few samples does not replace the check of the first step's batch
            self.tried.add(g)
        if found is not None and g.accumulate > 1:
            instead = f"{found.instead}, or " if found.instead else ""
            raise StageError(found.stage, f"{found.said}; {instead}leave out accumulate={g.accumulate}")
        return found

    def _check_reached(self, gradients: Iterable[tuple[Gradients, Tree]], tree: dict[str, Tree]) -> None:
        """Raise StageError if no loss depends on any parameter of a trained model."""
        unreached = {model for g in self.pipe.backwards for model in g.wrt if tree[model]}
        for g, grads in gradients:
            unreached -= {model for model, own in by_model(grads, {m: tree[m] for m in g.wrt}).items() if own}
        if unreached:
            name = next(m.name for m in self.pipe.models if m.params in unreached)
            why = f"is not trained: no loss depends on a parameter in {', '.join(sorted(unreached))}"
            raise StageError(name, f"{why}; if that is meant, write forward.model(..., frozen=True)")


def kept(tree: Mapping[str, Tree]) -> dict[str, Any]:
    """The values of State that stages read by name."""
    return {name: value for name, value in tree.items() if name not in ("memory", "hyper")}


def summed(sums: Sums, added: Sums) -> Sums:
    """Sums after one more batch."""
    with torch.no_grad():
        return {k: s if k == CARRIED else tree_map(torch.add, sums[k], s) for k, s in added.items()}


def build_modules(pipe: Description) -> None:
    """Build the modules before keying, transforming or tracing, because building draws and writes."""
    for m in pipe.models:
        m.module.skeleton()


def carried_buffers(stages: Iterable[Stage]) -> dict[tuple[str, str], tuple[str, Tensor]]:
    """Buffers carried from batch to batch, by their names in State: the span, and a tensor of the same shape."""
    calls = (s for s in stages if isinstance(s, Model) and s.buffers in s.writes)
    return {(s.buffers, k): x for s in calls for k, x in s.module.carried.items()}


def _with_carried(tree: dict[str, Tree], sums: Sums, buffers: Mapping[tuple[str, str], Any]) -> dict[str, Tree]:
    """A tree with the carried buffers after the previous batch."""
    new = dict(tree)
    for (name, k), (how, _) in buffers.items():
        begun, now = sums[CARRIED]["begun"], sums[CARRIED][name, k]
        first = tree[name][k] if how == "run" else torch.zeros_like(now)
        new[name] = {**new[name], k: torch.where(begun > 0, now, first)}
    return new
