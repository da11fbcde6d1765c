"""The runs that are attacked: small ones of each kind, made once; and what commands say and write of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.ground import CREATE, KILL, LINK, MAKE, REMOVE, RENAME, SYNC, WRITE, Fault, Ground, Said
from tests.kills import ended

FILES = ("arrays.npz", "rows.npz", "table.csv", "text.txt")
CHANGES = (CREATE, WRITE, SYNC, RENAME, MAKE, REMOVE, LINK)
"""Calls that change what is on the disk."""
SMALL = (
    "--model",
    "mlp",
    "--epochs",
    "2",
    "--hidden",
    "8",
    "--no-compile",
    "--save-steps",
    "1",
    "--set",
    "save_minutes=0",
    "-q",
)
ARRAYS = ("--data", "arrays.npz", *SMALL)
TEXT = ("--data", "text.txt", "--model", "transformer", "--width", "8", "--context", "8", "--set", "heads=1",
        "--epochs", "1", "--no-compile", "-q", "--batch-size", "32")  # fmt: skip
TRAINED = {
    "run": ("train", *ARRAYS),
    "ensemble": ("train", *ARRAYS, "--ensemble", "2"),
    "sweep": ("sweep", "--data", "arrays.npz", "--model", "mlp", "--epochs", "2", "--hidden", "8", "--no-compile", "-q",
              "--set", "save_minutes=0", "--lr", "0.1,0.3"),
    "folds": ("train", *ARRAYS, "--folds", "2"),
    "table": ("train", "--data", "table.csv", *SMALL),
    "text": ("train", *TEXT),
}  # fmt: skip
"""By the name of the folder, what makes it."""


def files(folder: Path) -> None:
    """Data of a few kinds, and rows to predict."""
    rows = [
        f"{i / 7 % 3:.3f},{'abc'[i % 3]},{i % 5 if i % 6 else ''},{('yes', 'no')[i * i % 7 % 2]}" for i in range(40)
    ]
    (folder / "table.csv").write_text("\n".join(["width,colour,count,answer", *rows, ""]))
    chance = np.random.default_rng(0)
    targets = np.arange(90) % 3
    inputs = chance.normal(size=(90, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[targets]
    np.savez(folder / "arrays.npz", inputs=inputs, targets=targets)
    np.savez(folder / "rows.npz", inputs=inputs[:9])
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 12)


def make(made: Path, names: Callable[[str], bool]) -> None:
    """All runs, each with another of another seed, and some that were killed midway."""
    made.mkdir()
    files(made)
    ground = Ground(made.parent / "making", made)
    for name, args in TRAINED.items():
        if not names(name):
            continue
        for seed in (0, 1):
            for data in FILES:
                (ground.here / data).write_bytes((made / data).read_bytes())
            folder = name if not seed else f"{name}-1"
            whole = ground.pipe(*args, "--seed", str(seed), "--out", folder, ok=[0], fault=Fault())
            (ground.here / folder).rename(made / folder)
            if not seed and name != "text":
                calls = sum(whole.calls[kind] for kind in CHANGES)
                ground.pipe(*args, "--seed", "0", "--out", folder, fault=Fault(CHANGES, calls * 3 // 5, action=KILL))
                (ground.here / folder).rename(made / f"{folder}-half")
    if ground.problems:
        raise RuntimeError(f"the runs can't be made: {ground.problems}")


def start(name: str) -> tuple[str, ...]:
    """The command that makes a run of a name, in the folder `o`."""
    return (*TRAINED[name], "--seed", "0", "--out", "o")


def goon(name: str, folder: str = "o") -> tuple[str, ...]:
    return ("sweep" if name == "sweep" else "train", "--resume", folder, "-q")


def data(ground: Ground) -> None:
    """The data beside the runs."""
    for name in FILES:
        ground.copy(name)


def end(folder: Path) -> Any:
    """What a run left, without the times."""
    if (folder / "fold-0").exists() or (folder / "0").exists():
        return {p.name: ended(p) for p in sorted(folder.iterdir()) if (p / "checkpoints").exists()}
    return ended(folder)


def commands(name: str) -> dict[str, tuple[str, ...]]:
    """The commands after a run: by a word, the arguments; what they write is in `out*`, or a run in `o`."""
    if name == "text":
        sample = ("sample", name, "--count", "20")
        return {"sample": sample, "eval": ("eval", name, "--json"), "runs": ("runs", name, "--json")}
    if name == "folds":
        return {"runs": ("runs", name, "--json"), "eval": ("eval", f"{name}/fold-1", "--json")}
    at = f"{name}/best" if name == "sweep" else name
    rows = "table.csv" if name == "table" else "rows.npz"
    found = {
        "eval": ("eval", at, "--json"),
        "eval last": ("eval", at, "--json", "--weights", "last"),
        "predict": ("predict", at, "--data", rows),
        "export": ("export", at, "--format", "weights", "--out", "out.safetensors"),
        "report": ("report", at, "--out", "out.html"),
        "runs": ("runs", name, "--json"),
        "plot": ("plot", at, "--out", "out.svg"),
        "resume": ("train", "--resume", at, "--epochs", "3", "-q"),
        "train again": ("train", at, "--out", "o", "-q"),
    }
    if name == "sweep":
        found["sweep on"] = ("sweep", "--resume", name, "-q")
    return found


def result(ground: Ground, said: Said) -> dict[str, Any]:
    """What a command said and wrote, without times."""
    found: dict[str, Any] = {"out": re.sub(r"\b[\d.]+ s\b|[\d,.]+ samples/s|(?<=seconds\": )[\d.]+", "-", said.out)}
    for path in sorted(ground.here.glob("out*")):
        content = path.read_bytes()
        found[path.name] = re.sub(rb"\b[\d.]+ s\b|[\d,]+ samples/s|<dt>.*?</dt>", b"-", content)
    folder = said.args[said.args.index("--resume") + 1] if "--resume" in said.args else "o"
    if said.args[0] == "sweep" and "--resume" in said.args:  # what was done stays as it is
        found["table"] = (ground.here / folder / "sweep.csv").read_bytes()
    elif said.code == 0 and said.args[0] in ("train", "sweep") and (ground.here / folder).exists():
        found["run"] = end(ground.here / folder)
    return found


def whole(ground: Ground, name: str, args: tuple[str, ...]) -> dict[str, Any]:
    """What a command gives of a run that nobody touched."""

    def make(ground: Ground) -> dict[str, Any]:
        data(ground)
        ground.copy(name)
        return result(ground, ground.pipe(*args, ok=[0]))

    found: dict[str, Any] = ground.once((name, args), make)
    return found


def left(folder: Path) -> list[str]:
    """What is not whole, and was left behind."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".making*"))
