"""Export a run's model as a file that needs none of our code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from cli import folder as folders
from cli.decision import Decision, mean
from cli.output import written
from cli.predictions import Predictions, apply, input_names
from cli.progress import tell
from cli.recipes.data_card import About, check_alike
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import models
from pipeline.ensembles import Joined
from pipeline.errors import ConfigError, first_line
from pipeline.loss.joint import mean_outputs
from pipeline.sources.columns import CATEGORY, DATE, TEXT, TIME, WORDS
from pipeline.sources.encode import Columns, raw
from pipeline.sources.table import apply as encoded
from pipeline.sources.words import WORD
from pipeline.tree import dtype_name

NAMES = {"torch": "model.pt2", "onnx": "model.onnx", "weights": "weights.safetensors", "peft": "adapter",
         "transformers": "transformers"}  # fmt: skip
OF_ONE = ("weights", "peft", "transformers")
"""Formats of one run, not of the mean of some."""
SCALES = ("mean", "std", "missing", "hours")
"""Keys of a fitted column that say nothing about its raw values."""
CHECKED, SIZES, TOLERANCE = 256, (1, 7, 256), 1e-5
"""Held-out samples to compare a program on, sizes of their batches, and the largest relative error."""


def export(runs: Sequence[Past], kind: str, out: str | None, *, weights: str) -> dict[str, Any]:
    """Write a model, or the mean of some, and a JSON beside it that describes inputs and outputs, which is returned."""
    past, *others = runs
    folder = past.folder.parent if others else past.folder
    path = Path(out) if out is not None else folder / NAMES[kind]
    if kind in OF_ONE:
        if others:
            raise refusal(f"--format {kind} is of one run; name one, such as {past.folder}")
        module, _, epoch = past.module(weights)
        facts = _facts(runs, kind, weights, epoch)
    if kind == "weights":
        tensors = plain_weights(module)
        folders.replace(path, folders.weights_file(tensors, {"weights": weights, **epoch}))
        facts["model"] = past.facts.get("model")
        tell(f"{path}: {len(tensors)} tensors, by the module's own names")
    elif kind == "peft":
        if past.config.run.ensemble is not None or past.config.finetune.lora is None:
            raise refusal(f"--format peft is of one run that was trained with --lora, which {folder} is not")
        models.write_adapter(module, path, base=past.config.finetune.init)
        tell(f"{path}: adapter_config.json and adapter_model.safetensors, for peft")
        return {"file": str(path), **facts}
    elif kind == "transformers":
        from cli.transformers_folder import write as write_folder

        error = write_folder(past, module, path)
        tell(f"{path}: for from_pretrained({str(path)!r}), checked on random tokens, off by {error:.1e} at most")
        return {"file": str(path), **facts}
    else:
        made = program_of(runs, kind, weights)
        facts, error = made.facts, (write_torch if kind == "torch" else _write_onnx)(path, made)
        tell(f"{path}: checked on {len(made.samples[0])} held-out samples, off by {error:.1e} at most")
    beside = path.with_name(f"{path.name}.json")
    folders.replace(beside, folders.as_json(facts))
    tell(f"{beside}: what goes in, and what comes out")
    return {"file": str(path), "beside": str(beside), **facts}


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """By the module's own names, with adapters merged."""
    return models.merged(module).state_dict()


@frozen(eq=False)
class Made:
    """A program, what it gives for some held-out samples, and what its users need to know."""

    module: nn.Module
    """The model of the first run."""
    program: nn.Module
    names: Sequence[str]
    """Of its inputs."""
    samples: Sequence[Tensor]
    expected: Tensor
    facts: dict[str, Any]


def program_of(runs: Sequence[Past], kind: str, weights: str) -> Made:
    """The program of a run, or of the mean of some. Raises ConfigError for runs that take different raw data."""
    modules, about = [run.module(weights) for run in runs], runs[0].about
    _check_columns(runs)
    decisions = [run.decision(weights) for run in runs]
    programs = [
        Program(*module[:2], run.about, decision).eval()
        for module, run, decision in zip(modules, runs, decisions, strict=True)
    ]
    first, samples, expected = programs[0], *_held_out(runs, programs)
    facts = _facts(runs, kind, weights, modules[0][2])
    facts |= {"inputs": _inputs(about, first, samples), "outputs": _outputs(about, expected)}
    facts |= mean(decisions).facts(about)
    program = models.merged(Joined(programs, mean_outputs).eval() if len(runs) > 1 else first)
    return Made(modules[0][0], program, first.reads, samples, expected, facts)


def _facts(runs: Sequence[Past], kind: str, weights: str, epoch: Mapping[str, Any]) -> dict[str, Any]:
    past, *others = runs
    run = {"run": str(past.folder.parent), "weights": weights, "folds": len(runs)}
    if not others:
        run = {"run": str(past.folder), "weights": weights, **epoch}
    return {"format": kind, **run, "task": past.about.task, "classes": list(past.about.classes)}


class Program(nn.Module):
    """From raw data to predictions."""

    def __init__(self, module: nn.Module, inputs: Any, about: About, decision: Decision) -> None:
        super().__init__()
        self.module, self.inputs, self.head = module, inputs, Predictions(about, decision)
        fitted = about.fitted.get("columns", [])
        self.columns = Columns(fitted) if fitted else None
        self.reads = input_names(inputs)
        if fitted:
            self.reads = ["numbers", *(["categories"] if any(f["kind"] in (CATEGORY, TEXT) for f in fitted) else [])]

    def forward(self, *values: Tensor) -> Tensor:
        batch = dict(zip(self.reads, values, strict=True))
        if self.columns is not None:
            numbers = batch["numbers"]
            codes = batch.get("categories", numbers[:, :0].long())
            batch = dict(zip(("inputs", "categories"), self.columns(numbers, codes), strict=True))
        predictions: Tensor = self.head(apply(self.module, self.inputs, batch))
        return predictions


def _check_columns(runs: Sequence[Past]) -> None:
    """Raise ConfigError unless all runs take the same raw data: columns of the same kinds, with the same categories and
    words. Means and deviations may differ: each run has its own inside the program."""
    check_alike([run.about for run in runs])
    first, *others = (
        {f["name"]: {k: v for k, v in f.items() if k not in SCALES} for f in run.about.fitted.get("columns", [])}
        for run in runs
    )
    for run, own in zip(runs[1:], others, strict=True):
        for name in {**first, **own}:
            if first.get(name) != own.get(name):
                raise refusal(
                    f"column {name!r} has other categories or words in {run.folder} than in {runs[0].folder}, so that "
                    "no program takes it for both: export one of them; pipe predict takes the mean of all"
                )


def _held_out(runs: Sequence[Past], programs: Sequence[Program]) -> tuple[list[Tensor], Tensor]:
    """Raw samples that the first run held out, in the programs' format, and the models' mean predictions for them, as
    each run prepares them."""
    job, first = runs[0].made[0], programs[0]
    batch = job.held_out[torch.arange(min(CHECKED, len(job.held_out)))]
    batches, samples = [batch] * len(runs), [batch[name] for name in first.reads if name in batch]
    if first.columns is not None:
        assert job.prepared is not None
        assert job.prepared.raw is not None
        frame = job.prepared.raw()
        numbers, codes = raw(frame, runs[0].about.fitted["columns"])
        samples = [{"numbers": numbers, "categories": codes}[name][:CHECKED] for name in first.reads]
        frame = frame.slice(0, CHECKED)
        batches[1:] = [encoded(run.about.fitted, frame, targets=False) for run in runs[1:]]
    with torch.no_grad():
        each = [p.head(apply(p.module, p.inputs, b)) for p, b in zip(programs, batches, strict=True)]
    return samples, mean_outputs(torch.stack(each))


def write_torch(path: Path, made: Made) -> float:
    """Write a torch.export program; returns its relative error."""
    exported = _exported(made)
    error = _check(lambda *values: exported.module()(*values), made)
    with written(path) as file:
        torch.export.save(exported, file)
    return error


def _exported(made: Made) -> Any:
    """A program of torch.export that takes batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=1 << 31)
    example = tuple(t[:2].repeat(2, *[1] * (t.ndim - 1))[:3] for t in made.samples)  # 3, even if fewer were held out
    shapes = (tuple({0: batch} for _ in example),)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(made.program, example, dynamic_shapes=shapes)
    except Exception as e:  # torch.export raises many types of errors
        raise ConfigError(
            f"the model can't be exported with batches of any size: {first_line(e)}; --format weights has its weights"
        ) from None


def _write_onnx(path: Path, made: Made) -> float:
    """Write an ONNX model; returns its relative error."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as e:
        raise ConfigError(
            f"--format onnx needs the package {e.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    exported = _exported(made)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx = torch.onnx.export(
                exported, (), input_names=made.names, output_names=["answers"], dynamo=True, verbose=False
            )
            assert onnx is not None
            with written(path) as file:
                file.write(onnx.model_proto.SerializeToString())
    except ConfigError:
        raise
    except Exception as e:  # the exporter raises many types of errors
        raise ConfigError(f"the model can't be exported to ONNX: {first_line(e)}; --format torch may do") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    try:
        return _check(
            lambda *values: torch.from_numpy(
                session.run(None, {n: v.numpy() for n, v in zip(made.names, values, strict=True)})[0]
            ),
            made,
        )
    except ConfigError:
        path.unlink()
        raise


def _check(program: Any, made: Made) -> float:
    """The largest relative error of a program, over batches of several sizes. Raises ConfigError if it is too large."""
    worst = 0.0
    for size in SIZES:
        at = torch.arange(size) % len(made.expected)
        with torch.no_grad():
            result = program(*(t[at].contiguous() for t in made.samples))
        scale = made.expected.abs().max().clamp(min=1)
        worst = max(worst, float((result - made.expected[at]).abs().max() / scale))
    if not worst <= TOLERANCE:
        raise ConfigError(f"the exported program is off by {worst:.1e} on held-out samples, so it is not written")
    return worst


def _inputs(about: About, program: Program, samples: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A description of each input."""
    inputs: list[dict[str, Any]] = []
    for name, t in zip(program.reads, samples, strict=True):
        description: dict[str, Any] = {"name": name, **_shaped(t)}
        if program.columns is not None:
            kinds: list[tuple[str, ...]] = [(CATEGORY,), (TEXT,)] if name == "categories" else [(*WORDS,)]
            columns = [f for kind in kinds for f in about.fitted["columns"] if f["kind"] in kind]
            description["columns"] = [_column(f) for f in columns]
            description["missing"] = 0 if name == "categories" else "NaN"
        elif "mode" in about.fitted:
            description["pixels"] = "0 to 1"
        elif about.fitted.get("bytes"):
            description["pixels"] = "0 to 1: bytes divided by 255"
        inputs.append(description)
    return inputs


def _column(f: Mapping[str, Any]) -> dict[str, Any]:
    column: dict[str, Any] = {"name": f["name"], "kind": f["kind"]}
    if f["kind"] == CATEGORY:
        column["codes"] = {name: i for i, name in enumerate(f["categories"], 1)}
    if f["kind"] == TEXT:
        column |= {"words": f["length"], "of": WORD, "codes": {word: i for i, word in enumerate(f["words"], 1)}}
    if f["kind"] == DATE:
        column |= {"unit": "days since 1970-01-01", "form": f["form"]}
    if f["kind"] == TIME:
        column["unit"] = "seconds of the day"
    if f.get("unit"):
        column["unit"] = f["unit"]
    return column


def _outputs(about: About, expected: Tensor) -> list[dict[str, Any]]:
    what = {"classification": "the probability of each class", "several labels": "the probability of each label",
            "regression": f"{about.target}, in the units of the training data",
            "language modelling": "logits of the next token at each place"}[about.task]  # fmt: skip
    return [{"name": "answers", **_shaped(expected), "what": what}]


def _shaped(t: Tensor) -> dict[str, Any]:
    return {"dtype": dtype_name(t.dtype), "shape": ["batch", *t.shape[1:]]}
