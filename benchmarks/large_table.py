"""How much memory and time does a table of 10 million rows take?

`python -m benchmarks.large_table [ROWS]`. The same rows as CSV and as Parquet: five numbers, a category, a date and a
target. Each row of the result is a process of its own: polars' read of the file (all cells parsed), `sources.table`,
and the whole of `pipe train` for one epoch by its defaults and with `--model mlp`. Reading is timed from the libraries
imported on; training as a whole command, with the programs compiled into an empty cache. Peak: of resident memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

ROWS = 10_000_000

MAKE = """
import sys
import numpy as np, polars as pl
from pathlib import Path
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
random, part = np.random.default_rng(0), 500_000
with open(folder / "table.csv", "wb") as file:
    for begin in range(0, rows, part):
        n = min(part, rows - begin)
        x = random.normal(size=(n, 5)).round(4)
        kind, days = random.integers(0, 3, n), random.integers(0, 3650, n)
        y = x @ [1, -2, 0.5, 0, 3] + kind + np.sin(2 * np.pi * days / 365.2425) + random.normal(size=n) * 0.1
        columns = {f"x{i}": x[:, i] for i in range(5)}
        columns |= {"kind": np.array(["red", "green", "blue"])[kind], "day": np.datetime64("2015-01-01") + days}
        pl.DataFrame({**columns, "y": y.round(4)}).write_csv(file, include_header=begin == 0)
pl.scan_csv(folder / "table.csv", try_parse_dates=True).sink_parquet(folder / "table.parquet")
"""

POLARS = """
import sys, time
import polars as pl
began = time.perf_counter()
read = (lambda p: pl.read_csv(p, try_parse_dates=True)) if sys.argv[1].endswith("csv") else pl.read_parquet
data = read(sys.argv[1])
print(time.perf_counter() - began, len(data))
"""

OURS = """
import sys, time
import polars
from pipeline import sources
began = time.perf_counter()
data = sources.table(sys.argv[1])
print(time.perf_counter() - began, len(data.train) + len(data.held_out))
"""


def measured(*command: str, cache: str = "") -> tuple[str, float, float]:
    """Output of a process, its seconds as a whole, and its peak of resident memory in GiB."""
    began = time.perf_counter()
    folders = {"PIPE_CACHE": f"{cache}/pipe", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"} if cache else {}
    with subprocess.Popen(command, env={**os.environ, **folders}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[-200:]} failed: {output}")
    return output, time.perf_counter() - began, usage.ru_maxrss / 2**20


def read(code: str, file: Path, rows: int) -> dict[str, Any]:
    output, _, peak = measured(sys.executable, "-c", code, str(file))
    seconds, count = output.split()
    assert int(count) == rows
    return {"seconds": float(seconds), "peak": peak}


def trained(file: Path, folder: Path, *options: str) -> dict[str, Any]:
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "cli.main", "train", "--data", str(file), "--target", "y", "--epochs", "1"]
    _, seconds, peak = measured(*command, *options, "--out", str(out / "run"), cache=str(out))
    [line] = (out / "run" / "metrics.jsonl").read_text().splitlines()
    epoch = json.loads(line)
    return {"seconds": seconds, "peak": peak, "epoch": epoch["seconds"], "r2": epoch["validate/r2"]}


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured(sys.executable, "-c", MAKE, name, str(rows))
        for file in (folder / "table.csv", folder / "table.parquet"):
            kind = f"{file.suffix[1:]}, {file.stat().st_size / 1e6:,.0f} MB"
            found[f"{kind}: polars"] = base = read(POLARS, file, rows)
            found[f"{kind}: `sources.table`"] = read(OURS, file, rows)
            found[f"{kind}: `pipe train`"] = trained(file, folder)
            found[f"{kind}: `pipe train --model mlp`"] = trained(file, folder, "--model", "mlp")
            for way in found:
                if way.startswith(kind):
                    found[way]["ratio"] = found[way]["seconds"] / base["seconds"]
                    print(way, found[way], flush=True)
    about = f"{rows:,} rows; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end"
    lines = [about, "", "| | seconds | times polars' | of it the epoch | million rows/s | peak, GiB | r2 |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for way, f in found.items():
        epoch, r2 = (f"{f['epoch']:.1f}", f"{f['r2']:.4f}") if "epoch" in f else ("", "")
        speed = rows / 1e6 / f["seconds"]
        lines.append(
            f"| {way} | {f['seconds']:.1f} | {f['ratio']:.1f} | {epoch} | {speed:.2f} | {f['peak']:.2f} | {r2} |"
        )
    name = "large_table" if rows == ROWS else f"large_table_{rows}"
    report.save(name, (__doc__ or "").splitlines()[0], "\n".join(lines), rows=rows, measurements=found)


if __name__ == "__main__":
    main()
