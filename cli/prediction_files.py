"""Write predictions beside their rows: CSV, Parquet or .npz."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from cli import new_data
from cli.decision import mean
from cli.output import written
from cli.predictions import Chunks, Predictions, answers, predicted
from cli.progress import tell
from cli.recipes.data_card import check_alike
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import files
from pipeline.errors import did_you_mean
from pipeline.sources.frame import package
from pipeline.text import quoted, shown

ROW_GROUP = 1 << 17
"""Rows in a row group of Parquet."""
ENDS = (".csv", ".parquet", ".npz")


def predict(
    runs: Sequence[Past], data: str, out: str | None, *, weights: str, raw: bool = False, skip_bad: bool = False
) -> dict[str, Any] | None:
    """Write the rows of some data with the mean prediction of some runs; `raw` leaves texts in CSV unescaped.

    Returns the file and its number of rows, if there is a file.
    """
    past = runs[0]
    about = past.about
    if about.task == "language modelling":
        raise refusal(f"{past.folder} learned a text; pipe sample {past.folder} continues one")
    path = None if out is None else Path(out)
    if path is not None and path.suffix not in ENDS:
        raise refusal(f"--out {out!r} is none of {', '.join(ENDS)}{did_you_mean(path.suffix, ENDS)}")
    if path is not None and path.exists():
        raise refusal(f"{path} exists already; name another file by --out")
    models = [run.module(weights) for run in runs]
    decisions = [run.decision(weights) for run in runs]
    check_alike([run.about for run in runs])
    each = []
    for run, model, decision in zip(runs, models, decisions, strict=True):
        rows = new_data.rows(run, data, targets=False, skip_bad=skip_bad, say=run is past)
        each.append(answers(rows, *model[:2], Predictions(run.about, decision).eval()))
    chunks = predicted(each, about, mean(decisions), numbered=path is not None and path.suffix == ".npz")
    if path is None:
        for text, _ in _csv(chunks, raw):
            sys.stdout.write(text)
        return None
    write: dict[str, Callable[[IO[bytes], Chunks], int]] = {
        ".csv": partial(_write_csv, raw=raw),
        ".npz": partial(_write_npz, folder=path.parent),
        ".parquet": _write_parquet,
    }
    with written(path, new=True) as file:
        count = write[path.suffix](file, chunks)
    epoch = f", weights of epoch {models[0][2]['epoch']}" if models[0][2] and len(runs) == 1 else ""
    folder = past.folder if len(runs) == 1 else past.folder.parent
    by = f"{folder}" if len(runs) == 1 else f"the mean of {len(runs)} runs in {folder}"
    tell(f"{path}: {count:,} rows, {about.target} predicted by {by}{epoch}")
    folds = {} if len(runs) == 1 else {"folds": len(runs)}
    facts = {"file": str(path), "rows": count, "target": about.target, "run": str(folder)}
    return {**facts, **folds, "weights": weights}


def _frames(chunks: Chunks) -> Iterator[Any]:
    """Rows and predictions as data frames. A prediction named like a column gets a trailing _."""
    pl = package()
    for beside, columns in chunks:
        frame = dict(beside)
        for name, values in columns.items():
            if values.ndim == 1:
                while name in frame:
                    name += "_"
                frame[name] = values
        yield pl.DataFrame({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in frame.items()})


def _csv(chunks: Chunks, raw: bool) -> Iterator[tuple[str, int]]:
    """Text and number of rows of each chunk."""
    for i, frame in enumerate(map(_flat, _frames(chunks))):
        text = (frame if raw else _safe(frame)).write_csv(include_header=i == 0)
        yield text if raw else shown(text), len(frame)


def _flat(frame: Any) -> Any:
    """Cells that CSV can't hold as texts: lists and structs as JSON, bytes in hex, durations in seconds."""
    pl = package()
    for column in frame.get_columns():
        if column.dtype.is_nested() or column.dtype == pl.Object:
            cells = [None if x is None else json.dumps(x, default=str) for x in column.to_list()]
            frame = frame.with_columns(pl.Series(column.name, cells, dtype=pl.String))
        elif column.dtype == pl.Binary:
            frame = frame.with_columns(column.bin.encode("hex"))
        elif column.dtype == pl.Duration:
            frame = frame.with_columns(column.dt.total_microseconds() / 1e6)
    return frame


def _safe(frame: Any) -> Any:
    """Quote cells that a spreadsheet would take for formulas."""
    pl = package()
    safe: dict[str, Any] = {}
    for column in frame.get_columns():
        name, cells = quoted(column.name), column
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            cells = column.cast(pl.String)
            if cells.str.contains(r"^[=+\-@\t\r]").any():
                cells = pl.Series([None if x is None else quoted(x) for x in cells], dtype=pl.String)
        safe[f"'{name}" if name in safe else name] = cells
    return pl.DataFrame(safe)


def _write_csv(file: IO[bytes], chunks: Chunks, raw: bool) -> int:
    count = 0
    for text, rows in _csv(chunks, raw):
        file.write(text.encode())
        count += rows
    return count


def _write_parquet(file: IO[bytes], chunks: Chunks) -> int:
    from polars.io.plugins import register_io_source

    frames = _frames(chunks)
    first = next(frames)
    count = 0

    def read(*_: Any) -> Iterator[Any]:
        nonlocal count
        for frame in chain([first], frames):
            count += len(frame)
            yield frame

    register_io_source(read, schema=first.schema).sink_parquet(file, row_group_size=ROW_GROUP, maintain_order=True)
    return count


def _write_npz(file: IO[bytes], chunks: Chunks, folder: Path) -> int:
    """The predictions alone. Each column goes to a scratch file in `folder` first, then into the archive."""
    from zipfile import ZipFile

    columns: dict[str, Any] = {}
    formats: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    count = 0
    with ExitStack() as stack:
        for _, found in chunks:
            for name, values in found.items():
                if name not in columns:
                    columns[name] = stack.enter_context(files.scratch(folder))
                    formats[name] = values.dtype, values.shape[1:]
                columns[name].write(np.ascontiguousarray(values, dtype=formats[name][0]).data)
            count += len(next(iter(found.values())))
        archive = stack.enter_context(ZipFile(file, "w"))
        for name, column in columns.items():
            dtype, shape = formats[name]
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
            column.seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                while block := column.read(1 << 20):
                    member.write(block)
    return count
