"""From settings to a pipeline: data, model and stages by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from cli.config import OPTIMIZERS, TrainConfig
from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, order, place, schedules, sources, update
from pipeline.errors import ConfigError, DataError
from pipeline.schedules import Schedule
from pipeline.sources import Tensors
from pipeline.stage import Stage
from pipeline.state import State


@frozen(eq=False)
class Job:
    """What a run trains."""

    pipe: Pipeline
    train: Tensors
    held_out: Tensors
    model: str
    """The model in words: `mlp 64-128-10`."""
    best: str
    """The held-out metric that tells the best epoch, if the settings name none."""

    @property
    def data(self) -> str:
        inputs = self.train.tensors["inputs"]
        kind = f", {len(self.train.classes)} classes" if self.train.classes else ""
        shape = "x".join(map(str, inputs.shape[1:])) or "1"
        return f"{len(self.train):,} training and {len(self.held_out):,} held-out samples, inputs {shape}{kind}"


def job(config: TrainConfig) -> Job:
    """The pipeline of a run. Raises a PipeError for what does not fit together."""
    device = place.on(config.device, precision=config.precision)
    train, held_out = _data(config)
    build, words = _model(config, train, held_out)
    targets = train.tensors["targets"]
    dim = -1 if targets.ndim > 1 else 1  # tokens: classes are last
    if targets.is_floating_point():
        objective, metrics = loss.mse(), [evaluate.mean_absolute_error(), evaluate.r2()]
    else:
        objective, metrics = loss.cross_entropy(dim=dim), [evaluate.accuracy(dim=dim)]
    pipe = Pipeline(
        load.batches(train, size=config.batch_size),
        device,
        forward.model(build),
        objective,
        *metrics,
        backward.gradients(accumulate=config.accumulate),
        update.finite(config.on_nonfinite),
        *([update.clip_norm(config.clip)] if config.clip else []),
        _optimizer(config, config.epochs * order.count(len(train), config.batch_size)),
        *([update.ema(config.ema)] if config.ema is not None else []),
    )
    return Job(pipe, train, held_out, words, "r2" if targets.is_floating_point() else "accuracy")


SMALL = 2e8
"""Floating-point operations of a step below which threads cost more than they bring."""


def threads(made: Job, state: State, wanted: int | None) -> int:
    """How many threads of the CPU a run takes: what is wanted, or by the size of its step alone, so always the same.

    Raises a PipeError where the model or the labels don't fit: the size is found by trying the pipeline on its data.
    """
    assert made.pipe.load is not None
    operations = 0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal operations
        if not isinstance(output, Tensor) or isinstance(module, nn.Embedding):
            return
        for weight in module.parameters(recurse=False):
            if weight.ndim > 1:  # each output channel is a product with a row of it
                operations += 2 * weight.numel() * output.numel() // len(weight)

    skeletons = [m.module.skeleton().module for m in made.pipe.models]
    hooks = [part.register_forward_hook(count) for skeleton in skeletons for part in skeleton.modules()]
    try:
        made.pipe.check(state)  # on a few samples; a step is a forward of them all, and a backward of twice that
    finally:
        for hook in hooks:
            hook.remove()
    if wanted is not None:
        return wanted
    step = 3 * operations / min(2, len(made.train)) * made.pipe.load.size
    return 1 if step < SMALL else max(torch.get_num_threads(), 1)


def _data(config: TrainConfig) -> tuple[Tensors, Tensors]:
    if config.data == "digits":
        return sources.digits(seed=config.seed)
    if config.data == "random":
        return sources.random(seed=config.seed), sources.random(200, seed=config.seed + 1)
    path = Path(config.data)
    if path.name.endswith(".npz"):
        data = sources.npz(path)
    elif path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
        data = sources.csv(path)
    else:
        data = sources.idx(path)
    return sources.split(data, seed=config.seed)


def _model(config: TrainConfig, data: Tensors, held_out: Tensors) -> tuple[Any, str]:
    inputs, targets = data.tensors["inputs"], data.tensors["targets"]
    shape = tuple(inputs.shape[1:])
    outputs = (
        len(data.classes)
        if data.classes
        else targets[0].numel()
        if targets.is_floating_point()
        else _most("targets", data, held_out)
    )
    if config.model == "transformer":
        if inputs.is_floating_point() or inputs.ndim != 2 or targets.shape != inputs.shape:
            raise ConfigError(
                f"model 'transformer' takes token ids and targets (N, T) int64, but {config.data} has inputs "
                f"{tuple(inputs.shape)} {_dtype(inputs)} and targets {tuple(targets.shape)}; use mlp or convnet"
            )
        options = {"width": config.hidden[0], "context": inputs.shape[1], "dropout": config.dropout}
        heads = next(h for h in (8, 4, 2, 1) if config.hidden[0] % h == 0)
        tokens = max(_most("inputs", data, held_out), outputs)
        return lambda: models.transformer(tokens, heads=heads, **options), f"transformer of width {config.hidden[0]}"
    if not inputs.is_floating_point():
        raise ConfigError(
            f"model {config.model!r} takes inputs of floats, but {config.data} has {_dtype(inputs)}; convert them"
        )
    if config.model == "convnet":
        if len(shape) != 3:
            raise ConfigError(
                f"model 'convnet' takes images (channels, height, width), but {config.data} has inputs of shape "
                f"{shape}; "
                "use --model mlp"
            )
        widths = config.hidden
        words = f"convnet {shape[0]}-{_dashes(widths)}-{outputs}"
        return lambda: models.convnet(shape[0], outputs, widths=widths, dropout=config.dropout), words
    layers = (inputs[0].numel(), *config.hidden, outputs)
    return lambda: models.mlp(*layers, dropout=config.dropout), f"mlp {_dashes(layers)}"


def _optimizer(config: TrainConfig, steps: int) -> Stage:
    lr = _learning_rate(config, steps)
    options = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    made = _rule(config, lr, options)
    if config.no_decay is None:
        return made
    if not any(value for name, value in made.hyper.items() if name.endswith("weight_decay")):
        raise ConfigError(
            f"--no-decay has nothing to leave out: {config.optimizer} has no --weight-decay here; give one"
        )
    return update.groups({config.no_decay: _rule(config, lr, {"weight_decay": 0.0})}, otherwise=made)


def _rule(config: TrainConfig, lr: Schedule | float, options: dict[str, Any]) -> Stage:
    if config.optimizer == "muon":  # so that one learning rate is for both of its rules
        return update.muon(lr, adjust_lr_fn="match_rms_adamw", rest=update.adamw(lr, **options), **options)
    if config.own_momentum is not None:
        options = {**options, "momentum": config.own_momentum}
    made: Stage = getattr(update, config.optimizer.replace("-", "_"))(lr, **options)
    return made


def _learning_rate(config: TrainConfig, steps: int) -> Schedule | float:
    """The schedule of a run of so many steps, behind its warm-up."""
    warmup = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if warmup and warmup >= steps:
        raise ConfigError(f"--warmup {config.warmup:g} is no shorter than the run, which has {steps:,} steps")
    lr = _schedule(config, config.lr or OPTIMIZERS[config.optimizer], steps - warmup)
    # A plateau has one in any case, of 0 steps: so State has the same names where a run goes on with another.
    return schedules.warmup(lr, steps=warmup) if warmup or config.schedule == "plateau" else lr


def _schedule(config: TrainConfig, lr: float, steps: int) -> Schedule | float:
    made: dict[str, Callable[[], Schedule | float]] = {
        "auto": lambda: lr if config.optimizer == "schedule-free-adamw" else schedules.cosine(lr, steps=steps),
        "constant": lambda: lr,
        "cosine": lambda: schedules.cosine(lr, steps=steps),
        "cosine-restarts": lambda: schedules.cosine_restarts(lr, period=max(steps / 7, 1), mult=2),
        "exponential": lambda: schedules.exponential(lr, gamma=0.01, every=steps),
        "linear": lambda: schedules.linear(lr, steps=max(steps / 10, 1)),
        "multi-step": lambda: schedules.multi_step(lr, [steps / 2, 3 * steps / 4]),
        "one-cycle": lambda: schedules.one_cycle(lr, steps=steps),
        "plateau": lambda: schedules.reduce_on_plateau(lr, factor=0.5, patience=3),
        "polynomial": lambda: schedules.polynomial(lr, steps=steps),
        "step": lambda: schedules.step(lr, every=max(steps // 3, 1)),
        "wsd": lambda: schedules.warmup_stable_decay(lr, steps=steps, warmup=0 if config.warmup else 0.05),
    }
    return made[config.schedule]()


def parameters(module_params: dict[str, Tensor]) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in module_params.values())


def _most(name: str, *parts: Tensors) -> int:
    """How many ids there are in both parts of the data."""
    ids = [part.tensors[name] for part in parts]
    if min(int(i.min()) for i in ids) < 0:
        raise DataError(f"{name} hold negative ids; token ids begin at 0")
    return max(int(i.max()) for i in ids) + 1


def _dashes(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
