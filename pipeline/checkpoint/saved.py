"""Checkpoints on disk: verify and read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from attrs import frozen
from cattrs import Converter
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import files
from pipeline.errors import CheckpointError, first_line
from pipeline.mesh.collectives import pad
from pipeline.pipe import Trainable
from pipeline.programs.mesh import Sharding, sharding_of
from pipeline.state import State
from pipeline.tree import named

FORMAT = 1
STATE, FACTS = "state.safetensors", "checkpoint.json"
FACTS_MOST = 1 << 20
"""Bytes."""
_PREFIX = "step-"
_CONVERTER = Converter(detailed_validation=False)  # raises Python's own errors


@frozen
class Best:
    """The best epoch so far."""

    metric: str
    value: float
    epoch: int
    step: int
    since: int
    """The first epoch with this value."""
    loss: float | None
    """The validation loss, which breaks ties; None if not finite."""


@frozen
class Saved:
    """A checkpoint on disk, verified."""

    path: Path
    step: int
    """Steps done."""
    epoch: int
    """Complete epochs."""
    batch: int
    """Batches done in the next epoch."""
    best: Best | None
    torch: str
    """Version that wrote it."""
    checksum: str
    """Checksum of the facts, which hold the hash of the tensors."""
    run: str | None = None
    """Name of the run that wrote it, if it has one."""

    @property
    def start(self) -> tuple[int, int]:
        """Position to continue from, for `fit(start=...)`."""
        return self.epoch, self.batch

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the State, by path: "params/1.weight". Raises CheckpointError."""
        return self._read(None, {})

    def _read(self, on: Sharding | None, sharded: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """All tensors; of `sharded` ones, by path with full shapes, only this process's rows, padded with zeros."""
        from safetensors import safe_open  # takes as long as a small run's first steps

        tensors: dict[str, Tensor] = {}
        try:
            with safe_open(files.plain(self.path / STATE, links=False), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    piece = file.get_slice(name)
                    shape = piece.get_shape()
                    if on is None or sharded.get(name) != tuple(shape):
                        tensors[name] = file.get_tensor(name)
                        continue
                    begin, end, rows = on.mesh.span(shape[0])
                    tensors[name] = pad(piece[begin:end], rows)
        except Exception as e:  # safetensors has its own class for an invalid file
            raise CheckpointError(f"{self.path / STATE} can't be read: {first_line(e)}") from None
        return tensors

    def kept(self, *names: str) -> dict[str, dict[str, Tensor]]:
        """The tensors under some names of State, such as "params", without a pipeline. Raises CheckpointError."""
        values: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for path, t in self.tensors().items():
            name, _, rest = path.partition("/")
            if name in values:
                values[name][rest] = t
        return values

    def restore(self, pipe: Trainable, hyper: Mapping[str, Tensor] | None = None) -> State:
        """The State, on the pipeline's device; with other hyperparameters, if given.

        Raises CheckpointError if another pipeline wrote it.
        """
        new = pipe.program.init(0, steps=1)
        tree = (new if hyper is None else new.replace(hyper=dict(hyper))).tree
        expected, on = named(tree), sharding_of(pipe.program)
        tensors = self._read(on, {} if on is None else on.leaves(tree))
        if hyper is not None:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("hyper/")}
            tensors |= {name: t for name, t in expected.items() if name.startswith("hyper/")}
        for name, leaf in expected.items():
            t = tensors.get(name)
            if t is None or t.shape != leaf.shape or t.dtype != leaf.dtype:
                has = "nothing" if t is None else f"{tuple(t.shape)} {t.dtype}"
                raise CheckpointError(
                    f"{self.path} is of another pipeline: for {name} it has {has}, not {tuple(leaf.shape)} {leaf.dtype}"
                )
        if len(tensors) != len(expected):
            more = ", ".join(sorted(set(tensors) - set(expected))[:3])
            raise CheckpointError(f"{self.path} is of another pipeline: it also holds {more}")
        # Copied into torch's own allocations: BLAS may round otherwise with other alignment.
        restored = [torch.empty_like(leaf).copy_(tensors[name]) for name, leaf in expected.items()]
        return State(pytree.tree_unflatten(restored, pytree.tree_structure(tree)))


@frozen
class Found:
    """The newest usable checkpoint of a folder, and the faults of newer ones."""

    saved: Saved | None
    faults: tuple[str, ...] = ()


Check: TypeAlias = Callable[[Saved], str | None]
"""Why an intact checkpoint can't be used; None if it can."""


def newest(folder: str | Path, below: int | None = None, check: Check | None = None) -> Found:
    """The newest intact checkpoint of fewer than `below` steps.

    Raises CheckpointError if the folder can't be listed.
    """
    faults: list[str] = []
    for step, path in reversed(steps(Path(folder))):
        if below is None or step < below:
            try:
                return Found(read(path, check), tuple(faults))
            except CheckpointError as e:
                faults.append(str(e))
    return Found(None, tuple(faults))


def at(folder: str | Path, step: int, check: Check | None = None) -> Saved:
    """The checkpoint after `step` steps. Raises CheckpointError if it is damaged or missing."""
    return read(path_of(Path(folder), step), check)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:09d}"


def steps(folder: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, with their steps, in order."""
    try:
        numbers = [(p.name.removeprefix(_PREFIX), p) for p in Path(folder).iterdir() if p.name.startswith(_PREFIX)]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise CheckpointError(f"can't look into {folder}: {e.strerror}") from None
    return sorted((int(number), p) for number, p in numbers if number.isascii() and number.isdecimal())


def read(path: str | Path, check: Check | None = None) -> Saved:
    """A checkpoint, its whole content verified.

    Raises CheckpointError if anything in it changed since it was written, or if `check` refuses it.
    """
    path = Path(path)
    try:
        facts = json.loads(files.read(path / FACTS, most=FACTS_MOST, links=False))
        if facts["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {facts['format']!r}, which this version of pipe-train does not know; update it"
            )
        if facts["checksum"] != files.checksum(facts):
            raise CheckpointError(f"{path / FACTS} is damaged: its checksum is another")
        if facts["sha256"] != files.sha256(path / STATE, links=False):
            raise CheckpointError(f"{path / STATE} is damaged: its checksum is another")
        saved = _CONVERTER.structure({**facts, "path": path}, Saved)
    except OSError as e:
        raise CheckpointError(f"{path} can't be read: {Path(e.filename or path).name}: {e.strerror or e}") from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise CheckpointError(f"{path / FACTS} is damaged: it is not what was written") from None
    fault = check(saved) if check is not None else None
    if fault is not None:
        raise CheckpointError(fault)
    return saved
