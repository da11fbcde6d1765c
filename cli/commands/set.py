"""`pipe set`: change a run's settings on purpose, so that its seal fits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli import config as settings
from cli import folder as folders
from cli.progress import tell

PLACES = ("data", "test")
"""Settings that may be others though they are fixed: the data are known by what they hold, not by where they lie."""


def run(folder: Path, chosen: Mapping[str, Any]) -> None:
    """Write the settings of a run anew, as it would go on with them."""
    with folders.gone_on(folder) as seal:
        old, new = settings.resumed(folder, chosen, besides=PLACES)
        table = settings.document(folder / settings.CONFIG)
        rest: dict[str, Any] = {k: table[k] for k in ("facts", "versions", "resumed") if k in table}
        before, now = old.flat, new.flat
        changed = {k: [before.get(k), now[k]] for k in now if before.get(k) != now[k]}
        told = {k: ["default" if v is None else str(v) for v in values] for k, values in changed.items()}
        seal.accepted.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "set": told})
        folders.write(seal, {settings.CONFIG: folders.config_text(new, rest, seal)})
    tell(f"{folder}: " + (", ".join(f"{k} {a} -> {b}" for k, (a, b) in told.items()) or "nothing is otherwise"))
