"""Contenders on the same work, in one interleaved run.

A contender is a function that prepares (imports, compiles) and returns `start`. `start()` sets up a run, untimed, and
returns `work`; `work()` is timed and returns Done. Each contender has its own process (worker.py) and global state. The
processes take turns, A B C A B C ..., one at a time. Ratios are taken within a round, so that slow rounds cancel.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeAlias

from attrs import field, frozen

TIMEOUT = 1800.0
"""Seconds for one turn of a contender, also the first, which compiles."""


@frozen
class Done:
    """The work done: steps, training loss of the last epoch, and its own timing if only that is fair."""

    steps: int
    loss: float | None = None
    accuracy: float | None = None
    seconds: float | None = None
    memory: int | None = None
    """Peak bytes on an accelerator."""


Work: TypeAlias = Callable[[], Done]
Contender: TypeAlias = Callable[[], Callable[[], Work]]


class MissingError(Exception):
    """Why a contender can't run here."""


@frozen
class Target:
    """A goal: `contender` is at least `factor` times as fast as `than`."""

    contender: str
    than: str
    factor: float


@frozen(kw_only=True)
class Race:
    """One comparison of contenders of a suite."""

    title: str
    contenders: Sequence[str]
    baseline: str
    targets: Sequence[Target] = ()
    threads: int = 1
    rounds: int = 15
    seconds: float = 0.1
    """Shortest turn: shorter work is repeated."""
    tolerance: float | None = None
    """Largest relative difference of a loss from the median of all."""
    memory: bool = False
    """Whether the table shows the peak memory."""


@frozen
class Result:
    """A contender's seconds a step in each round; or why there are none."""

    name: str
    seconds: list[float] = field(factory=list)
    steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    prepare: float = 0.0
    """Seconds until the first work was done, with imports and compiling."""
    peak: int = 0
    """Peak memory of the process in bytes, compiling included."""
    peak_steps: int = 0
    """The same after the warm-up."""
    missing: str | None = None
    error: str | None = None

    def summary(self) -> dict[str, float]:
        low, median, high = quartiles(self.seconds)
        return {"median": median, "q1": low, "q3": high, "min": min(self.seconds), "max": max(self.seconds)}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def speedup(result: Result, than: Result) -> float:
    """How many times as fast `result` is: the median of the rounds' ratios."""
    return statistics.median(b / a for a, b in zip(result.seconds, than.seconds, strict=True))


class Worker:
    """The process of one contender, which repeats its work for at least so many seconds a turn."""

    def __init__(self, suite: str, name: str, threads: int, seconds: float, env: dict[str, str]) -> None:
        self.name = name
        self.log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", suite, name, str(threads), str(seconds)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command, or {"error": ...} if the process ended or took too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": self._last_words()}
        if not select.select([self.process.stdout], [], [], TIMEOUT)[0]:
            self.process.kill()
            return {"error": f"no answer in {TIMEOUT:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": self._last_words()}

    def _last_words(self) -> str:
        self.process.wait()
        self.log.seek(0)
        return f"ended with code {self.process.returncode}: {self.log.read()[-1500:]}"

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def environment(threads: int, gpu: bool = False) -> dict[str, str]:
    """Variables that limit each library's threads, and hide a GPU."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    xla = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
    host = {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "KERAS_BACKEND": "torch",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if gpu else host),
    }


def run(suite: str, race: Race, say: Callable[[str], None] = print) -> list[Result]:
    """Run all rounds; results in the order of the race."""
    workers: dict[str, Worker] = {}
    facts: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {name: [] for name in race.contenders}
    try:
        for name in race.contenders:  # one after the other: a compiler beside it would disturb a first measurement
            worker = Worker(suite, name, race.threads, race.seconds, environment(race.threads))
            facts[name] = worker.ask("prepare")
            if facts[name].keys() & {"missing", "error"}:
                worker.close()
                say(f"  {name}: {why(facts[name])}")
                continue
            workers[name] = worker
            say(f"  {name}: ready in {facts[name]['prepare']:.1f} s, {_done(facts[name])}")
        check({name: facts[name] for name in workers}, race.tolerance)
        for number in range(race.rounds + 1):  # the first round warms up
            for name, worker in list(workers.items()):
                answer = worker.ask("run")
                facts[name] |= answer
                if "error" in answer:
                    say(f"  {name}: {why(answer)}")
                    workers.pop(name).close()
                elif number > 0:
                    times[name].append(answer["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    keys = ("steps", "loss", "accuracy", "prepare", "peak", "peak_steps", "missing", "error")
    return [
        Result(name, times[name] if "error" not in fact else [], **{k: fact[k] for k in keys if k in fact})
        for name, fact in facts.items()
    ]


def check(facts: dict[str, dict[str, Any]], tolerance: float | None) -> None:
    """Raise AssertionError unless all did equally many steps, with losses within the tolerance."""
    steps = {name: f["steps"] for name, f in facts.items()}
    assert len(set(steps.values())) <= 1, f"not the same number of steps: {steps}"
    losses = {name: f["loss"] for name, f in facts.items() if f["loss"] is not None}
    if tolerance is None or not losses:
        return
    middle = statistics.median(losses.values())
    wrong = {name: loss for name, loss in losses.items() if not abs(loss - middle) <= tolerance * middle}
    assert not wrong, f"a loss far from the others' {middle:.4f}: {wrong}"


def why(answer: dict[str, Any]) -> str:
    """Why a contender failed, in words."""
    if "missing" in answer:
        return f"missing: {answer['missing']}"
    return "failed: " + "\n    ".join(answer["error"].strip().splitlines()[-6:])


def _done(fact: dict[str, Any]) -> str:
    parts = [f"{fact['steps']} steps"]
    parts += [f"loss {fact['loss']:.4f}"] if fact["loss"] is not None else []
    parts += [f"accuracy {fact['accuracy']:.4f}"] if fact["accuracy"] is not None else []
    return ", ".join(parts)
