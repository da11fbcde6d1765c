"""Trackers: Reports as points of a run of W&B, MLflow or trackio."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

from pipeline import files
from pipeline.errors import ConfigError, first_line
from pipeline.passing import Reports, package, passed, scalars
from pipeline.state import Report

Points: TypeAlias = Callable[[Mapping[str, float], int], Any]
"""Writes the numbers of a step."""
PROJECT = "pipe"
"""The project of a service, if none is named."""


def wandb(
    reports: Iterable[Report], project: str = PROJECT, *, run: str | None = None,
    config: Mapping[str, Any] | None = None, inside: bool = False,
) -> Reports:  # fmt: skip
    """A point of Weights & Biases for each Report, at its step. Needs the package wandb.

    A `run` that there is, by its id, goes on. Offline, each time is a folder of its own, for `wandb sync --append`.
    """
    library = package("wandb")

    @contextmanager
    def open_run() -> Iterator[tuple[int, Points]]:
        settings = {"id": run, "name": run, "resume": "allow", "reinit": "create_new"}
        with library.init(project=project, **settings) as active:
            active.config.update(dict(config or {}), allow_val_change=True)
            folder = Path(active.settings.sync_dir)
            parts = folder.parent.glob(f"*-{active.id}/last-step")  # offline, W&B does not know the earlier steps

            def write(points: Mapping[str, float], step: int) -> None:
                active.log(points, step=step)
                files.replace(folder / "last-step", b"%d" % step)

            yield max([active.step - 1, *(int(files.read(part, most=20)) for part in parts)]), write

    return _tracked(reports, "wandb", open_run, inside)


def mlflow(
    reports: Iterable[Report], project: str = PROJECT, *, run: str | None = None,
    config: Mapping[str, Any] | None = None, inside: bool = False,
) -> Reports:  # fmt: skip
    """A metric of MLflow for each number of each Report, at its step, in the experiment `project`. Needs the package
    mlflow.

    A `run` that there is, by its name, goes on; MLflow keeps the first value of a parameter.
    """
    library = package("mlflow")

    @contextmanager
    def open_run() -> Iterator[tuple[int, Points]]:
        client, entities = library.MlflowClient(), library.entities
        experiment = client.get_experiment_by_name(project)
        where = client.create_experiment(project) if experiment is None else experiment.experiment_id
        found = [] if run is None else client.search_runs([where], f"run_name = '{run}'")
        active = found[0] if found else client.create_run(where, run_name=run)
        own, known = active.info.run_id, active.data.params
        new = [entities.Param(name, str(value)) for name, value in (config or {}).items() if name not in known]
        for at in range(0, len(new), 100):  # the most in one call
            client.log_batch(own, params=new[at : at + 100])
        client.update_run(own, "RUNNING")

        def write(points: Mapping[str, float], step: int) -> None:
            now = int(time.time() * 1000)
            client.log_batch(own, [entities.Metric(name, value, now, step) for name, value in points.items()])

        try:
            yield max((m.step for m in client.get_metric_history(own, "epoch")), default=-1), write
        finally:
            client.set_terminated(own)

    return _tracked(reports, "mlflow", open_run, inside)


def trackio(
    reports: Iterable[Report], project: str = PROJECT, *, run: str | None = None,
    config: Mapping[str, Any] | None = None, inside: bool = False,
) -> Reports:  # fmt: skip
    """A point of trackio for each Report, at its step. Needs the package trackio.

    A `run` that there is, by its name, goes on. Only on this disk are steps left out that it has.
    """
    library, storage = package("trackio"), package("trackio.sqlite_storage", "trackio").SQLiteStorage

    @contextmanager
    def open_run() -> Iterator[tuple[int, Points]]:
        resume = "never" if run is None else "allow"
        with redirect_stdout(sys.stderr):
            active = library.init(project=project, name=run, resume=resume, config=dict(config or {}), embed=False)
        last = storage.get_max_step_for_run(project, active.name)
        try:
            yield -1 if last is None else last, active.log
        finally:
            with redirect_stdout(sys.stderr):
                library.finish()

    return _tracked(reports, "trackio", open_run, inside)


def _tracked(
    reports: Iterable[Report], name: str, open_run: Callable[[], AbstractContextManager[tuple[int, Points]]],
    inside: bool,
) -> Reports:  # fmt: skip
    """Reports that a service's run gets, but for those up to its last step, which were done again."""

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except Exception as e:  # each service has errors of its own
            raise ConfigError(f"log.{name}() failed: {first_line(e)}") from None

    @contextmanager
    def begin(first: Report) -> Iterator[Callable[[Report], None]]:
        with ExitStack() as stack:
            with told():
                last, write = stack.enter_context(open_run())
            if first.epoch == 1 and first.step <= last:
                why = f"steps up to {last} are left out, which the tracked run has"
                warnings.warn(
                    f"{why}; if this is another training, give log.{name}(..., run=) of its own", stacklevel=3
                )

            def put(report: Report) -> None:
                if report.step > last:
                    with told():
                        write(scalars(report), report.step)

            yield put

    return passed(reports, begin, inside)
