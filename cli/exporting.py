"""Export a run's model as a file that needs none of our code."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cli import folder as folders
from cli.decision import Decision
from cli.output import written
from cli.predictions import Predictions, apply, input_names
from cli.progress import tell
from cli.recipes.data_card import About
from cli.saved_run import Past
from pipeline.errors import ConfigError, first_line
from pipeline.sources.columns import CATEGORY, DATE, TEXT, WORDS
from pipeline.sources.encode import Columns, raw
from pipeline.sources.words import WORD

NAMES = {"torch": "model.pt2", "onnx": "model.onnx", "weights": "weights.safetensors"}
CHECKED, SIZES, TOLERANCE = 256, (1, 7, 256), 1e-5
"""Held-out samples to compare a program on, sizes of their batches, and the largest relative error."""


def export(past: Past, kind: str, out: str | None, *, weights: str) -> None:
    """Write a model, and a JSON beside it that describes inputs and outputs."""
    about = past.about
    module, inputs, epoch = past.module(weights)
    path = Path(out) if out is not None else past.folder / NAMES[kind]
    facts: dict[str, Any] = {"format": kind, "run": str(past.folder), "weights": weights, **epoch, "task": about.task,
                             "classes": list(about.classes)}  # fmt: skip
    if kind == "weights":
        folders.replace(path, folders.weights_file(module.state_dict(), {"weights": weights, **epoch}))
        facts["model"] = past.document.get("facts", {}).get("model")
        tell(f"{path}: {len(module.state_dict())} tensors, by the module's own names")
    else:
        decision = past.decision(weights)
        program = Program(module, inputs, about, decision).eval()
        samples, expected = _held_out(past, about, program)
        facts |= {"inputs": _inputs(about, program, samples), "outputs": _outputs(about, expected)}
        facts |= decision.facts(about)
        error = (_write_torch if kind == "torch" else _write_onnx)(path, program, samples, expected)
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


def _held_out(past: Past, about: About, program: Program) -> tuple[list[Tensor], Tensor]:
    """Raw held-out samples, in the program's format, and the model's predictions for the prepared samples."""
    held_out = past.made[0].held_out
    batch = held_out[torch.arange(min(CHECKED, len(held_out)))]
    with torch.no_grad():
        expected = program.head(apply(program.module, program.inputs, batch))
    if program.columns is None:
        return [batch[name] for name in program.reads], expected
    prepared = past.made[0].prepared
    assert prepared is not None
    assert prepared.raw is not None
    numbers, codes = raw(prepared.raw(), about.fitted["columns"])
    return [{"numbers": numbers, "categories": codes}[name][: len(expected)] for name in program.reads], expected


def _write_torch(path: Path, program: Program, samples: Sequence[Tensor], expected: Tensor) -> float:
    """Write a torch.export program; returns its relative error."""
    exported = _exported(program, samples)
    error = _check(lambda *values: exported.module()(*values), samples, expected)
    with written(path) as file:
        torch.export.save(exported, file)
    return error


def _exported(program: Program, samples: Sequence[Tensor]) -> Any:
    """A program of torch.export that takes batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=1 << 31)
    example = tuple(t[:2].repeat(2, *[1] * (t.ndim - 1))[:3] for t in samples)  # 3, even if fewer were held out
    shapes = {"values": tuple({0: batch} for _ in example)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(program, example, dynamic_shapes=shapes)
    except Exception as e:  # torch.export raises many types of errors
        raise ConfigError(
            f"the model can't be exported with batches of any size: {first_line(e)}; --format weights has its weights"
        ) from None


def _write_onnx(path: Path, program: Program, samples: Sequence[Tensor], expected: Tensor) -> float:
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
                exported, (), input_names=program.reads, output_names=["answers"], dynamo=True, verbose=False
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
                session.run(None, {n: v.numpy() for n, v in zip(program.reads, values, strict=True)})[0]
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
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": ["batch", *t.shape[1:]]}
