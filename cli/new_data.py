"""Others: data that a run did not see."""

from __future__ import annotations

from collections.abc import Iterator

from cli import config as settings
from cli.recipes.code import is_code
from cli.recipes.data import DATA, kind_of
from cli.saved_run import Past
from pipeline.sources import Rows
from pipeline.state import Batch


def rows(past: Past, data: str, *, targets: bool) -> Iterator[Rows]:
    """The samples of other data, prepared as those of the run were. Raises a PipeError for what does not fit."""
    kept = past.config.tables["data"]
    own = kind_of(past.config.data.source)
    if kind_of(data) is None and own in DATA:  # such as an image alone
        data = f"{own}:{data}"
    layers = [{"data": kept}, {"data": data}] if not is_code(data) else [{"data": data}]
    return settings.make(*layers).data.others(past.about, targets=targets)


class Batches:
    """The same as batches, with targets, anew each time that they are iterated."""

    def __init__(self, past: Past, data: str) -> None:
        self.past, self.data = past, data

    def __iter__(self) -> Iterator[Batch]:
        return (found.batch for found in rows(self.past, self.data, targets=True))
