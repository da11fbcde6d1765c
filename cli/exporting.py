"""Export a run's model as a file that needs none of our code."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from pipeline.sources.columns import CATEGORY, DATE, TEXT, WORDS
from pipeline.sources.encode import Columns, raw
from pipeline.sources.table import apply as encoded
from pipeline.sources.words import WORD
from pipeline.tree import dtype_name

NAMES = {"torch": "model.pt2", "onnx": "model.onnx", "weights": "weights.safetensors", "peft": "adapter",
         "transformers": "transformers"}  # fmt: skip
SCALES = ("mean", "std", "missing", "hours")
"""Keys of a fitted column that say nothing about its raw values."""
CHECKED, SIZES, TOLERANCE = 256, (1, 7, 256), 1e-5
"""Held-out samples to compare a program on, sizes of their batches, and the largest relative error."""


def export(runs: Sequence[Past], kind: str, out: str | None, *, weights: str) -> None:
    """Write a model, or the mean of some, and a JSON beside it that describes inputs and outputs."""
    past, *others = runs
    about = past.about
    module, inputs, epoch = past.module(weights)
    folder = past.folder.parent if others else past.folder
    path = Path(out) if out is not None else folder / NAMES[kind]
    facts: dict[str, Any] = {"format": kind, "run": str(folder), "weights": weights,
                             **({"folds": len(runs)} if others else epoch), "task": about.task,
                             "classes": list(about.classes)}  # fmt: skip
    if kind == "weights":
        if others:
            raise refusal(f"--format weights is of one run; name one, such as {past.folder}")
        tensors = models.merged(module).state_dict()
        folders.replace(path, folders.weights_file(tensors, {"weights": weights, **epoch}))
        facts["model"] = past.document.get("facts", {}).get("model")
        tell(f"{path}: {len(tensors)} tensors, by the module's own names")
    elif kind == "peft":
        if others or past.config.run.ensemble is not None or past.config.finetune.lora is None:
            raise refusal(f"--format peft is of one run that was trained with --lora, which {folder} is not")
        models.write_adapter(module, path, base=past.config.finetune.init)
        tell(f"{path}: adapter_config.json and adapter_model.safetensors, for peft")
        return
    elif kind == "transformers":
        if others:
            raise refusal(f"--format transformers is of one run; name one, such as {past.folder}")
        from cli.transformers_folder import write as write_folder

        error = write_folder(past, module, path)
        tell(f"{path}: for from_pretrained({str(path)!r}), checked on random tokens, off by {error:.1e} at most")
        return
    else:
        _check_columns(runs)
        decisions = [run.decision(weights) for run in runs]
        programs = [Program(module, inputs, about, decisions[0]).eval()]
        for run, decision in zip(others, decisions[1:], strict=True):
            programs.append(Program(*run.module(weights)[:2], run.about, decision).eval())
        samples, expected = _held_out(runs, programs)
        facts |= {"inputs": _inputs(about, programs[0], samples), "outputs": _outputs(about, expected)}
        facts |= mean(decisions).facts(about)
        program = models.merged(Joined(programs, mean_outputs).eval() if others else programs[0])
        write = _write_torch if kind == "torch" else partial(_write_onnx, names=programs[0].reads)
        error = write(path, program, samples, expected)
        tell(f"{path}: checked on {len(samples[0])} held-out samples, off by {error:.1e} at most")
    beside = path.with_name(f"{path.name}.json")
    folders.replace(beside, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    tell(f"{beside}: what goes in, and what comes out")


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


def _write_torch(path: Path, program: nn.Module, samples: Sequence[Tensor], expected: Tensor) -> float:
    """Write a torch.export program; returns its relative error."""
    exported = _exported(program, samples)
    error = _check(lambda *values: exported.module()(*values), samples, expected)
    with written(path) as file:
        torch.export.save(exported, file)
    return error


def _exported(program: nn.Module, samples: Sequence[Tensor]) -> Any:
    """A program of torch.export that takes batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=1 << 31)
    example = tuple(t[:2].repeat(2, *[1] * (t.ndim - 1))[:3] for t in samples)  # 3, even if fewer were held out
    shapes = (tuple({0: batch} for _ in example),)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(program, example, dynamic_shapes=shapes)
    except Exception as e:  # torch.export raises many types of errors
        raise ConfigError(
            f"the model can't be exported with batches of any size: {first_line(e)}; --format weights has its weights"
        ) from None


def _write_onnx(
    path: Path, program: nn.Module, samples: Sequence[Tensor], expected: Tensor, names: Sequence[str]
) -> float:
    """Write an ONNX model; returns its relative error."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as e:
        raise ConfigError(
            f"--format onnx needs the package {e.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    exported = _exported(program, samples)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx = torch.onnx.export(
                exported, (), input_names=names, output_names=["answers"], dynamo=True, verbose=False
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
                session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})[0]
            ),
            samples, expected,
        )  # fmt: skip
    except ConfigError:
        path.unlink()
        raise


def _check(program: Any, samples: Sequence[Tensor], expected: Tensor) -> float:
    """The largest relative error of a program, over batches of several sizes. Raises ConfigError if it is too large."""
    worst = 0.0
    for size in SIZES:
        at = torch.arange(size) % len(expected)
        with torch.no_grad():
            result = program(*(t[at].contiguous() for t in samples))
        scale = expected.abs().max().clamp(min=1)
        worst = max(worst, float((result - expected[at]).abs().max() / scale))
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
        inputs.append(description)
    return inputs


def _column(f: Mapping[str, Any]) -> dict[str, Any]:
    column: dict[str, Any] = {"name": f["name"], "kind": f["kind"]}
    if f["kind"] == CATEGORY:
        column["codes"] = {name: i for i, name in enumerate(f["categories"], 1)}
    if f["kind"] == TEXT:
        column |= {"words": f["length"], "of": WORD, "codes": {word: i for i, word in enumerate(f["words"], 1)}}
    if f["kind"] == DATE:
        column["unit"] = "days since 1970-01-01"
    return column


def _outputs(about: About, expected: Tensor) -> list[dict[str, Any]]:
    what = {"classification": "the probability of each class", "several labels": "the probability of each label",
            "regression": f"{about.target}, in the units of the training data",
            "language modelling": "logits of the next token at each place"}[about.task]  # fmt: skip
    return [{"name": "answers", **_shaped(expected), "what": what}]


def _shaped(t: Tensor) -> dict[str, Any]:
    return {"dtype": dtype_name(t.dtype), "shape": ["batch", *t.shape[1:]]}
