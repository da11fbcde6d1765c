"""Data that a run has not seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from cli import config as settings
from cli.predictions import answers, in_units, together
from cli.progress import warn
from cli.recipes.code import is_code, load, wanted
from cli.recipes.data import DATA, kind_of
from cli.recipes.data_card import check_alike
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
    layers: list[dict[str, Any]] = [{"data": trained_on}, {"data": data}]
    if is_code(data) and data == past.config.data.source:
        layers = [{"data": wanted(load(data), {"seed": past.config.run.splits_by}) | trained_on}]
    elif is_code(data):
        layers = [{"data": data}]
        if say:
            warn(f"{data} is called without options, as it is not the run's function")
    found = settings.make(*layers, {"skip_bad": True} if skip_bad else {}).data.others(past.about, targets=targets)
    return _counted(found, data, past) if say else found


def _counted(chunks: Iterator[Rows], data: str, past: Past) -> Iterator[Rows]:
    from pipeline.sources.overview import left_out_rows, unknown_values, without_targets

    numbers, unit, count, untargeted = list[int](), "line", 0, 0
    unknown: dict[str, Counter[str]] = defaultdict(Counter)
    for chunk in chunks:
        numbers += chunk.skipped
        unit = chunk.unit
        count += len(next(iter(chunk.batch.values())))
        untargeted += chunk.untargeted
        for name, values in chunk.unknown.items():
            unknown[name].update(values)
        for note in chunk.notes:
            warn(f"{data}: {note}")
        yield chunk
    if numbers:
        warn(f"{data}: {left_out_rows(numbers, unit)}")
    if untargeted:
        warn(f"{data}: {without_targets(untargeted, past.about.fitted['targets']['names'])}")
    for name, seen in unknown.items():
        warn(f"{data}: {unknown_values(name, seen, count)}")


class Batches:
    """Batches of samples with targets, read again for each iteration."""

    def __init__(self, past: Past, data: str, skip_bad: bool = False, *, said: bool = False) -> None:
        self.past, self.data, self.skip_bad, self.said = past, data, skip_bad, said

    def __iter__(self) -> Iterator[Batch]:
        return (chunk.batch for chunk in self.rows(self.past))

    def rows(self, past: Past) -> Iterator[Rows]:
        found = rows(past, self.data, targets=True, skip_bad=self.skip_bad, say=not self.said)
        self.said = True
        return found


class MeanBatches(Batches):
    """Batches with the mean outputs of some runs as `answered`, calibrated, and in the units of the first."""

    def __init__(self, runs: Sequence[Past], data: str, skip_bad: bool, weights: str) -> None:
        super().__init__(runs[0], data, skip_bad)
        check_alike([run.about for run in runs])
        self.runs, self.models = runs, [run.module(weights)[:2] for run in runs]
        self.heads = [partial(in_units, about=run.about, decision=run.decision(weights), like=self.past.about)
                      for run in runs]  # fmt: skip
        self.join = self.past.config.loss.stage(self.past.about.task).join

    def __iter__(self) -> Iterator[Batch]:
        parts = zip(self.runs, self.models, self.heads, strict=True)
        each = [answers(self.rows(run), *model, head) for run, model, head in parts]
        return ({**rows.batch, "answered": outputs} for rows, outputs in together(each, self.join))
