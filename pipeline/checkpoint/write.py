"""Write checkpoints: one process a State, or all processes their shards of it into one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor

from pipeline import files
from pipeline.checkpoint.saved import FACTS, FORMAT, STATE, Best, path_of
from pipeline.errors import CheckpointError, first_line
from pipeline.mesh import Mesh, broadcast
from pipeline.programs.mesh import Sharding
from pipeline.tree import named


@frozen(eq=False)
class Content:
    """A State's tree, its position in the order, and the best epoch until then."""

    tree: dict[str, Any]
    epoch: int
    batch: int
    best: Best | None

    @property
    def step(self) -> int:
        return int(self.tree["step"])


def write(folder: Path, content: Content, beside: Sequence[Path] = (), run: str | None = None) -> tuple[Path, str]:
    """Write a checkpoint into a folder, after fsync of the files `beside`; its path and checksum.

    Raises CheckpointError.
    """
    from safetensors.torch import save_file

    path = path_of(folder, content.step)
    tensors = {name: t.contiguous() for name, t in named(content.tree).items()}
    try:
        for file in beside:
            files.flush(file)
        with files.making(path) as work:
            save_file(tensors, work / STATE)
            return path, _finish(work, path, content, run)
    except Exception as e:  # safetensors has its own class for errors of the disk
        raise unwritable(path, e) from None


def write_shards(
    folder: Path, content: Content, on: Sharding, beside: Sequence[Path] = (), run: str | None = None
) -> tuple[Path, str]:
    """Write a checkpoint of a State in shards: each process writes its rows into one file on a shared disk.

    Called by all processes. Raises CheckpointError in all of them if one can't write.
    """
    mesh = on.mesh
    tensors, full = named(content.tree), on.leaves(content.tree)
    path, checksum = path_of(folder, content.step), ""
    header, places = layout({name: (full.get(name, tuple(t.shape)), t.dtype) for name, t in tensors.items()})
    with ExitStack() as stack:
        work = path
        with _together(mesh, path):
            if mesh.rank == 0:
                for file in beside:
                    files.flush(file)
                work = stack.enter_context(files.making(path))
                with files.updated(work / STATE) as new:
                    new.write(header)
                    new.truncate(len(header) + sum(size for _, size in places.values()))
        work = Path(broadcast(str(work)))
        with _together(mesh, path):
            if mesh.rank < mesh.shard:  # other processes have copies of the same shards
                _write_rows(work / STATE, mesh, tensors, full, {k: len(header) + at for k, (at, _) in places.items()})
        with _together(mesh, path):
            if mesh.rank == 0:
                checksum = _finish(work, path, content, run)
    return path, checksum


def _write_rows(
    path: Path, mesh: Mesh, tensors: Mapping[str, Tensor], full: Mapping[str, tuple[int, ...]], at: Mapping[str, int]
) -> None:
    """Write this process's rows of sharded tensors; the first process also writes all other tensors."""
    with files.updated(path) as file:
        for name, t in tensors.items():
            offset = at[name]
            if name in full:
                begin, end, _ = mesh.span(full[name][0])
                offset += begin * (t.nbytes // max(len(t), 1))
                t = t[: max(end - begin, 0)]
            elif mesh.rank:
                continue
            file.seek(offset)
            file.write(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    files.flush(path)


@contextmanager
def _together(mesh: Mesh, path: Path) -> Iterator[None]:
    """Raise CheckpointError in all processes if one has an OSError."""
    fault = None
    try:
        yield
    except OSError as e:
        fault = str(unwritable(path, e))
    for other in mesh.everyone(fault):
        if other is not None:
            raise CheckpointError(other)


def _finish(work: Path, path: Path, content: Content, run: str | None) -> str:
    """Write the facts beside a State, and rename the folder; the checksum of the facts."""
    best = content.best
    facts = {
        "format": FORMAT, "step": content.step, "epoch": content.epoch, "batch": content.batch,
        "best": None if best is None else asdict(best), "torch": torch.__version__,
        "sha256": files.sha256(work / STATE), **({} if run is None else {"run": run}),
    }  # fmt: skip
    checksum = files.checksum(facts)
    files.replace(work / FACTS, json.dumps({**facts, "checksum": checksum}, indent=1).encode() + b"\n")
    files.put(work, path)  # may replace a damaged checkpoint, or one of an abandoned continuation
    return checksum


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64",
}  # fmt: skip


def layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a safetensors file for tensors of these shapes, and each tensor's size and offset after the header,
    in bytes.

    Source: the format's description, github.com/huggingface/safetensors.
    """
    facts: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        size = torch.Size(shape).numel() * dtype.itemsize
        facts[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        places[name] = at, size
        at += size
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def unwritable(path: Path, error: Exception) -> CheckpointError:
    """The error for a checkpoint, or their folder, that can't be written."""
    why = getattr(error, "strerror", None) or first_line(error)
    return CheckpointError(
        f"can't write the checkpoint {path}: {why}; earlier checkpoints are whole, and the run can go on from them"
    )
