"""Meshes: a run of several processes is the run of one, whatever they are given of it. What they run is in on_mesh."""

import functools
import json
import os
import signal
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline import checkpoint, mesh, place
from pipeline.checkpoint.write import layout
from pipeline.compile.collectives import schedule
from pipeline.errors import DeviceError
from pipeline.mesh import Mesh, Rows
from pipeline.tree import named
from tests import commands, forked, kills, on_mesh
from tests.kills import workers
from tests.team import ROOT, launch


def far(a, b, *names):
    """The largest difference of what two trees have under names, and that they have the same."""
    a, b = named(a), named(b)
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in b if k.startswith(names or ""))


@given(st.integers(1, 300), st.integers(1, 9))
def test_each_sample_is_on_one_process(whole, processes):
    """The parts of a batch are all of it, in order; one that has none takes a sample that it does not count."""
    batch = {"inputs": torch.arange(whole), "words": [str(i) for i in range(whole)], "rate": 0.5}
    parts = [Rows(r, processes, whole) for r in range(processes)]
    taken = [part.shard(batch).values for part in parts if part.count]
    assert torch.cat([t["inputs"] for t in taken]).tolist() == list(range(whole))
    assert [w for t in taken for w in t["words"]] == batch["words"]
    assert max(p.count for p in parts) - min(p.count for p in parts) <= 1
    assert all(len(p.shard(batch).values["inputs"]) == p.length for p in parts)


@given(st.integers(1, 40), st.integers(1, 7))
def test_shards_are_the_whole(rows, shards):
    """The rows of all shards, without what fills them up, are the tensor; all are of one shape."""
    whole = torch.arange(rows * 2.0).view(rows, 2)
    meshes = [Mesh(1, shards, r, torch.device("cpu"), "", "", "") for r in range(shards)]
    parts = [m.part(whole) for m in meshes]
    assert {p.shape for p in parts} == {(-(-rows // shards), 2)}
    assert torch.equal(torch.cat(parts)[:rows], whole)
    assert torch.equal(torch.cat([whole[slice(*m.span(rows)[:2])] for m in meshes]), whole)


def test_one_process_needs_no_mesh():
    """The same script runs alone; for more processes than there are, it is told how to start them."""
    assert place.mesh("cpu").mesh is None
    assert place.mesh("cpu").first
    assert torch.equal(mesh.summed(torch.ones(2)), mesh.gathered(torch.ones(2)))
    with pytest.raises(DeviceError, match="--nproc-per-node 4"):
        place.mesh("cpu", data=2, shard=2)


@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float64, torch.bool])),
                min_size=1, max_size=5))  # fmt: skip
def test_a_file_laid_out_is_a_safetensors_file(tmp_path_factory, made):
    """What processes write to their places is read by the library itself."""
    tensors = {f"t{i}": torch.ones(shape, dtype=dtype) for i, (shape, dtype) in enumerate(made)}
    header, places = layout({k: (tuple(t.shape), t.dtype) for k, t in tensors.items()})
    path = tmp_path_factory.mktemp("made") / "x.safetensors"
    with path.open("wb") as file:
        file.write(header)
        for k, (at, size) in places.items():
            file.seek(len(header) + at)
            file.write(tensors[k].reshape(-1).view(torch.uint8).numpy().tobytes() if size else b"")
        file.truncate(len(header) + sum(size for _, size in places.values()))
    with safe_open(path, "pt") as file:
        assert all(torch.equal(file.get_tensor(k), t) for k, t in tensors.items())


def test_collectives_come_when_they_are_needed():
    """Whole weights are made before each use far apart, and a sum begins right behind what it is of."""
    ops = torch.ops._c10d_functional

    def step(a, b, c, x):
        whole = [ops.wait_tensor(ops.all_gather_into_tensor(torch.cat([w]), 1, "0")).view(4, 4) for w in (a, b, c)]
        y = x
        for w in (*whole, *whole[::-1]):
            y = y @ w
        return ops.wait_tensor(ops.all_reduce(x @ x, "sum", "0")), y

    args = [torch.zeros(4, 4) for _ in range(4)]
    traced = make_fx(step, tracing_mode="fake")(*args)
    schedule(traced)
    traced.graph.lint()
    order = [str(n.target).split(".")[1] for n in traced.graph.nodes if n.op == "call_function"]
    heavy = [o for o in order if o in ("all_gather_into_tensor", "mm", "all_reduce")]
    each = ["all_gather_into_tensor", "mm"]
    assert heavy[:6] == each * 3
    assert heavy.count("all_gather_into_tensor") == 4  # of the three, two are still there on the way back
    assert heavy[-2:] == ["mm", "all_reduce"]


@functools.cache
def alone(kind):
    """The run of one process."""
    return on_mesh.ran(on_mesh.PIPES[kind](place.mesh("cpu")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes keep their checkpoints, and four go on from them."""
    return tmp_path_factory.mktemp("mesh") / "checkpoints"


@pytest.fixture(scope="module")
def two(folder):
    """What two processes did, started once: they take longer to import torch than for most of it."""
    return launch(2, "of_two", folder, timeout=600)


@pytest.fixture(scope="module")
def four(two, folder):
    """What four processes did."""
    return launch(4, "of_four", folder, timeout=600)


@pytest.mark.parametrize(("team", "backend"), [("two", "uncompiled"), ("four", "uncompiled"), ("two", "aot_eager")])
def test_a_run_on_a_mesh_is_that_of_one_process(team, backend, request):
    """Losses of 50 steps and the State after them, data parallel and in shards, with last batches that leave a process
    without a sample, dropout, BatchNorm and losses that count samples differently."""
    are_of_one_process(request.getfixturevalue(team)[backend])


# Inductor takes each process over a minute for a gpt.
@pytest.mark.parametrize("kind", ["small", *[pytest.param(k, marks=pytest.mark.thorough) for k in ("mlp", "gpt")]])
def test_a_run_by_inductor_on_a_mesh_is_that_of_one_process(kind):
    """The same, with collectives in what Inductor compiles."""
    are_of_one_process(launch(2, "all_cases", kind, "inductor", "2", timeout=600))


def are_of_one_process(cases):
    """Each kind and number of shards ended as the run of one process."""
    for (kind, shard), made in cases.items():
        assert made["held"] <= alone(kind)["held"] * {1: 1, 2: 0.55, 4: 0.3}[shard]
        assert max(abs(a - b) for a, b in zip(made["losses"], alone(kind)["losses"], strict=True)) < 1e-5
        assert far(made["tree"], alone(kind)["tree"], "params", "buffers", "ema") < 1e-5
        for name, value in alone(kind)["worth"].items():
            assert torch.allclose(torch.tensor(made["worth"][name]), torch.tensor(value), atol=1e-5), name


def test_what_is_no_step_of_a_mesh_is_refused(two):
    """In one line that names the stage; with the collectives that it names, and for rules of whole tensors, it is the
    step of one process."""
    said, made = two["trouble"]
    _, alone = on_mesh.trouble()
    for name, words in {
        "contrast": "stage 'contrast' is not on a mesh.*mesh.gathered",
        "mixed": "stage 'mixed' is not on a mesh.*mesh.summed",
        "data": "process 1 has other data than process 0",
        "each": "place.mesh\\(\\) does not do yet",
        "loader": "use load.batches",
        "nan": "step 1 .*'loss.cross_entropy' made 'loss'",
        "count": "of 6 processes, and 2 run here",
    }.items():
        with pytest.raises(ValueError, match=words):
            raise ValueError(said.pop(name))
    assert not said
    for name, tolerance in {"gathered": 1e-4, "summed": 1e-6, "whole rule": 1e-6, "accumulate": 1e-6, "tape": 1e-6,
                            "muon": 1e-2}.items():  # fmt: skip
        assert far(made[name], alone[name]) < tolerance  # muon works in bfloat16


def test_a_checkpoint_is_of_any_number_of_processes(two, four, folder):
    """Written by two in shards, it goes on on one, and on four in shards; a file holds the whole tensors."""
    whole = two["saved"]
    newest = checkpoint.newest(folder)
    assert not newest.faults
    kept = load_file(newest.saved.path / "state.safetensors")
    assert kept.keys() == named(whole).keys()
    assert all(torch.equal(kept[k], t) for k, t in named(whole).items())
    one = on_mesh.went_on(folder, 2)
    assert far(four["went_on"], one, "params", "memory/update") < 1e-5


PIPE = ["train", "--no-compile", "--save-steps", "3"]
RUN = ["--lr", "0.01", "--epochs", "8"]
PAIR = ["--processes", "2", "--shard", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """The folder of a run of two processes, one of which was killed."""
    folder = tmp_path_factory.mktemp("restarted") / "run"
    with forked.Process(*PIPE, *RUN, *PAIR, "--restarts", "1", "--out", folder, env=ENV) as run:
        while not list(folder.glob("checkpoints/step-*")):
            assert run.poll() is None
            time.sleep(0.01)
        os.kill(workers(folder)[-1], signal.SIGKILL)
        out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "resume  step-" in out
    assert not workers(folder)
    return folder


def test_a_killed_process_is_restarted(restarted, tmp_path):
    """All go on from the last checkpoint, and end with the weights of a run that was never stopped; nobody is left."""
    one = tmp_path / "one"
    assert commands.run(*PIPE, *RUN, "--out", one).code == 0
    a, b = (load_file(folder / "model.safetensors") for folder in (one, restarted))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-5
    steps = [json.loads(line)["step"] for line in (restarted / "metrics.jsonl").read_text().splitlines()]
    assert steps == [23 * n for n in range(1, 9)]


def test_processes_end_with_their_launcher(restarted, tmp_path):
    """Killed, all are gone at once; hung up, all have saved; it goes on each time, to the bits of the other run, which
    was stopped elsewhere and is near to that of one process."""
    env = {**ENV, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    folder = tmp_path / "run"
    command = [*PIPE, *RUN, *PAIR, "-q", "--out", folder]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, 128 + signal.SIGHUP)):
        before = list(folder.glob("checkpoints/step-*"))
        with forked.Process(*command, env=env, signals={signal.SIGHUP: signal.SIG_DFL}) as launched:
            while list(folder.glob("checkpoints/step-*")) == before:
                assert launched.poll() is None, launched.communicate()
                time.sleep(0.002)
            launched.send_signal(number)
            launched.wait(timeout=60)
            deadline = time.monotonic() + 10
            while workers(folder) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not workers(folder)
            assert launched.returncode == code, launched.communicate()
        assert {p.name for p in (tmp_path / "tmp").iterdir()} <= {"torchinductor_root"}
        command = ["train", "--resume", folder, *PAIR, "-q"]
    assert forked.run(*command, env=env).returncode == 0
    assert kills.ended(folder) == kills.ended(restarted)


def test_wrong_input_on_processes_is_one_line(tmp_path):
    """Said once, with exit code 2, and not tried again."""
    run = forked.run(*PIPE, "--processes", "2", "--restarts", "2", "--data", "nothing.csv", cwd=tmp_path, env=ENV)
    assert run.returncode == 2
    assert run.stderr.strip().splitlines() == ["pipe: can't read nothing.csv: No such file or directory"]
