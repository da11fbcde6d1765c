"""Each name in a run's folder, and each that a command may make there, is a link, FIFO, folder, device or socket, or
another user's: files elsewhere stay as they are, and nothing waits for ever."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attack import made
from tests.attack.ground import Attack, Ground

NOBODY = 65534


def _link(path: Path, ground: Ground) -> None:
    """To a file elsewhere."""
    path.symlink_to(ground.victim / "file")


def _link_to_same(path: Path, ground: Ground) -> None:
    """To one elsewhere that holds what was there."""
    there = ground.victim / "same"
    kept = ground.beside / "before"
    if kept.is_dir():
        shutil.copytree(kept, there)
    elif kept.exists():
        shutil.copy2(kept, there)
    else:
        there.write_text("")
    path.symlink_to(there)
    ground.seal()


def _hard_link(path: Path, ground: Ground) -> None:
    os.link(ground.victim / "file", path)


def _nowhere(path: Path, ground: Ground) -> None:
    path.symlink_to(ground.victim / "new")


def _to_folder(path: Path, ground: Ground) -> None:
    path.symlink_to(ground.victim / "folder")


def _device(path: Path, ground: Ground) -> None:
    path.symlink_to("/dev/zero")


def _full(path: Path, ground: Ground) -> None:
    path.symlink_to("/dev/full")


def _itself(path: Path, ground: Ground) -> None:
    path.symlink_to(path.name)


def _socket(path: Path, ground: Ground) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may not be long
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def _fifo(path: Path, ground: Ground) -> None:
    os.mkfifo(path)


def _folder(path: Path, ground: Ground) -> None:
    path.mkdir()
    (path / "file").write_text("mine\n")


WAYS: dict[str, Callable[[Path, Ground], None]] = {
    "a link": _link,
    "a link to a copy": _link_to_same,
    "a hard link": _hard_link,
    "a link to nothing": _nowhere,
    "a link to a folder": _to_folder,
    "a link to /dev/zero": _device,
    "a link to /dev/full": _full,
    "a link to itself": _itself,
    "a socket": _socket,
    "a FIFO": _fifo,
    "a folder": _folder,
}
RUNS = ("run", "sweep")
MADE = (".lock", ".making-config.toml", ".making-status.json", ".making-metrics.jsonl", ".making-model.safetensors",
        ".making-best.safetensors", ".making-curves.svg", ".making-data.json", ".making-report.html", "report.html",
        "weights.safetensors", ".making-weights.safetensors", "weights.safetensors.json", "manifest.json",
        ".making-manifest.json", "tensorboard", "checkpoints/.making-0", ".making-sweep.json",
        ".making-sweep.csv")  # fmt: skip
"""Names that a command may make."""


def attacks(plan: Ground) -> Iterator[Attack]:
    for name in RUNS:
        folder = plan.made / name
        there = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*"))]
        names = dict.fromkeys([*there, *MADE])
        commands = {
            **made.commands(name),
            "report inside": ("report", f"{name}/best" if name == "sweep" else name),
            "export inside": ("export", f"{name}/best" if name == "sweep" else name, "--format", "weights"),
        }
        for word, args in commands.items():
            for file in names:
                for way in WAYS:
                    yield Attack("links", word, f"{way}: {name}/{file}", partial(_try, name, file, way, args))
            for file in there:
                yield Attack("links", word, f"may not be read: {name}/{file}", partial(_closed, name, file, args))
    for out in ("out.csv", "out.parquet", "out.npz"):
        for way in WAYS:
            for file in (out, f".making-{out}"):
                args = ("predict", "run", "--data", "rows.npz", "--out", out)
                yield Attack("links", "predict", f"{way}: {file}", partial(_out, file, way, args))


def _try(name: str, file: str, way: str, args: tuple[str, ...], ground: Ground) -> None:
    made.data(ground)
    path = ground.copy(name) / file
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
    if os.path.lexists(path):
        path.rename(ground.beside / "before")
    WAYS[way](path, ground)
    ground.pipe(*args)


def _out(file: str, way: str, args: tuple[str, ...], ground: Ground) -> None:
    made.data(ground)
    ground.copy("run")
    WAYS[way](ground.here / file, ground)
    ground.pipe(*args)


def _closed(name: str, file: str, args: tuple[str, ...], ground: Ground) -> None:
    """The command is another user's, where this is root's: nothing is closed to root."""
    made.data(ground)
    path = ground.copy(name) / file
    if path.is_symlink():
        return
    if os.getuid() == 0:
        for found in (ground.here, *ground.here.rglob("*")):
            os.lchown(found, NOBODY, NOBODY)
        os.chown(path, 0, 0)
    path.chmod(0)
    ground.pipe(*args, before=_leave)
    if path.exists():  # the command may have removed it
        path.chmod(0o700)


def _leave() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
