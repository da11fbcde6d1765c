"""Data that a run has not seen."""

from __future__ import annotations

from collections.abc import Iterator

from cli import config as settings
from cli.progress import warn
from cli.recipes.code import is_code
from cli.recipes.data import DATA, kind_of
from cli.saved_run import Past
from pipeline.sources import Rows
from pipeline.state import Batch


def rows(past: Past, data: str, *, targets: bool, skip_bad: bool = False, say: bool = True) -> Iterator[Rows]:
    """Chunks of samples, prepared as the run's own data were. Raises a PipeError for data of another form.

    Rows that can't be read are counted in a warning, if the run or `skip_bad` leaves them out.
    """
    trained_on = past.config.tables["data"]
    kind = kind_of(past.config.data.source)
    if kind_of(data) is None and kind in DATA:  # such as a single image
        data = f"{kind}:{data}"
    layers = [{"data": trained_on}, {"data": data}] if not is_code(data) else [{"data": data}]
    found = settings.make(*layers, {"skip_bad": True} if skip_bad else {}).data.others(past.about, targets=targets)
    return _counted(found, data) if say else found


def _counted(chunks: Iterator[Rows], data: str) -> Iterator[Rows]:
    from pipeline.sources.table import left_out_rows

    lines: list[int] = []
    for chunk in chunks:
        lines += chunk.skipped
        yield chunk
    if lines:
        warn(f"{data}: {left_out_rows(lines, 'line')}")


class Batches:
    """Batches of samples with targets, read again for each iteration."""

    def __init__(self, past: Past, data: str, skip_bad: bool = False) -> None:
        self.past, self.data, self.skip_bad, self.said = past, data, skip_bad, False

    def __iter__(self) -> Iterator[Batch]:
        found = rows(self.past, self.data, targets=True, skip_bad=self.skip_bad, say=not self.said)
        self.said = True
        return (chunk.batch for chunk in found)
