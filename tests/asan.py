"""The native backend under AddressSanitizer: programs that the suite draws, in processes of their own.

    python -m tests.asan              # a few programs
    python -m tests.asan --thorough   # all nets of the suite, and many that are drawn

What a program does wrong in memory ends its process; the next goes on behind it. Kernels and calls are compiled with
-fsanitize=address and undefined by a patch here: the library has no such switch.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("fsanitize=address", "fsanitize=undefined", "fno-sanitize-recover=undefined", "fno-sanitize=vptr,alignment")
TOGETHER = 10
"""Programs that are compiled to one library: torch's headers take longer than each."""
FEW = ("pipe mlp", "deep", "ids embedding", "ids scatter")


def preloads():
    """The sanitizers' libraries, or None where the compiler has none."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        try:
            done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        if not Path(done.stdout.strip()).is_absolute():
            return None
        found.append(str(Path(done.stdout.strip()).resolve()))
    return found


def programs(drawn):
    """By names, functions that make a compiled step of the native backend, a State, and what is then done with them."""
    from tests import pipes, test_ids, test_modules, test_repeats

    found = {f"pipe {name}": functools.partial(held, make) for name, make in pipes.ALL.items()}
    found |= {f"drawn {i}": functools.partial(held, functools.partial(one_drawn, i)) for i in range(drawn)}
    found["deep"] = functools.partial(held, test_repeats.deep, alone=True)
    for name, kind in test_modules.KINDS.items():
        if kind.fusable and not (kind.refused or kind.uncaptured):
            found[f"net {name}"] = functools.partial(held, functools.partial(test_modules.piped, kind), alone=True)
    return found | {f"ids {name}": functools.partial(refused, name) for name in test_ids.TAKING if name != "take"}


def held(make, alone=False):
    """Steps of an epoch in one call and, unless `alone`, an evaluation; a new program is checked beside the plain
    functions."""
    pipe = make()
    step, state = pipe.compile(backend="native", steps="epoch"), pipe.init(0, steps=99)

    def run():
        after, _ = step(state)
        if not alone:
            step.evaluate(after)

    return step, state, () if alone else (pipe.load,), run


def refused(name):
    """Fused steps that meet an id out of range, and one that does not."""
    from pipeline.errors import StageError
    from tests import test_ids

    own = test_ids.pipe(name)
    step, state = own.compile(backend="native"), own.init(0)
    first = test_ids.batches(own)[0]

    def run():
        after, _ = step(state)
        for wrong in (test_ids.ROWS, -1, -test_ids.ROWS - 1, 2**40, -(2**40)):
            try:
                after, _ = step(after, {**first, "inputs": first["inputs"].clone().fill_(wrong)})
            except StageError as e:
                said = str(e)
            else:
                said = f"id {wrong} is outside" if wrong == -1 and name in test_ids.WRAPPING else ""
            assert f"id {wrong} is outside" in said, said

    return step, state, (), run


def one_drawn(i):
    """A net, a rule and batches of drawn sizes."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, place
    from tests import strategies

    made = []

    @seed(i)
    @settings(
        max_examples=1, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(st.data())
    def run(data):
        features, samples = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
        widths = data.draw(strategies.widths(features))
        x, y = data.draw(strategies.normals((samples, features))), data.draw(strategies.labels((samples,), 3))
        made.append(
            Pipeline(
                load.batches({"inputs": x, "targets": y}, size=data.draw(st.integers(1, samples))),
                place.on("cpu"),
                forward.model(lambda: models.mlp(*widths)),
                loss.cross_entropy(smoothing=data.draw(st.sampled_from([0.0, 0.1]))),
                evaluate.accuracy(),
                backward.gradients(accumulate=data.draw(st.sampled_from([1, 1, 2]))),
                data.draw(strategies.updates),
            )
        )

    run()
    return made[-1]


def inside(names, drawn):
    """In the child: each program, its name before it and its outcome behind it. Several are compiled at once."""
    import warnings

    import torch

    from pipeline.compile import backends
    from pipeline.compile.backends import native
    from pipeline.compile.build import Builder

    warnings.simplefilter("ignore")
    plain, finish, shared = native._options, Builder.finish, native.Native()

    @functools.cache
    def options(compile_only, level=""):
        made = plain(compile_only, "-Og")
        made._cflags = [*made._cflags, *FLAGS, "fno-omit-frame-pointer"]
        made._ldflags = [*made._ldflags, *FLAGS[:2]]
        return made

    native._options = options
    native._PLANNED = -1  # in one allocation for all, nobody sees what reaches into the next
    backends.BACKENDS["native"] = lambda: shared  # all programs wait together
    torch.set_num_threads(2)
    known = programs(drawn)
    for at in range(0, len(names), TOGETHER):
        runs = {}
        Builder.finish = lambda *_: None
        for name in names[at : at + TOGETHER]:
            try:
                torch.manual_seed(0)
                step, state, data, run = known[name]()
                step.prepare(state, *data)
                runs[name] = run
            except Exception as e:
                print(f"begin {name}\nfailed {type(e).__name__}: {e}".split(chr(10) * 2)[0][:300], flush=True)
        Builder.finish = finish
        for name, run in runs.items():
            print("begin", name, flush=True)
            try:
                run()
            except Exception as e:
                print("failed", f"{type(e).__name__}: {e}".replace("\n", " ")[:300], flush=True)
            else:
                print("held", flush=True)


def campaign(names, drawn, seconds=None):
    """What became of each program: "held", "failed ..." of its own, or the sanitizer's report."""
    done, left = {}, list(names)
    while left:
        with tempfile.TemporaryDirectory() as folder:
            env = {
                **os.environ,
                "LD_PRELOAD": " ".join(preloads()),
                "ASAN_OPTIONS": f"detect_leaks=0:log_path={folder}/report:detect_odr_violation=0",
                "UBSAN_OPTIONS": "print_stacktrace=1",
                "PIPE_CACHE": f"{folder}/cache",
            }
            command = [sys.executable, "-m", "tests.asan", "--inside", str(drawn), *left]
            ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=seconds)
            reports = "".join(p.read_text(errors="replace") for p in Path(folder).glob("report*"))
        name = None
        for line in ran.stdout.splitlines():
            word, _, rest = line.partition(" ")
            if word == "begin":
                name = rest
            elif word in ("held", "failed") and name is not None:
                done[name], name = line, None
        if ran.returncode or reports:
            done[name or left[0]] = f"finding (exit {ran.returncode}): {reports or ran.stderr[-3000:]}"
        left = [n for n in left if n not in done]
    return done


def main():
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[3:], int(sys.argv[2]))
    if preloads() is None:
        sys.exit("no libasan here: gcc -print-file-name=libasan.so finds none")
    drawn = 40 if "--thorough" in sys.argv else 2
    names = [n for n in programs(drawn) if "--thorough" in sys.argv or n in FEW or n.startswith("drawn")]
    done = campaign(names, drawn)
    wrong = {name: said for name, said in done.items() if said != "held"}
    for name, said in wrong.items():
        print(f"{name}: {said}\n")
    findings = sum(said.startswith("finding") for said in wrong.values())
    print(f"{len(done)} programs, {findings} findings, {len(wrong) - findings} failed otherwise")
    return sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
