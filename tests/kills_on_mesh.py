"""Kill one process of a run on several at random moments, go on with the same or another number of them, and compare
what comes out with the run of one process that was never stopped.

python -m tests.kills_on_mesh --times 30
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file

from tests.kills import PIPE, workers

# A larger step would let one that tips over the edge of a max-pool or a ReLU, by rounding, show.
RUN = ["--model", "convnet", "--widths", "4,8", "--dropout", "0.3", "--lr", "0.001", "--epochs", "6", "--no-compile",
       "--save-steps", "3", "-q"]  # fmt: skip


def ended(folder: Path):
    weights = load_file(folder / "model.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weights, [(line["epoch"], line["step"], line["train/accuracy"], line["train/loss"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    seed, counts, worst = random.Random(asked.seed), Counter[str](), 0.0
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        subprocess.run([*PIPE, *RUN, "--out", str(whole)], check=True, env=env, stdout=subprocess.DEVNULL)
        weights, lines = ended(whole)
        for n in range(asked.times):
            folder = Path(root) / f"run-{n}"
            count, restarts = seed.choice([2, 3, 4]), seed.choice([0, 1])
            shard = seed.choice([1, count])
            args = [*RUN, "--out", str(folder), "--processes", str(count), "--shard", str(shard)]
            run = subprocess.Popen([*PIPE, *args, "--restarts", str(restarts)], env=env, stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
            while run.poll() is None and not list(folder.glob("checkpoints/step-*")):
                time.sleep(0.01)
            time.sleep(seed.uniform(0, 4))
            there = workers(folder)
            if there:
                os.kill(seed.choice(there), signal.SIGKILL)
                counts["killed"] += 1
            code = run.wait(timeout=300)
            assert not workers(folder), "a process was left behind"
            after = "went on by itself"
            if code:
                again = seed.choice([1, 2, 3, 4])
                parts = seed.choice([1, again])
                more = ["--processes", str(again)] if again > 1 else []
                more += ["--shard", str(parts)]
                subprocess.run([*PIPE, "--resume", str(folder), *more, "-q"], check=True, env=env, timeout=300,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
                after = f"resumed on {again} in {parts} shards"
            made, seen = ended(folder)
            off = max(float((made[k].double() - w.double()).abs().max()) for k, w in weights.items())
            worst = max(worst, off)
            assert [x[:2] for x in seen] == [x[:2] for x in lines], "an epoch is missing, or there twice"
            same = all(abs(a[2] - b[2]) < 1e-9 for a, b in zip(seen, lines, strict=True))
            counts[f"from {count} {'in shards' if shard > 1 else 'data parallel'}"] += 1
            counts["resumed on another number" if code else "restarted" if restarts else "ended before"] += 1
            print(f"{n:3} {count} processes, {shard} shards, killed {bool(there)}: {after}; off by {off:.1e}, "
                  f"accuracies {'equal' if same else 'differ'}", flush=True)  # fmt: skip
    print(f"all {asked.times} ended; the weights are off by at most {worst:.1e}; {dict(counts)}")


if __name__ == "__main__":
    main()
