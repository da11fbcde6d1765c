"""`pipe plot`: the curves of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cli import config as settings
from cli import folder as folders
from cli import ranking as better
from cli.output import written
from cli.progress import tell
from cli.seal import CHECKPOINTS
from pipeline import log, plot
from pipeline.checkpoint import newest
from pipeline.errors import ConfigError


def run(runs: Sequence[Path], metrics: Sequence[str], out: str | None) -> None:
    """Draw the curves of a run, or of several over each other."""
    found = {}
    for folder in runs:
        settings.check_run(folder)
        found[str(folder)] = better.read(folder)
        if not found[str(folder)]:
            raise ConfigError(f"{folder} has no complete epoch yet")
    best = None
    if len(runs) == 1 and (saved := newest(runs[0] / CHECKPOINTS).saved) is not None and saved.best:
        best = saved.best.metric if saved.best.metric in log.declared(found[str(runs[0])]) else None
    path = Path(out) if out is not None else runs[0] / folders.CURVES if len(runs) == 1 else Path("curves.png")
    short = len({folder.name for folder in runs}) == len(runs)
    lines = {folder.name if short else str(folder): found[str(folder)] for folder in runs}
    figure = plot.curves(found[str(runs[0])] if len(runs) == 1 else lines, metrics=metrics, best=best)
    try:
        with written(path) as file:
            if path.suffix == ".svg":
                file.write(plot.svg(figure).encode())
            else:
                figure.savefig(file, dpi=150, format=path.suffix[1:] or "png")
    except ValueError as e:
        raise ConfigError(f"can't write {path}: {e}") from None
    tell(str(path))
