"""How much memory does activation checkpointing save, and what does it cost?

`python -m benchmarks.recompute`. A transformer of 12 blocks with dropout, 16 x 128 tokens, two threads; its blocks are
checkpointed or not. Memory is the peak of five steps above the memory before the first. A compiled step comes from the
cache, so that no compiler is in the process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import report

STEPS = """
import functools, json, sys, time
import torch
from torch.utils.checkpoint import checkpoint
from pipeline import Pipeline, backward, forward, load, loss, models, update

torch.set_num_threads(2)

def net():
    model = models.transformer(128, context=128, width=128, depth=12, dropout=0.1)
    for block in model.blocks if sys.argv[1] == "checkpointed" else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return model

def kib(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

tokens = torch.randint(128, (16, 129), generator=torch.Generator().manual_seed(0))
data = load.batches({"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}, size=16)
stages = forward.model(net), loss.cross_entropy(dim=-1), backward.gradients(), update.sgd(0.1)
pipe = Pipeline(data, *stages)
state, step, began = pipe.init(0), pipe.step, time.perf_counter()
if sys.argv[2] == "compiled":
    step = pipe.compile()
    step.prepare(state)
ready, times = time.perf_counter() - began, []
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kib("VmRSS")
for _ in range(5):
    began = time.perf_counter()
    state, metrics = step(state)
    times.append(time.perf_counter() - began)
bits = [p.view(torch.int32).sum().item() for p in state.params.values()]
peak = (kib("VmHWM") - before) * 1024
print(json.dumps({"ready": ready, "peak": peak, "times": times[1:], "loss": metrics["loss"].item(), "bits": sum(bits)}))
"""


def steps(cache: str, *args: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *args], env={**os.environ, "PIPE_CACHE": cache}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    lines = ["| a step | peak, MiB | ms, median | bits as without |", "| --- | ---: | ---: | --- |"]
    with tempfile.TemporaryDirectory() as cache:
        for way in ("eager", "compiled"):
            kinds = ("plain", "checkpointed")
            if way == "compiled":
                for kind in kinds:
                    steps(cache, kind, way)  # fills the cache
            for _ in range(3):
                for kind in kinds:
                    found.setdefault(f"{way}, {kind}", []).append(steps(cache, kind, way))
    for name, runs in found.items():
        peak = statistics.median(run["peak"] for run in runs) / 2**20
        ms = 1e3 * statistics.median(t for run in runs for t in run["times"])
        plain = found[name.split(",")[0] + ", plain"]
        same = all(run["bits"] == plain[0]["bits"] and run["loss"] == plain[0]["loss"] for run in runs)
        lines.append(f"| {name} | {peak:.0f} | {ms:.0f} | {'yes' if same else 'no'} |")
    report.save("recompute", __doc__.splitlines()[0], "\n".join(lines), runs=found)


if __name__ == "__main__":
    main()
