"""`python -m benchmarks [name ...|all]`: run benchmarks and write tables and pictures to benchmarks/results/.

all.md then compares all results with those of the last commit.
`python -m benchmarks draw [name ...]` redraws the pictures from the stored results. `python -m benchmarks
gpu` runs the benchmarks of a GPU, with options of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from attrs import evolve

from benchmarks import harness, report

SUITES = ("digits_step", "tutorial_mlp", "loading", "disk", "models", "scaling", "members", "grid")


def main() -> int:
    if sys.argv[1:2] == ["gpu"]:
        if "--dry-run" in sys.argv:
            os.environ["BENCH_SMALL"] = "1"
        from benchmarks.gpu import run

        return run.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, interleaved, beside the peers.")
    which = f"of: {', '.join(SUITES)}; all without a name; after the word draw: only draw again"
    parser.add_argument("names", nargs="*", metavar="name", help=which)
    parser.add_argument("--rounds", type=int, help="interleaved rounds, instead of each benchmark's own number")
    parser.add_argument("--only", default="", help="only contenders, or races, with one of these, comma-separated")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results (benchmarks/results)")
    arguments = sys.argv[1:]
    redraw = arguments[:1] == ["draw"]
    options = parser.parse_args(arguments[redraw:])
    names = SUITES if options.names in ([], ["all"]) else options.names
    unknown = set(names) - set(SUITES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    failed = False
    for name in names:
        suite = importlib.import_module(f"benchmarks.{name}")
        if redraw:
            report.redraw(name, options.out, suite.draw)
            continue
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
            report.write(name, question, done, options.out, suite.draw)
        failed |= any(r.error for _, results in done for r in results)
    report.overview(options.out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
