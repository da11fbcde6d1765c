"""Kill a run at random moments, resume it each time, and compare what comes out with the run that was never stopped.

python -m tests.kills --times 100
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

PIPE = [sys.executable, "-c", "from cli.main import main; main()"]
RUN = ["train", "--model", "convnet", "--widths", "4,8", "--dropout", "0.3", "--save-steps", "7"]
SWEEP = [
    "sweep",
    "--hidden",
    "16",
    "--lr",
    "0.03..3:log:3",
    "--seeds",
    "3",
    "--at-once",
    "4",
    "--set",
    "save_minutes=0",
]
MODES = {
    "fused": [*RUN, "--no-eager-start"],
    "eager start": [*RUN, "--eager-steps", "40"],
    "single steps": [*RUN, "--set", "steps_per_call=1"],
    "an epoch a call": [*RUN, "--set", "steps_per_call=epoch"],
    "uncompiled": [*RUN, "--no-compile"],
    "folds": [*RUN, "--no-compile", "--folds", "3"],
    "sweep": SWEEP,
    "halving": [*SWEEP, "--halving"],
    "two processes": [*RUN, "--no-compile", "--processes", "2"],
    "uncompiled halving": [*SWEEP, "--halving", "--no-compile", "--batch-size", "256"],
}


def ended(folder: Path) -> object:
    """All that a finished run leaves, without the times; of a sweep, and of folds, each of its runs."""
    if inside := [*folder.glob("members/*"), *folder.glob("fold-*")]:
        return {p.name: ended(p) for p in inside}
    newest = max((folder / "checkpoints").glob("step-*"))
    tensors = {name: t.tobytes() for name, t in load_file(newest / "state.safetensors").items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures: list[object] = [{k: v for k, v in line.items() if "second" not in k and k != "checksum"} for line in lines]
    best = json.loads((newest / "checkpoint.json").read_text())["best"]
    return (folder / "model.safetensors").read_bytes(), tensors, figures, best


def begun(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """The command, in a process."""
    return subprocess.Popen([*PIPE, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd, text=True)


def killed(folder: Path, args: list[str], left: int, longest: float, seed: random.Random, start: Any = begun) -> int:
    """Run until it is done, with at most `left` kills; how many there were."""
    kills = 0
    team = ["--processes", "2"] if "--processes" in args else []
    while True:
        command = (
            [args[0], "--resume", str(folder), *team]
            if (folder / "config.toml").exists()
            else [*args, "--out", str(folder)]
        )
        process = start(*command, cwd=folder.parent)
        if kills < left:
            before = _newest(folder)
            while process.poll() is None and _newest(folder) == before:  # what comes before is no part of the run
                time.sleep(0.001)
            try:
                process.wait(seed.uniform(0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, f"{command} ended with {process.returncode}: {said}"
        deadline = time.monotonic() + 10
        while workers(folder):
            assert time.monotonic() < deadline, "a process was left behind"
            time.sleep(0.01)
        kills += 1


def workers(folder: Path) -> list[int]:
    """The processes that train into a folder, of those that a launcher starts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"cli.main" in command and str(folder).encode() in command:
            found.append(int(path.parent.name))
    return found


def _newest(folder: Path) -> set[str]:
    return {str(p) for p in folder.glob("**/checkpoints/*")}


def campaign(
    times: int, modes: list[str], epochs: int, longest: float, seed: int, start: Any = begun
) -> dict[str, tuple[int, int, int]]:
    """Of each mode: kills, runs that were killed and finished, and those that ended as the one never stopped."""
    chance, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        os.environ.setdefault("PIPE_CACHE", f"{root}/cache")
        for n, mode in enumerate(modes):
            args = [*MODES[mode], "--epochs", str(epochs)]
            whole = Path(root) / f"whole-{n}"
            process = start(*args, "--out", str(whole), cwd=Path(root))
            said = process.communicate()[1]
            assert process.returncode == 0, said
            kills = runs = same = 0
            while kills < times:
                folder = Path(root) / f"killed-{n}-{runs}"
                kills += killed(folder, args, times - kills, longest, chance, start)
                runs, same = runs + 1, same + (ended(folder) == ended(whole))
            found[mode] = kills, runs, same
            print(
                f"{mode}: {kills} kills in {runs} runs, {same} of them ended bitwise as the run never stopped",
                flush=True,
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="kills of each mode")
    parser.add_argument("--modes", default="fused,single steps", help=", ".join(MODES))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument(
        "--longest", type=float, default=0.5, help="seconds that a process may train before it is killed"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends = campaign(options.times, options.modes.split(","), options.epochs, options.longest, options.seed)
    sys.exit(any(runs != same for _, runs, same in ends.values()))
