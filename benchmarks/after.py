"""What do telemetry in the step, and predictions for a file larger than memory, cost?

`python -m benchmarks.after`. Telemetry: the digits step of digits_step (64-32-10, batch 64, AdamW, clipping, a cosine)
and that of `pipe train` (64-128-10, SGD), fused, one thread, with each measurement and with all, in turns. Predictions:
`pipe predict` on a CSV of 2 GB with numbers, words, dates and missing values, and its growth in resident memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from benchmarks import report
from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, place, schedules, sources, update

ROUNDS = 151
GIGABYTES = 2.0
CASES = {"none": "", "gradient norm": "g", "update ratio": "u", "learning rate": "l", "all": "gul"}
RULES: dict[str, tuple[int, Any]] = {
    "digits_step": (32, lambda: (update.clip_norm(1.0), update.adamw(schedules.cosine(1e-3)))),
    "pipe train": (128, lambda: (update.finite(), update.clip_norm(1.0), update.sgd(0.1, momentum=0.9))),
}

READ = """
import sys, threading, time
from cli import main, new_data, prediction_files

def resident():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

peak, before, read = [0.0], [0.0], new_data.rows
def watch():
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.05)
def rows(*args, **options):
    before[0] = resident()
    threading.Thread(target=watch, daemon=True).start()
    return read(*args, **options)
new_data.rows = rows
began = time.perf_counter()
try:
    main.main()
except SystemExit as ended:
    assert ended.code == 0
print(peak[0] - before[0], time.perf_counter() - began, file=sys.stderr)
"""


def pipe(rule: str, telemetry: str) -> Pipeline:
    """A step on the digits with some telemetry."""
    train, _ = sources.digits()
    width, stages = RULES[rule]
    return Pipeline(
        load.batches(train, size=64),
        place.on("cpu"),
        forward.model(lambda: models.mlp(64, width, 10)),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        *([evaluate.gradient_norm()] if "g" in telemetry else []),
        *stages(),
        *([evaluate.update_ratio()] if "u" in telemetry else []),
        *([evaluate.learning_rate()] if "l" in telemetry else []),
    )


def telemetry(rule: str) -> dict[str, dict[str, float]]:
    """Microseconds a step, and the ratio to the step without, medians over rounds in turns."""
    steps = {name: pipe(rule, which).compile(steps="epoch") for name, which in CASES.items()}
    states = {name: step(step.pipe.init(0, steps=100_000))[0] for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            states[name], _ = step(states[name])
            times[name].append((time.perf_counter() - began) / 23 * 1e6)
    return {
        name: {
            "microseconds": statistics.median(found),
            "ratio": statistics.median(x / y for x, y in zip(found, times["none"], strict=True)),
        }
        for name, found in times.items()
    }


def people(rows: int) -> polars.DataFrame:
    """A table with numbers, words, dates and missing values."""
    random = np.random.default_rng(0)
    age, city = random.integers(18, 90, rows).astype(float), random.choice(["Basel", "Bern", "Zug"], rows)
    since = np.datetime64("2015-01-01") + random.integers(0, 3000, rows)
    score = age / 30 + (city == "Zug") + random.normal(0, 0.3, rows)
    missing = random.random((2, rows)) < 0.1
    return polars.DataFrame({
        "age": [None if m else a for a, m in zip(age, missing[0], strict=True)],
        "city": [None if m else c for c, m in zip(city, missing[1], strict=True)],
        "since": since, "income": random.normal(5e4, 1e4, rows), "kind": np.where(score > 2.3, "gold", "plain"),
    })  # fmt: skip


def predictions(folder: Path) -> dict[str, dict[str, float]]:
    """Megabytes that resident memory grows by, and seconds, by the format of the output."""
    people(2000).write_csv(folder / "people.csv")
    command = [sys.executable, "-c", "from cli.main import main; main()", "train", "--data", "people.csv", "-q",
               "--no-compile", "--epochs", "3", "--out", "run"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    head, _, body = (folder / "people.csv").read_bytes().partition(b"\n")
    with (folder / "big.csv").open("wb") as file:
        file.write(head + b"\n")
        for _ in range(int(GIGABYTES * 1e9 / len(body)) + 1):
            file.write(body)
    found = {}
    for end in ("csv", "npz", "parquet"):
        args = ["predict", "run", "--data", "big.csv", "--out", f"out.{end}"]
        done = subprocess.run(
            [sys.executable, "-c", READ, *args], cwd=folder, check=True, capture_output=True, text=True
        )
        grown, seconds = map(float, done.stderr.split()[-2:])
        found[end] = {"megabytes": grown, "seconds": seconds}
        (folder / f"out.{end}").unlink()
    return found


def main() -> None:
    """Measure, and write benchmarks/results/after.json."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"telemetry": {rule: telemetry(rule) for rule in RULES}}
    with tempfile.TemporaryDirectory() as folder:
        found["predict 2 GB"] = predictions(Path(folder))
    lines = [(__doc__ or "").partition("\n\n")[2].strip(), ""]
    lines += ["| step, fused, one thread | telemetry | µs | ratio |", "| --- | --- | --- | --- |"]
    for rule, cases in found["telemetry"].items():
        lines += [f"| {rule} | {name} | {c['microseconds']:.2f} | {c['ratio']:.3f} |" for name, c in cases.items()]
    lines += ["", "| predictions written as | memory grows by, MB | seconds |", "| --- | --- | --- |"]
    lines += [f"| {end} | {c['megabytes']:.0f} | {c['seconds']:.0f} |" for end, c in found["predict 2 GB"].items()]
    report.save("after", (__doc__ or "").splitlines()[0], "\n".join(lines), **found)


if __name__ == "__main__":
    main()
