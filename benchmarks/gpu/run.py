"""`python -m benchmarks gpu`: every contender on every job, each in its own process; results after every row.

Each contender starts on empty caches, for the time to its first work, and is measured at once. Contenders of a small
job then take turns for more rounds. Then ours and torch.compile start again from their caches, in a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, define, field

from benchmarks import harness, report
from benchmarks.gpu.contenders import JAX, WAYS
from benchmarks.gpu.jobs import JOBS, Job
from benchmarks.harness import Worker

ROUNDS = 5
AGAIN = ("ours, many steps a call", "torch.compile")
"""Contenders with a measured start from the cache."""
ALL = (*WAYS, *(f"JAX, {way}" for way in JAX))
LATE = ("torch.compile, max-autotune", f"JAX, {JAX[-1]}")
"""Measured last: slow to compile, or least informative."""
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""bfloat16 operations a second without sparsity, by NVIDIA's data sheets."""


@define
class Row:
    job: str
    way: str
    seconds: list[float] = field(factory=list)
    """A step, or a member's step, in each round."""
    loss: float | None = None
    memory: int | None = None
    """Peak bytes on the device in steps."""
    first: float | None = None
    """Seconds of a process until its first work is done, on empty caches."""
    again: float | None = None
    """The same from the caches."""
    problem: str = ""


class Bench:
    """The rows so far, and their files."""

    def __init__(self, out: Path, small: bool, minutes: float, only: str) -> None:
        self.out, self.small, self.end, self.only = out, small, time.monotonic() + 60 * minutes, only
        self.rows: list[Row] = []
        self.operations: dict[str, float] = {}
        self.facts = {**report.facts(), "device": device(), "small": small}
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as caches:
            for late in (False, True):
                for name, job in JOBS.items():
                    self.operations[name] = job.operations()
                    rows = [Row(name, way) for way in ALL if (way in LATE) == late and self.only in f"{name}: {way}"]
                    self.job(job, rows, Path(caches))
        return int(any("failed" in row.problem for row in self.rows))

    def job(self, job: Job, rows: list[Row], caches: Path) -> None:
        alive: dict[str, Worker] = {}
        together = job.per_step == 1 or job.members > 1  # larger ones would not fit beside each other
        try:
            for row in rows:
                self.rows.append(row)
                worker = self.begun(row, caches, "first")
                if worker is not None:
                    for _ in range(1 if together else ROUNDS):
                        self.turn(row, worker)
                    if together and row.seconds:
                        alive[row.way] = worker
                    else:
                        worker.close()
                self.write(row)
            for _ in range(ROUNDS - 1):
                for row in rows:
                    if row.way in alive and time.monotonic() < self.end:
                        self.turn(row, alive[row.way])
        finally:
            for worker in alive.values():
                worker.close()
        for row in [row for row in rows if row.way in AGAIN and row.seconds]:
            if (worker := self.begun(row, caches, "again")) is not None:
                worker.close()
            self.write(row)

    def begun(self, row: Row, caches: Path, what: str) -> Worker | None:
        """A contender after its first work; None if it failed."""
        if time.monotonic() > self.end:
            row.problem = row.problem or "left out: the time was over"
            return None
        cache = caches / f"{row.job} {row.way}".replace(" ", "-")
        folders = {"PIPE_CACHE": f"{cache}/pipe", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        env = {**harness.environment(os.cpu_count() or 1, gpu=not self.small), **folders}
        env |= {"BENCH_SMALL": "1"} if self.small else {}
        worker = Worker("gpu.contenders", f"{row.job}: {row.way}", os.cpu_count() or 1, 0.0, env)
        answer = worker.ask("prepare")
        if answer.keys() & {"missing", "error"}:
            row.problem = harness.why(answer)
            worker.close()
            return None
        setattr(row, what, answer["prepare"])
        row.loss = answer["loss"]
        return worker

    def turn(self, row: Row, worker: Worker) -> None:
        answer = worker.ask("run")
        if "error" in answer:
            row.problem = harness.why(answer)
            return
        row.seconds.append(answer["seconds"])
        row.memory = answer.get("memory")

    def write(self, new: Row) -> None:
        """Write all rows as JSON and Markdown, and print the new one."""
        found = {**self.facts, "operations": self.operations, "rows": [asdict(row) for row in self.rows]}
        (self.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (self.out / "gpu.md").write_text(self.markdown(), encoding="utf-8")
        print(f"| {new.job} {self.line(new)}", flush=True)

    def markdown(self) -> str:
        versions = ", ".join(f"{name} {v}" for name, v in self.facts["versions"].items())
        lines = ["How fast is a step on a GPU, beside plain torch, torch.compile and JAX?", "",
                 f"{self.facts['device']['name']}; {self.facts['date'][:10]}; commit {self.facts['commit'][:10]}; "
                 f"{versions}."]  # fmt: skip
        for name, job in JOBS.items():
            rows = [row for row in self.rows if row.job == name]
            if rows:
                goals = [f"Goals: {'; '.join(job.goals)}.", ""] if job.goals else []
                step = "µs a member's step" if job.members > 1 else "µs a step"
                heads = ["", step, "quartiles", f"{job.thing}/s", "share of peak", "MiB", "first work, s", "again, s"]
                table = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}", *map(self.line, rows)]
                lines += ["", f"## {job.title}", "", *goals, *table]
        return "\n".join(lines) + "\n"

    def line(self, row: Row) -> str:
        if not row.seconds:
            return f"| {row.way} | {row.problem} | | | | | | |"
        job = JOBS[row.job]
        low, median, high = harness.quartiles(row.seconds)
        rate = job.per_step / (median * job.members)
        peak = next((p for known, p in PEAK.items() if known in self.facts["device"]["name"]), None)
        share = self.operations[row.job] / (median * job.members) / peak if peak and job.precision == "bf16" else None
        cells = [
            row.way,
            f"{1e6 * median:,.3g}" if median < 1e-3 else f"{1e6 * median:,.0f}",
            f"{1e6 * low:,.3g} - {1e6 * high:,.3g}",
            f"{rate:,.0f}",
            f"{100 * share:.1f} %" if share is not None else "",
            f"{row.memory / 2**20:,.0f}" if row.memory is not None else "",
            f"{row.first:.1f}" if row.first is not None else "",
            f"{row.again:.1f}" if row.again is not None else "",
        ]
        return f"| {' | '.join(cells)} |{f' {row.problem}' if row.problem else ''}"


def device() -> dict[str, Any]:
    """The GPU, or why there is none."""
    if not torch.cuda.is_available():
        return {"name": "no GPU: tried in small on the CPU"}
    facts = torch.cuda.get_device_properties(0)
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,clocks.sm", "--format=csv,noheader"],
                            capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    return {"name": facts.name, "memory": facts.total_memory, "multiprocessors": facts.multi_processor_count,
            "driver, clock": driver}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="run every case in small on the CPU")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    parser.add_argument("--only", default="", help="only cases with this in `job: way`")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many (9)")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{job}: {way}" for job in JOBS for way in ALL))
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU here; --dry-run tries every case in small on the CPU")
    out = (
        Path(tempfile.mkdtemp(prefix="gpu-dry-run-"))
        if options.dry_run and options.out == report.RESULTS
        else options.out
    )
    code = Bench(out, options.dry_run, 600 if options.dry_run else options.minutes, options.only).run()
    print(f"written to {out}")
    return code
