"""A data set of the user's: a torch Dataset, or what sources.source takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.data.base import Data
from cli.recipes.data_card import TASKS
from cli.recipes.setting import at_least, one_of, setting

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


@frozen
class Custom(Data):
    """What a function of the user's gives: a Dataset, or a pair of them to train on and to hold out."""

    task: str | None = setting(None, f"{', '.join(TASKS)}  [default: by the targets]", one_of(TASKS), fixed=True)
    workers: int = setting(0, "processes that prepare samples", at_least(0, most=1024))
    options: Mapping[str, Any] = field(factory=dict, metadata={"fixed": True})

    @property
    def title(self) -> str:
        return self.source.rpartition(":")[2]

    def prepare(self, parts: Split) -> Prepared:
        from pipeline import sources

        made = code.called(self.source, code.load(self.source), self.options, {"seed": parts.seed})
        return sources.given(made, parts, TASKS[self.task] if self.task else None, workers=self.workers)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import Prepared, dataset, source
        from pipeline.sources import new_data as others

        made = code.called(self.source, code.load(self.source), self.options, {"seed": 0})
        if isinstance(made, Prepared):
            made = made.held_out
        elif isinstance(made, tuple) and len(made) == 2 and not hasattr(made[0], "shape"):
            made = made[1]
        data = dataset(made, workers=self.workers) if not hasattr(made, "names") else source(made)
        options = {"targets": targets, "task": about.fixed.task, "classes": about.classes}
        return others.of_source(self.source, data, about.fixed.inputs, **options)  # type: ignore[arg-type]  # mixed types
