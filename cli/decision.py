"""Decision: a temperature and a threshold, fitted to held-out samples, kept with a run and used by its predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, evolve, frozen
from torch import Tensor

from cli.recipes.setting import refusal
from cli.recipes.task import CLASSES, LABELS
from pipeline import Ensemble, Pipeline, State, evaluate
from pipeline.stage import Stage

if TYPE_CHECKING:
    from cli.build import Job
    from cli.config import TrainConfig
    from cli.recipes.data_card import About

FILE = "decision.json"
"""Decisions of a run by the name of its weights, best or last."""
CHOSEN = ("evaluate.accuracy", "evaluate.balanced_accuracy", "evaluate.confusion", "evaluate.counts", "evaluate.f1",
          "evaluate.labels")  # fmt: skip
"""Metrics of the chosen class. Others are of probabilities, or of their ranks, which a threshold does not change."""


@frozen
class Decision:
    """How outputs become probabilities and a class."""

    temperature: float = 1.0
    """Divisor of logits."""
    threshold: float | None = None
    """Of two classes: the probability of the second from which it is predicted; None for 0.5."""
    by: str = ""
    """The metric that the threshold is chosen by, and its value there and at 0.5, on the samples it was chosen on."""
    value: float | None = None
    before: float | None = None
    step: int = 0
    """Steps of the weights that it is for."""

    def facts(self, about: About) -> dict[str, Any]:
        """What another program needs to know: probabilities have the temperature inside."""
        if self.threshold is None:
            return {} if self.temperature == 1 else {"temperature": self.temperature}
        chosen = {"class": _second(about), "from probability": self.threshold, "chosen by": self.by}
        return {"temperature": self.temperature, "threshold": chosen}

    def lines(self, about: About) -> list[str]:
        """The decision in words."""
        lines = []
        if self.temperature != 1:
            sure = "too sure" if self.temperature > 1 else "not sure enough"
            lines.append(f"probabilities by logits / {self.temperature:.3f}, as the model is {sure} (--calibrate)")
        if self.threshold is not None:
            gain = self.by
            if self.value is not None:
                gain += f" {self.value:.4f}, and {self.before:.4f} from 0.5, on the samples it was chosen on"
            lines.append(f"class {_second(about)!r} from probability {self.threshold:.4f} on: {gain}")
        return lines


PLAIN = Decision()


def _second(about: About) -> str:
    return about.classes[1] if about.classes else "1"


def check(config: TrainConfig, job: Job) -> None:
    """Raise ConfigError if a decision can't be made for a run."""
    asked = config.evaluate
    task = None if job.prepared is None else job.prepared.task
    if asked.threshold == "none" and not asked.calibrate:
        return
    if asked.threshold != "none" and (job.fixed is None or task != CLASSES or job.fixed.outputs != 2):
        raise refusal("--threshold is for two classes; leave it out")
    if task not in (CLASSES, LABELS):
        raise refusal(f"--calibrate is for probabilities, and this is {task}; leave it out")
    if job.stages.place.mesh is not None:
        raise refusal(
            "--threshold and --calibrate are for one process: leave them out, and give them to pipe train --resume "
            "RUN afterwards"
        )


def fitted(config: TrainConfig, job: Job, state: State) -> Decision:
    """The decision for a State, fitted to the held-out samples."""
    from cli.classes import measuring

    asked = config.evaluate
    metrics: list[Stage] = []
    if asked.calibrate:
        assert job.prepared is not None
        metrics.append(evaluate.temperature(several=job.prepared.task == LABELS))
    if asked.threshold != "none":
        metrics.append(evaluate.threshold(asked.threshold))
    if not metrics:
        return PLAIN
    found = measuring(job.pipe, *metrics).evaluate(state, job.validation)
    temperature = found.get("temperature", 1.0)
    if "threshold" not in found:
        return Decision(temperature, step=int(state.step))
    share = 1 / (1 + math.exp(-max(min(found["threshold"] / temperature, 700.0), -700.0)))
    value, before = found["at threshold"], found["at 0"]
    return Decision(temperature, share, asked.threshold, value, before, int(state.step))


def mean(decisions: Sequence[Decision]) -> Decision:
    """The decision on the mean of calibrated probabilities: the mean of the thresholds."""
    if len(decisions) == 1:
        return decisions[0]
    found = [0.5 if d.threshold is None else d.threshold for d in decisions]
    if all(d.threshold is None for d in decisions):
        return PLAIN
    return Decision(threshold=sum(found) / len(found), by=f"mean of {len(found)} folds")


def decided(pipe: Pipeline | Ensemble, decision: Decision) -> Pipeline | Ensemble:
    """A pipeline whose metrics are of calibrated outputs, and of the classes chosen by the threshold. The loss
    stays the training's."""
    from cli.classes import changed

    if decision == PLAIN:
        return pipe

    def change(one: Pipeline) -> Pipeline:
        for s in one.stages:
            if isinstance(s, Stage) and s.finish is not None and "outputs" in s.reads:
                one = one.replace(s.name, _measuring(s, decision))
        return one

    return changed(pipe, change)


def _measuring(metric: Stage, decision: Decision) -> Stage:
    """A metric of the outputs after a decision."""
    shift, edge = 0.0, decision.threshold
    if edge is not None and metric.name in CHOSEN:
        shift = math.log(edge / (1 - edge)) if 0 < edge < 1 else math.copysign(700.0, edge - 0.5)

    @wraps(metric.function)
    def measure(outputs: Tensor, **others: Any) -> Any:
        outputs = outputs / decision.temperature
        if shift:
            outputs = outputs - shift * torch.arange(2, device=outputs.device)  # of the second class
        return metric.function(outputs=outputs, **others)

    return evolve(metric, function=measure)


def text(decisions: Mapping[str, Decision]) -> bytes:
    """The content of decision.json."""
    return json.dumps({name: asdict(d) for name, d in decisions.items()}, indent=1).encode()


def read(content: bytes, weights: str) -> Decision | None:
    """The decision for some weights: best, last, or a step. None if there is none. Raises ValueError for a damaged
    file."""
    try:
        found = {name: Decision(**d) for name, d in json.loads(content).items()}
        steps = {str(d.step): d for d in found.values()}
        chosen = found.get(weights) or steps.get(weights)
        if chosen is not None and not (0 < chosen.temperature < 1e9 and 0 <= (chosen.threshold or 0) <= 1):
            raise ValueError
        return chosen
    except (TypeError, AttributeError, ValueError):
        raise ValueError("it is not what a run writes") from None
