"""Package a run: a folder that predicts, serves and describes itself, with none of our code."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cli import folder as folders
from cli import html_report
from cli.exporting import CHECKED, Made, plain_weights, program_of, write_torch
from cli.handover import table
from cli.progress import tell
from cli.recipes.data_card import About
from cli.recipes.setting import refusal
from cli.recipes.task import CLASSES, TOKENS, VALUES
from cli.saved_run import Past
from pipeline import files
from pipeline.errors import ConfigError
from pipeline.sources.columns import CATEGORY, DATE, NUMBER, TEXT, TIME, TRUTH
from pipeline.sources.frame import BLANKS, MISSING
from pipeline.sources.text import BYTES, CHARACTERS
from pipeline.text import shown

TABLE, IMAGES, ARRAYS, WORDS = "table", "images", "arrays", "text"
"""Kinds of rows, by the name of their file in `handover`."""
TAGS = {(TABLE, CLASSES): "tabular-classification", (TABLE, VALUES): "tabular-regression",
        (IMAGES, CLASSES): "image-classification", (WORDS, TOKENS): "text-generation"}  # fmt: skip
"""The Hub's names of tasks."""
NEEDS = {TABLE: (), IMAGES: ("pillow>=10.3",), ARRAYS: ("numpy>=1.26",), WORDS: ()}
SERVER = ("starlette>=0.40", "uvicorn>=0.30")
HERE = Path(__file__).with_name("handover")


def package(past: Past, out: str | None, *, weights: str) -> Path:
    """Write the folder; returns its path. Raises ConfigError for a run whose rows the folder's programs can't read."""
    path = Path(out) if out is not None else past.folder / "package"
    if path.exists():
        raise refusal(f"{path} exists already; name another folder by --out")
    kind = _kind(past)
    made = program_of([past], "torch", weights)
    made.facts.update(_facts(past, kind))
    made.facts.pop("run")  # a path of this machine
    if kind == TABLE:
        _check_rows(past, made)
    try:
        files.folder(path.parent)
        with files.making(path) as work:
            error = write_torch(work / "model.pt2", made)
            about: dict[str, Any] = {
                "weights": weights,
                **{k: made.facts[k] for k in ("epoch", "step") if k in made.facts},
            }
            contents = {
                "config.json": folders.as_json(made.facts),
                "model.safetensors": folders.weights_file(plain_weights(made.module), about),
                "README.md": _card(past, kind, made.facts, weights).encode(),
                "requirements.txt": _requirements(kind).encode(),
                "predict.py": files.read(HERE / ("text.py" if kind == WORDS else "predict.py")),
                "serve.py": files.read(HERE / "serve.py"),
                "Dockerfile": files.read(HERE / "Dockerfile"),
            }
            if kind != WORDS:
                contents["rows.py"] = files.read(HERE / f"{kind}.py")
            for name, content in contents.items():
                files.replace(work / name, content)
            files.put(work, path)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror or e}") from None
    tell(f"{path}: {', '.join(['model.pt2', *contents])}; off by {error:.1e} at most on held-out samples")
    tell(f"fill in the licence in {path / 'README.md'}; to share it: hf upload NAME {shlex.quote(str(path))}")
    return path


def _kind(past: Past) -> str:
    fitted, task = past.about.fitted, past.about.task
    if task == TOKENS:
        if fitted.get("tokenizer") not in (BYTES, CHARACTERS):
            raise refusal(f"{past.folder} has tokens that are neither bytes nor characters; use pipe export")
        return WORDS
    if "columns" in fitted:
        return TABLE
    if "white" in fitted:
        raise refusal(f"{past.folder} has images of more than 8 bits, which rows.py does not read; use pipe export")
    return IMAGES if "mode" in fitted else ARRAYS


def _facts(past: Past, kind: str) -> dict[str, Any]:
    """What the folder's programs need besides the facts of pipe export."""
    fitted = past.about.fitted
    if kind == WORDS:
        return {"alphabet": fitted.get("alphabet"), "context": fitted["context"]}
    if kind == ARRAYS:
        return {"bytes": fitted.get("bytes")}
    return {"size": fitted["size"], "mode": fitted["mode"]} if kind == IMAGES else {}


def _check_rows(past: Past, made: Made) -> None:
    """Record the words for a missing value. Raises ConfigError unless rows.py reads held-out rows as the run does."""
    job = past.made[0]
    assert job.prepared is not None
    assert job.prepared.raw is not None
    frame = job.prepared.raw().slice(0, CHECKED)
    made.facts.update({"missing": [*frame.missing], "blanks": [*BLANKS] if frame.missing == MISSING else []})
    for f in past.about.fitted["columns"]:
        if f["kind"] == NUMBER and (f["form"] not in ("", ".") or f.get("unit")):
            raise refusal(
                f"column {f['name']!r} has numbers with {f.get('unit') or 'the marks'} {f['form']!r}, and rows.py "
                "reads those like 4500.5 alone: write them so and train again, or use pipe export, which takes numbers"
            )
    rows = json.loads(json.dumps(frame.data.to_dicts(), default=str))
    try:
        found = table.tensors(made.facts, rows)
    except ValueError as e:
        raise refusal(
            f"rows.py can't read the held-out rows: {e}; use pipe export, whose program takes numbers"
        ) from None
    for mine, wanted in zip(found, made.samples, strict=True):
        if not torch.allclose(mine.double(), wanted.double(), rtol=1e-12, atol=0, equal_nan=True):  # times of day round
            raise refusal("rows.py reads held-out rows otherwise than the run; use pipe export, which takes numbers")


def _requirements(kind: str) -> str:
    exact = f"torch=={torch.__version__.partition('+')[0]}"  # a .pt2 file is for the version that wrote it
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", exact, *NEEDS[kind], *SERVER, ""])


def _card(past: Past, kind: str, facts: Mapping[str, Any], weights: str) -> str:
    """The model card, in the layout of the Hub."""
    about = past.about
    row = next((r for r in past.rows if r["epoch"] == facts.get("epoch")), {})
    metrics = [(k.partition("/")[2], v) for k, v in row.items()
               if k.startswith("validate/") and isinstance(v, int | float) and k.count("/") == 1]  # fmt: skip
    tag = TAGS.get((kind, about.task))
    return html_report.template("package.md", finalize=_text, keep_trailing_newline=True).render(
        title=past.folder.resolve().name, tag=tag, task=tag or about.task, data=past.config.data.title, metrics=metrics,
        summary=html_report.summary(past), epoch=f" (epoch {facts['epoch']})" if "epoch" in facts else "",
        decision=past.decision(weights).lines(about),
        argument={TABLE: "new.csv", IMAGES: "new.png", ARRAYS: "new.npz", WORDS: "'Once'"}[kind],
        request=shlex.quote(json.dumps({"rows": [_example(about, kind, facts)]}, ensure_ascii=False)),
        command=html_report.command(past),
        versions=[*past.document.get("versions", {}).items()],
    )  # fmt: skip


def _text(value: object) -> object:
    return "" if value is None else shown(value, lines=False) if isinstance(value, str) else value


def _example(about: About, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row to send, without values of a training row."""
    if kind == IMAGES:
        return {"image": "..."}
    if kind == WORDS:
        return {"prompt": "Once", "count": 100}
    if kind == ARRAYS:
        small = math.prod(about.fixed.inputs) <= 100
        return {i["name"]: torch.zeros(i["shape"][1:]).tolist() if small else "..." for i in facts["inputs"]}
    texts = {DATE: "2020-01-31", TIME: "12:00", TEXT: "a few words", TRUTH: True}
    return {f["name"]: f["categories"][0] if f["kind"] == CATEGORY else texts.get(f["kind"], round(f.get("mean", 0), 2))
            for f in about.fitted["columns"]}  # fmt: skip
