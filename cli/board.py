"""The board: the runs of some folders as one HTML page; the page itself is templates/board.html."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias
from urllib.parse import quote

from attrs import define, field
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cli import config as settings
from cli import folder as folders
from cli import run_table
from cli.recipes.setting import refusal
from cli.run_table import Entry
from cli.seal import MANIFEST, METRICS, STATUS
from cli.sweep.run import BEST
from cli.sweep.train import MEMBERS
from pipeline import log, plot
from pipeline.text import shown

REPORT = "report.html"
POINTS, LEAST, ALL = 200, 50, 100_000
"""Most epochs of a curve; of many runs fewer, down to the least, for so many in all."""
RESTS, LONGEST = 4.0, 5.0
"""A server reads the folders again after so many times the seconds that this takes, and at most these seconds."""
READ = (settings.CONFIG, METRICS, STATUS, MANIFEST, REPORT, settings.PLAN, f"{BEST}/{METRICS}")

Run: TypeAlias = dict[str, Any]


@define(eq=False)
class Board:
    """The runs of some folders. A run is read again if its files changed. Raises ConfigError if there are none."""

    folders: Sequence[Path]
    out: Path | None = None
    """The folder of the page; None if it is served."""
    begun: int = field(factory=lambda: time.time_ns() // 10**6)
    """The first version, in milliseconds, so that pages of an earlier server are older."""
    _version: int = field(init=False)
    _read: dict[Path, tuple[object, Entry]] = field(init=False, factory=dict)
    _head: Mapping[str, Any] = field(init=False, factory=dict)
    _runs: dict[str, Run] = field(init=False, factory=dict)
    _changed: dict[str, int] = field(init=False, factory=dict)
    """Run, or former run -> the version since which it is as it is."""
    _next: float = field(init=False, default=0.0)
    _lock: Any = field(init=False, factory=Lock, repr=False)

    def __attrs_post_init__(self) -> None:
        self._version = self.begun
        for folder in self.folders:
            if not folder.is_dir():
                raise refusal(f"{folder} is no folder; the first pipe train makes runs/")
        if not self.data()["runs"]:
            raise refusal(f"there is no run in {', '.join(map(str, self.folders))}")

    def data(self, after: int = 0) -> dict[str, Any]:
        """The columns, and the runs that changed after a version; all of them after one of another server."""
        with self._lock:
            if time.monotonic() >= self._next:
                began = time.monotonic()
                self._update()
                took = time.monotonic() - began
                self._next = began + took + min(RESTS * took, LONGEST)
            known = after >= self.begun
            names = [name for name, version in self._changed.items() if not known or version > after]
            return {
                "version": self._version, "whole": not known, **self._head,
                "runs": [self._runs[name] for name in names if name in self._runs],
                "gone": [name for name in names if name not in self._runs],
            }  # fmt: skip

    def report(self, name: str) -> Path | None:
        """The report of a run on the board."""
        return next((path / REPORT for path in self._read if _name(path) == name), None)

    def page(self) -> str:
        """The page as HTML. The data are JSON in it, which its script sets as text; curves are parsed when needed."""
        data = {**self.data(), "live": self.out is None, "colours": plot.COLOURS}
        curves = {run["id"]: run["curves"] for run in data["runs"]}
        data["runs"] = [{k: v for k, v in run.items() if k != "curves"} for run in data["runs"]]
        environment = Environment(loader=PackageLoader("cli"), autoescape=True, undefined=StrictUndefined)
        return environment.get_template("board.html").render(data=_json(data), curves=_json(curves))

    def _update(self) -> None:
        found = {path: root for root in self.folders for path in _paths(root)}
        read = {path: self._entry(path, root) for path, root in found.items()}
        entries = {path: entry for path, (_, entry) in read.items()}
        if entries == {path: entry for path, (_, entry) in self._read.items()}:
            return
        head = _head([*entries.values()], several=len(self.folders) > 1)
        most = max(LEAST, min(POINTS, ALL // max(len(read), 1)))
        runs = {}
        for path, entry in entries.items():
            same = self._head == head and path in self._read and self._read[path][1] is entry
            run = None if same else self._run(entry, head["columns"], found[path], most)
            runs[_name(path)] = self._runs[_name(path)] if run is None else run
        changed = [name for name in {**self._runs, **runs} if self._runs.get(name) != runs.get(name)]
        self._version += bool(changed)
        self._changed |= dict.fromkeys(changed, self._version)
        self._read, self._head, self._runs = read, head, runs

    def _entry(self, path: Path, root: Path) -> tuple[object, Entry]:
        """A run with the signature of its files, read if that is new."""
        signature = _signature(path)
        if path in self._read and self._read[path][0] == signature:
            return self._read[path]
        return signature, run_table.entry(path, path.name if path == root else str(path.relative_to(root)))

    def _run(self, e: Entry, columns: Sequence[str], root: Path, most: int) -> Run:
        best = e.best()
        cells = {
            "run": e.name, "folder": str(root), "best": run_table.best_cell(e), "state": run_table.state_cell(e),
            "epochs": f"{e.epochs}/{e.flat['epochs']}" if e.flat else "", "time": run_table.duration(e.seconds),
        }  # fmt: skip
        texts = [cells[n] if n in cells else run_table.setting_cell(e.flat.get(n)) for n in columns]
        metric, value = best[1:] if best is not None else (None, None)
        return {
            "id": _name(e.folder), "cells": [shown(text, lines=False) for text in texts], "why": shown(e.why),
            "state": e.state, "seconds": e.seconds, "epochs": e.epochs, "metric": metric, "value": value,
            "better": log.declared(e.rows).get(metric) if metric else None, "report": self._link(e.folder),
            "curves": _curves(e.rows, best[0] if best is not None else None, most),
        }  # fmt: skip

    def _link(self, run: Path) -> str | None:
        if not (run / REPORT).is_file():
            return None
        if self.out is None:
            return f"report?run={quote(_name(run), safe='')}"
        return quote(os.fsencode(os.path.relpath(run / REPORT, self.out)))


def _json(value: Any) -> Markup:
    """JSON that ends no element of a page."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _name(path: Path) -> str:
    return shown(str(path), lines=False)


def _paths(root: Path) -> list[Path]:
    """The runs in a folder, with the members of sweeps; without the links to their best."""
    paths = run_table.paths_in(root)
    sweeps = [path for path in paths if os.path.lexists(path / settings.PLAN)]
    members = {p.parent for path in sweeps for p in path.glob(f"{MEMBERS}/*/{settings.CONFIG}")}
    return sorted({*paths, *members} - {path / BEST for path in sweeps})


def _signature(path: Path) -> object:
    """What changes with a run's files, or with a sweep's members."""
    stats: list[tuple[int, ...] | None] = []
    for name in READ:
        try:
            stat = os.stat(path / name)
            stats.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            stats.append(None)
    done = len([*path.glob(f"{MEMBERS}/*/{STATUS}")]) if stats[READ.index(settings.PLAN)] else 0
    return stats, done, stats[READ.index(STATUS)] is None and folders.is_busy(path)


def _head(entries: Sequence[Entry], several: bool) -> dict[str, Any]:
    """The columns, the names of the settings among them, and the settings that all runs share."""
    flats = [e.flat for e in entries if e.config is not None]
    every = dict.fromkeys(n for flat in flats for n in flat)
    texts = {n: {run_table.setting_cell(flat.get(n)) for flat in flats} for n in every}
    names = [n for n in ("data", "model", "pipeline") if len(texts.get(n, ())) > 1] + run_table.differing(entries)
    return {
        "columns": ["run", *(["folder"] if several else []), "best", "state", *names, "epochs", "time"],
        "settings": names,
        "common": {n: shown(one) for n, (one, *more) in texts.items() if one and not more and n != "out"},
    }


def _curves(rows: Sequence[log.Row], best: int | None, most: int) -> dict[str, Any]:
    """The metrics of a run by epoch, at most about so many, evenly spaced, with the best and the last."""
    every = -(-len(rows) // most) or 1
    kept = [r for i, r in enumerate(rows) if i % every == 0 or i == len(rows) - 1 or r["epoch"] == best]
    names = dict.fromkeys(
        k for r in kept for k, v in r.items()
        if k.startswith(("train/", "validate/")) and k.count("/") == 1 and isinstance(v, int | float)
    )  # fmt: skip
    values = {shown(n): [_rounded(r.get(n)) for r in kept] for n in names}
    return {"epochs": [r["epoch"] for r in kept], "best": best, "every": every, "values": values}


def _rounded(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) else None
