"""`python -m benchmarks [name ...]`: run benchmarks and write what they measured to benchmarks/results/.

Those of a GPU are `python -m benchmarks gpu`, with options of their own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from attrs import evolve

from benchmarks import harness, report

SUITES = ("digits_step", "tutorial_mlp", "loading", "models", "scaling", "members", "grid")


def main() -> int:
    if sys.argv[1:2] == ["gpu"]:
        if "--dry-run" in sys.argv:
            os.environ["BENCH_SMALL"] = "1"
        from benchmarks.gpu import run

        return run.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, interleaved, beside the peers.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to run, of: {', '.join(SUITES)} (all)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, instead of each benchmark's own number")
    parser.add_argument("--only", default="", help="only contenders, or races, with one of these, comma-separated")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results (benchmarks/results)")
    options = parser.parse_args()
    unknown = set(options.names) - set(SUITES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    failed = False
    for name in options.names or SUITES:
        suite = importlib.import_module(f"benchmarks.{name}")
        question = (suite.__doc__ or "").strip().splitlines()[0]
        print(f"{name}: {question}", flush=True)
        done = []
        for race in suite.RACES:
            words = [w for w in options.only.split(",") if w]
            chosen = [c for c in race.contenders if not words or any(w in c or w in race.title for w in words)]
            if not chosen:
                continue
            race = evolve(race, contenders=chosen, rounds=options.rounds or race.rounds)
            print(f" {race.title}", flush=True)
            done.append((race, harness.run(name, race, lambda line: print(line, flush=True))))
            print("\n".join(report.markdown_race(*done[-1])), flush=True)
        if done:
            report.write(name, question, done, options.out, getattr(suite, "draw", report.chart))
        failed |= any(r.error for _, results in done for r in results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
