"""A checkpoint on disk: what is in it, and how it is written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import asdict, frozen
from cattrs import Converter
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import files
from pipeline.errors import CheckpointError
from pipeline.programs.mesh import Sharding, sharding_of
from pipeline.programs.program import Runs
from pipeline.stage import first_line
from pipeline.state import State
from pipeline.tree import named

FORMAT = 1
STATE, FACTS = "state.safetensors", "checkpoint.json"
FACTS_MOST = 1 << 20
"""Bytes."""
_NAME = "step-"

_CONVERTER = Converter(detailed_validation=False)  # whose errors are Python's own


@frozen
class Best:
    """The best epoch so far."""

    metric: str
    value: float
    epoch: int
    step: int
    since: int = 0
    """The epoch that had this value first."""
    loss: float | None = None


@frozen
class Saved:
    """A checkpoint on disk, verified."""

    path: Path
    step: int
    """Steps done."""
    epoch: int
    """Epochs done."""
    batch: int
    """Batches done of the epoch after those."""
    best: Best | None
    torch: str
    """The version that made it."""
    checksum: str
    """Of all of it."""
    run: str | None = None
    """The run that made it, where it was told."""

    @property
    def start(self) -> tuple[int, int]:
        """Where `fit(start=...)` goes on."""
        return self.epoch, self.batch

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the State, by where it is: "params/1.weight". Raises CheckpointError."""
        return self._parts({})

    def _parts(
        self, apart: Mapping[str, tuple[int, ...]], own: Callable[[int], tuple[int, int, int]] | None = None
    ) -> dict[str, Tensor]:
        """The same, but of those in shards only the rows of this process are read, filled up with zeros."""
        from safetensors import safe_open  # takes as long as a small run's first steps

        made: dict[str, Tensor] = {}
        try:
            with safe_open(files.plain(self.path / STATE, links=False), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    part = file.get_slice(name)
                    shape = part.get_shape()
                    if own is None or name not in apart or tuple(shape) != apart[name]:
                        made[name] = file.get_tensor(name)
                        continue
                    begin, end, rows = own(shape[0])
                    t = part[begin:end]
                    made[name] = torch.cat([t, t.new_zeros((rows - len(t), *shape[1:]))]) if len(t) < rows else t
        except Exception as e:  # of safetensors, which has a class of its own for what is no such file
            raise CheckpointError(f"{self.path / STATE} can't be read: {first_line(e)}") from None
        return made

    def kept(self, *names: str) -> dict[str, dict[str, Tensor]]:
        """What State kept under some names, such as "params", without a pipeline. Raises CheckpointError."""
        found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for path, t in self.tensors().items():
            name, _, rest = path.partition("/")
            if name in found:
                found[name][rest] = t
        return found

    def restore(self, pipe: Runs, hyper: Mapping[str, Tensor] | None = None) -> State:
        """The State, on the device of the pipeline; with other hyperparameters, if given.

        Raises CheckpointError where the pipeline is not the one that made it.
        """
        new = pipe.program.init(0, steps=1)
        tree = (new if hyper is None else new.replace(hyper=dict(hyper))).tree
        like = named(tree)
        on = sharding_of(pipe.program)
        apart = {} if on is None else on.leaves(tree)
        tensors = self._parts(apart, None if on is None else on.mesh.own)
        if hyper is not None:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("hyper/")}
            tensors |= {name: t for name, t in like.items() if name.startswith("hyper/")}
        for name, leaf in like.items():
            there = tensors.get(name)
            if there is None or there.shape != leaf.shape or there.dtype != leaf.dtype:
                has = "nothing" if there is None else f"{tuple(there.shape)} {there.dtype}"
                raise CheckpointError(
                    f"{self.path} is of another pipeline: for {name} it has {has}, not {tuple(leaf.shape)} {leaf.dtype}"
                )
        if len(tensors) != len(like):
            more = ", ".join(sorted(set(tensors) - set(like))[:3])
            raise CheckpointError(f"{self.path} is of another pipeline: it also holds {more}")
        # Into tensors that lie in memory as torch lays them: BLAS may round otherwise where they lie elsewhere.
        restored = [torch.empty_like(leaf).copy_(tensors[name]) for name, leaf in like.items()]
        return State(pytree.tree_unflatten(restored, pytree.tree_structure(tree)))


@frozen
class Found:
    """What a folder of checkpoints holds: the newest good one, and why newer ones were passed over."""

    saved: Saved | None
    faults: tuple[str, ...] = ()


Check: TypeAlias = Callable[[Saved], str | None]
"""Why a checkpoint that is whole can't be used, if so."""


def newest(folder: str | Path, below: int | None = None, check: Check | None = None) -> Found:
    """The newest checkpoint that is whole, of those with fewer than `below` steps.

    Raises CheckpointError where it can't look.
    """
    faults: list[str] = []
    for step, path in reversed(steps(Path(folder))):
        if below is None or step < below:
            try:
                return Found(read(path, check), tuple(faults))
            except CheckpointError as e:
                faults.append(str(e))
    return Found(None, tuple(faults))


def best(folder: str | Path, check: Check | None = None) -> Found:
    """The checkpoint of the best epoch; the newest one where none is known to be the best.

    Raises CheckpointError where it is not whole.
    """
    found = newest(folder, check=check)
    known = found.saved and found.saved.best
    if found.saved is None or known is None or known.step == found.saved.step:
        return found
    return Found(at(folder, known.step, check), found.faults)


def at(folder: str | Path, step: int, check: Check | None = None) -> Saved:
    """The checkpoint after so many steps. Raises CheckpointError where it is not whole, or not there."""
    return read(_path(Path(folder), step), check)


def _path(folder: Path, step: int) -> Path:
    return folder / f"{_NAME}{step:09d}"


def read(path: str | Path, check: Check | None = None) -> Saved:
    """A checkpoint, with all of its content verified.

    Raises CheckpointError where anything in it is not as it was written, or `check` says why it can't be used.
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


def write(
    folder: Path, tree: dict[str, Any], epoch: int, batch: int, best: Best | None, beside: Sequence[Path] = (),
    run: str | None = None,
) -> tuple[Path, str]:  # fmt: skip
    """Write a checkpoint of State's tree into a folder, once the files `beside` are on the disk; its path and checksum.

    Raises CheckpointError where it can't be written.
    """
    from safetensors.torch import save_file

    tensors = {name: t.contiguous() for name, t in named(tree).items()}
    step = int(tree["step"])
    path = _path(folder, step)
    try:
        for file in beside:
            files.flush(file)
        with files.making(path) as work:
            save_file(tensors, work / STATE)
            checksum = _finish(work, path, step, epoch, batch, best, run)
    except Exception as e:  # safetensors tells trouble with the disk in a class of its own
        raise unwritable(path, e) from None
    return path, checksum


def _finish(work: Path, path: Path, step: int, epoch: int, batch: int, best: Best | None, run: str | None) -> str:
    """Say beside a State what it is, and let the folder be the checkpoint; its checksum."""
    facts = {
        "format": FORMAT, "step": step, "epoch": epoch, "batch": batch,
        "best": None if best is None else asdict(best), "torch": torch.__version__,
        "sha256": files.sha256(work / STATE), **({} if run is None else {"run": run}),
    }  # fmt: skip
    checksum = files.checksum(facts)
    files.replace(work / FACTS, json.dumps({**facts, "checksum": checksum}, indent=1).encode() + b"\n")
    files.put(work, path)  # in place of one that is damaged, or of a past that was left
    return checksum


def write_parts(
    folder: Path, tree: dict[str, Any], on: Sharding, epoch: int, batch: int, best: Best | None,
    beside: Sequence[Path] = (), run: str | None = None,
) -> tuple[Path, str]:  # fmt: skip
    """The same of a State in shards: each process writes its rows to their places in one file, which all must see.

    All processes have to call it. Raises CheckpointError in all of them where one can't write.
    """
    mesh = on.mesh
    tensors, apart, step = named(tree), on.leaves(tree), int(tree["step"])
    path, checksum = _path(folder, step), ""
    shapes = {name: apart.get(name, tuple(t.shape)) for name, t in tensors.items()}
    header, places = layout({name: (shapes[name], t.dtype) for name, t in tensors.items()})

    @contextmanager
    def together() -> Iterator[None]:
        fault = None
        try:
            yield
        except OSError as e:
            fault = str(unwritable(path, e))
        for other in mesh.everyone(fault):
            if other is not None:
                raise CheckpointError(other)

    with ExitStack() as stack:
        work = path
        with together():
            if mesh.rank == 0:
                for file in beside:
                    files.flush(file)
                work = stack.enter_context(files.making(path))
                with files.updated(work / STATE) as made:
                    made.write(header)
                    made.truncate(len(header) + sum(size for _, size in places.values()))
        work = Path(mesh.agreed(str(work)))
        with together():
            if mesh.rank < mesh.shard:  # others have copies
                with files.updated(work / STATE) as there:
                    for name, t in tensors.items():
                        begin, end, _ = mesh.own(shapes[name][0]) if name in apart else (0, t.numel(), 0)
                        if mesh.rank and name not in apart:
                            continue
                        own = t[: max(end - begin, 0)] if name in apart else t
                        width = t.nbytes // max(len(t), 1) if name in apart else 0
                        there.seek(len(header) + places[name][0] + begin * width)
                        there.write(own.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                files.flush(work / STATE)
        with together():
            if mesh.rank == 0:
                checksum = _finish(work, path, step, epoch, batch, best, run)
    return path, checksum


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64",
}  # fmt: skip


def layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a safetensors file of tensors of these shapes, and where behind it each begins, with its bytes.

    Source: the format's own description, github.com/huggingface/safetensors.
    """
    about: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        size = torch.Size(shape).numel() * dtype.itemsize
        about[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        places[name] = at, size
        at += size
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def unwritable(path: Path, error: Exception) -> CheckpointError:
    """What to raise where a checkpoint, or their folder, can't be written."""
    why = getattr(error, "strerror", None) or first_line(error)
    return CheckpointError(
        f"can't write the checkpoint {path}: {why}; earlier checkpoints are whole, and the run can go on from them"
    )


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, by their steps."""
    try:
        found = [p for p in folder.iterdir() if p.name.startswith(_NAME) and p.name[len(_NAME) :].isascii()]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise CheckpointError(f"can't look into {folder}: {e.strerror}") from None
    return sorted((int(p.name[len(_NAME) :]), p) for p in found if p.name[len(_NAME) :].isdecimal())
