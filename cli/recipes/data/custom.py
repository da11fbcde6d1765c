"""A data set of the user's own: a torch Dataset, or anything that sources.source takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.data.base import Data
from cli.recipes.setting import at_least, one_of, setting
from cli.recipes.task import TASKS

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


@frozen
class Custom(Data):
    """A function of the user's that gives a Dataset, or a pair of them: training and held-out."""

    task: str | None = setting(None, f"{', '.join(TASKS)}  [default: by the targets]", one_of(TASKS), fixed=True)
    workers: int = setting(0, "processes that prepare samples", at_least(0, most=1024))
    options: Mapping[str, Any] = field(factory=dict, metadata={"fixed": True})

    @property
    def title(self) -> str:
        return self.source.rpartition(":")[2]

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.given(self._result(split.seed), split, TASKS[self.task] if self.task else None,
                             workers=self.workers)  # fmt: skip

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import Prepared, new_data
        from pipeline.sources.from_user import samples_of

        data = self._result(0)
        if isinstance(data, Prepared):
            data = data.held_out
        elif isinstance(data, tuple) and len(data) == 2 and not hasattr(data[0], "shape"):
            data = data[1]
        options: dict[str, Any] = {"targets": targets, "task": about.fixed.task, "classes": about.classes}
        return new_data.of_source(self.source, samples_of(data, self.workers), about.fixed.inputs, **options)

    def _result(self, seed: int) -> Any:
        return code.called(self.source, code.load(self.source), self.options, {"seed": seed}, "data")
