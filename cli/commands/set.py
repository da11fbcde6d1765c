"""`pipe set`: change a run's settings, and record that in its seal."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cli import arguments, as_json, config
from cli.recipes.setting import refusal

MOVED = ("data", "test")
"""Paths of data: fixed settings that may change, because data are identified by their contents."""


@click.command("set")
@arguments.run
@click.argument("assigned", nargs=-1, required=True, metavar="NAME=VALUE ...")
@arguments.trusted
def command(run: str, assigned: tuple[str, ...], trust: bool) -> as_json.Found:
    """Change settings of a RUN before resuming it, such as lr=0.01, or data=PATH if its data have moved."""
    chosen = config.whole(arguments.assigned_settings(assigned))
    arguments.check(Path(run), chosen, trust)
    return {"run": run, "changes": change(Path(run), chosen)}


def change(run: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the config of a run, and record the change in its manifest; returns name -> [before, now]."""
    from cli import folder as folders
    from cli import record, resuming
    from cli.progress import tell
    from cli.seal import of

    with folders.gone_on(run) as seal:
        old, new = resuming.resumed(run, chosen, besides=MOVED)
        runs = config.folds(run, new)
        table = config.document(run / config.CONFIG)
        records = (*config.RECORDS, *([config.FOLDS] if isinstance(table.get(config.FOLDS), dict) else []))
        rest: dict[str, Any] = {k: table[k] for k in records if k in table}
        last = (runs or [run])[-1]
        saved = folders.newest(of(last)).saved if os.path.lexists(last / config.CONFIG) else None
        ranked = None if saved is None or saved.best is None else saved.best.metric
        if saved is not None and new.run.best not in (old.run.best, ranked):
            raise refusal(f"another --best ranks all epochs of {last}, by its data: pipe train --resume {last} --best "
                          f"{new.run.best}")  # fmt: skip
        if saved is not None and (done := resuming.why_done(saved, new)):
            new = resuming.kept(old, new, done)
        before, now = old.flat, new.flat
        changed = {k: [before.get(k), now[k]] for k in now if before.get(k) != now[k]}
        words = {k: ["default" if v is None else str(v) for v in values] for k, values in changed.items()}
        if "data" in changed and isinstance(rest.get("facts"), dict):
            rest["facts"]["path"] = record.data_path(new.data.source) or str(new.data.path)
        entry = {k: ["default" if v is None else v for v in values] for k, values in changed.items() if k not in MOVED}
        if entry and not runs:
            at = {"step": saved.step if saved is not None else 0, **record.versions()}
            rest["resumed"] = [*rest.get("resumed", []), {**at, **entry}]
        seal.accepted.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "set": words})
        folders.write(seal, {config.CONFIG: folders.config_text(new, rest, seal)})
    for fold in runs:
        if os.path.lexists(fold / config.CONFIG):
            change(fold, chosen)
    tell(f"{run}: " + (", ".join(f"{k} {a} -> {b}" for k, (a, b) in words.items()) or "nothing changes"))
    return changed
