"""The process of one contender: `python -m benchmarks.worker suite contender threads seconds`, driven line by line."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import asdict

from benchmarks.harness import Done, MissingError, Work


def main() -> None:
    suite, name, threads, seconds = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of libraries go to stderr
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    start: Callable[[], Work] | None = None
    for line in sys.stdin:
        try:
            if line.strip() == "prepare":
                begin = time.perf_counter()
                start = prepare(suite, name, int(threads))
                answer: dict[str, Any] = {**asdict(timed(start)[1]), "prepare": time.perf_counter() - begin}
                answer["peak"] = peak_memory()
                forget_peak_memory()
            else:
                assert start is not None
                took, done = turn(start, float(seconds))
                answer = {"seconds": took, "peak_steps": peak_memory(), "memory": done.memory}
        except MissingError as e:
            answer = {"missing": str(e)}
        except ImportError as e:
            ours = (e.name or "").split(".")[0] in ("pipeline", "benchmarks")
            answer = {"error" if ours else "missing": f"{type(e).__name__}: {e}"}
        except Exception:
            answer = {"error": traceback.format_exc()[-3000:]}
        print(json.dumps(answer), file=answers)


def prepare(suite: str, name: str, threads: int) -> Callable[[], Work]:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start: Callable[[], Work] = importlib.import_module(f"benchmarks.{suite}").CONTENDERS[name]()
    return start


def timed(start: Callable[[], Work]) -> tuple[float, Done]:
    work = start()
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        done = work()
        seconds = time.perf_counter() - begin
    finally:
        gc.enable()
    return done.seconds if done.seconds is not None else seconds, done


def turn(start: Callable[[], Work], least: float) -> tuple[float, Done]:
    """Seconds a step, over at least `least` seconds of work, and the last result."""
    total, steps = 0.0, 0
    while not steps or total < least:
        seconds, done = timed(start)
        total, steps = total + seconds, steps + done.steps
    return total / steps, done


def peak_memory() -> int:
    """Peak memory of this process; getrusage's ru_maxrss would start from its parent's."""
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def forget_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
