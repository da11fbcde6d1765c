"""See the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

KINDS = ("proof", "faults", "kills", "damage", "links", "hostile", "names", "limits", "cache")
HEAD = """# What was tried, and what held

Written by `python -m tests.attack --thorough --write tests/ATTACK.md`; `--show` prints each that did not hold, and
`--only KIND --match WORDS` tries it again. "left": something unfinished stays. "lost": a run that was stopped ends
otherwise. "outside": files elsewhere were changed. "ran": code ran that nobody named. "unnamed": refused without a
word of the file. "wrong": other numbers, and no word of it.
"""
QUICK, THOROUGH = 40, 800
"""Attacks of each kind, where there are more."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--thorough", action="store_true", help="at least 5,000 attacks")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, by commas  [default: all]")
    parser.add_argument("--each", type=int, help="so many attacks of each kind, at most")
    parser.add_argument("--match", action="append", metavar="WORDS", help="only attacks called so; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of which are tried, where it is not all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="each that did not hold, and what it said")
    parser.add_argument("--write", metavar="FILE", help="the table, as Markdown")
    parser.add_argument("--log", metavar="FILE", help="each that did not hold, a line of JSON each")
    options = parser.parse_args()
    root = Path(os.environ.get("ATTACK_ROOT") or _again())
    try:
        sys.exit(_attack(options, root))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _again() -> NoReturn:
    """The same command anew, with calls.c before the C library and a folder of its own."""
    root = tempfile.mkdtemp(prefix="attack-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    source = Path(__file__).with_name("calls.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", f"{root}/calls.so", source, "-ldl"], check=True)
    own = {"ATTACK_ROOT": root, "LD_PRELOAD": f"{root}/calls.so", "PIPE_CACHE": f"{root}/cache", "HOME": root,
           "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "0", "POLARS_MAX_THREADS": "1",
           "MPLCONFIGDIR": f"{root}/matplotlib", "TERM": "dumb", "COLUMNS": "120", "LC_ALL": "C.UTF-8"}  # fmt: skip
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "RAYON")}
    command = [sys.executable, "-m", "tests.attack", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **own, **threads})


def _attack(options: argparse.Namespace, root: Path) -> int:
    from tests.attack import ground as grounds
    from tests.attack import made

    start = time.monotonic()
    grounds.warm(root, made.files)
    made.make(root / "made", lambda name: True)
    attacks: list[Any] = []
    for kind in options.only.split(","):
        module = __import__(f"tests.attack.{kind}", fromlist=[kind])
        found = list(module.attacks(grounds.Ground(root / "plan", root / "made")))
        found = [a for a in found if any(m in f"{a.kind}, {a.command}: {a.name}" for m in options.match or [""])]
        most = options.each or (THOROUGH if options.thorough else QUICK)
        print(f"{kind}: {min(most, len(found)):,} of {len(found):,}", flush=True)
        attacks += _sampled(found, most, random.Random(options.seed))
    print(f"{len(attacks)} attacks, ready after {grounds.elapsed(start)}", flush=True)
    workers = []
    for job in range(options.jobs):
        worker = os.fork()
        if not worker:
            _work(job, attacks[job :: options.jobs], root)
        workers.append(worker)
    for worker in workers:
        os.waitpid(worker, 0)
    results = [json.loads(line) for job in range(options.jobs) for line in (root / f"results-{job}").open()]
    results.sort(key=lambda r: (KINDS.index(r["kind"]), r["command"], r["name"]))
    if options.log:
        Path(options.log).write_text("".join(json.dumps(r) + "\n" for r in results if r["problems"]))
    text = table(results)
    if options.show:
        _show(results)
    print(text)
    lost = len(attacks) - len(results)
    print(f"\n{len(results)} attacks in {grounds.elapsed(start)}{f'; {lost} gave no result' if lost else ''}")
    if options.write:
        way = f"seed {options.seed}" + (", --thorough" if options.thorough else "")
        Path(options.write).write_text(f"{HEAD}\n{len(results):,} attacks ({way}).\n\n{text}\n")
    return int(lost > 0 or any(r["problems"] for r in results))


def _sampled(found: list[Any], most: int, chance: random.Random) -> list[Any]:
    """So many, as evenly as can be over the commands and over what is tried."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for attack in found:
        groups[attack.command, re.split(r"[:\d]", attack.name)[0]].append(attack)
    each = list(groups.values())
    for group in (each, *each):
        chance.shuffle(group)
    return [a for turn in zip_longest(*each) for a in turn if a is not None][:most]


def _work(job: int, attacks: Sequence[Any], root: Path) -> None:
    """Make some attacks, in a process of its own; does not return."""
    from tests.attack.ground import Ground, end_with_parent

    try:
        end_with_parent()
        ground = Ground(root / f"job-{job}", root / "made")
        with (root / f"results-{job}").open("w") as file:
            for attack in attacks:
                problems = ground.attack(attack)
                found = [asdict(p) for p in problems]
                line = {"kind": attack.kind, "command": attack.command, "name": attack.name, "problems": found}
                file.write(json.dumps(line) + "\n")
                file.flush()
        shutil.rmtree(root / f"job-{job}", ignore_errors=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Tried and held, by kind and command, and how the others ended."""
    rows: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [0, 0, Counter()])
    for r in results:
        for key in ((r["kind"], r["command"]), ("all", "")):
            row = rows[key]
            row[0] += 1
            row[1] += not r["problems"]
            row[2].update({p["kind"] for p in r["problems"]})
    lines = ["| kind | command | tried | held | what did not |", "| --- | --- | ---: | ---: | --- |"]
    for (kind, command), (tried, held, how) in sorted(rows.items(), key=lambda r: r[0][0] == "all"):
        words = ", ".join(f"{n} {name}" for name, n in sorted(how.items()))
        lines.append(f"| {kind} | {command} | {tried:,} | {held:,} | {words} |")
    return "\n".join(lines)


def _show(results: Sequence[dict[str, Any]]) -> None:
    for r in results:
        for p in r["problems"]:
            print(f"{r['kind']}, {r['command']}: {r['name']}\n  {p['kind']}: {p['what']}")
            if p["args"]:
                print(f"  pipe {shlex.join(p['args'])}")
            print("".join(f"    {line}\n" for line in p["err"].strip().splitlines()[-8:]))


if __name__ == "__main__":
    main()
