"""Log: generators that pass Reports through and write them to files, so that they compose:

    reports = log.jsonl(log.tensorboard(fit(pipe, epochs=20, validate=test), "tb"), "metrics.jsonl")
    for report in reports:
        print(report)

Each writes the Reports of complete epochs and of validations; with `inside`, all. `send` reaches `fit`. A resumed run
keeps the rows of a file from earlier epochs. `wandb`, `mlflow` and `trackio` log to a run of that service, of which no
step has two points. For any other service, log `row(report)`.
"""

from __future__ import annotations

import csv as table
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline import files, memory
from pipeline.direction import Direction
from pipeline.errors import ConfigError
from pipeline.passing import Reports, Row, package, passed, row, scalars
from pipeline.state import Report
from pipeline.trackers import mlflow, trackio, wandb

__all__ = [
    "Reports", "Row", "csv", "declared", "jsonl", "line", "mlflow", "read", "row", "tensorboard", "trackio", "wandb",
]  # fmt: skip


def line(report: Report, before: Iterable[Row] = ()) -> Row:
    """A row of a file, with `better`, the directions of the metrics that no row before it has."""
    known = declared(before)
    new = {name: better for name, better in report.better.items() if name not in known}
    return {**row(report), **({"better": new} if new else {})}


def declared(rows: Iterable[Row]) -> Mapping[str, Direction]:
    """The directions of metrics in the rows of a file."""
    return {name: better for r in rows for name, better in r.get("better", {}).items()}


def jsonl(reports: Iterable[Report], path: str | Path, *, inside: bool = False) -> Reports:
    """A line of JSON for each Report, for `pandas.read_json(path, lines=True)`."""
    return passed(reports, lambda first: _jsonl(Path(path), first), inside)


def csv(reports: Iterable[Report], path: str | Path, *, inside: bool = False) -> Reports:
    """A row for each Report, with a header, of the metrics that are numbers."""
    return passed(reports, lambda first: _csv(Path(path), first), inside)


def tensorboard(reports: Iterable[Report], folder: str | Path, *, inside: bool = False) -> Reports:
    """A TensorBoard scalar for each number of each Report, at its step. Needs the package tensorboard."""
    writer = package("torch.utils.tensorboard", "tensorboard").SummaryWriter

    @contextmanager
    def begin(first: Report) -> Iterator[Callable[[Report], None]]:
        with closing(writer(str(folder), purge_step=first.step)) as board:

            def write(report: Report) -> None:
                for name, value in scalars(report).items():
                    board.add_scalar(name, value, report.step)
                board.flush()

            yield write

    return passed(reports, begin, inside)


@contextmanager
def _jsonl(path: Path, first: Report) -> Iterator[Callable[[Report], None]]:
    rows = [r for r in read(path) if r["epoch"] < first.epoch]
    with _appending(path, "".join(f"{json.dumps(r)}\n" for r in rows)) as file:

        def write(report: Report) -> None:
            rows.append(line(report, rows))
            file.write(f"{json.dumps(rows[-1])}\n")
            file.flush()

        yield write


@contextmanager
def _csv(path: Path, first: Report) -> Iterator[Callable[[Report], None]]:
    before = table.DictReader(io.StringIO(_text(path), newline=""))
    rows: list[Row] = [r for r in before if (r.get("epoch") or "").isdecimal() and int(r["epoch"]) < first.epoch]
    writer: table.DictWriter[str] | None = None
    file: IO[str] | None = None
    with ExitStack() as stack:

        def write(report: Report) -> None:
            nonlocal writer, file
            new = {k: v for k, v in row(report).items() if v is None or isinstance(v, int | float)}
            rows.append(new)
            if writer is None or file is None or not {*new} <= {*writer.fieldnames}:
                # New columns, such as the first validation's: rewrite the file.
                file = stack.enter_context(_appending(path, ""))
                writer = table.DictWriter(file, [*dict.fromkeys(name for r in rows for name in r)])
                writer.writeheader()
                writer.writerows(rows)
            else:
                writer.writerow(new)
            file.flush()

        yield write


def _appending(path: Path, content: str) -> IO[str]:
    """Write a file with this content, and open it to append."""
    try:
        files.folder(path.parent)
        files.replace(path, content.encode())
        file = files.updated(path)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror}") from None
    file.seek(0, io.SEEK_END)
    return io.TextIOWrapper(file, encoding="utf-8", newline="")


def _text(path: Path) -> str:
    try:
        return files.read(path, most=memory.free()).decode("utf-8", "replace") if path.exists() else ""
    except OSError as e:
        raise ConfigError(f"can't read {path}: {e.strerror}") from None


def read(path: str | Path) -> list[Row]:
    """The rows of a file of `jsonl` or `pipe train`, in order; the last row of each step. Truncated and invalid lines
    are skipped. Raises ConfigError if the file can't be read."""
    rows: dict[tuple[int, int], Row] = {}
    for text in _text(Path(path)).splitlines():
        try:
            new = json.loads(text)
            if type(new["epoch"]) is int and type(new["step"]) is int and all(map(_valid, new, new.values())):
                rows[new["epoch"], new["step"]] = new
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return [rows[at] for at in sorted(rows)]


def _valid(name: str, value: Any) -> bool:
    """Whether a row may have such a value."""
    if name == "better":
        return isinstance(value, dict) and all(v in ("high", "low", None) for v in value.values())
    if name == "checksum":  # of a run's own log
        return isinstance(value, str)
    if isinstance(value, list):
        return all(_valid("", v) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (type(value) is int and abs(value) < 1 << 1000)  # fits into a float
