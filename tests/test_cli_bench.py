"""`pipe bench`: what is measured, that it is what it says, and bad input. No test here looks at a speed."""

import json
import re

import numpy as np
import pytest
import torch

from cli import benchmark, config, measure
from cli.build import job
from pipeline.compile.backends import torch as generic

TINY = ("--hidden", 16, "--batch-size", 479, "--seconds", 0.05)


@pytest.fixture(autouse=True)
def _threads():
    """The command sets the threads of its process, which is this one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(**settings):
    return job(config.make({"hidden": [8], "batch_size": 479}, settings)).pipe


def test_graphs_that_a_run_does_without_are_said_to_be_so(pipe, monkeypatch, tmp_path):
    """They are shown, but `pipe train` would not make them."""
    monkeypatch.chdir(tmp_path)
    for more, none in (((), False), (("--no-compile",), True)):
        code, out, err = pipe("explain", "--hidden", 4, "--backend", "eager", *more, "--json")
        assert (code, "pipe train would run uncompiled" in err, json.loads(out)["compile"]) == (0, none, not none)


def test_bench_measures_each_way(pipe, monkeypatch, tmp_path):
    """A row for each way, the floor's share and the memory; --json has the same figures, and nothing is trained."""
    monkeypatch.chdir(tmp_path)
    code, out, said = pipe("bench", *TINY, "--json")
    assert code == 0
    lines = said.splitlines()
    assert lines[0].endswith("10 classes, batches of 479")
    assert lines[1] == "model   mlp 64-16-10: 1,210 parameters"
    assert lines[2] == "device  cpu, 1 thread"
    assert re.fullmatch(r"graphs  1 (compiled|loaded from the cache) in \d+\.\d+ s", lines[3])
    assert [re.split("  +", line)[0] for line in lines[5:10]] == ["way", *WAYS]
    assert re.fullmatch(r"floor   \d+% of the time of 'compiled, fused' .*: 5 products, \d\.\d MFLOP a step", lines[11])
    assert re.fullmatch(r"memory  at most [\d,]+ MB of the process", lines[12])
    found = json.loads(out)
    assert list(found["ways"]) == WAYS
    for name, way in found["ways"].items():
        assert len(way["rounds"]) >= 3
        assert way["steps_per_second"] == pytest.approx(1 / way["seconds_per_step"])
        assert (way["samples_per_second"] is None) == (name == benchmark.PRODUCTS)
    assert found["floor"]["share"] > 0
    assert (found["batch_size"], found["settings"]["hidden"]) == (479, [16])
    assert found["versions"]["torch"] == torch.__version__
    assert not [*tmp_path.iterdir()]
    assert "graphs  1 loaded from the cache in " in pipe("bench", *TINY)[1]


WAYS = [benchmark.EAGER, benchmark.SINGLE, benchmark.FUSED, benchmark.PRODUCTS]


def test_other_models_and_data(pipe, tmp_path):
    """A ConvNet, a table and tokens; uncompiled, the share is that of the eager step."""
    (tmp_path / "houses.csv").write_text("rooms,price\n" + "".join(f"{i % 5},{i % 5 * 1.5 + 0.1}\n" for i in range(60)))
    tokens = np.arange(60 * 8).reshape(60, 8) % 7
    np.savez(tmp_path / "text.npz", inputs=tokens, targets=(tokens + 1) % 7)
    for options in (
        ("--model", "convnet", "--widths", 16, "--precision", "bf16", "--threads", 2),
        ("--data", tmp_path / "houses.csv", "--optimizer", "adam", "--hidden", 16),
        ("--data", tmp_path / "text.npz", "--model", "transformer", "--width", 16),
    ):
        code, out, err = pipe("bench", *TINY[2:], "--no-compile", *options)
        assert (code, err) == (0, "")
        assert "graphs  none: --no-compile" in out
        assert "of the time of 'eager' are" in out
        assert "compiled" not in out.replace("uncompiled", "")


def test_without_a_compiler_it_says_why(pipe, monkeypatch, tmp_path):
    """Where the step can't be compiled, the eager one is measured."""

    def no_compiler(*args, **options):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(generic, "make", no_compiler)
    code, out, _ = pipe("bench", *TINY)
    assert code == 0
    assert re.search(r"graphs  none: .*C\+\+ compiler", out)
    assert benchmark.FUSED not in out


def test_ways_do_the_steps_they_say(monkeypatch):
    """So many whole batches; the short one that ends an epoch is done, but not counted."""
    pipe = made(batch_size=500)  # 1,437 samples: two whole batches and a short one
    taken = []
    step = type("Step", (), {"pipe": pipe, "__call__": lambda self, state: (taken.append(1) or state, {})})()
    step.advance = lambda state, epoch, at, steps: (taken.append((epoch, at, steps)) or state, {})
    single, fused = benchmark._resident(step, pipe.load, pipe.init())
    assert fused(5) > 0
    assert taken == [(0, 0, 2), (0, 2, 1), (1, 0, 2), (1, 2, 1), (2, 0, 1)]
    taken.clear()
    single(3)
    assert len(taken) == 4
    batches = benchmark._batches(pipe.program, pipe.load, pipe.init())
    assert [len(next(batches).values["targets"]) for _ in range(5)] == [500] * 5


@pytest.mark.parametrize(
    ("settings", "products", "operations"),
    [
        # x W1', h W2', and back g2' h, g2 W2, g1' x
        ({}, 5, 2 * 479 * (3 * 8 * 10 + 2 * 64 * 8)),
        # the convolution 8x8x9 forward and for its weights, and the linear layer as above
        ({"model": "convnet", "widths": [4]}, 5, 2 * 479 * (2 * 64 * 9 * 4 + 3 * 4 * 10)),
    ],
)
def test_the_floor_is_the_steps_products(settings, products, operations):
    """As many calls and floating-point operations as counted by hand; calling them again changes nothing."""
    pipe = made(**settings)
    state, batch = pipe.init(), next(pipe.load.epoch(0, 0))
    before = state.clone()
    floor = measure.floor(pipe, state, batch)
    assert (len(floor.calls), floor.operations) == (products, operations)
    assert floor.way(torch.device("cpu"))(3) > 0
    assert all(torch.equal(state.params[name], p) for name, p in before.params.items())


def test_attention_is_counted(tmp_path):
    """A transformer's floor has its attention, forward and backward."""
    tokens = np.arange(60 * 8).reshape(60, 8) % 7
    np.savez(tmp_path / "text.npz", inputs=tokens, targets=(tokens + 1) % 7)
    pipe = made(data=str(tmp_path / "text.npz"), model="transformer")
    floor = measure.floor(pipe, pipe.init(), next(pipe.load.epoch(0, 0)))
    names = [str(getattr(call.func, "overloadpacket", "")) for call in floor.calls]
    assert sum("scaled_dot_product" in name for name in names) == 8


def test_a_race_takes_turns():
    """Each way is timed three times at least, in turns, for about the time asked."""
    taken = []

    def way(name, seconds):
        return lambda steps: taken.append(name) or steps * seconds

    found = measure.race({"slow": way("slow", 4.0), "quick": way("quick", 2**-10)}, 2.0)
    assert found["slow"].rounds == (4.0,) * 3
    assert set(found["quick"].rounds) == {2**-10}
    assert 8 <= len(found["quick"].rounds) <= 12
    assert (found["slow"].median, found["slow"].spread) == (4.0, 1.0)
    rest = len(found["quick"].rounds) - 3
    assert taken[-6 - rest :] == ["slow", "quick"] * 3 + ["quick"] * rest


BAD = {
    ("--seconds", "0"): "--seconds 0.0 is out of range: it must be above 0",
    ("--seconds", "nan"): "--seconds nan is out of range",
    ("--seconds", "inf"): "--seconds inf is out of range",
    ("--seconds", "long"): "'long' is not a valid float",
    ("--json=b.json",): "Option '--json' does not take a value",
    ("--model", "mpl"): "unknown model 'mpl'; did you mean 'mlp'?",
    ("none.toml",): "can't read none.toml",
}


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(pipe, args):
    """Each is said before anything is measured."""
    code, out, err = pipe("bench", *args)
    assert (code, out) == (2, "")
    assert BAD[args] in err
    assert err.startswith("pipe: ")
    assert err.count("\n") == 1
