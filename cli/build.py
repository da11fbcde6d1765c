"""From settings to the job of a run: pipeline, data and first State."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from cli import decision, goal, processes, room, step_size, unused
from cli.config import TrainConfig
from cli.inside import inside
from cli.prepared import first_samples, fixed, prepared
from cli.recipes.data_card import About
from cli.recipes.loss import scaled, standardized
from cli.recipes.model import Custom, Fixed, Model
from cli.recipes.rule import decays
from cli.recipes.setting import given
from cli.recipes.task import CLASSES, LABELS, TOKENS
from cli.settled import settled
from pipeline import (
    Ensemble,
    Pipeline,
    backward,
    ensemble,
    evaluate,
    forward,
    load,
    loss,
    order,
    place,
    update,
)
from pipeline.description import Description
from pipeline.errors import ConfigError
from pipeline.load import Load
from pipeline.module import Weights
from pipeline.programs.check import check
from pipeline.programs.members import gathers
from pipeline.sources import Prepared
from pipeline.stage import Stage
from pipeline.state import State

SHARE = 0.05
"""Of the samples of an epoch that a shorter last batch may leave out without a word."""


@frozen(eq=False)
class Job:
    """The pipeline and the data of a run."""

    pipe: Pipeline | Ensemble
    held_out: Any
    model: str
    """The model in words: `mlp 64-128-10`."""
    best: str | None
    """The held-out metric of the best epoch, if the settings name none."""
    prepared: Prepared | None = None
    """The data; None with a pipeline of the user's own."""
    fixed: Fixed | None = None
    build: Callable[[], nn.Module] | None = None
    weights: Weights | None = None
    """Those to begin from."""
    why: str = ""
    """Why `best` is not the task's usual one."""
    eager_steps: int = 0
    """Steps to run uncompiled at first."""

    @property
    def stages(self) -> Description:
        """The stages of one run."""
        return self.pipe.program.pipe

    @property
    def about(self) -> About | None:
        """Facts about the data, for predictions on other data."""
        return None if self.prepared is None or self.fixed is None else About.of(self.fixed, self.prepared)

    @property
    def train(self) -> Any:
        """The training data."""
        assert self.stages.load is not None
        return self.stages.load.data

    @property
    def validation(self) -> Any:
        """The held-out data; for the command's own pipelines in large batches of nearly equal size, for few graphs.
        Without gradients, these need no more memory than a step."""
        if self.prepared is None:
            return self.held_out
        assert self.stages.load is not None
        n = len(self.held_out)
        return load.batches(self.held_out, size=-(-n // order.count(n, 8 * self.stages.load.size)), shuffle=False)

    def measuring(self, outputs: Stage) -> Pipeline:
        """The loss and the metrics of the outputs of a stage instead of the model's, on the CPU."""
        one = self.pipe.pipe if isinstance(self.pipe, Ensemble) else self.pipe
        names = [s.name for s in one.stages]
        [g] = one.backwards
        measures = one.stages[names.index(one.models[0].name) + 1 : names.index(g.name)]
        mean_loss = Stage("mean loss", g.function, init=g.init, finish=g.finish, names=g.names, when="evaluation")
        return Pipeline(place.on("cpu"), outputs, *measures, mean_loss)

    def average_of(self, metric: str) -> str | None:
        """The average of weights that a metric is of: "ema" for `ema.accuracy`."""
        return next((name for name in self.stages.averages if f".{name}." in f".{metric}"), None)

    def measured_by(self, metric: str, state: State) -> State:
        """The State with the weights that a metric is of."""
        average = self.average_of(metric)
        return state if average is None else self.pipe.averaged(state)[average]

    @property
    def data(self) -> str:
        counts = [f"{_length(part)} {what}" for part, what in ((self.train, "training"), (self.held_out, "held-out"))]
        if self.prepared is None:
            return f"{' and '.join(counts)} samples"
        inputs = first_samples(self.prepared.train)["inputs"]
        load = self.stages.load
        if load is not None and load.drop_last and (left := load.order.n % load.size) > SHARE * load.order.n:
            counts[0] += f" ({left:,} of them, drawn anew, in no batch of an epoch)"
        shape = "x".join(map(str, inputs.shape[1:])) or "1"
        classes = self.prepared.classes if self.prepared.task == CLASSES else ()
        kind = f"{len(classes)} classes" if classes else self.prepared.task
        return f"{' and '.join(counts)} samples, inputs {shape}, {kind}"


def job(config: TrainConfig, data: Prepared | None = None, *, initial: bool = True) -> Job:
    """The job of a run; `data` if they are prepared already. Without `initial`, its first State is not needed, nor the
    weights that it begins from. Raises a PipeError if settings, data and pipeline do not fit together."""
    config, data = settled(config, data)
    own = config.pipeline.name
    single = _of_settings(config, data, initial) if own is None else _of_code(config, own)
    return single if config.run.ensemble is None else _ensemble(single, config.run.ensemble)


def _ensemble(job: Job, members: int) -> Job:
    if processes.count() > 1:
        raise ConfigError("--ensemble trains its members side by side in one process; leave out --processes")
    pipe = job.pipe
    assert isinstance(pipe, Pipeline)
    if job.prepared is not None and job.prepared.task in (CLASSES, LABELS):
        metric = evaluate.calibration_error(several=job.prepared.task == LABELS)
        if metric.name not in [stage.name for stage in pipe.stages]:
            pipe = pipe.insert(metric, after="evaluate.accuracy")
    side_by_side = ensemble(pipe, seeds=members, order="own" if gathers(pipe) else "shared")
    return evolve(job, pipe=side_by_side, model=f"{members} x {job.model}")


def _of_code(config: TrainConfig, name: str) -> Job:
    """The job of a pipeline of the user's own."""
    pipe, held_out = config.pipeline.make({"seed": config.run.seed, "epochs": config.run.epochs})
    if processes.count() > 1 and pipe.place.mesh is None:
        raise ConfigError(
            f"{name} is placed by {pipe.place.name}(), for one process; write place.mesh(), which is for any number of "
            "them"
        )
    return Job(pipe, held_out, name, None)


def _of_settings(config: TrainConfig, data: Prepared | None, initial: bool) -> Job:
    """The job of a pipeline built from settings."""
    device = placed(config)
    data = scaled(prepared(config) if data is None else data, config.loss)
    what = fixed(config.data.source, data)
    model = config.model
    build, words, inputs = model.fit(what, data)
    tuned = config.finetune
    if tuned.lora is not None and tuned.init is None and not isinstance(model, Custom):
        raise ConfigError("--lora would freeze random weights; name those to begin from by --init FILE")
    weights = tuned.weights() if initial else None
    build, words = tuned.built(build, weights), words if tuned.lora is None else f"{words}, lora {tuned.lora}"
    run, aim = config.run, goal.goal(config, data)
    criterion = config.loss.stage(data.task, goal.class_weights(config, data, what.outputs))
    metrics = config.evaluate.stages(what, run.best or aim.metric, quantile=config.loss.quantile)
    measured = standardized(data, criterion, metrics)
    if model.members:
        measured = _of_members(measured)
    size, count = run.batch_size, len(data.train)
    # A few windows of a text, another choice of them in each epoch, are not worth a graph of their own.
    whole = count >= size and (model.whole_batches or (data.task == TOKENS and count % size <= SHARE * count))
    batches = load.batches(data.train, size=run.batch_size, drop_last=whole, weights=goal.draws(config, data))
    length, free = steps(batches, config) or 0, config.optimizer.schedule_free
    rate = partial(config.schedule.learning_rate, steps=length, free=free)
    fading = partial(config.schedule.fading, steps=length)
    numbers = {name: fading(value) for name, value in model.numbers.items()}
    hidden = inside(build, inputs, first_samples(data.train)) if config.optimizer.name == "muon" else set[str]()
    rule = config.optimizer.stage(rate, hidden, fading, model.factors)
    if config.schedule.regularization != "constant" and type(model).numbers is Model.numbers and not decays(rule):
        raise ConfigError(
            f"{given('regularization', config.schedule.regularization)} has nothing to change: --optimizer "
            f"{config.optimizer.name} has no weight decay here; give --weight-decay, or leave it out"
        )
    pipe = Pipeline(
        batches,
        device,
        forward.model(build, inputs=inputs, hyper=numbers),
        *measured,
        backward.gradients(accumulate=run.accumulate),
        *([evaluate.gradient_norm()] if run.telemetry else []),
        update.finite("scale" if run.precision == "fp16" else run.on_nonfinite or "stop"),
        *([evaluate.metric("skipped", _skipped, dict, {"skipped": evaluate.INT})] if run.precision == "fp16" else []),
        *([update.clip_norm(run.clip)] if run.clip else []),
        tuned.rule(rule, batches.batches),
        *([evaluate.update_ratio(), evaluate.learning_rate()] if run.telemetry else []),
        *([update.ema(run.ema)] if run.ema is not None else []),
    )
    if processes.count() == 1 and not isinstance(model, Custom):
        rules = [s for s in pipe.stages if isinstance(s, Stage) and s.init is not None and "params" in s.writes]
        room.check(tuned.built(model.make(what)[0]), rules, run.ensemble or 1, str(device.device))
    return Job(pipe, data.held_out, words, aim.metric, data, what, build, weights, aim.why)


def _skipped(finite: Tensor) -> dict[str, Tensor]:
    return {"skipped": (~finite).long()}


def _of_members(measured: list[Stage]) -> list[Stage]:
    """Loss and metrics of a model whose outputs in training are of several members, joined before all others."""
    [criterion] = [s for s in measured if isinstance(s, loss.Loss)]
    join, *losses = loss.of_members(criterion)
    return [join, *(part for s in measured for part in (losses if s is criterion else [s]))]


def placed(config: TrainConfig) -> place.Place:
    """Place a run on one device, or on all processes that were started together."""
    run, count = config.run, processes.count()
    if run.precision == "auto":
        raise ConfigError("--precision auto is chosen by pipe train alone, in one process: name fp32 or bf16")
    if run.precision == "fp16" and run.on_nonfinite == "stop" and config.wrote("run.on_nonfinite"):
        raise ConfigError(
            f"{given('on_nonfinite', 'stop')} would end --precision fp16 in its first steps: it finds the scale of "
            "its losses by skipping steps; leave it out"
        )
    if count == 1:
        return place.on(run.device, precision=run.precision)
    if count % run.shard:
        raise ConfigError(f"--shard {run.shard} does not divide {count}, the number of processes")
    return place.mesh(run.device, shard=run.shard, precision=run.precision, timeout=run.timeout)


def begin(config: TrainConfig, data: Prepared | None = None, *, initial: bool = True) -> tuple[Job, State]:
    """As `job`, with the first State of the run, after all checks."""
    begun = job(config, data, initial=initial)
    unused.check(config, begun.fixed)
    state = first(begun, config)
    size = step_size.measured(begun, state)
    torch.set_num_threads(step_size.threads(begun, size, config.run.threads))
    begun = evolve(begun, eager_steps=step_size.eager_steps(begun, state, size, config.run))
    if begun.held_out is not None:
        check(begun.pipe.program, state, begun.validation)
    decision.check(config, begun)
    if config.run.best is not None:
        goal.check_best(config.run.best, begun, state)
    return begun, state


def steps(load: Load | None, config: TrainConfig) -> int | None:
    """The number of steps of a run; None if the data have no length."""
    return None if load is None or load.batches is None else load.batches * config.run.epochs


def first(job: Job, config: TrainConfig) -> State:
    """The first State of a run."""
    return job.pipe.init(config.run.seed, steps=steps(job.stages.load, config))


def _length(data: Any) -> str:
    try:
        return f"{len(data):,}"
    except TypeError:
        return "no" if data is None else "some"


def parameters(module_params: dict[str, Tensor]) -> int:
    return sum(p.numel() for p in module_params.values())
