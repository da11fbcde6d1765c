"""How long until the first step is done: on an empty cache, and in the next process?

`python -m benchmarks.start`. Each start is a process of its own on the digits step of digits_step.py, one thread. Cold: the cache
of packages and Inductor's own are empty, and one graph is made; its phases overlap nowhere. Next: `pipe train` with another lr,
seed and number of epochs, from torch imported to the first call of steps done.
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
from benchmarks import digits_step
pipe = digits_step.pipeline()
state, batch = pipe.init(0, steps=460), next(iter(pipe.load.epoch(0, 0)))
compiled = pipe.compile()
phases, start = {}, time.perf_counter()
from pipeline import lower, trace
phases["import of the compiler"] = time.perf_counter() - start
def timed(module, name, words):
    inner = getattr(module, name)
    def outer(*args):
        begin = time.perf_counter()
        try:
            return inner(*args)
        finally:
            phases[words] = time.perf_counter() - begin
    setattr(module, name, outer)
timed(trace, "trace", "trace")
timed(lower, "source", "Inductor, from graph to C++")
timed(lower, "build", "C++ compiler")
compiled(state, batch)
print(json.dumps({**phases, "all": time.perf_counter() - start}))
"""

NEXT = """
import json, sys, time
import torch
start = time.perf_counter()
from cli import config, train
from pipeline.compiled import Compiled
advance, first = Compiled.advance, []
def noted(*args, **keywords):
    done = advance(*args, **keywords)
    first.append(time.perf_counter() - start)
    return done
Compiled.advance = noted
train.run(config.make({**json.loads(sys.argv[1]), "out": sys.argv[2]}), quiet=True)
print(json.dumps({"all": first[0], "compiler imported": "torch._inductor.compile_fx" in sys.modules}))
"""


def start(code: str, cache: str, *args: str) -> dict[str, Any]:
    folders = {"PIPE_CACHE": f"{cache}/pipe", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env={**os.environ, **folders}, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    cold = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(start(COLD, cache))
    with tempfile.TemporaryDirectory() as cache:
        start(NEXT, cache, "{}", f"{cache}/first")
        options = [{"lr": 0.1 / k, "seed": k, "epochs": 2 + k} for k in range(1, 8)]
        later = [start(NEXT, cache, json.dumps(o), f"{cache}/{k}") for k, o in enumerate(options)]
    lines = ["| start | seconds, median | least - most |", "| --- | ---: | ---: |"]
    for words, runs in (("cold", cold), ("next", later)):
        for phase in runs[0]:
            if phase != "compiler imported":
                values = [run[phase] for run in runs]
                middle = f"{statistics.median(values):.2f} | {min(values):.2f} - {max(values):.2f}"
                lines.append(f"| {words}: {phase} | {middle} |")
    text = "\n".join(lines)
    print(text)
    facts = {"name": "start", "question": __doc__.splitlines()[0], **report.facts(), "cold": cold, "next": later}
    (report.RESULTS / "start.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (report.RESULTS / "start.md").write_text(f"# {__doc__.splitlines()[0]}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
