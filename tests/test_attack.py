"""A small part of tests.attack; the rest takes minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.ground import Ground
from tests.attack.kills import cut
from tests.conftest import PROFILE

HELD = ("proof, ", "kills, train run: ", "damage, resume: run/checkpoints")
"""What CI tries."""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_attacks_hold() -> None:
    matches = [word for held in HELD for word in ("--match", held)]
    each, all_of_them = ("12", 35) if PROFILE == "thorough" else ("6", 18)
    command = [sys.executable, "-m", "tests.attack", "--only", "proof,kills,damage", "--each", each, "--show", *matches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith(f"{all_of_them} attacks in ")


def journal(tmp_path: Path, *steps: str) -> Ground:
    ground = Ground(tmp_path / "ground", tmp_path)
    (ground.beside / "journal").write_text("".join(step.replace("HERE", str(ground.here)) + "\n" for step in steps))
    return ground


def test_power_cuts_lose_what_was_not_synced(tmp_path: Path) -> None:
    ground = journal(tmp_path, "create\tHERE/a\t\t0", "write\tHERE/a\t\t0", "sync\tHERE/a\t\t3", "write\tHERE/a\t\t0")
    (ground.here / "a").write_text("whole")
    cut(ground, "data")
    assert (ground.here / "a").read_text() == "who"


def test_power_cuts_undo_names_that_were_not_synced(tmp_path: Path) -> None:
    ground = journal(tmp_path, "create\tHERE/b\t\t0", "rename\tHERE/b\tHERE/a\t1", "names\tHERE/else\t\t0")
    (ground.beside / "1").write_text("old")
    (ground.here / "a").write_text("new")
    cut(ground, "names")
    assert {p.name: p.read_text() for p in ground.here.iterdir()} == {"a": "old"}


def test_power_cuts_leave_names_that_were_synced(tmp_path: Path) -> None:
    ground = journal(
        tmp_path, "create\tHERE/b\t\t0", "sync\tHERE/b\t\t3", "rename\tHERE/b\tHERE/a\t1", "names\tHERE\t\t0"
    )
    (ground.here / "a").write_text("new")
    cut(ground, "all")
    assert (ground.here / "a").read_text() == "new"


def test_files_outside_that_change_are_reported(tmp_path: Path) -> None:
    from tests.attack.ground import Attack

    ground = Ground(tmp_path / "ground", tmp_path)
    hurts = Attack("links", "x", "y", lambda g: (g.victim / "file").write_text("other") and None)
    assert [p.kind for p in ground.attack(hurts)] == ["outside"]
    assert ground.attack(Attack("links", "x", "y", lambda g: None)) == []
