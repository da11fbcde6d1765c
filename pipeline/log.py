"""Log: generators that pass Reports through and write them down, so that they compose:

    reports = log.jsonl(log.tensorboard(fit(pipe, epochs=20, validate=test), "tb"), "metrics.jsonl")
    for report in reports:
        print(report)

Each writes the Reports of complete epochs and those with validation; with `inside`, all. What is sent goes on to `fit`.
A run that goes on continues a file after the epochs that were done. For any other service, `row(report)` is
what to log.
"""

from __future__ import annotations

import csv as writer
import io
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from pipeline import files, memory
from pipeline.direction import Direction
from pipeline.errors import ConfigError
from pipeline.state import Report, State

Reports: TypeAlias = Generator[Report, State | None, None]
Row: TypeAlias = dict[str, Any]


def row(report: Report) -> Row:
    """A Report as one flat mapping, as JSON has it: `epoch`, `step`, `train/loss`, `validate/loss`, ..., `seconds` and
    `samples_per_second`. What is not finite is None.

    >>> row(Report(1, 4, 23, 23, 23, True, {"loss": 0.5}))["train/loss"]
    0.5
    """
    parts = (("train", report.train), ("validate", report.validate))
    return {
        "epoch": report.epoch,
        "step": report.step,
        **{f"{part}/{name}": _finite(value) for part, metrics in parts for name, value in metrics.items()},
        "seconds": report.seconds,
        "samples_per_second": report.samples_per_second,
    }


def line(report: Report, before: Iterable[Row] = ()) -> Row:
    """A row of a file: the first one also has `better`, which values of metrics are."""
    return {**row(report), **({"better": dict(report.better)} if report.better and not declared(before) else {})}


def declared(rows: Iterable[Row]) -> Mapping[str, Direction]:
    """Which values of metrics are better, as the rows of a file have it."""
    return next((r["better"] for r in rows if "better" in r), {})


def jsonl(reports: Iterable[Report], path: str | Path, *, inside: bool = False) -> Reports:
    """A line of JSON for each Report: `pandas.read_json(path, lines=True)` is a table of them."""
    return _passed(reports, lambda first: _lines(Path(path), first), inside)


def csv(reports: Iterable[Report], path: str | Path, *, inside: bool = False) -> Reports:
    """A row for each Report, with a header; metrics that are no numbers are left out."""
    return _passed(reports, lambda first: _rows(Path(path), first), inside)


def tensorboard(reports: Iterable[Report], folder: str | Path, *, inside: bool = False) -> Reports:
    """Each number of each Report as a scalar at its step, for TensorBoard. Needs the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("log.tensorboard() needs the package tensorboard: pip install tensorboard") from None

    @contextmanager
    def begin(first: Report) -> Iterator[Callable[[Report], None]]:
        with closing(SummaryWriter(str(folder), purge_step=first.step)) as board:

            def write(report: Report) -> None:
                for name, value in row(report).items():
                    if isinstance(value, int | float) and name != "step":
                        board.add_scalar(name, value, report.step)
                board.flush()

            yield write

    return _passed(reports, begin, inside)


Begin: TypeAlias = Callable[[Report], AbstractContextManager[Callable[[Report], None]]]


def _passed(reports: Iterable[Report], begin: Begin, inside: bool) -> Reports:
    """The Reports, each after it was written."""
    source = iter(reports)
    sent: State | None = None
    write: Callable[[Report], None] | None = None
    with ExitStack() as opened:
        if isinstance(source, Generator):
            opened.callback(source.close)
        while True:
            try:
                report = next(source) if sent is None else source.send(sent)  # type: ignore[attr-defined]  # fit's has it
            except StopIteration:
                return
            # For what was sent, the same Report comes again.
            if sent is None and (report.complete or report.validate or inside):
                write = write or opened.enter_context(begin(report))
                write(report)
            sent = yield report


@contextmanager
def _lines(path: Path, first: Report) -> Iterator[Callable[[Report], None]]:
    kept = [line for line in read(path) if line["epoch"] < first.epoch]
    with _begun(path, "".join(f"{json.dumps(line)}\n" for line in kept)) as file:

        def write(report: Report) -> None:
            kept.append(line(report, kept))
            file.write(f"{json.dumps(kept[-1])}\n")
            file.flush()

        yield write


@contextmanager
def _rows(path: Path, first: Report) -> Iterator[Callable[[Report], None]]:
    kept: list[dict[str, Any]] = []
    if path.exists():
        text = io.StringIO(_text(path), newline="")
        kept = [r for r in writer.DictReader(text) if (r.get("epoch") or "").isdecimal()]
    kept = [r for r in kept if int(r["epoch"]) < first.epoch]
    names: list[str] = []
    made: list[IO[str]] = []
    with ExitStack() as stack:

        def write(report: Report) -> None:
            new = {k: v for k, v in row(report).items() if v is None or isinstance(v, int | float)}
            if not {*new} <= {*names}:  # such as metrics of a validation, after Reports without one
                names[:] = dict.fromkeys(name for r in (*kept, new) for name in r)
                made[:] = [stack.enter_context(_begun(path, ""))]
                table = writer.DictWriter(made[0], names)
                table.writeheader()
                table.writerows(kept)
            writer.DictWriter(made[0], names).writerow(new)
            made[0].flush()
            kept.append(new)

        yield write


def _begun(path: Path, content: str) -> IO[str]:
    """A file with this content, whole, open to be continued."""
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
    """The rows of a file that `jsonl` or `pipe train` wrote, in order; a last line that was cut off is left out, and
    one that is no row.

    Raises ConfigError where it can't be read.
    """
    found: dict[tuple[int, int], Row] = {}
    for line in _text(Path(path)).splitlines():
        try:
            made = _flat(json.loads(line))
            if type(made["epoch"]) is int and type(made["step"]) is int and all(map(_fits, made, made.values())):
                found[made["epoch"], made["step"]] = made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return [found[at] for at in sorted(found)]


def _flat(line: Mapping[str, Any]) -> Row:
    """A row; older files have `train` and `validate` as mappings."""
    made: Row = {}
    for name, value in line.items():
        made |= {f"{name}/{k}": v for k, v in value.items()} if name in ("train", "validate") else {name: value}
    return made


def _fits(name: str, value: Any) -> bool:
    """Whether a row may have such a value."""
    if name == "better":
        return isinstance(value, dict) and all(v in ("high", "low", None) for v in value.values())
    if name == "checksum":  # of a run's own log
        return isinstance(value, str)
    if isinstance(value, list):
        return all(_fits("", v) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (type(value) is int and abs(value) < 1 << 1000)  # which a float can hold


def _finite(value: Any) -> Any:
    # JSON has no NaN.
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
