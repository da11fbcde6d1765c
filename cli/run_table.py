"""A table of the runs in a folder, or some runs side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from attrs import frozen
from rich.console import Console
from rich.table import Table

from cli import config as settings
from cli import folder as run_folder
from cli import ranking
from cli import seal as seals
from cli.arguments import assigned_settings
from cli.config import TrainConfig
from cli.progress import plain, warn
from cli.recipes.setting import refusal
from cli.seal import STATUS
from cli.sweep.run import BEST
from cli.sweep.train import MEMBERS
from pipeline import log
from pipeline.errors import PipeError
from pipeline.state import format_metric

COLUMNS = 6
"""Most settings in a list of runs; runs side by side have all."""
MOST, WIDE = 24, 1000
"""Characters of a reason that always have room, and the width of an output that is no terminal."""
NOT_COMPARED = ("out", "data", "model", "threads", "eager_steps", "pipeline", "epochs")
"""Settings with a column of their own, or without an effect on the result."""


@frozen(eq=False)
class Entry:
    """A run in the table."""

    name: str
    folder: Path
    config: TrainConfig | None
    """None if it can't be read; then `why` is the reason."""
    rows: Sequence[log.Row]
    state: str
    why: str

    @cached_property
    def flat(self) -> dict[str, Any]:
        return {} if self.config is None else self.config.flat

    def value(self, name: str) -> Any:
        """A setting, or its state; of an optimizer also the learning rate and the momentum that are its defaults."""
        numbers = {} if self.config is None or self.config.pipeline.name else self.config.optimizer.numbers
        return {**self.flat, **numbers, "state": self.state}.get(name)

    @property
    def seconds(self) -> float:
        return sum(row.get("seconds") or 0.0 for row in self.rows)

    @property
    def epochs(self) -> int:
        return self.rows[-1]["epoch"] if self.rows else 0

    def best(self, metric: str | None = None) -> tuple[int, str, float] | None:
        """The epoch, the metric and its value."""
        return ranking.best_epoch(self.rows, metric or self.flat.get("best"))

    @property
    def json(self) -> dict[str, Any]:
        best = self.best()
        return {
            "run": str(self.folder), "state": self.state, "why": self.why, "data": self.flat.get("data"),
            "model": self.flat.get("model"), "epochs": self.epochs, "seconds": self.seconds,
            "best": None if best is None else dict(zip(("epoch", "metric", "value"), best, strict=True)),
            "last": self.rows[-1] if self.rows else None, "settings": self.flat,
        }  # fmt: skip


def run(paths: Sequence[str], *, sort: str | None, filters: Sequence[str]) -> dict[str, Any]:
    """Print and return the runs in folders, or some runs side by side."""
    folders = [Path(p) for p in paths] or [Path("runs")]
    are_runs = all((p / settings.CONFIG).exists() for p in folders)
    if len(folders) == 1 and not are_runs and not folders[0].is_dir():
        raise refusal(f"{folders[0]} is no folder; the first pipe train makes runs/")
    entries = [entry(p, str(p)) for p in folders] if are_runs else [e for p in folders for e in entries_in(p)]
    if not entries:
        raise refusal(f"there is no run in {', '.join(map(str, folders))}")
    entries = [e for e in entries if all(_matches(e, text, entries) for text in filters)]
    if sort is not None:
        entries = _sorted(entries, sort)
    say = plain(False)
    if are_runs and len(entries) > 1:
        for i, table in enumerate(side_by_side(entries, say.width if say.is_terminal else WIDE)):
            say.print(*([""] if i else []), table, width=None if say.is_terminal else WIDE)
    else:
        print_list(say, entries, sort)
    return {"runs": [e.json for e in entries]}


def entries_in(root: Path) -> list[Entry]:
    """The runs in a folder, and in the runs in it, such as folds."""
    return [entry(p, str(p.relative_to(root))) for p in paths_in(root)]


def paths_in(root: Path) -> list[Path]:
    """The folders of these runs."""
    return sorted({p.parent for pattern in ("", "*/", "*/*/") for p in root.glob(pattern + settings.CONFIG)})


def entry(path: Path, name: str) -> Entry:
    """A run read from its folder, or why it can't be read."""
    try:
        config = settings.make(settings.read(path / settings.CONFIG))
        sweep = os.path.lexists(path / settings.PLAN)
        rows = ranking.read(path / BEST if sweep else path)
        state, why = _sweep(path) if sweep else _state(path, rows, config)
    except PipeError as e:
        return Entry(name, path, None, [], "failed", str(e))
    return Entry(name, path, config, rows, state, why)


def _state(path: Path, rows: Sequence[log.Row], config: TrainConfig) -> tuple[str, str]:
    """Whether a run is running, done, stopped or failed, and why."""
    if run_folder.is_busy(path):
        return "running", ""
    try:
        status = json.loads(seals.content(path / STATUS))
        return str(status["state"]), str(status.get("why", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, PipeError) as e:
        if isinstance(e, PipeError):
            warn(str(e))
        return ("done" if rows and rows[-1]["epoch"] >= config.run.epochs else "stopped"), ""  # it was killed


def _sweep(path: Path) -> tuple[str, str]:
    """The state of a sweep: the last that it writes is the link to its best member."""
    plan = settings.document(path / settings.PLAN)
    try:
        total = len(plan["rows"]) * int(plan["seeds"])
    except (KeyError, TypeError, ValueError):
        raise refusal(f"{path / settings.PLAN} is no plan of a sweep") from None
    if os.path.lexists(path / BEST):
        return "done", f"{total} runs"
    done = len([*path.glob(f"{MEMBERS}/*/{STATUS}")])
    return ("running" if run_folder.is_busy(path) else "stopped"), f"{done}/{total} runs"


def _matches(e: Entry, text: str, entries: Sequence[Entry]) -> bool:
    """Whether a run matches --filter NAME=VALUE. Raises ConfigError if no run has such a setting."""
    name, equals, value = text.partition("=")
    if not equals:
        raise refusal(f"--filter {text!r} is no NAME=VALUE, such as optimizer=adamw")
    if name != "state" and not any(name in other.flat for other in entries):
        raise refusal(f"no run has a setting {name!r}", name, {k for other in entries for k in other.flat} | {"state"})
    wanted = assigned_settings((text,))[name]
    actual = e.value(name)
    return actual == wanted or str(actual) == value or (isinstance(actual, tuple) and list(actual) == wanted)


def _sorted(entries: list[Entry], by: str) -> list[Entry]:
    """By a metric with the best first, else ascending; runs without a value are last."""
    metrics = {k.removeprefix("validate/") for e in entries for r in e.rows for k in r if k.startswith("validate/")}
    if by in metrics:
        firsts = [r for e in entries for r in e.rows[:1]]
        key = ranking.ranking(by, sorted(firsts, key=lambda r: by not in r.get("better", {})))
        ends = {id(e): best[2] for e in entries if (best := e.best(by)) is not None}
        return sorted(entries, key=lambda e: key({f"validate/{by}": ends.get(id(e))}))
    if by in ("epochs", "seconds", "state", "name"):
        return sorted(entries, key=lambda e: getattr(e, by))
    known = {k for e in entries for k in e.flat}
    if by not in known:
        raise refusal(f"no run has {by!r} to sort by", by, known | metrics | {"epochs", "seconds", "state", "name"})
    return sorted(entries, key=lambda e: (by not in e.flat, e.value(by) is None, _orderable(e.value(by))))


def _orderable(value: Any) -> tuple[bool, Any]:
    return (False, value) if isinstance(value, int | float) else (True, str(value))


def differing(entries: Sequence[Entry]) -> list[str]:
    """The settings in which runs differ; those of many values first."""
    names = dict.fromkeys(k for e in entries for k in e.flat if k not in NOT_COMPARED)
    values = {n: len({str(e.flat.get(n)) for e in entries if e.config is not None}) for n in names}
    return sorted((n for n in names if values[n] > 1), key=lambda n: -values[n])


def print_list(say: Console, entries: Sequence[Entry], sort: str | None) -> None:
    """Print a line for each run. A terminal that is too narrow gets fewer columns."""
    names = differing(entries)
    metrics = {k for e in entries for r in e.rows for k in r}
    metric = sort if sort is not None and f"validate/{sort}" in metrics else None
    columns = {
        "run": [e.name for e in entries],
        "data": [str(e.flat.get("data") or e.flat.get("pipeline") or "") for e in entries],
        "model": [str(e.flat.get("model") or "") for e in entries],
        **{n: [setting_cell(e.flat.get(n)) for e in entries] for n in names[:COLUMNS]},
        "best": [best_cell(e, metric) for e in entries],
        "epochs": [f"{e.epochs}/{e.flat['epochs']}" if e.flat else "" for e in entries],
        "time": [duration(e.seconds) for e in entries],
        "state": [state_cell(e) for e in entries],
    }
    dropped: list[str] = []
    if say.is_terminal:
        dropped = fitting(columns, say.width, names)
        room = say.width - sum(2 + _width((n, *cells)) for n, cells in columns.items() if n not in (*dropped, "state"))
        columns["state"] = [c if len(c) <= room else f"{c[: max(room, MOST) - 3]}..." for c in columns["state"]]
    table = Table(*(name for name in columns if name not in dropped), box=None, pad_edge=False)
    for row in zip(*(cells for name, cells in columns.items() if name not in dropped), strict=True):
        table.add_row(*row)
    for column in table.columns[1:]:
        column.no_wrap = True
    table.columns[0].overflow = "fold"
    if not say.is_terminal:
        say.width = WIDE
    say.print(table)
    others = [n for n in dropped if n in names or (n in ("data", "model") and len({*columns[n]}) > 1)] + names[COLUMNS:]
    if others:
        text = f"\nthey also differ in {', '.join(others)}: pipe runs RUN RUN shows them side by side"
        say.print(text, soft_wrap=not say.is_terminal)


def fitting(columns: Mapping[str, Sequence[str]], width: int, settings: Sequence[str]) -> list[str]:
    """The columns to leave out, so that the others fit a width without a cut: run, best and state stay, and then the
    ones that tell runs apart come first."""
    wide = {name: 2 + _width((name, *cells)) for name, cells in columns.items()}
    same = [name for name in ("data", "model") if len({*columns[name]}) == 1]
    left = width + 2 - sum(wide[name] for name in ("run", "best", "state"))
    dropped = []
    for name in sorted(
        ["epochs", "model", *(n for n in settings if n in columns), "time", "data"], key=same.__contains__
    ):
        if wide[name] > left:
            dropped.append(name)
        else:
            left -= wide[name]
    return dropped


def _width(cells: Iterable[str]) -> int:
    """The width of a column; a reason may be cut."""
    return max(len(cell if len(cell) <= MOST or ": " not in cell else cell[:MOST]) for cell in cells)


def side_by_side(entries: Sequence[Entry], width: int) -> Iterator[Table]:
    """A column for each run: the settings in which they differ, and their results. Runs that do not fit a width are
    in further tables."""
    names = [n for n in ("data", "model") if len({str(e.flat.get(n)) for e in entries}) > 1] + differing(entries)
    short = len({e.folder.parent for e in entries}) == 1
    labels = ["", *(names or ["settings"]), "best", "epochs", "time", "state"]
    columns = [
        [
            e.folder.name if short else e.name,
            *([setting_cell(e.flat.get(n)) for n in names] or ["the same"]),
            best_cell(e), f"{e.epochs}/{e.flat.get('epochs', '?')}", duration(e.seconds), state_cell(e),
        ]
        for e in entries
    ]  # fmt: skip
    while columns:
        room = width - max(map(len, labels))
        sums = accumulate(2 + _width(cells) for cells in columns)
        count = max(sum(total <= room for total in sums), 1)
        header, *rows = zip(labels, *columns[:count], strict=True)
        table = Table(*header, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        yield table
        columns = columns[count:]


def best_cell(e: Entry, metric: str | None = None) -> str:
    best = e.best(metric)
    return "" if best is None else f"{format_metric(best[1], best[2])} in {best[0]}"


def state_cell(e: Entry) -> str:
    return e.state + (f": {e.why.splitlines()[0]}" if e.why else "")


def setting_cell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.0312), duration(3725)
    ('0.031 s', '1 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
