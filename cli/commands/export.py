"""`pipe export`: a run's model as a file that needs nothing of ours."""

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
from cli.output import written
from cli.predictions import Answers, called, values_read
from cli.progress import tell
from cli.recipes.data_card import About
from cli.saved_run import Past
from pipeline.errors import ConfigError
from pipeline.sources.encode import CATEGORY, DATE, Columns, raw
from pipeline.stage import first_line

NAMES = {"torch": "model.pt2", "onnx": "model.onnx", "weights": "weights.safetensors"}
CHECKED, SIZES, CLOSE = 256, (1, 7, 256), 1e-5
"""Held-out samples that a program is compared on, in batches of these sizes, and how far off it may be."""


def run(past: Past, kind: str, out: str | None, *, weights: str) -> None:
    """Write a model, and a JSON beside it."""
    about = past.about
    module, inputs, of = past.module(weights)
    path = Path(out) if out is not None else past.folder / NAMES[kind]
    facts: dict[str, Any] = {"format": kind, "run": str(past.folder), "weights": weights, **of, "task": about.task,
                             "classes": list(about.classes)}  # fmt: skip
    if kind == "weights":
        folders.replace(path, folders.weights_file(module.state_dict(), {"weights": weights, **of}))
        facts["model"] = past.document.get("facts", {}).get("model")
        tell(f"{path}: {len(module.state_dict())} tensors, by the module's own names")
    else:
        program = Program(module, inputs, about).eval()
        given, wanted = _held_out(past, about, program)
        facts |= {"inputs": _inputs(about, program, given), "outputs": _outputs(about, wanted)}
        off = (_write_torch if kind == "torch" else _write_onnx)(path, program, given, wanted)
        tell(f"{path}: checked on {len(given[0])} held-out samples, off by {off:.1e} at most")
    beside = path.with_name(f"{path.name}.json")
    folders.replace(beside, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    tell(f"{beside}: what goes in, and what comes out")


class Program(nn.Module):
    """From data as they are to what a user asked for."""

    def __init__(self, module: nn.Module, inputs: Any, about: About) -> None:
        super().__init__()
        self.module, self.inputs, self.answers = module, inputs, Answers(about)
        fitted = about.fitted.get("columns", [])
        self.columns = Columns(fitted) if fitted else None
        self.reads = values_read(inputs)
        if fitted:
            self.reads = ["numbers", *(["categories"] if any(f["kind"] == CATEGORY for f in fitted) else [])]

    def forward(self, *values: Tensor) -> Tensor:
        batch = dict(zip(self.reads, values, strict=True))
        if self.columns is not None:
            numbers = batch["numbers"]
            codes = batch.get("categories", numbers[:, :0].long())
            batch = dict(zip(("inputs", "categories"), self.columns(numbers, codes), strict=True))
        answers: Tensor = self.answers(called(self.module, self.inputs, batch))
        return answers


def _held_out(past: Past, about: About, program: Program) -> tuple[list[Tensor], Tensor]:
    """Held-out samples as the program takes them, and what the model makes of them as they were prepared."""
    held_out = past.made[0].held_out
    batch = held_out[torch.arange(min(CHECKED, len(held_out)))]
    with torch.no_grad():
        wanted = program.answers(called(program.module, program.inputs, batch))
    if program.columns is None:
        return [batch[name] for name in program.reads], wanted
    prepared = past.made[0].prepared
    assert prepared is not None
    assert prepared.raw is not None
    numbers, codes = raw(prepared.raw(), about.fitted["columns"])
    return [{"numbers": numbers, "categories": codes}[name][: len(wanted)] for name in program.reads], wanted


def _write_torch(path: Path, program: Program, given: Sequence[Tensor], wanted: Tensor) -> float:
    """A program of torch.export; how far it is off."""
    made = _exported(program, given)
    off = _compared(lambda *values: made.module()(*values), given, wanted)
    with written(path) as file:
        torch.export.save(made, file)
    return off


def _exported(program: Program, given: Sequence[Tensor]) -> Any:
    batch = torch.export.Dim("batch", min=1, max=1 << 31)
    some = tuple(t[:2].repeat(2, *[1] * (t.ndim - 1))[:3] for t in given)  # three, also where fewer were held out
    shapes = {"values": tuple({0: batch} for _ in some)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(program, some, dynamic_shapes=shapes)
    except Exception as e:  # of torch.export, which has many
        raise ConfigError(
            f"the model can't be exported with batches of any size: {first_line(e)}; --format weights has its weights"
        ) from None


def _write_onnx(path: Path, program: Program, given: Sequence[Tensor], wanted: Tensor) -> float:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as e:
        raise ConfigError(
            f"--format onnx needs the package {e.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    made = _exported(program, given)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx = torch.onnx.export(
                made, (), input_names=program.reads, output_names=["answers"], dynamo=True, verbose=False
            )
            assert onnx is not None
            with written(path) as file:
                file.write(onnx.model_proto.SerializeToString())
    except ConfigError:
        raise
    except Exception as e:  # of the exporter, which has many
        raise ConfigError(f"the model can't be exported to ONNX: {first_line(e)}; --format torch may do") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    try:
        return _compared(
            lambda *values: torch.from_numpy(
                session.run(None, {n: v.numpy() for n, v in zip(program.reads, values, strict=True)})[0]
            ),
            given, wanted,
        )  # fmt: skip
    except ConfigError:
        path.unlink()
        raise


def _compared(program: Any, given: Sequence[Tensor], wanted: Tensor) -> float:
    """How far a program is off, in batches of several sizes. Raises ConfigError where that is too far."""
    worst = 0.0
    for size in SIZES:
        at = torch.arange(size) % len(wanted)
        with torch.no_grad():
            made = program(*(t[at].contiguous() for t in given))
        scale = wanted.abs().max().clamp(min=1)
        worst = max(worst, float((made - wanted[at]).abs().max() / scale))
    if not worst <= CLOSE:
        raise ConfigError(f"the exported program is off by {worst:.1e} on held-out samples, so it is not written")
    return worst


def _inputs(about: About, program: Program, given: Sequence[Tensor]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, t in zip(program.reads, given, strict=True):
        about_it: dict[str, Any] = {"name": name, **_shaped(t)}
        if program.columns is not None:
            of = [f for f in about.fitted["columns"] if (f["kind"] == CATEGORY) == (name == "categories")]
            about_it["columns"] = [_column(f) for f in of]
            about_it["missing"] = 0 if name == "categories" else "NaN"
        elif "mode" in about.fitted:
            about_it["pixels"] = "0 to 1"
        found.append(about_it)
    return found


def _column(f: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": f["name"], "kind": f["kind"]}
    if f["kind"] == CATEGORY:
        found["codes"] = {name: i for i, name in enumerate(f["categories"], 1)}
    if f["kind"] == DATE:
        found["unit"] = "days since 1970-01-01"
    return found


def _outputs(about: About, wanted: Tensor) -> list[dict[str, Any]]:
    what = {"classification": "the probability of each class", "several labels": "the probability of each label",
            "regression": f"{about.target}, in the units of the training data",
            "language modelling": "logits of the next token at each place"}[about.task]  # fmt: skip
    return [{"name": "answers", **_shaped(wanted), "what": what}]


def _shaped(t: Tensor) -> dict[str, Any]:
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": ["batch", *t.shape[1:]]}
