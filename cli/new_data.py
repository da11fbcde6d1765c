"""New data: samples that a run did not see."""

from __future__ import annotations

from collections.abc import Iterator

from cli import config as settings
from cli.recipes.code import is_code
from cli.recipes.data import DATA, kind_of
from cli.saved_run import Past
from pipeline.sources import Rows
from pipeline.state import Batch


def rows(past: Past, data: str, *, targets: bool) -> Iterator[Rows]:
    """The samples of new data, prepared as those of the run were. Raises a PipeError for what does not fit."""
    kind = kind_of(past.config.data.source)
    if kind_of(data) is None and kind in DATA:  # such as a single image
        data = f"{kind}:{data}"
    layers = [] if is_code(data) else [{"data": past.config.tables["data"]}]
    return settings.make(*layers, {"data": data}).data.others(past.about, targets=targets)


class Batches:
    """New data with targets, as batches that can be iterated again and again."""

    def __init__(self, past: Past, data: str) -> None:
        self.past, self.data = past, data

    def __iter__(self) -> Iterator[Batch]:
        return (chunk.batch for chunk in rows(self.past, self.data, targets=True))
