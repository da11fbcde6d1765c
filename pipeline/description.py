"""Description: the stages of a pipeline in order, with their wiring checked. Nothing here runs.

`Pipeline` is a description with the functions that run it; programs, in pipeline.programs, are made from descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self

from attrs import define
from torch import nn

from pipeline import html, place
from pipeline.backward import Gradients
from pipeline.element import Element
from pipeline.errors import WiringError, did_you_mean
from pipeline.evaluate import HostMetric
from pipeline.forward import Model
from pipeline.load import Load
from pipeline.names import check_names
from pipeline.place import Place
from pipeline.stage import Stage
from pipeline.update import Finite
from pipeline.wiring import check_trained, check_wiring, needed_to_measure, resolved

_HEAD = ("stage", "reads", "writes", "keeps")


@define(frozen=True, eq=False, init=False, repr=False, slots=False)
class Description:
    """An immutable sequence of stages. Raises WiringError if two do not fit."""

    given: tuple[Element, ...]
    """The stages as the user passed them."""
    stages: tuple[Element, ...]
    """The same, with the models of each backward filled in."""
    load: Load | None
    place: Place
    host: tuple[Stage, ...]
    """Stages before place, which read the batch alone."""
    graph: tuple[Stage, ...]
    """Stages after place: the compiled step."""
    evaluation: tuple[Stage, ...]
    """Stages of the evaluation program."""

    def __init__(self, *given: Element) -> None:
        check_names(given)
        stages = resolved(given)
        loads = [s for s in stages if isinstance(s, Load)]
        places = [s for s in stages if isinstance(s, Place)]
        border = stages.index(places[0]) if places else -1
        host, graph = (
            [s for s in side if isinstance(s, Stage)] for side in (stages[: max(border, 0)], stages[border + 1 :])
        )
        check_wiring(stages, loads[0] if loads else None, host, graph)
        built = {m: m.module.build for m in stages if isinstance(m, Model) and isinstance(m.module.build, nn.Module)}
        check_trained(stages, lambda m: m in built and any(p.requires_grad for p in built[m].parameters()))
        evaluation = needed_to_measure(graph)
        on_host, on_device = (tuple(s for s in side if not isinstance(s, HostMetric)) for side in (host, graph))
        source, where = loads[0] if loads else None, places[0] if places else place.on("cpu")
        self.__attrs_init__(given, stages, source, where, on_host, on_device, evaluation)

    # -- kinds of stages

    @cached_property
    def metrics(self) -> tuple[Stage, ...]:
        """Metrics of the train step."""
        return tuple(s for s in self.graph if s.runs(True) and s.finish is not None)

    @cached_property
    def host_metrics(self) -> tuple[HostMetric, ...]:
        """Metrics that an evaluation computes on the host."""
        return tuple(s for s in self.stages if isinstance(s, HostMetric) and s.runs(False))

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Models that bring parameters into State."""
        return tuple(s for s in self.stages if isinstance(s, Model) and s.create is not None)

    @cached_property
    def backwards(self) -> tuple[Gradients, ...]:
        return tuple(s for s in self.graph if isinstance(s, Gradients))

    @cached_property
    def finite(self) -> tuple[Finite, ...]:
        """Stages that skip, or stop at, steps with non-finite numbers."""
        return tuple(s for s in self.graph if isinstance(s, Finite))

    @cached_property
    def averages(self) -> dict[str, Stage]:
        """Averages of weights, by the last part of their names: "ema"."""
        averages: dict[str, Stage] = {}
        for s in self.graph:
            if s.average is not None:
                short = s.name.rpartition(".")[2]
                averages[s.name if short in averages else short] = s
        return averages

    @property
    def samples(self) -> str | None:
        """Name of the value that gives a batch's number of samples, if the load stage names one."""
        return self.load.samples if self.load is not None else None

    # -- other descriptions

    def of(self, stages: Sequence[Element]) -> Self:
        """The same kind of description of other stages."""
        return type(self)(*stages)

    def replace(self, name: str, stage: Element) -> Self:
        """A Pipeline with another stage in the place of `name`."""
        i = self._index(name)
        return self.of([*self.given[:i], stage, *self.given[i + 1 :]])

    def insert(self, stage: Element, *, before: str | None = None, after: str | None = None) -> Self:
        """A Pipeline with one more stage, before or after the named one."""
        if (before is None) == (after is None):
            raise WiringError(f"insert({stage.name!r}) needs either before= or after= the name of a stage")
        i = self._index(before) if before is not None else self._index(after or "") + 1
        return self.of([*self.given[:i], stage, *self.given[i:]])

    def without(self, name: str) -> Self:
        """A Pipeline without the named stage."""
        i = self._index(name)
        return self.of([*self.given[:i], *self.given[i + 1 :]])

    def __getitem__(self, name: str) -> Any:
        return self.given[self._index(name)]

    def _index(self, name: str) -> int:
        names = [s.name for s in self.stages]
        if name not in names:
            raise WiringError(f"the pipeline has no stage {name!r}{did_you_mean(name, names)}")
        return names.index(name)

    # -- for people

    def __str__(self) -> str:
        """The stages as a table: name, reads, writes, keeps."""
        rows = [_HEAD, *self._table()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same table, for notebooks."""
        return html.table(_HEAD, self._table())

    def _table(self) -> Iterator[tuple[str, str, str, str]]:
        for s in self.stages:
            keeps = (*s.keeps, *s.hyper, *(["sums"] if s.finish else ["memory"] if s.remembers else []))
            notes = " (by tape)" if isinstance(s, Gradients) and s.taken == "tape" else ""
            notes += f" ({s.when} only)" if isinstance(s, Stage) and s.when else ""
            yield s.name + notes, ", ".join(s.values_read), ", ".join(s.values_written), ", ".join(keeps)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(s.name for s in self.stages)})"
