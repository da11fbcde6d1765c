"""How long until the first step is done: on empty caches, in the next process, and for large graphs?

`python -m benchmarks.start [large]`. Each start is a process of its own, timed from torch imported to the first step
done. Digits: the train step for whole batches and for the last one, and the evaluation, as `pipe train` needs them, one
thread. "inductor": the same programs through torch.compile with Inductor's defaults, in turn. Next: `pipe train` that
waits for its graphs, with another lr, seed and number of epochs. Uncompiled: `pipe train` as it is, on empty caches.
Large: one train step on a batch, two threads; "by hand" is torch.compile(model) and a loop by hand, with its loss and
optimizer uncompiled: the recurrent layers are left out of its graph.
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

COLD = """
import json, sys, time
import torch
torch.set_num_threads(1)
start = time.perf_counter()
from cli import build, config
made = build.job(config.make({}))
state = made.pipe.init(0, steps=460)
compiled = made.pipe.compile(backend=sys.argv[1])
compiled.prepare(state, made.validation)
compiled.step(state)
print(json.dumps({"all": time.perf_counter() - start, "graphs": len(compiled.report.graphs)}))
"""

NEXT = """
import json, sys, time
import torch
start = time.perf_counter()
from cli import config, training
from pipeline.compile import Compiled
advance, first = Compiled.advance, []
def noted(*args, **keywords):
    done = advance(*args, **keywords)
    first.append(time.perf_counter() - start)
    return done
Compiled.advance = noted
training.train(config.make({**json.loads(sys.argv[1]), "out": sys.argv[2]}), quiet=True)
print(json.dumps({"all": first[0], "compiler imported": "torch._inductor.compile_fx" in sys.modules}))
"""

LARGE = """
import json, sys, time
import torch
from torch import nn
torch.set_num_threads(2)
kind, way = sys.argv[1:]
start = time.perf_counter()
from pipeline import Pipeline, backward, forward, loss, models, update

class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer(16, 32, batch_first=True), nn.Linear(32, 5)
    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])

inputs, targets = torch.randn(32, {"lstm": 200, "gru": 500}.get(kind, 1), 16), torch.arange(32) % 5
if kind == "linear":
    model = nn.Sequential(*[m for _ in range(100) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 5))
    inputs = torch.randn(32, 64)
elif kind == "transformer":
    model = models.transformer(64, width=64, heads=4, depth=24, context=32)
    inputs = torch.randint(64, (8, 32))
    targets = (inputs + 1) % 64
else:
    model = Recurrent({"lstm": nn.LSTM, "gru": nn.GRU}[kind])
said = ""
if way == "by hand":
    optimizer, call = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), torch.compile(model)
    outputs = call(inputs)
    nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten()).backward()
    optimizer.step()
else:
    dim = -1 if kind == "transformer" else 1
    stages = loss.cross_entropy(dim=dim), backward.gradients(), update.sgd(0.01, momentum=0.9)
    pipe = Pipeline(forward.model(model), *stages)
    compiled = pipe.compile(backend=way)
    compiled(pipe.init(0), {"inputs": inputs, "targets": targets})
    said = str(compiled.report)
print(json.dumps({"all": time.perf_counter() - start, "report": said}))
"""


def start(code: str, cache: str, *args: str) -> dict[str, Any]:
    folders = {"PIPE_CACHE": f"{cache}/pipe", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env={**os.environ, **folders}, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def cold(code: str, *args: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        return start(code, cache, *args)


def small() -> dict[str, list[dict[str, Any]]]:
    """The digits, cold by each backend in turn, and the next runs."""
    turns = [(cold(COLD, "auto"), cold(COLD, "inductor")) for _ in range(3)]
    at_once = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as cache:
            at_once.append(start(NEXT, cache, "{}", f"{cache}/run"))
    with tempfile.TemporaryDirectory() as cache:
        start(NEXT, cache, '{"eager_steps": 0}', f"{cache}/first")
        options = [{"lr": 0.1 / k, "seed": k, "epochs": 2 + k, "eager_steps": 0} for k in range(1, 8)]
        later = [start(NEXT, cache, json.dumps(o), f"{cache}/{k}") for k, o in enumerate(options)]
    ours, inductor = ([turn[i] for turn in turns] for i in (0, 1))
    compiled = {"digits, empty caches": ours, "digits, empty caches: inductor": inductor, "digits, next": later}
    return {**compiled, "digits, uncompiled": at_once}


def large() -> dict[str, list[dict[str, Any]]]:
    """Large graphs, each once by each way: they take minutes."""
    words = {
        "linear": "100 linear layers",
        "lstm": "LSTM, 200 steps",
        "gru": "GRU, 500 steps",
        "transformer": "24 blocks",
    }
    ways = {"auto": "", "inductor": ": inductor", "by hand": ": by hand"}
    return {words[kind] + ways[way]: [cold(LARGE, kind, way)] for kind in words for way in ways}


def main() -> None:
    name = "start_large" if "large" in sys.argv[1:] else "start"
    found = large() if name == "start_large" else small()
    lines = ["| start | seconds, median | least - most |", "| --- | ---: | ---: |"]
    for words, runs in found.items():
        values = [run["all"] for run in runs]
        lines.append(f"| {words} | {statistics.median(values):.2f} | {min(values):.2f} - {max(values):.2f} |")
    report.save(name, __doc__.splitlines()[0], "\n".join(lines), starts=found)


if __name__ == "__main__":
    main()
