"""Past: a run loaded from disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from os.path import exists
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve, field
from torch import nn

from cli import config as settings
from cli import decision, ranking, record
from cli import folder as folders
from cli import seal as seals
from cli.build import Job, begin
from cli.config import TrainConfig
from cli.decision import Decision
from cli.prepared import digest, prepared
from cli.progress import warn
from cli.recipes.code import code_in
from cli.recipes.data_card import About
from cli.recipes.loss import LOG, TARGET_MEAN, TARGET_STD
from cli.recipes.setting import refusal
from cli.seal import CHECKPOINTS, Seal
from pipeline import Ensemble, Pipeline, State, checkpoint, forward, log
from pipeline.checkpoint import Saved
from pipeline.ensembles import Joined
from pipeline.errors import CheckpointError, ConfigError, PipeError, first_line
from pipeline.sources import Prepared

WEIGHTS = ("best", "last")
"""Names of weights, besides the steps of checkpoints and the names of averages."""


@define(eq=False, slots=False)
class Past:
    """A run loaded from its folder. Raises ConfigError for a folder without one, and for a run that is training."""

    folder: Path
    config: TrainConfig = field(init=False)
    document: Mapping[str, Any] = field(init=False)
    """Its config.toml."""
    seal: Seal = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings.check_run(self.folder)
        self.seal = seals.of(self.folder)
        folders.check_idle(self.folder)
        self.document = settings.document(self.folder / settings.CONFIG)
        self.config = settings.make(settings.read(self.folder / settings.CONFIG), record.moved(self.document))

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its config records of the training."""
        facts = self.document.get("facts")
        return facts if isinstance(facts, dict) else {}

    @cached_property
    def about(self) -> About:
        """Its data. Raises ConfigError for a pipeline of the user's own, whose data are unknown."""
        path = self.folder / folders.DATA
        if self.config.pipeline.name is not None:
            raise refusal(
                f"{self.folder} has a pipeline of your own: in Python, pipeline.load_run({str(self.folder)!r}) gives "
                "it back with its State"
            )
        try:
            return About.read(json.loads(seals.content(path)), path)
        except (OSError, ValueError) as e:
            raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None

    @cached_property
    def rows(self) -> list[log.Row]:
        """Its metrics, a row an epoch."""
        return ranking.read(self.folder)

    @cached_property
    def made(self) -> tuple[Job, State]:
        """Its job, with its first State; the data are read again."""
        try:
            return begin(self.config, self._prepared(), initial=self.config.finetune.intact)
        except PipeError as e:
            path, digest = self.facts.get("path"), self.facts.get("data")
            if not isinstance(path, str) or exists(path):
                raise
            raise refusal(f"the run's data, {path}, are gone (digest {str(digest)[:12]}): {e}") from None

    def _prepared(self) -> Prepared | None:
        """Its data, read again, in the units of targets that its model has learned; None if the pipeline is the user's
        own."""
        if self.config.pipeline.name is not None:
            return None
        data, then = prepared(self.config), self.about.fitted
        if not {TARGET_MEAN, TARGET_STD} <= {*data.fitted} & {*then}:
            return data
        mean = then[TARGET_STD if then.get(LOG) else TARGET_MEAN]  # counts are scaled by it
        return evolve(data, fitted={**data.fitted, TARGET_MEAN: mean, TARGET_STD: then[TARGET_STD]})

    def differences(self) -> list[str]:
        """Differences to how it was made that may change the last digits. Raises ConfigError if its data have
        changed."""
        return [*record.differences(self.document, record.facts(*self.made))]

    def saved(self, weights: str) -> Saved:
        """The checkpoint of its best epoch, of the last one, or of a step. Raises a PipeError if there is none."""
        if weights not in WEIGHTS and not _is_step(weights):
            raise refusal(f"unknown weights {weights!r}, which are {', '.join(WEIGHTS)}, or a step", weights, WEIGHTS)
        found = self._found(weights)
        if found is None:
            raise ConfigError(f"{self.folder} has no checkpoint to take weights from")
        return found

    def _found(self, weights: str) -> Saved | None:
        """None if there are no checkpoints. An older one does not replace one that is damaged or gone."""
        where, check = self.folder / CHECKPOINTS, self.seal.fault
        if _is_step(weights):
            steps = [step for step, _ in checkpoint.steps(where)]
            if int(weights) not in steps:
                raise refusal(f"{where} has no checkpoint of step {weights}; it has {', '.join(map(str, steps))}")
            return checkpoint.at(where, int(weights), check)
        found = folders.newest(self.seal)
        if found.faults and (found.saved is not None or checkpoint.steps(where)):
            older = "" if found.saved is None else f"; an older one is undamaged: --weights {found.saved.step}"
            raise ConfigError(f"{found.faults[0]}{older}")
        if found.saved is None or weights == "last" or found.saved.best is None:
            return found.saved
        try:
            return checkpoint.at(where, found.saved.best.step, check)
        except CheckpointError as e:
            raise ConfigError(f"{e}; the last one is undamaged: --weights last") from None

    def restored(self, weights: str, *, own: bool = True) -> tuple[Job, State, Saved]:
        """Its job, and the State of its best epoch, of the last one, or of a step, with the hyperparameters of its
        config: the schedule may have been changed since. If the best epoch is an average's, it is in the place of the
        weights. Raises ConfigError if its `own` data, which are used then, have changed."""
        job, new = self.made
        saved = self.saved(weights)
        try:
            state = saved.restore(job.pipe, new.hyper)
            best = saved.best if weights == "best" else None
            state = state if best is None else job.measured_by(best.metric, state)
        except PipeError:
            self.differences()  # perhaps the data have changed
            raise
        if own:
            self.differences()
        return job, state, saved

    def repeated(self, weights: str) -> tuple[Job, State, Saved]:
        """As `restored`, for its own data. Warns of differences that may change the last digits, and raises ConfigError
        if the data have changed."""
        job, state, saved = self.restored(weights, own=False)
        for difference in self.differences():
            warn(f"{difference}: the last digits may differ")
        return job, state, saved

    def decision(self, weights: str) -> Decision:
        """The temperature and the threshold of some weights, if the run has them."""
        path = self.folder / decision.FILE
        if not path.exists():
            return decision.PLAIN
        try:
            found = decision.read(seals.content(path), weights)
        except (OSError, ValueError) as e:
            raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
        if found is None:
            warn(f"{path} has no decision for --weights {weights}: classes are chosen from probability 0.5")
        return found or decision.PLAIN

    def module(self, weights: str) -> tuple[nn.Module, Any, dict[str, Any]]:
        """Its trained model in eval mode, the values of a batch that it is called on, and its epoch and step.

        `weights` is "best", "last", a step, or the name of an average. Needs no data; without checkpoints, the files
        of weights are enough.
        """
        plain, _, inputs = self.config.model.make(self.about.fixed)
        build = self.config.finetune.built(plain)
        pipe = Pipeline(forward.model(build, inputs=inputs))
        [model] = pipe.models
        pipe.init(self.config.run.seed, batch=_example(self.about))
        saved = self._found(weights) if weights in WEIGHTS or _is_step(weights) else None
        members = self.config.run.ensemble
        best = saved.best if saved is not None and weights == "best" and self.config.run.ema is not None else None
        averaged = best is not None and ".ema." in f".{best.metric}"
        if saved is not None and not averaged:
            kept = saved.kept(model.params, model.buffers)
            tensors = {**kept[model.params], **kept[model.buffers]}
            at = {"epoch": saved.epoch, "step": saved.step}
            if members is None:
                return model.module.whole(tensors), inputs, at
            each = [model.module.whole({k: t[i].clone() for k, t in tensors.items()}) for i in range(members)]
            return self._joined(each), inputs, at
        module = build() if members is None else self._joined([build() for _ in range(members)])
        if averaged and not (self.folder / folders.BEST).exists():
            raise refusal(f"{self.folder} has its best average at the end of training alone; take --weights last")
        made = self._from_file(module, weights, inputs)
        if saved is not None and made[2].get("epoch") != saved.epoch:
            raise refusal(f"{self.folder / folders.BEST} is of an earlier epoch than the best; take --weights last")
        return made

    def _joined(self, members: Iterable[nn.Module]) -> nn.Module:
        return Joined(members, self.config.loss.stage(self.about.task).join).eval()

    def _from_file(self, module: nn.Module, weights: str, inputs: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
        from safetensors import safe_open

        name = {"best": folders.BEST, "last": folders.WEIGHTS}.get(weights, f"{weights}.safetensors")
        path = self.folder / name
        if not path.exists():
            known = [p.stem for p in self.folder.glob("*.safetensors") if p.name not in (folders.BEST, folders.WEIGHTS)]
            raise refusal(f"{self.folder} has no weights {weights!r}", weights, [*WEIGHTS, *known])
        try:
            with safe_open(seals.checked(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(folders.ABOUT, "{}"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # no mapping
            if about.get("sha256", "") not in ("", digest(tensors)):
                raise ValueError("it is damaged, its checksum is another")
            module.load_state_dict(tensors)
        except ConfigError:
            raise
        except Exception as e:  # safetensors and torch raise several types of errors
            raise ConfigError(f"can't read {path}: {first_line(e)}") from None
        return module.eval(), inputs, {k: about[k] for k in ("epoch", "step") if k in about}


def _is_step(weights: str) -> bool:
    return weights.isdecimal() and len(weights) < 20


def _example(about: About) -> dict[str, Any]:
    """A batch of zeros with the shapes of the data, to initialize lazy modules."""
    fixed = about.fixed
    inputs = torch.zeros(2, *fixed.inputs, dtype=torch.float32 if fixed.floats else torch.int64)
    columns = sum(1 if isinstance(c, int) else c[1] for c in fixed.sizes.get("categories", ()))
    return {"inputs": inputs, "categories": torch.zeros(2, columns, dtype=torch.int64)}


def load_run(folder: Path, weights: str, trust: bool) -> tuple[Pipeline | Ensemble, State, Any]:
    """The entry point of pipeline.load_run."""
    past = Past(folder)
    names = code_in(past.document)
    if names and not trust:
        raise refusal(f"{folder} names code, {', '.join(names)}, which would be run; if you know it, pass trust=True")
    job, state, _ = past.restored(weights)
    return job.pipe, state, job.held_out
