"""Results as JSON, a Markdown table and a picture."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import asdict
from cattrs import structure

from benchmarks import charts
from benchmarks.charts import Draw, Measured
from benchmarks.harness import Race, Result, speedup

RESULTS = Path(__file__).parent / "results"
COMPARED = ("torch", "numpy", "jax", "jaxlib", "optax", "lightning", "pytorch-ignite", "accelerate", "skorch", "keras",
            "transformers")  # fmt: skip


def facts() -> dict[str, Any]:
    """Where and on what a run was measured."""
    root = Path(__file__).parent.parent
    changed = git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "commit": git(root, "rev-parse", "HEAD"),
        "dirty": bool(changed),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **{n: v for n in COMPARED if (v := version(n))}},
    }


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write(name: str, question: str, races: Sequence[Measured], folder: Path, draw: Draw) -> None:
    """Write <name>.json, .md and .png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    about = facts()
    content = {
        "name": name,
        "question": question,
        **about,
        "races": [as_json(race, results) for race, results in races],
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(question, about, races))
    picture(name, about, races, folder, draw)


def save(name: str, question: str, text: str, **results: Any) -> None:
    """Write <name>.json and .md of a benchmark that is no race, and print the text."""
    content = {"name": name, "question": question, **facts(), **results}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"# {question}\n\n{text}\n", encoding="utf-8")
    print(text)


def overview(folder: Path) -> None:
    """Write all.md: each target of all races in the folder, and what the last commit's results have for it."""
    heads = ["race", "ours", "beside", "times as fast", "at least", "last commit", "measured"]
    lines = [_row(heads), _row(["---", "---", "---", "---:", "---:", "---:", "---"])]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        committed = git(folder, "show", f"HEAD:./{path.name}")
        before = _measured(json.loads(committed)) if committed else {}
        on = f"{content['date'][:10]}, {content['commit'][:10]}, {content['machine']['cpu']}"
        for (race, ours, beside, factor), ratio in _measured(content).items():
            now, then = (f"{r:.2f}" if r else "-" for r in (ratio, before.get((race, ours, beside, factor))))
            lines.append(_row([race, ours, beside, now, f"{factor:.3g}", then, on]))
    (folder / "all.md").write_text("\n".join(["# All races", "", *lines, ""]), encoding="utf-8")


def _measured(content: Mapping[str, Any]) -> dict[tuple[str, str, str, float], float | None]:
    """(race, ours, beside, times as fast that it should be) -> times as fast that it is."""
    targets = [(race["title"], t) for race in content.get("races", ()) for t in race["targets"]]
    return {(title, t["contender"], t["than"], t["factor"]): t["measured"] for title, t in targets}


def redraw(name: str, folder: Path, draw: Draw) -> None:
    """Write <name>.png from <name>.json, without measuring."""
    content = json.loads((folder / f"{name}.json").read_text())
    races = [(structure(r, Race), structure(r["results"], list[Result])) for r in content["races"]]
    picture(name, content, races, folder, draw)


def picture(name: str, about: Mapping[str, Any], races: Sequence[Measured], folder: Path, draw: Draw) -> None:
    try:
        figure = draw(races)
    except KeyError as e:
        print(f"no picture of {name}: {e} was not measured", flush=True)
        return
    charts.save(figure, about, races, folder / f"{name}.png")


def as_json(race: Race, results: list[Result]) -> dict[str, Any]:
    base = _base(race, results)
    rows = []
    for r in results:
        row = asdict(r)
        if r.seconds:
            row |= {"summary": r.summary(), "speedup": speedup(r, base) if base else None}
        rows.append(row)
    return {**asdict(race), "targets": _targets(race, results), "results": rows}


def _base(race: Race, results: list[Result]) -> Result | None:
    return next((r for r in results if r.name == race.baseline and r.seconds), None)


def _targets(race: Race, results: list[Result]) -> list[dict[str, Any]]:
    by_name = {r.name: r for r in results if r.seconds}
    rows = []
    for t in race.targets:
        measured = None
        if t.contender in by_name and t.than in by_name:
            measured = speedup(by_name[t.contender], by_name[t.than])
        rows.append({**asdict(t), "measured": measured})
    return rows


def markdown(question: str, about: dict[str, Any], races: Sequence[Measured]) -> str:
    machine = about["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        question,
        "",
        f"{machine['cpu']}, {machine['cores']} cores; {about['date'][:10]}; commit {about['commit'][:10]}"
        f"{' with changes' if about['dirty'] else ''}; {versions}.",
    ]
    for race, results in races:
        lines += ["", f"## {race.title}", "", *markdown_race(race, results)]
    return "\n".join(lines) + "\n"


def markdown_race(race: Race, results: list[Result]) -> list[str]:
    threads = f"{race.threads} thread{'s' if race.threads > 1 else ''}"
    about = f"{unit(results)[0]} a step; {threads}, {race.rounds} interleaved rounds."
    return [about, "", *_table(race, results), *_target_table(race, results)]


def unit(results: Sequence[Result]) -> tuple[str, float]:
    """The unit in which the fastest is at least 1, and how many of it are a second."""
    fastest = min((r.summary()["median"] for r in results if r.seconds), default=0.0)
    return ("Milliseconds", 1e3) if fastest >= 1e-2 else ("Microseconds", 1e6)


def _table(race: Race, results: list[Result]) -> list[str]:
    heads = ["", "median", "quartiles", "min - max", f"times as fast as {race.baseline}"]
    if race.memory:
        heads += ["peak MiB", "of it in steps"]
    base, (_, scale) = _base(race, results), unit(results)
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for r in sorted(results, key=lambda r: r.summary()["median"] if r.seconds else float("inf")):
        if not r.seconds:
            reason = f"missing: {r.missing}" if r.missing else f"failed: {(r.error or '').strip().splitlines()[-1]}"
            lines.append(_row([r.name, reason, *[""] * (len(heads) - 2)]))
            continue
        s = {k: f"{scale * v:,.1f}" for k, v in r.summary().items()}
        ratio = f"{speedup(r, base):.2f}" if base else ""
        cells = [r.name, s["median"], f"{s['q1']} - {s['q3']}", f"{s['min']} - {s['max']}", ratio]
        cells += [f"{max(r.peak, r.peak_steps) / 2**20:,.0f}", f"{r.peak_steps / 2**20:,.0f}"] if race.memory else []
        lines.append(_row(cells))
    return lines


def _target_table(race: Race, results: list[Result]) -> list[str]:
    rows = _targets(race, results)
    if not rows:
        return []
    lines = ["", _row(["target", "at least", "measured", ""]), _row(["---", "---:", "---:", "---"])]
    for t in rows:
        m = t["measured"]
        verdict = "not measured" if m is None else "met" if m >= t["factor"] else "not met"
        shown = "" if m is None else f"{m:.2f} x"
        lines.append(_row([f"{t['contender']} against {t['than']}", f"{t['factor']:.3g} x", shown, verdict]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
