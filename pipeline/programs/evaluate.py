"""Evaluate: functions of any program on a State: one step, an evaluation, metrics, averages of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import evaluate as metrics_of
from pipeline import place
from pipeline.direction import Direction
from pipeline.errors import StateError
from pipeline.mesh import Shard
from pipeline.names import LASTS
from pipeline.programs import batchnorm, data
from pipeline.programs.hyper import hyper_names, hyper_values, lasting, observed_memory, remembering, scheduled
from pipeline.programs.mesh import total, whole
from pipeline.programs.program import Program, Sums
from pipeline.programs.segments import first_memory
from pipeline.programs.single import Single, carried_buffers, kept, summed
from pipeline.state import Batch, State
from pipeline.tree import Tree, paths, tree_map


def step(program: Program, state: State, batch: Batch | Shard | None = None) -> tuple[State, dict[str, Tensor]]:
    """One uncompiled step."""
    if batch is None:
        shard = data.at(program, state)
        batch = Shard(program.pipe.place.batch(shard.values), shard.rows)
    shard = batch if isinstance(batch, Shard) else data.placed(program, state.tree, batch)
    tree, metrics = program.train(state.tree, shard)
    return State(tree), metrics


@frozen
class Measured:
    """Sums of metrics over some data, and what metrics on the host have measured of each batch."""

    sums: Sums
    seen: Mapping[str, list[Any]]


def evaluate(program: Program, state: State, of: Any = None) -> dict[str, Any]:
    """Every metric over all of `of`, exact, as Python numbers."""
    if program.pipe.host_metrics and program.single is not program:
        states = [program.member(state, i) for i in range(program.members)]
        each = [evaluate(program.single, own, of) for own in states]
        return {name: [results[name] for results in each] for name in each[0]}
    return finished(program, [measured(program, state, of)])


def measured(program: Program, state: State, of: Any = None) -> Measured:
    """Every metric's sums over all of `of`."""
    pipe, source = program.pipe, data.source(program.pipe, of)
    if pipe.host_metrics:
        return _with_host_metrics(program, state, source)
    sums = program.zeros()
    for shard in data.ahead(pipe, data.epoch(program, source, 0, 0, training=False)):
        sums = program.measure(state.tree, sums, shard)
    return Measured(total(program, sums), {})


def finished(program: Program, parts: Sequence[Measured]) -> dict[str, Any]:
    """Every metric over the data of all parts, as Python numbers. Parts may be of other States, and of programs with
    the same metrics."""
    sums: Sums = reduce(summed, [part.sums for part in parts])
    results = metrics_of.read(program.finish(sums))
    for s in program.pipe.host_metrics:
        with s.blamed({}):
            results |= metrics_of.read(s.summary([x for part in parts for x in part.seen[s.name]]))
    return results


def _with_host_metrics(program: Program, state: State, source: Any) -> Measured:
    pipe, single = program.pipe, program.single
    assert isinstance(single, Single)
    sums, seen = single.zeros(), {s.name: list[Any]() for s in pipe.host_metrics}
    for shard in data.epoch(program, source, 0, 0, training=False):
        sums, written = single.measured(state.tree, sums, Shard(pipe.place.batch(shard.values), shard.rows))
        values = {**kept(state.tree), **shard.values, **written}
        for s in pipe.host_metrics:
            read = {v: values[v] for v in (*s.reads, *s.optional) if v in values}
            if shard.rows is None or shard.rows.count:
                seen[s.name].append(s.measured(place.host(read)))
    everyone = pipe.place.everyone(seen)
    return Measured(total(program, sums), {name: [x for process in everyone for x in process[name]] for name in seen})


def results(program: Program, state: State) -> dict[str, Any]:
    """Metrics of the steps since they were restarted, as Python numbers; waits for the device."""
    return metrics_of.read(program.finish({s.name: state.memory[s.name] for s in program.pipe.metrics}))


def restart_metrics(program: Program, state: State) -> State:
    """The same State at the beginning of an epoch."""
    zero = {id(t) for t in of_an_epoch(program, state.tree)}
    return state.replace(**tree_map(lambda t: torch.zeros_like(t) if id(t) in zero else t, state.tree))


def of_an_epoch(program: Program, tree: Mapping[str, Tree]) -> list[Tensor]:
    """Tensors that are zero when an epoch begins: sums of metrics, and buffers carried through an epoch."""
    sums = [tree["memory"][s.name] for s in program.pipe.metrics]
    buffers = carried_buffers(program.pipe.graph)
    return pytree.tree_leaves((sums, [tree[name][k] for (name, k), (how, _) in buffers.items() if how == "epoch"]))


def better(program: Program, state: State) -> dict[str, Direction | None]:
    """Declared directions of metrics, by the names of `finish`; under "", the direction of host metrics, whose results
    have no names before they are computed."""
    pipe, declared = program.pipe, dict[str, Direction | None]()
    for sums in ({s.name: state.memory[s.name] for s in pipe.metrics}, program.zeros()):
        names: dict[str, Direction | None] = {}
        for s in (s for s in pipe.graph if s.finish is not None and s.name in sums):
            for k in program.finish({s.name: sums[s.name]}):
                said = s.better.get(k) if isinstance(s.better, Mapping) else s.better
                names[f"{s.name}.{k}" if k in names else k] = said
        declared |= names
    host = [s.better for s in pipe.host_metrics]
    one = {said for said in host if not isinstance(said, Mapping)}
    declared[""] = one.pop() if len(one) == 1 else None
    return {**declared, **{k: v for said in host if isinstance(said, Mapping) for k, v in said.items()}}


# -- for each run


def _each(program: Program, state: State, one: Callable[[Single, State], State]) -> State:
    """A State, changed run by run."""
    states = [program.member(state, i) for i in range(program.members)]
    assert isinstance(program.single, Single)
    return program.stacked([one(program.single, own) for own in states])


def watches(program: Program) -> bool:
    """Whether a schedule reads metrics."""
    return any(s.watches for s in scheduled(program.pipe.graph).values())


def observed(program: Program, state: State, metrics: Mapping[str, Any]) -> State:
    """The State after its schedules have seen an epoch's metrics, such as `reduce_on_plateau`.

    Raises ConfigError if a schedule reads an unknown metric.
    """
    if not any(s.observe for s in scheduled(program.pipe.graph).values()):
        return state
    memories = []
    for i in range(program.members):
        own = {k: v[i] for k, v in metrics.items() if isinstance(v, list)} if program.runs is not None else metrics
        memories.append(observed_memory(program.pipe.graph, program.member(state, i).tree, own))
    new = memories[0] if program.single is program else tree_map(lambda *xs: torch.stack(xs), *memories)
    return state.replace(memory={**state.memory, **new})


def averaged(program: Program, state: State) -> dict[str, State]:
    """For each average of weights, the State to evaluate and to save."""
    pipe, states = program.pipe, dict[str, State]()
    for name, s in pipe.averages.items():

        def view(single: Single, own: State, s: Any = s) -> State:
            seen = own.replace(**s.averaged(own.tree, hyper_values(pipe.graph, own.tree)[s.name]))
            return refreshed(single, seen) if s.average.refresh and pipe.load is not None else seen

        states[name] = _each(program, state, view)
    return states


def refreshed(program: Program, state: State, of: Any = None) -> State:
    """The same State with BatchNorm statistics recomputed over `of`, or the pipeline's own batches of an epoch."""

    def one(single: Single, own: State) -> State:
        pipe = single.pipe
        source = pipe.load if of is None and pipe.load is not None else data.source(pipe, of)
        shards = data.ahead(pipe, data.epoch(single, source, single.seed(own.tree), 0))
        stages = [s for s in pipe.graph if s.runs(True)]
        with torch.enable_grad(), pipe.place.autocast():  # a derivative may be part of a model's outputs
            values, hyper = kept(whole(single, own).tree), hyper_values(pipe.graph, own.tree)
            new = batchnorm.renewed(stages, values, hyper, own.memory, shards, pipe.place.mesh)
        return own.replace(**new) if new else own

    return _each(program, state, one)


def check_state(program: Program, state: State) -> None:
    """Raise StateError unless `state` has the names that the program's `init` would give it."""
    pipe = program.pipe
    names = {k for s in pipe.stages for k in s.keeps} | set(LASTS)
    memory = {s.name for s in lasting(pipe.graph)} | set(remembering(pipe.graph))
    wanted = {
        "keeps": (state.tree, names),
        "hyper": (state.hyper, hyper_names(pipe.graph)),
        "memory": (state.memory, memory),
    }
    for what, (has, wants) in wanted.items():
        if differing := ", ".join(sorted(has.keys() ^ wants)):
            why = f"they differ in {what} at {differing}"
            raise StateError(f"the State does not fit this pipeline: {why}; make one with pipe.init()")


def check_copies(program: Program, state: State) -> None:
    """Raise StateError if stages of a new State keep copies of other weights than it has."""
    pipe, tree = program.pipe, program.member(state, 0).tree
    for s in pipe.graph if not int(tree["step"]) else ():
        made: Tree = first_memory(s, tree) if s.remembers and s.finish is None else {}
        kept = dict(paths(tree["memory"].get(s.name)))
        if s.average is not None and s.create is not None:
            made, kept = tree[s.average_of], dict(paths(tree[s.writes[0]]))
        for path, x in paths(made):
            name = path.rpartition("/")[2]
            own = [p for m in pipe.models for k, p in tree[m.params].items() if name in (k, f"{m.params}.{k}")]
            copied = any(x.dtype == p.dtype and torch.equal(x, p) for p in own)
            if copied and kept[path].shape == x.shape and not torch.equal(kept[path], x):
                why = f"stage {s.name!r} keeps a copy of other weights {name!r} than the State has"
                instead = "give weights to forward.model(weights=...); a trained State goes on with its own step"
                raise StateError(f"{why}: {instead}")
