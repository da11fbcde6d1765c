"""What trains is what a plain loop in torch trains: every net, every example and every page, held by like_by_hand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import pipeline
from pipeline import (
    Pipeline,
    backward,
    evaluate,
    fit,
    forward,
    load,
    models,
    place,
    schedules,
    sources,
    testing,
    update,
)
from pipeline.errors import ByHandError, PipeError
from pipeline.programs.single import Single
from pipeline.testing import like_by_hand
from tests import pipes
from tests.pipes import TRACED
from tests.test_modules import KINDS, piped

ROOT = Path(__file__).parent.parent


def few(data, rows):
    """The first rows of a data set; batches as they are."""
    if isinstance(data, list | torch.utils.data.DataLoader | load.Load):
        return data
    if isinstance(data, dict) and not any(isinstance(x, torch.Tensor) for x in data.values()):
        return {name: few(x, rows) for name, x in data.items()}
    known = sources.source(data)
    return known[torch.arange(min(rows, len(known)))]


def held(pipe, validate=None, **options):
    """Epochs of two batches and a half."""
    data = few(pipe.load.data, int(2.5 * pipe.load.size)) if pipe.load.known else None
    like_by_hand(pipe, data, validate=None if validate is None else few(validate, 70), **options)


# -- nets


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_net_of_any_kind(name):
    """Each kind of net trains as in the plain loop, or is refused before the first step."""
    kind = KINDS[name]
    pytest.importorskip(kind.needs)
    said = ""
    try:
        like_by_hand(piped(kind), None if kind.fusable else kind.batches, epochs=1, tolerance=kind.tolerance)
    except ByHandError:
        raise
    except PipeError as e:
        said = str(e)
    assert re.search(kind.refused or (kind.or_refused if said else "^$"), said), said


# -- rules, schedules, gradients


class Turns(nn.Module):
    """Heads that take turns, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.heads, self.idle = nn.ModuleList(models.mlp(64, 10) for _ in range(2)), nn.Linear(2, 2)

    def forward(self, x):
        return self.heads[int(x[0].sum()) % 2](x)


def joint(*updates, **options):
    """Two models under one loss."""
    encoder = forward.model(lambda: models.mlp(64, 16, 8), outputs="z", name="encoder")
    head = forward.model(lambda: models.mlp(8, 10), inputs="z", params="head", name="head")
    pipe = pipes.digits(*updates, **options)
    return pipe.of([*pipe.given[:2], encoder, head, *pipe.given[3:]])


def turning(*updates):
    return pipes.digits(*updates, model=Turns)


class Where(Turns):
    """The same as one graph."""

    def forward(self, x):
        return torch.where(x.sum((1, 2, 3), keepdim=True).flatten(1) > 150, self.heads[0](x), self.heads[1](x))


PIPES = {
    "sgd": lambda: pipes.digits(update.sgd(0.1, momentum=0.9, nesterov=True)),
    "maximize": lambda: pipes.digits(update.sgd(1e-3, momentum=0.9, dampening=0.1, maximize=True)),
    "adam": lambda: pipes.digits(update.clip_value(0.01), update.adam(1e-2, amsgrad=True)),
    "adamw": lambda: pipes.digits(),
    "adamax": lambda: pipes.digits(update.adamax(1e-2)),
    "nadam": lambda: pipes.digits(update.nadam(1e-2, decoupled_weight_decay=True, weight_decay=0.1)),
    "radam": lambda: pipes.digits(update.radam(1e-2), update.lookahead(3)),
    "adagrad": lambda: pipes.digits(update.adagrad(1e-2, initial_accumulator_value=0.1), accumulate=4),
    "adadelta": lambda: pipes.digits(update.adadelta(1.0)),
    "adafactor": lambda: pipes.digits(update.adafactor(1e-2)),
    "rmsprop": lambda: pipes.digits(update.rmsprop(1e-3, centered=True, momentum=0.5)),
    "asgd": lambda: pipes.digits(update.asgd(1e-2)),
    "rprop": lambda: pipes.digits(update.rprop(1e-3)),
    "muon": lambda: pipes.digits(update.muon(0.02)),
    "lion": lambda: pipes.digits(update.lion(1e-3), update.ema(0.9), evaluate.update_ratio(), evaluate.learning_rate()),
    "lamb": lambda: pipes.digits(update.lamb(1e-2), update.swa(2)),
    "schedule free": lambda: pipes.digits(update.schedule_free_adamw(1e-2)),
    "groups": lambda: pipes.digits(
        update.groups(
            {"*.bias": update.lion(1e-3), "1.weight": update.thawed(update.sgd(0.1), at=2)},
            otherwise=update.adamw(schedules.reduce_on_plateau(1e-3, patience=0)),
        )
    ),
    "layers": lambda: pipes.digits(update.layerwise(update.adamw(1e-2), 0.5), update.weight_decay(0.01)),
    "changes": lambda: pipes.digits(
        update.centralize(), update.noise(0.01), update.clip_adaptive(0.1), evaluate.gradient_norm(), update.sgd(0.1)
    ),
    "dropout": lambda: pipes.digits(update.sgd(0.1), model=lambda: models.convnet(1, 10, widths=(4, 8), dropout=0.3)),
    "bf16": lambda: pipes.digits(update.sgd(0.1)).replace("place.on", place.on("cpu", precision="bf16")),
    "joint": lambda: joint(update.clip_norm(0.1), update.adamw(1e-2), update.lookahead(2)),
    "joint groups": lambda: joint(update.groups({"head.*": update.sgd(0.1)}, otherwise=update.adamw(1e-2))),
    "joint parts": lambda: joint(update.adam(1e-2), update.ema(0.9), accumulate=3),
    "turns": lambda: turning(update.clip_norm(0.1), update.sgd(0.1, momentum=0.9, weight_decay=0.1), update.ema(0.9)),
    "turns by adamw": lambda: turning(update.finite("skip"), update.adamw(1e-2), update.lookahead(2)),
    "turns in groups": lambda: turning(
        update.groups({"heads.0.*": update.sgd(0.1, momentum=0.9)}, otherwise=update.lion())
    ),
    "turns in layers": lambda: turning(
        update.centralize(), update.clip_adaptive(0.1), update.clip_value(1e-3), update.layerwise(update.adam(), 0.5)
    ),
    **{
        f"schedule {i}": lambda s=s: pipes.digits(update.sgd(s, momentum=0.9))
        for i, s in enumerate(
            [
                schedules.linear(0.1, 3),
                schedules.polynomial(0.1, power=2.0),
                schedules.step(0.1, 2, 0.5),
                schedules.multi_step(0.1, [1, 3], 0.5),
                schedules.exponential(0.1, 0.9),
                schedules.cosine(0.1),
                schedules.one_cycle(0.1),
                schedules.warmup(schedules.cosine_restarts(0.1, 2), epochs=1),
                schedules.reduce_on_plateau(0.1, patience=0, metric="accuracy", mode="max"),
            ]
        )
    },
}


@pytest.mark.parametrize("name", PIPES)
def test_rules_schedules_and_gradients(name):
    """Rules and schedules are torch's own; several models, and parameters without a gradient, train as they do."""
    held(PIPES[name](), pipes.TEST, tolerance=1e-2 if name == "bf16" else 1e-5)


def test_a_compiled_program_is_held_too():
    """A backend's program, of steps fused as they are by default, trains what the plain loop does."""
    held(pipes.digits(update.clip_norm(1.0), update.adamw(1e-2), model=Where), compile=TRACED)


# -- what is written in the pages


WITHOUT = [ROOT / "docs" / name for name in ("benchmarks.md", "examples.md")]
"""A page without code, and the one whose headings are pages here."""


def written():
    """The Python blocks of the examples, the README and the docs, by page."""
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"^## ([^\n]+)\n[^#]*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE):
        yield name, [block]
    for path in (ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {*WITHOUT})):
        yield path.stem, re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


PAGES = dict(written())


def built(name, monkeypatch):
    """The pipelines that a page builds and what it validates them on; it runs on few rows, and compiles nothing."""
    found = {}

    def short(pipe, validate=None, seed=0, **_):
        if type(pipe) is not Pipeline:
            raise PipeError("members")
        found.setdefault(id(pipe), (pipe, validate))
        known = pipe.load.known
        small = pipe.replace(pipe.load.name, load.batches(few(pipe.load.data, 2), size=2)) if known else pipe
        return fit(small, epochs=1, validate=None if validate is None else few(validate, 2), seed=seed, compile=False)

    def left_out(*_, **__):
        raise PipeError("compiles")

    monkeypatch.setattr(pipeline, "fit", short)
    monkeypatch.setattr(pipeline, "sweep", left_out)
    monkeypatch.setattr(Pipeline, "compile", left_out)
    namespace = {"__name__": name}
    for block in PAGES[name]:
        try:
            exec(compile(block, name, "exec"), namespace)
        except (PipeError, OSError, ImportError):  # compiles, trains members, or needs the files of a command
            continue
        finally:
            for made in namespace.values():
                if type(made) is Pipeline and made.load is not None:
                    found.setdefault(id(made), (made, None))
    return list(found.values())


AT_LEAST = {
    "Distillation": 2,
    "after": 0,
    "coming-from": 2,
    "gpu": 2,
    "model": 4,
    "safety": 0,
    "steps": 6,
    "tutorial": 3,
}
"""Pipelines that are found in a page; one, where none is said."""
NOT_BY_HAND = {"loss": ["draws by weights"], "steps": ["parts that draw"]}
"""Of the pipelines of a page, those that no plain loop trains, and why."""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_page(name, monkeypatch, tmp_path, capsys):
    """Each pipeline that a page builds trains as by hand, or is listed here with the reason."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        found = built(name, patch)
    assert len(found) >= AT_LEAST.get(name, 1)
    refused = []
    for pipe, validate in found:
        try:
            held(pipe, validate, epochs=1)
        except ByHandError as e:
            refused.append(str(e))
    expected = NOT_BY_HAND.get(name, [])
    assert len(refused) == len(expected)
    assert all(reason in said for reason, said in zip(expected, refused, strict=True))


# -- what it says


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            lambda: pipes.digits(update.mean_gradients(), update.sgd(0.1), per_example=True),
            "which takes several gradients",
        ),
        (
            lambda: pipes.digits().replace("backward.gradients", backward.sharpness_aware()),
            "which takes several gradients",
        ),
        (lambda: pipes.digits(model=lambda: models.mlp(64, 16, 10, dropout=0.5), accumulate=2), "parts that draw"),
        (lambda: pipes.digits(model=Normed, accumulate=2), "BatchNorm"),
        (lambda: pipes.digits(update.sgd(0.1), update.swa(2), model=Normed), "BatchNorm statistics for the average"),
        (lambda: pipes.digits(update.sgd(WATCHES)), "watches a metric"),
        (
            lambda: pipes.digits().insert(evaluate.on_host("n", lambda targets: 1, lambda s: {}), after="place.on"),
            "host",
        ),
    ],
)
def test_what_no_plain_loop_does_is_said(of, said):
    """What can't be compared is refused with its reason, never left out."""
    with pytest.raises(ByHandError, match=f"can't be done by hand.*{said}"):
        held(of(), pipes.TEST)


WATCHES = schedules.warmup(schedules.reduce_on_plateau(0.1), epochs=1)


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


def test_where_they_part_is_said(monkeypatch):
    """A gradient that is a little off is found at its first step, with the parameter."""
    plain = backward.Gradients.differentiate

    def off(self, *given):
        grads, aux = plain(self, *given)
        return {k: 1.01 * g for k, g in grads.items()}, aux

    monkeypatch.setattr(backward.Gradients, "differentiate", off)
    said = r"epoch 1, batch 1: params/\S+ is off by \S+, the most of \d beyond tolerance=1e-05; .* pass a larger one"
    with pytest.raises(AssertionError, match=said):
        held(pipes.digits(update.sgd(0.1)))


def test_a_metric_that_is_off_is_said(monkeypatch):
    """So is a mean that is not that of the samples."""
    monkeypatch.setattr(
        Single, "finish", lambda self, sums, of=Single.finish: {**of(self, sums), "loss": torch.ones(())}
    )
    with pytest.raises(AssertionError, match=r"epoch 1, batch 1: train loss is off by \S+, the most of 1"):
        held(pipes.digits(update.sgd(0.1)))


def test_the_user_s_own_module_is_not_touched():
    """The plain loop trains a copy, also of a module that a factory gives away twice."""
    net = models.mlp(64, 10)
    before = {k: x.clone() for k, x in net.state_dict().items()}
    for module in (net, lambda: net):
        held(pipes.digits(update.sgd(0.1), model=module))
    testing.same(dict(net.state_dict()), before)
