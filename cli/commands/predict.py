"""`pipe predict`: a run's model on other data, row for row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch

from cli import new_data as others
from cli.output import written
from cli.predictions import Answers, called
from cli.progress import tell
from cli.recipes.data_card import About
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import files
from pipeline.errors import ConfigError, did_you_mean
from pipeline.sources import Rows
from pipeline.sources.frame import package
from pipeline.stage import first_line
from pipeline.text import quoted, shown

ROWS = 1 << 17
"""In a row group of Parquet."""
ENDS = (".csv", ".parquet", ".npz")

Columns: TypeAlias = dict[str, Any]
"""What is predicted of some rows, by name: names or numbers (N,), and for .npz alone, (N, C)."""
Rowwise: TypeAlias = Iterator[tuple[Mapping[str, Any], Columns]]
"""Stretches of rows as they are in the data, and what is predicted of them."""


def run(past: Past, data: str, out: str | None, *, weights: str, raw: bool = False) -> None:
    """Write the rows of some data with what is predicted beside them; as CSV, `raw`, or as `_safe` makes them."""
    about = past.about
    if about.task == "language modelling":
        raise refusal(f"{past.folder} learned a text, whose next tokens come from pipe sample {past.folder}")
    path = None if out is None else Path(out)
    if path is not None and path.suffix not in ENDS:
        raise refusal(f"--out {out!r} is none of {', '.join(ENDS)}{did_you_mean(path.suffix, ENDS)}")
    if path is not None and path.exists():
        raise refusal(f"{path} exists already; name another file by --out")
    module, inputs, of = past.module(weights)
    made = _predicted(others.rows(past, data, targets=False), module, inputs, about)
    if path is None:
        for text, _ in _csv(made, raw):
            sys.stdout.write(text)
        return
    write: dict[str, Callable[[IO[bytes], Rowwise], int]] = {
        ".csv": partial(_write_csv, raw=raw),
        ".npz": partial(_write_npz, beside=path),
        ".parquet": _write_parquet,
    }
    with written(path, new=True) as file:
        count = write[path.suffix](file, made)
    epoch = f", weights of epoch {of['epoch']}" if of else ""
    tell(f"{path}: {count:,} rows, {about.target} predicted by {past.folder}{epoch}")


def _predicted(
    found: Iterator[Rows], module: torch.nn.Module, inputs: Any, about: About
) -> Iterator[tuple[Mapping[str, Any], Columns]]:
    answers = Answers(about).eval()
    for rows in found:
        with torch.inference_mode():
            try:
                values = answers(called(module, inputs, rows.batch)).numpy()
            except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as e:
                raise ConfigError(f"the model can't take these data: {first_line(e)}") from e
        yield rows.beside, named(about, values)


def named(about: About, values: np.ndarray) -> Columns:
    """Answers as columns."""
    names = about.classes
    if about.task == "classification":
        best = values.argmax(1)
        known = np.array(names or [str(i) for i in range(values.shape[1])])
        return {"prediction": known[best], "probability": values.max(1), "probabilities": values}
    if about.task == "several labels":
        known_as = names or [str(i) for i in range(values.shape[1])]
        each = {f"prediction_{n}": values[:, i] > 0.5 for i, n in enumerate(known_as)}
        return {**each, **{f"probability_{n}": values[:, i] for i, n in enumerate(known_as)}}
    if values.ndim == 1:
        return {"prediction": values}
    return {f"prediction_{n}": values[:, i] for i, n in enumerate(names or [str(i) for i in range(values.shape[1])])}


def _frames(made: Rowwise) -> Iterator[Any]:
    """Rows and predictions as data frames; a prediction's name is one that the rows do not have."""
    pl = package()
    for beside, columns in made:
        taken = dict(beside)
        for name, values in columns.items():
            if values.ndim == 1:
                while name in taken:
                    name += "_"
                taken[name] = values
        yield pl.DataFrame({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in taken.items()})


def _csv(made: Rowwise, raw: bool) -> Iterator[tuple[str, int]]:
    """The text of stretches of rows, and how many they are."""
    for i, frame in enumerate(_frames(made)):
        text = (frame if raw else _safe(frame)).write_csv(include_header=i == 0)
        yield text if raw else shown(text), len(frame)


def _safe(frame: Any) -> Any:
    """Cells that a spreadsheet would take for formulas, quoted."""
    pl = package()
    found: dict[str, Any] = {}
    for column in frame.get_columns():
        name, made = quoted(column.name), column
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            made = column.cast(pl.String)
            if made.str.contains(r"^[=+\-@\t\r]").any():
                made = pl.Series([None if x is None else quoted(x) for x in made], dtype=pl.String)
        found[f"'{name}" if name in found else name] = made
    return pl.DataFrame(found)


def _write_csv(file: IO[bytes], made: Rowwise, raw: bool) -> int:
    count = 0
    for text, rows in _csv(made, raw):
        file.write(text.encode())
        count += rows
    return count


def _write_parquet(file: IO[bytes], made: Rowwise) -> int:
    from polars.io.plugins import register_io_source

    frames = _frames(made)
    first = next(frames)
    count = 0

    def read(*_: Any) -> Iterator[Any]:
        nonlocal count
        for frame in chain([first], frames):
            count += len(frame)
            yield frame

    register_io_source(read, schema=first.schema).sink_parquet(file, row_group_size=ROWS, maintain_order=True)
    return count


def _write_npz(file: IO[bytes], made: Rowwise, beside: Path) -> int:
    """The predictions alone, each column put down as it comes, and then copied into the archive."""
    from zipfile import ZipFile

    parts: dict[str, Any] = {}
    kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    count = 0
    with ExitStack() as stack:
        for _, columns in made:
            for name, values in columns.items():
                if name not in parts:
                    parts[name] = stack.enter_context(files.scratch(beside.parent))
                    kinds[name] = values.dtype, values.shape[1:]
                parts[name].write(np.ascontiguousarray(values, dtype=kinds[name][0]).data)
            count += len(next(iter(columns.values())))
        archive = stack.enter_context(ZipFile(file, "w"))
        for name, part in parts.items():
            dtype, shape = kinds[name]
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
            part.seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as inner:
                np.lib.format.write_array_header_2_0(inner, header)
                while block := part.read(1 << 20):
                    inner.write(block)
    return count
