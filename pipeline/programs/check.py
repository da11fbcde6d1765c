"""Check: try the stages on the user's data before training, so that errors appear at once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from pipeline import load
from pipeline.load import Load
from pipeline.programs import data
from pipeline.programs.hyper import check_watched as check_names
from pipeline.programs.hyper import hyper_values, outlived, scheduled
from pipeline.programs.loss_check import check_called, check_held
from pipeline.programs.mesh import whole
from pipeline.programs.program import Program
from pipeline.programs.segments import Segment, batch_weight, run_stages
from pipeline.programs.single import Single, kept
from pipeline.stage import Stage
from pipeline.state import Batch, State
from pipeline.wiring import check_changed, without_gradients


def check(program: Program, state: State, of: Any = None) -> None:
    """Try the stages on a batch, and let each look at the data.

    On the pipeline's own data, the stages of training that need no gradients; on other data, the evaluation. Raises
    StageError if the model can't take the inputs, and DataError for labels that do not fit. Warns of a loss that is no
    mean over samples, because its mean over batches is not the mean over all samples.
    """
    single, state = program.single, program.member(state, 0)
    assert isinstance(single, Single)
    pipe, training = single.pipe, of is None
    if training and pipe.load is None:
        return
    source = data.source(pipe, of)
    if training:
        check_changed(pipe.stages, lambda m: bool(state.tree[m.params]))
    parts = max([g.accumulate for g in pipe.backwards], default=1) if training else 1
    host = data.prepared(pipe, load.first(source, -(-source.size // parts)), training)
    batch = pipe.place.batch(host)
    tree = whole(single, state).tree
    telemetry = single.telemetry(tree, hyper_values(pipe.graph, tree)) if training else {}
    values = {**kept(tree), **telemetry, "training": training, **batch}
    labels = source.data.batch(list(source.data.tensors.values())) if source.in_memory and not pipe.host else {}
    tried = without_gradients(pipe.graph, True) if training else list(pipe.evaluation)
    for segment in single.segments if training else [Segment(tuple(tried))]:
        _warn_of_parts(single, segment, tried, values, state, batch)
        for s in (s for s in segment.all if s in tried):
            made = _try(single, s, values, state, batch, source, labels)
            values.update(made)
            labels = {k: x for k, x in labels.items() if k not in made}


def warn_of_order(program: Program, state: State, last: int | None) -> None:
    """Warn of schedules in a State that end before a run's last step, and of a state carried through an epoch whose
    samples are shuffled."""
    pipe = program.pipe
    assert pipe.load is not None
    ends = {} if last is None else outlived(pipe.graph, state.hyper, last, pipe.load.batches)
    if ends:
        warnings.warn(
            f"{' and '.join(ends)} of this State were made for a shorter run, and this one goes on to step {last:,}: "
            f"state.with_hyper({ends}) makes its schedules as long",
            stacklevel=3,
        )
    carried = [name for m in pipe.models for name, how in m.module.carry.items() if how == "epoch"]
    if carried and getattr(pipe.load.order, "shuffle", False):
        warnings.warn(
            f"{carried[0]!r} is carried from batch to batch, whose samples load.batches() shuffles: if they follow one "
            "another, write load.batches(..., shuffle=False, drop_last=True)",
            stacklevel=3,
        )


def _warn_of_parts(
    single: Single, segment: Segment, tried: list[Stage], values: Mapping[str, Any], state: State, batch: Batch
) -> None:
    g = segment.gradients
    if g is None or g not in tried:
        return
    own = evolve(segment, stages=tuple(s for s in segment.stages if s in tried))
    stated = any(f"{g.of}.weight" in s.writes for s in own.stages)
    hyper = hyper_values(single.pipe.graph, state.tree)
    found = single.compare_parts(own, values, hyper, state.memory, batch, 1 if stated else 2)
    if found is not None and found.instead:
        why = f"{found.said}, so the mean of batches is not the mean of all samples"
        warnings.warn(f"stage {found.stage!r} {why}; {found.instead}", stacklevel=4)


def _try(
    single: Single, s: Stage, values: Mapping[str, Any], state: State, batch: Batch, source: Load,
    labels: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Outputs of a stage, after its check of the data. `labels` are the values of the whole data set."""
    pipe = single.pipe
    with torch.enable_grad(), pipe.place.autocast():
        if s.check is not None:
            given = {p: values[v] for p, v in s.parameters if v in values and v not in labels}
            all_labels = {p: labels[v] for p, v in s.parameters if v in labels}
            if all_labels:  # with as many outputs, of which a check reads the shape alone
                count = len(source.data)
                given = {
                    p: x[:1].expand(count, *x.shape[1:]) if isinstance(x, Tensor) and x.ndim else x
                    for p, x in given.items()
                }
            s.look(**given, **all_labels)
        weight = batch_weight(batch, pipe.samples, state.step)
        run = partial(run_stages, [s], values, hyper_values(pipe.graph, state.tree), state.memory, weight)
        made = run()
        check_held(s, values, made[0], run)
        check_called(s, pipe.models, made, run)
    return made[0]


def check_watched(program: Program, state: State, sets: Collection[str]) -> None:
    """Raise ConfigError if a schedule reads a metric that no epoch has, unless the names of metrics are unknown.

    `sets`: names of the validation sets, "" for a single one. With several, a validation metric has its full name only,
    because the short name is the training metric's.
    """
    schedules, pipe = scheduled(program.pipe.graph), program.pipe
    if not any(s.watches for s in schedules.values()) or ("" in sets and pipe.host_metrics):
        return  # host metrics get their names when they are computed
    known = program.finish({s.name: state.memory[s.name] for s in pipe.metrics})
    for name, value in (program.finish(program.zeros()) if sets else {}).items():
        known = {k: v for k, v in known.items() if k != name}
        known |= {f"{of}.{name}" if of else name: value for of in sets}
    check_names(schedules, {k for k, v in known.items() if v.ndim == (program.runs is not None)})
