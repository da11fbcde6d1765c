"""Results of a run: the metric of its best epoch, files of weights, and a sample of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from cli import baseline as baselines
from cli import folder as folders
from cli import sampling
from cli.build import Job
from cli.config import TrainConfig
from cli.decision import PLAIN, Decision
from cli.progress import warn
from cli.seal import CHECKPOINTS, Seal
from pipeline import Report, State, checkpoint
from pipeline.checkpoint import Best, Saved
from pipeline.direction import directions
from pipeline.errors import CheckpointError
from pipeline.programs.evaluate import better
from pipeline.programs.mesh import whole


def best_metric(job: Job, config: TrainConfig, state: State) -> str | None:
    """The metric of the best epoch: --best, the task's metric, or the last metric of a user's pipeline."""
    if config.run.best or job.best:
        return config.run.best or job.best
    scalars = [k for k, v in job.pipe.program.finish(job.pipe.program.zeros()).items() if v.ndim == 0 and "/" not in k]
    known = [*directions(better(job.pipe.program, state), scalars)]
    return None if job.held_out is None or not known else "accuracy" if "accuracy" in known else known[-1]


def weight_files(
    job: Job, last: State, seal: Seal, best: Best | None, report: Report | None, saved: Saved | None
) -> dict[str, bytes]:
    """Contents of the files of weights by name: of the last epoch, of each average, and of the best epoch."""
    averages = {name: whole(job.pipe.program, average) for name, average in job.pipe.averaged(last).items()}
    state = whole(job.pipe.program, last)
    epoch = report.epoch if report is not None else saved.epoch if saved is not None else 0
    now = {"epoch": epoch, "step": int(state.step)}
    files = {folders.WEIGHTS: (job.pipe.weights(state), {"weights": "last", **now})}
    for name, average in averages.items():
        files[f"{name}.safetensors"] = job.pipe.weights(average), {"weights": name, **now}
    if best is not None:
        about = {"weights": "best", "epoch": best.epoch, "step": best.step, best.metric: best.value}
        try:
            weights: Any = state
            if job.average_of(best.metric) is not None:
                own = last if best.step == now["step"] else _at(seal, best).restore(job.pipe, last.hyper)
                weights = whole(job.pipe.program, job.measured_by(best.metric, own))
            elif best.step != now["step"]:
                [model, *_] = job.stages.models
                weights = _at(seal, best).kept(model.params, model.buffers)
            files[folders.BEST] = job.pipe.weights(weights), about
        except CheckpointError as e:
            warn(f"{e}, so {folders.BEST} is not written")
    return {name: folders.weights_file(tensors, about) for name, (tensors, about) in files.items() if seal.writes}


def states(job: Job, state: State, seal: Seal, best: Best | None) -> dict[str, State]:
    """The State of the best epoch, then the last; none of it without held-out data or on several processes."""
    if job.prepared is None or job.held_out is None or job.stages.place.mesh is not None:
        return {}
    if best is None:
        return {"last": state}
    try:
        own = state if best.step == int(state.step) else _at(seal, best).restore(job.pipe, state.hyper)
    except CheckpointError:  # weight_files has warned of it
        return {"last": state}
    return {"best": job.measured_by(best.metric, own), "last": state}


def _at(seal: Seal, best: Best) -> Saved:
    """The checkpoint of the best epoch. Raises CheckpointError."""
    return checkpoint.at(seal.folder / CHECKPOINTS, best.step, seal.fault)


def beside(
    job: Job, state: State, states: Mapping[str, State], decisions: Mapping[str, Decision], best: Best | None,
    metric: str | None,
) -> list[str]:  # fmt: skip
    """Lines to judge a result by: the decision, the baseline, and warnings; of the first of some `states`."""
    if job.about is None:
        return []
    made = next(iter(decisions.values()), PLAIN)
    lines = [f"        {line}" for line in made.lines(job.about)]
    base = baselines.baseline(job)
    if base is not None:
        lines.append(base.line(metric))
        if best is not None and made.threshold is None:
            lines += base.warning(job, state, best.metric, best.value)
    for own in [*states.values()][:1]:
        lines += baselines.never_predicted(job, own, job.validation, made)
    return lines


def print_text(job: Job, state: State, report: Report, say: Console) -> None:
    """Print how well a language model compresses the text, and a sample of it."""
    assert job.prepared is not None
    fitted, perplexity = job.prepared.fitted, report.validate.get("perplexity")
    if perplexity and fitted.get("bytes_per_token"):
        bits = math.log2(perplexity) / fitted["bytes_per_token"]
        unigram = fitted.get("unigram_perplexity")
        baseline = f"; {unigram:.2f} from token frequencies alone" if unigram else ""
        say.print(f"text    {bits:.3f} bits per byte, perplexity {perplexity:.2f}{baseline}")
    text = sampling.sample_held_out(job, state)
    if text is not None:
        say.print(f"sample  {text}")
