"""From settings to what a run trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from cli import processes, room
from cli.config import TrainConfig
from cli.inside import inside
from cli.recipes.data_card import About
from cli.recipes.model import Custom, Fixed
from pipeline import Ensemble, Pipeline, backward, ensemble, evaluate, forward, load, memory, order, place, update
from pipeline.description import Description
from pipeline.direction import directions
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.load import Load
from pipeline.programs.check import check
from pipeline.programs.evaluate import better
from pipeline.programs.members import gathers
from pipeline.sources import Prepared, Source, Split, Tensors
from pipeline.stage import Stage
from pipeline.state import Batch, State


@frozen(eq=False)
class Job:
    """What a run trains."""

    pipe: Pipeline | Ensemble
    held_out: Any
    model: str
    """The model in words: `mlp 64-128-10`."""
    best: str | None
    """The held-out metric that tells the best epoch, if the settings name none."""
    prepared: Prepared | None = None
    """The data, where they are not those of a pipeline of the user's."""
    fixed: Fixed | None = None
    build: Callable[[], nn.Module] | None = None

    @property
    def stages(self) -> Description:
        """The stages of one run."""
        return self.pipe.program.pipe

    @property
    def about(self) -> About | None:
        """What has to be known of the data to use the model on others."""
        return None if self.prepared is None or self.fixed is None else About.of(self.fixed, self.prepared)

    @property
    def train(self) -> Any:
        """What is trained on."""
        assert self.stages.load is not None
        return self.stages.load.data

    @property
    def validation(self) -> Any:
        """What is held out. The command's own losses are means of samples, so that it takes large batches: without
        gradients these need no more memory, and of nearly one size they are mostly one graph."""
        if self.prepared is None:
            return self.held_out
        assert self.stages.load is not None
        n = len(self.held_out)
        return load.batches(self.held_out, size=-(-n // order.count(n, 8 * self.stages.load.size)), shuffle=False)

    @property
    def data(self) -> str:
        counts = [f"{_length(part)} {what}" for part, what in ((self.train, "training"), (self.held_out, "held-out"))]
        if self.prepared is None:
            return f"{' and '.join(counts)} samples"
        inputs = _sample(self.prepared.train)["inputs"]
        shape = "x".join(map(str, inputs.shape[1:])) or "1"
        classes = self.prepared.classes if self.prepared.task == "classification" else ()
        kind = f"{len(classes)} classes" if classes else self.prepared.task
        return f"{' and '.join(counts)} samples, inputs {shape}, {kind}"


def job(config: TrainConfig, data: Prepared | None = None) -> Job:
    """The pipeline of a run, of its data, if they were prepared already. Raises a PipeError for what does not fit
    together."""
    made = _of_code(config, config.pipeline.name) if config.pipeline.name is not None else _of_settings(config, data)
    return made if config.run.ensemble is None else _together(made, config.run.ensemble)


def _together(made: Job, members: int) -> Job:
    """An ensemble of what a run trains."""
    if processes.count() > 1:
        raise ConfigError("--ensemble trains its members side by side in one process; leave out --processes")
    pipe = made.pipe
    assert isinstance(pipe, Pipeline)
    if made.prepared is not None and made.prepared.task in ("classification", "several labels"):
        metric = evaluate.calibration_error(several=made.prepared.task == "several labels")
        pipe = pipe.insert(metric, after="evaluate.accuracy")
    whole = ensemble(pipe, seeds=members, order="own" if gathers(pipe) else "shared")
    return evolve(made, pipe=whole, model=f"{members} x {made.model}")


def _of_code(config: TrainConfig, name: str) -> Job:
    """A pipeline of the user's."""
    pipe, held_out = config.pipeline.make({"seed": config.run.seed, "epochs": config.run.epochs})
    if processes.count() > 1 and pipe.place.mesh is None:
        raise ConfigError(
            f"{name} is placed by {pipe.place.name}(), for one process; write place.mesh(), which is for any number of "
            "them"
        )
    return Job(pipe, held_out, name, None)


def _of_settings(config: TrainConfig, data: Prepared | None) -> Job:
    """A pipeline of the command's, of its settings."""
    device = placed(config)
    data = prepared(config) if data is None else data
    what = fixed(config.data.source, data)
    build, words, inputs = config.model.make(what)
    losses = config.loss.stages(data)
    run = config.run
    # Windows of a text are cut as they come: a shorter last batch would be another graph for little.
    batches = load.batches(data.train, size=run.batch_size, drop_last=data.task == "language modelling")
    free = "schedule-free" in config.optimizer.name
    rate = partial(config.schedule.learning_rate, steps=steps(batches, config) or 0, free=free)
    hidden = inside(build, inputs, _sample(data.train)) if config.optimizer.name == "muon" else set[str]()
    pipe = Pipeline(
        batches,
        device,
        forward.model(build, inputs=inputs),
        *losses,
        backward.gradients(accumulate=run.accumulate),
        *([evaluate.gradient_norm()] if run.telemetry else []),
        update.finite("scale" if run.precision == "fp16" else run.on_nonfinite),
        *([update.clip_norm(run.clip)] if run.clip else []),
        config.optimizer.stage(rate, hidden),
        *([evaluate.update_ratio(), evaluate.learning_rate()] if run.telemetry else []),
        *([update.ema(run.ema)] if run.ema is not None else []),
    )
    if processes.count() == 1 and not isinstance(config.model, Custom):
        rules = [s for s in pipe.stages if isinstance(s, Stage) and s.init is not None and "params" in s.writes]
        room.check(build, rules, run.ensemble or 1, str(device.device))
    return Job(pipe, data.held_out, words, _BEST[data.task], data, what, build)


def prepared(config: TrainConfig) -> Prepared:
    """The data of a run, parted."""
    run = config.run
    seed = run.seed if run.split_seed is None else run.split_seed
    return config.data.prepare(Split(config.data.held_out, seed, run.folds, run.fold or 0))


def placed(config: TrainConfig) -> place.Place:
    """Where a run is: on one device, or on all processes that were started together."""
    run, count = config.run, processes.count()
    if count == 1:
        return place.on(run.device, precision=run.precision)
    if count % run.shard:
        raise ConfigError(f"--shard {run.shard} does not divide {count}, the number of processes")
    return place.mesh(run.device, shard=run.shard, precision=run.precision, timeout=run.timeout)


def begin(config: TrainConfig) -> tuple[Job, State]:
    """What a run trains, and its first State; everything that can be checked is."""
    found = job(config)
    state = first(found, config)
    torch.set_num_threads(threads(found, state, config.run.threads))
    if found.held_out is not None:
        check(found.pipe.program, state, found.validation)
    known = [*found.pipe.program.finish(found.pipe.program.zeros())]
    known += [f"{name}.{metric}" for name in found.stages.averages for metric in known]
    best, told = config.run.best, better(found.pipe.program, state)
    if best is not None and best not in [*known, *told] and told[""] is None:
        raise ConfigError(f"--best {best!r} is no metric of this run{did_you_mean(best, known)}")
    if best is not None and best not in (can := directions(told, [*known, best])):
        raise ConfigError(
            f"nothing says whether --best {best!r} is better high or low: write better='high' or 'low' where it is made"
            f"; known of {', '.join(can)}"
        )
    return found, state


def steps(load: Load | None, config: TrainConfig) -> int | None:
    """How many steps a run has; None where its data do not tell."""
    return None if load is None or load.batches is None else load.batches * config.run.epochs


def first(made: Job, config: TrainConfig) -> State:
    """The first State of a run."""
    return made.pipe.init(config.run.seed, steps=steps(made.stages.load, config))


_BEST = {
    "classification": "accuracy",
    "several labels": "accuracy",
    "regression": "r2",
    "language modelling": "perplexity",
}


def fixed(source: str, data: Prepared) -> Fixed:
    """What the data fix of a model."""
    batch = _sample(data.train)
    inputs, targets = batch["inputs"], batch["targets"]
    if data.task in ("classification", "language modelling"):
        outputs = len(data.classes) or data.sizes.get("vocabulary") or _most(data)
    else:
        outputs = targets[0].numel()
    if data.task == "language modelling":
        outputs = max(outputs, data.sizes.get("vocabulary", 0))
    return Fixed(
        source, tuple(inputs.shape[1:]), inputs.is_floating_point(), outputs, data.task, data.sizes, data.train.names
    )


def _sample(data: Source) -> Batch:
    return data[torch.arange(min(2, len(data)))]


def _most(data: Prepared) -> int:
    """How many ids there are in both parts of the data."""
    found = 0
    for part in (data.train, data.held_out):
        assert isinstance(part, Tensors)
        for name, ids in part.tensors.items():
            if name in ("targets", *(["inputs"] if data.task == "language modelling" else [])):
                if int(ids.min()) < 0:
                    raise DataError(f"{name} hold negative ids; token ids begin at 0")
                found = max(found, int(ids.max()) + 1)
    return found


def _length(data: Any) -> str:
    try:
        return f"{len(data):,}"
    except TypeError:
        return "no" if data is None else "some"


SMALL = 2e8
"""Floating-point operations of a step below which threads cost more than they bring."""
TIGHT = 4
"""So many times the free memory is too much for activations, which are told roughly."""
MANY = 4
"""Members side by side that keep all cores busy, also where one alone is too small for that."""


def threads(made: Job, state: State, wanted: int | None) -> int:
    """How many threads of the CPU a run takes: what is wanted, or by the size of its step alone, so always the same.

    Raises a PipeError where the model or the labels don't fit: the size is found by trying the pipeline on its data.
    """
    operations, held = size(made, state)
    load, free = made.stages.load, room.free(made.stages.place.device)
    assert load is not None
    taken = min(load.size, len(made.train)) if load.known else load.size
    held *= taken / load.size / processes.count() / max((g.accumulate for g in made.stages.backwards), default=1)
    if held > TIGHT * free:
        raise ConfigError(
            f"a step of {taken:,} samples needs {memory.size(held)} for its activations, and {memory.size(free)} are "
            "free; use a smaller --batch-size, or --accumulate"
        )
    if wanted is not None:
        return wanted
    small = operations < SMALL and made.pipe.program.members < MANY
    return 1 if small else max(torch.get_num_threads(), 1)


def size(made: Job, state: State) -> tuple[float, float]:
    """About how many floating-point operations a step takes, and how many bytes its activations."""
    load = made.stages.load
    assert load is not None
    operations = held = 0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal operations, held
        if not isinstance(output, Tensor):
            return
        held += output.nbytes
        for weight in module.parameters(recurse=False) if not isinstance(module, nn.Embedding) else ():
            if weight.ndim > 1:  # each output channel is a product with a row of it
                operations += 2 * weight.numel() * output.numel() // len(weight)

    skeletons = [m.module.skeleton().module for m in made.stages.models]
    hooks = [part.register_forward_hook(count) for skeleton in skeletons for part in skeleton.modules()]
    try:
        check(
            made.pipe.program, state
        )  # on a few samples; a step is a forward of them all, and a backward of twice that
    finally:
        for hook in hooks:
            hook.remove()
    # What an iterable yields is looked at as it comes.
    more = load.size / min(2, len(made.train)) if load.known else 1
    return 3 * operations * more, held * more


def parameters(module_params: dict[str, Tensor]) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in module_params.values())
