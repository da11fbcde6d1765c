"""What do checkpoints cost, and does memory stay flat?

`python -m benchmarks.durable`. Digits: `pipe train` as a process, with and without checkpoints, in turns. A GPT of 10.9
M parameters: steps with and without a checkpoint written beside them, in turns; by default at most 0.5 % of the time.
Memory: 200,000 steps, a step a call and fused, with evaluations, Reports and checkpoints in between.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from pipeline.checkpoint import SHARE

TRAIN = """
import sys, time
began = time.perf_counter()
from pipeline.checkpoint import Saver
if sys.argv.pop(1) == "without":
    Saver.save = lambda *_: None
    Saver._due = lambda *_: False
from cli.main import main
try:
    main()
finally:
    print("seconds", time.perf_counter() - began, file=sys.stderr)
"""

GPT = """
import json, statistics, sys, tempfile, time
import torch
torch.set_num_threads(2)
from benchmarks import models
from pipeline import Pipeline, backward, checkpoint, forward, loss, place, update
job = models.JOBS["gpt"]
pipe = Pipeline(place.on("cpu"), forward.model(lambda: models.model(job)), loss.cross_entropy(dim=-1),
                backward.gradients(), update.finite(), update.clip_norm(1.0), update.adamw(3e-4))
step, state, data = pipe.compile(), pipe.init(0), models.batches(job)
def steps(state, n):
    for k in range(n):
        state, _ = step(state, data[k % 4])
    return state
state = steps(state, 2)
plain, saved, took = [], [], []
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder, checkpoint.Saver(folder) as saver:
    for _ in range(6):
        began = time.perf_counter()
        state = steps(state, 4)
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        saver.save(state, 0, 0)
        state = steps(state, 4)
        saver._finish()
        saved.append(time.perf_counter() - began)
        took.append(saver._took)
    size = sum(p.stat().st_size for p in saver.folder.rglob("*.safetensors")) / len(list(saver.folder.iterdir()))
print(json.dumps({"plain": plain, "saved": saved, "took": took, "megabytes": size / 1e6}))
"""

MEMORY = """
import json, sys, tempfile
import torch
torch.set_num_threads(1)
from benchmarks import digits_step
from pipeline import checkpoint, fit, sources
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
_, test = sources.digits()
pipe = digits_step.pipeline()
step = pipe.compile()
state = pipe.init(0, steps=200_000)
batches = list(pipe.load.epoch(0, 0))
found, done = [], 0
with tempfile.TemporaryDirectory() as folder, checkpoint.Saver(folder, best="loss", steps=5_000) as saver:
    while done < 100_000:
        for k in range(5_000):
            state, metrics = step(state, batches[k % len(batches)])
        done += 5_000
        step.evaluate(state, test)
        saver.save(state, 0, 0)
        found.append((done, resident()))
    per = pipe.load.batches
    for r in fit(pipe, epochs=100_000 // per + 1, state=state, validate=test, compile=step, interval=0.1, every=5_000):
        saver.offer(r)
        if r.step % 5_000 == 0:
            found.append((r.step, resident()))
print(json.dumps(found))
"""


def answer(code: str, *args: str, **variables: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def digits(rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of whole runs, imports included."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as root:
        for n in range(rounds + 1):
            for how in found:
                args = [sys.executable, "-c", TRAIN, how, "train", "-q", "--out", f"{root}/{how}-{n}"]
                done = subprocess.run(args, capture_output=True, text=True, check=True)
                if n:  # the first fills the cache
                    found[how].append(float(done.stderr.split()[-1]))
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    runs = digits()
    gpt = answer(GPT, str(Path.cwd()))
    memory = answer(MEMORY)
    with_, without = (statistics.median(runs[how]) for how in ("with", "without"))
    costs = [s - p for s, p in zip(gpt["saved"], gpt["plain"], strict=True)]
    cost, took = statistics.median(costs), statistics.median(gpt["took"])
    lines = [
        "| what | measured |",
        "| --- | ---: |",
        "| `pipe train`, the whole process, seconds: with checkpoints, median (least - most) | "
        f"{_spread(runs['with'])} |",
        f"| without | {_spread(runs['without'])} |",
        f"| cost, by the medians | {100 * (with_ / without - 1):.2f} % |",
        f"| GPT of 10.9 M parameters: megabytes of a checkpoint | {gpt['megabytes']:.0f} |",
        f"| seconds that steps beside one take longer | {_spread(costs)} |",
        f"| seconds it takes by its own clock, copy included | {took:.2f} |",
        f"| so at its defaults one each {took / SHARE:.0f} s, and a cost of | {100 * cost / (took / SHARE):.2f} % |",
    ]
    for part, words in ((memory[1:20], "a step a call"), (memory[20:], "fused")):
        values = [m / 2**20 for _, m in part]
        lines.append(
            f"| memory, steps {part[0][0]:,} to {part[-1][0]:,}, {words}, MiB: least - most | {min(values):.1f} - "
            f"{max(values):.1f} |"
        )
    report.save("durable", __doc__.splitlines()[0], "\n".join(lines), digits=runs, gpt=gpt, memory=memory)


if __name__ == "__main__":
    main()
