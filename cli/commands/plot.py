"""`pipe plot`: the curves of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli import as_json, completion, config
from cli.recipes.metric import METRICS


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN ...]", shell_complete=completion.runs)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.names(METRICS),
    help="metric to draw, such as loss [default: all]",
)
@click.option("--out", metavar="FILE", help="[default: the run's curves.svg; for several runs curves.png here]")
def command(runs: tuple[str, ...], metrics: tuple[str, ...], out: str | None) -> as_json.Found:
    """Draw the curves of a RUN, or of several, such as the runs of --folds, in one picture."""
    return draw([run for folder in runs for run in _runs(Path(folder))], metrics, out)


def _runs(folder: Path) -> list[Path]:
    """The runs of all folds in a folder that have begun, or the folder itself."""
    config.check_run(folder)
    folds = config.folds(folder, config.make(config.read(folder / config.CONFIG)))
    return [fold for fold in folds if (fold / config.CONFIG).exists()] or [folder]


def draw(runs: Sequence[Path], metrics: Sequence[str], out: str | None) -> dict[str, Any]:
    """Draw the curves of runs, and write the picture."""
    from cli import folder as folders
    from cli import ranking
    from cli.output import written
    from cli.progress import tell
    from cli.seal import CHECKPOINTS
    from pipeline import log, plot
    from pipeline.checkpoint import newest
    from pipeline.errors import ConfigError

    rows = {}
    for folder in runs:
        rows[folder] = ranking.read(folder)
        if not rows[folder]:
            raise ConfigError(f"{folder} has no complete epoch yet")
    first = runs[0]
    if len(runs) == 1:
        saved = newest(first / CHECKPOINTS).saved
        best = saved.best.metric if saved is not None and saved.best else None
        figure = plot.curves(rows[first], metrics=metrics, best=best if best in log.declared(rows[first]) else None)
    else:
        short = len({folder.name for folder in runs}) == len(runs)
        figure = plot.curves({f.name if short else str(f): rows[f] for f in runs}, metrics=metrics)
    path = Path(out) if out is not None else first / folders.CURVES if len(runs) == 1 else Path("curves.png")
    try:
        with written(path) as file:
            if path.suffix == ".svg":
                file.write(plot.svg(figure).encode())
            else:
                figure.savefig(file, dpi=150, format=path.suffix[1:] or "png")
    except ValueError as e:
        raise ConfigError(f"can't write {path}: {e}") from None
    tell(str(path))
    return {"file": str(path), "runs": [str(folder) for folder in runs]}
