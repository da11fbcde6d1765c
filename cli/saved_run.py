"""Past: a run as its folder tells, for what is done after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import nn

from cli import config as settings
from cli import folder as folders
from cli import ranking as better
from cli import record
from cli import seal as seals
from cli.build import Job, begin
from cli.config import TrainConfig
from cli.recipes.data_card import About
from cli.recipes.setting import refusal
from cli.seal import CHECKPOINTS, Seal
from pipeline import Ensemble, Pipeline, State, checkpoint, forward, log
from pipeline.checkpoint import Saved
from pipeline.ensembles import Joined
from pipeline.errors import CheckpointError, ConfigError
from pipeline.stage import first_line

WEIGHTS = ("best", "last")
"""Beside the step of a checkpoint, and the names of averages."""


@define(eq=False, slots=False)
class Past:
    """A run that was made. Raises ConfigError for a folder without one, and for one that is being written to."""

    folder: Path
    config: TrainConfig = field(init=False)
    document: Mapping[str, Any] = field(init=False)
    """All that its config.toml says."""
    seal: Seal | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings.check_run(self.folder)
        self.seal = seals.read(self.folder)
        folders.check_idle(self.folder)
        self.document = settings.document(self.folder / settings.CONFIG)
        self.config = settings.make(settings.read(self.folder / settings.CONFIG))

    @cached_property
    def about(self) -> About:
        """Raises ConfigError for a pipeline of the user's, whose data nothing is known of."""
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
        """Its metrics, an epoch each."""
        return better.read(self.folder)

    @cached_property
    def made(self) -> tuple[Job, State]:
        """What it trained, with its first State; its data are read again."""
        return begin(self.config)

    def saved(self, weights: str) -> Saved:
        """The checkpoint of its best epoch, the last one, or that of a step. Raises a PipeError where there is none."""
        if weights not in WEIGHTS and not _is_step(weights):
            raise refusal(f"unknown weights {weights!r}, which are {', '.join(WEIGHTS)}, or a step", weights, WEIGHTS)
        found = self._found(weights)
        if found is None:
            raise ConfigError(f"{self.folder} has no checkpoint to take weights from")
        return found

    def _found(self, weights: str) -> Saved | None:
        """None where there are no checkpoints. An older one is not taken for one that is damaged or gone."""
        where, check = self.folder / CHECKPOINTS, None if self.seal is None else self.seal.fault
        if _is_step(weights):
            there = [step for step, _ in checkpoint.steps(where)]
            if int(weights) not in there:
                raise refusal(f"{where} has no checkpoint of step {weights}; it has {', '.join(map(str, there))}")
            return checkpoint.at(where, int(weights), check)
        found = checkpoint.newest(where, check=check) if self.seal is None else folders.newest(self.seal)
        if found.faults and (found.saved is not None or checkpoint.steps(where)):
            older = "" if found.saved is None else f"; an older one is whole: --weights {found.saved.step}"
            raise ConfigError(f"{found.faults[0]}{older}")
        if found.saved is None or weights == "last" or found.saved.best is None:
            return found.saved
        try:
            return checkpoint.at(where, found.saved.best.step, check)
        except CheckpointError as e:
            raise ConfigError(f"{e}; the last one is whole: --weights last") from None

    def restored(self, weights: str) -> tuple[Job, State, Saved]:
        """What it trained, and the State of its best epoch, or the last one, with the numbers that its config has: a
        schedule may have been another then."""
        job, new = self.made
        saved = self.saved(weights)
        return job, saved.restore(job.pipe, new.hyper), saved

    def module(self, weights: str) -> tuple[nn.Module, Any, dict[str, Any]]:
        """Its trained model in eval mode, the values of a batch that it is called on, and of which epoch it is.

        `weights` is "best", "last", or the name of an average that the run kept. Needs neither its data nor, where
        its checkpoints are gone, more than the files of weights.
        """
        build, _, inputs = self.config.model.make(self.about.fixed)
        pipe = Pipeline(forward.model(build, inputs=inputs))
        [model] = pipe.models
        pipe.init(self.config.run.seed, batch=_example(self.about))
        saved = self._found(weights) if weights in WEIGHTS or _is_step(weights) else None
        members = self.config.run.ensemble
        if saved is not None:
            kept = saved.kept(model.params, model.buffers)
            own = {**kept[model.params], **kept[model.buffers]}
            of = {"epoch": saved.epoch, "step": saved.step}
            if members is None:
                return model.module.whole(own), inputs, of
            each = [model.module.whole({k: t[i].clone() for k, t in own.items()}) for i in range(members)]
            return self._joined(each), inputs, of
        module = build() if members is None else self._joined([build() for _ in range(members)])
        return self._from_file(module, weights, inputs)

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
            if about.get("sha256", "") not in ("", record.digest(tensors)):
                raise ValueError("it is damaged, its checksum is another")
            module.load_state_dict(tensors)
        except ConfigError:
            raise
        except Exception as e:  # of safetensors and torch, which have several
            raise ConfigError(f"can't read {path}: {first_line(e)}") from None
        return module.eval(), inputs, {k: about[k] for k in ("epoch", "step") if k in about}


def _is_step(weights: str) -> bool:
    return weights.isdecimal() and len(weights) < 20


def _example(about: About) -> dict[str, Any]:
    """A batch of the shapes that the data have, for modules that are lazy."""
    fixed = about.fixed
    inputs = torch.zeros(2, *fixed.inputs, dtype=torch.float32 if fixed.floats else torch.int64)
    columns = fixed.sizes.get("categories", ())
    return {"inputs": inputs, "categories": torch.zeros(2, len(columns), dtype=torch.int64)}


def load_run(folder: Path, weights: str, trust: bool) -> tuple[Pipeline | Ensemble, State, Any]:
    """See pipeline.load_run."""
    past = Past(folder)
    code = settings.code_in(past.document)
    if code and not trust:
        raise refusal(f"{folder} names code, {', '.join(code)}, which would be run; if you know it, pass trust=True")
    job, state, _ = past.restored(weights)
    return job.pipe, state, job.held_out
