"""What holds on an accelerator: on a GPU where there is one, else on the one of tests/sim."""

import ast
import contextlib
import itertools
import math
import re

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import distributed as dist
from torch import nn
from torch.utils import _pytree as pytree

import pipeline
from pipeline import (
    Pipeline,
    backward,
    checkpoint,
    fit,
    forward,
    load,
    loss,
    mesh,
    place,
    resident,
    stage,
    sweep,
    testing,
    update,
)  # fmt: skip
from pipeline.checkpoint import Saver
from pipeline.compile.backends import torch as generic
from pipeline.errors import CaptureError, DeviceError, NonFiniteError, StageError, WiringError
from pipeline.pace import Pace
from tests import devices, pipes, sim, test_examples, test_modules
from tests.devices import BACKEND, CLOSE, DEVICE, GPU, RECORDS

pytestmark = pytest.mark.gpu
simulated = pytest.mark.skipif(GPU, reason="of the simulated device")
recorded = pytest.mark.skipif(not RECORDS, reason="torch records no launches on this device")
pairs = pytest.mark.parametrize("name", pipes.ALL)

MAKING = (
    "encoder", "batch norm", "feature alpha dropout", "lambdas", "spectral norm", "orthogonal", "lazy convolutions",
    "attention in bf16", "lstm", "diffusion", "mixup", "multinomial", "variational", "gumbel softmax",
    "generator unused", "noise in a stage", "function with ctx", "physics", "autocast within",
    "checkpoint with dropout", "buffer assigned", "queue by tensor", "averaged teacher", "facts kept",
    "zero dimensional tensor", "list of tensors", "loop over time", "packed sequence", "embedding bag",
    "complex parameters", "u net", "quantisation aware", "data parallel",
)  # fmt: skip
"""Nets that draw, or make or keep tensors of their own, which may be elsewhere; the others are thorough."""
NETS = [pytest.param(n, marks=[] if n in MAKING else [pytest.mark.thorough]) for n in test_modules.KINDS]
ELSEWHERE = {"data parallel": "torch built for a CPU has no scatter"}
"""Nets that can't be tried on the simulated device, and why."""


def mapped():
    """Within it, torch.vmap goes there too."""
    return contextlib.nullcontext() if GPU else sim.host_numbers()


@pytest.fixture(scope="module")
def compiled():
    """The pipelines that tests share, and their compiled steps, each warm: an epoch was trained, and recorded."""
    made = {}

    def get(name):
        if name not in made:
            pipe = devices.pipe(name)
            step = pipe.compile(backend=BACKEND)
            state = step.advance(pipe.init(0, steps=99), 0, 0, pipe.load.batches)[0]
            for _ in range(2):
                state = step.advance(state, 0, 0, pipe.load.batches)[0]
                state, _ = step.advance(state, 0, 0, 1, results=True)
            made[name] = pipe, step
        return made[name]

    return get


# -- nets, laws, examples


# A compiled program is checked beside the plain functions there, so what runs uncompiled alone is thorough.
@pytest.mark.parametrize("way", [pytest.param("functional", marks=pytest.mark.thorough), "compiled"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")
def test_a_net_trains_there_as_by_hand(name, way):
    """Three steps on the accelerator give the losses, parameters and buffers of the usual loop on the CPU."""
    if name in ELSEWHERE and not GPU:
        pytest.skip(ELSEWHERE[name])
    kind = test_modules.KINDS[name]
    way = "fused" if way == "compiled" and kind.fusable else way
    test_modules.held(name, way, DEVICE, CLOSE)


@pairs
def test_a_step_is_lawful_there(name):
    """It is pure, keeps shapes, dtypes and devices, and maps over stacked States."""
    pipe = devices.pipe(name)
    with mapped():
        testing.lawful(pipe, pipe.init(0), pipe.place.batch(pipes.first(pipe)))


@pairs
def test_one_step_many_steps_and_plain_steps_are_one_run(name, compiled):
    """Single steps, an epoch in a call and uncompiled steps give one State, that of the CPU's plain functions."""
    pipe, step = compiled(name)
    batches = pipe.load.batches
    many, rows = step.advance(pipe.init(0, steps=99), 0, 0, batches, results=True)
    many = many.clone()
    single, plain, host = pipe.init(0, steps=99), pipe.init(0, steps=99), pipes.ALL[name]()
    expected = host.init(0, steps=99)
    for k in range(batches):
        single, one = step(single)
        assert all(torch.equal(rows[key][k], one[key]) for key in one)
        plain, _ = pipe.step(plain)
        expected, _ = host.step(expected)
    testing.same(many.tree, single.tree)
    testing.same(many.tree, plain.tree, 10 * CLOSE)
    testing.same(place.host(many.tree), expected.tree, 10 * CLOSE)
    assert step.evaluate(single, pipe.load.data) == pytest.approx(pipe.evaluate(plain, pipe.load.data), rel=1e-3)


@pytest.mark.parametrize("name", test_examples.BLOCKS)
def test_an_example_runs_there(name, monkeypatch):
    """Each example trains for a few steps on the accelerator, compiled as one graph, with a finite loss."""
    there, kept = place.on(DEVICE), pipeline.fit
    made = []

    def shortened(pipe, **options):
        made.append(pipe.compile(backend=pipes.TRACED))
        return itertools.islice(kept(pipe, **{**options, "epochs": 1, "every": 3, "compile": made[-1]}), 1)

    monkeypatch.setattr(place, "on", lambda *_, **__: there)
    monkeypatch.setattr(pipeline, "fit", shortened)
    namespace = {"__name__": "example"}
    code = ast.parse(test_examples.BLOCKS[name])
    *_, loop = [i for i, part in enumerate(code.body) if isinstance(part, ast.For) and "fit(" in ast.unparse(part.iter)]
    code.body = code.body[: loop + 1]
    code.body[loop].body = [ast.Pass()]  # what looks at the results there, and behind it, does so on the CPU
    with mapped():
        exec(compile(ast.fix_missing_locations(code), "examples.md", "exec"), namespace)
    report = namespace["report"]
    assert made[-1].report.fallback is None
    assert all(t.device == DEVICE for t in pytree.tree_leaves(report.state.tree))
    assert all(math.isfinite(value) for value in report.train.values())


# -- recordings of launches


@recorded
def test_a_step_and_many_steps_are_each_one_launch(compiled):
    """The whole step is recorded as one graph, and so many steps as another; what they launch is all in them."""
    pipe, step = compiled("mlp")
    state = pipe.init(0, steps=99)
    for _ in range(2):
        state, _ = step.advance(state, 0, 0, 21)
    [run] = [run for size, run in step._runs.items() if size == (64,)]
    together = run._program.together
    assert set(run._recorded) == {1, together}
    assert 1 < together < pipe.load.batches
    assert not any(g.refused for g in step.report.graphs)
    if not GPU:
        before = torch.ops.sim.launches()
        step.advance(state, 0, 0, together + 1)
        assert torch.ops.sim.launches() - before == 3  # two recordings, and where the batches begin


@recorded
def test_recording_runs_nothing():
    """While launches are recorded, no memory that was there changes; each replay does them once."""
    kept, made = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    torch.ones(3, device=DEVICE).mul_(2)
    with generic.graph_on(DEVICE) as graph:
        kept.mul_(2)
        made.copy_(kept + 1)
    assert (kept.tolist(), made.tolist()) == ([1.0] * 3, [0.0] * 3)
    graph.replay()
    graph.replay()
    assert (kept.tolist(), made.tolist()) == ([4.0] * 3, [5.0] * 3)


def test_what_cannot_be_recorded_is_launched_one_by_one():
    """Where a backend's code waits for the device, the report says so, and the steps are what they are."""
    seen = []

    def waiting(graph, inputs):
        def run(*args):
            seen.append(float(args[0].sum()))
            return graph.forward(*args)

        return run

    pipe = devices.pipe("mlp")
    step = pipe.compile(backend=waiting)
    state, plain = pipe.init(0, steps=99), pipe.init(0, steps=99)
    for _ in range(3):
        state, _ = step(state)
        plain, _ = pipe.step(plain)
    testing.same(state.tree, plain.tree, CLOSE)
    [reason] = step.report.graphs[0].refused
    assert reason.startswith("graph of launches: ")
    assert len(seen) == 1 + 3  # the check and the steps


def test_a_batch_of_the_host_is_placed_by_the_step(compiled):
    """A compiled step takes a batch as a plain step does, wherever it is."""
    pipe, step = compiled("mlp")
    batch = pipes.first(pipe)
    after, _ = step(pipe.init(0, steps=99), batch)
    testing.same(after.params, pipe.step(pipe.init(0, steps=99), batch)[0].params, CLOSE)


def test_the_state_is_donated(compiled):
    """A step writes into the tensors of the State it is given, which is spent."""
    pipe, step = compiled("mlp")
    state = pipe.init(0, steps=99)
    places = [t.data_ptr() for t in state.params.values()]
    after, _ = step(state)
    assert [t.data_ptr() for t in after.params.values()] == places
    with pytest.raises(pipeline.errors.StateError, match="donated"):
        step(state)


def test_another_learning_rate_is_no_new_graph(compiled):
    """Hyperparameters are data, also in what was recorded."""
    pipe, step = compiled("convnet")
    graphs = len(step.report.graphs)
    state, plain = pipe.init(0), pipe.init(0)
    for lr in (0.1, 0.0, 0.3):
        state, _ = step(state.with_hyper(lr=lr))
        plain, _ = pipe.step(plain.with_hyper(lr=lr))
    testing.same(state.params, plain.params, 10 * CLOSE)
    assert len(step.report.graphs) == graphs


# -- no hidden waiting


def test_only_a_report_waits(compiled):
    """Steps, one or many a call, and those of fit between two Reports, never wait for the device."""
    pipe, step = compiled("mlp")
    state = pipe.init(0, steps=99)
    for _ in range(3):
        state, _ = step(state)
    with devices.hurried():
        for _ in range(3):
            state, metrics = step(state)
        state, metrics = step.advance(state, 0, 5, 12, results=True)
    assert metrics["loss"].shape == (12,)
    reports = fit(pipe, epochs=3, compile=step, every=7)
    for _ in range(3):
        next(reports)
    asked = []

    def hurried(function):
        def call(*args):
            asked.append(function.__name__)
            with devices.hurried():
                return function(*args)

        return call

    step.advance = hurried(step.advance)
    list(reports)
    del step.advance
    assert len(asked) >= 3


def test_batches_from_the_host_do_not_wait():
    """Batches of a loader go pinned and one ahead, and their steps wait for nothing."""
    pipe = devices.placed(pipes.mlp())
    loader = [{k: t.clone() for k, t in batch.items()} for batch in list(pipe.load.epoch(0, 0))[:4]]
    pipe = pipe.replace("load.batches", load.loader(loader))
    step = pipe.compile(backend=BACKEND)
    *_, report = fit(pipe, epochs=2, state=pipe.init(0, steps=99), compile=step)
    state = report.state
    with devices.hurried():
        for batch in pipe.place.ahead(loader):
            state, _ = step(state, batch)
    assert int(state.step) == 12


def test_the_host_is_never_far_ahead():
    """A call gets as many steps as take about as long as it should; the host waits where the device is far behind."""
    pace = Pace(DEVICE, 0.1)
    x = torch.zeros(3, device=DEVICE)
    for _ in range(20):
        pace.run(lambda: x.add_(1), pace.steps)
    assert pace.steps > 1
    assert len(pace._running) <= 5
    assert x[0] == 20


def test_batches_arrive_with_their_values():
    """Batches and trees arrive there in order, each sent before the one ahead of it is used; what is there stays."""
    stage, data = place.on(DEVICE), [{"inputs": torch.full((2, 3), float(i)), "n": torch.tensor([i])} for i in range(5)]
    for placed, batch in zip(stage.ahead(iter(data)), data, strict=True):
        assert all(t.device == DEVICE for t in placed.values())
        testing.same(place.host(placed), batch)
        again = stage.batch(placed)
        assert all(again[name] is t for name, t in placed.items())
    assert stage.tree({"a": [torch.ones(2)]})["a"][0].device == DEVICE


# -- numbers


def test_draws_and_order_are_the_cpus():
    """Dropout masks, other draws and the order of samples are the same numbers on any device."""

    @stage(writes=("noise", "mask", "kinds"))
    def draw(inputs):
        return torch.rand_like(inputs), nn.functional.dropout(inputs + 1, 0.5), torch.randperm(9, device=inputs.device)

    values = {"inputs": torch.zeros(5, 7), "seed": torch.tensor(3), "step": torch.tensor(11)}
    there = place.on(DEVICE).batch(values)
    testing.same(place.host(draw.run(there, {}, None)[0]), draw.run(values, {}, None)[0], 1e-6)
    pipe, host = devices.pipe("mlp"), pipes.mlp()
    orders = [resident.Resident(p.place.tree, p.load) for p in (pipe, host)]
    for order in orders:
        order.seek(0, 3, 7)
    testing.same(place.host(orders[0].order), orders[1].order)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_lower_precision_learns(precision):
    """Under each precision, compiled steps are near to plain ones, weights stay float32, and the digits are learned."""
    seen = []

    @stage
    def look(outputs):
        seen.append((outputs.dtype, torch.get_float32_matmul_precision()))

    finite = [update.finite("scale")] if precision == "fp16" else []
    pipe = devices.placed(pipes.digits(*finite, update.sgd(0.1, momentum=0.9)), precision=precision)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
    pipe.insert(look, after="forward.model").step(pipe.init(0))
    assert seen == [(kinds[precision], "high" if precision == "tf32" else "highest")]
    assert torch.get_float32_matmul_precision() == "highest"
    *_, report = fit(pipe, epochs=3, compile=pipe.compile(backend=BACKEND))
    assert report.train["accuracy"] > 0.85
    assert {p.dtype for p in report.state.params.values()} == {torch.float32}


def test_float16_is_scaled():
    """Losses are scaled where gradients would be 0 in float16; where one overflows, the step is skipped, and the factor
    halves."""
    data = {"inputs": torch.randn(8, 4), "targets": torch.randn(8, 3) * 1e-6}
    model = forward.model(lambda: pipes.Linear())
    small = loss.function(lambda outputs, targets: ((outputs - targets) * 1e-5).square().mean())
    stages = model, small, backward.gradients(), update.finite("scale"), update.sgd(1e6)
    pipe = Pipeline(load.batches(data, size=8), place.on(DEVICE, precision="fp16"), *stages)
    state = pipe.init(0)
    after, _ = pipe.step(state)
    exact, _ = Pipeline(load.batches(data, size=8), place.on(DEVICE), *stages).step(state)
    testing.same(after.params, exact.params, 2e-3)
    assert not torch.equal(after.params["layer.weight"], state.params["layer.weight"])
    factor = torch.full((), 2.0**127, dtype=torch.float64, device=DEVICE)
    scaled = {**state.memory["update.finite"], "scale": factor}
    huge = state.replace(memory={**state.memory, "update.finite": scaled})
    skipped, _ = pipe.step(huge)
    testing.same(skipped.params, state.params)
    assert skipped.memory["update.finite"]["scale"] == 2.0**126
    with pytest.raises(WiringError, match=r"'loss' in float16.*update.finite\(\"scale\"\)"):
        Pipeline(load.batches(data, size=8), place.on(DEVICE, precision="fp16"), *stages[:3], stages[4])
    with pytest.raises(DeviceError, match="'tf32' is for GPUs"):
        place.on("cpu", precision="tf32")


def test_finite_is_decided_on_the_device():
    """A step that is not finite leaves State as it was, also within a recording of many."""
    pipe = devices.placed(pipes.digits(update.finite(), update.sgd(1e30)))
    step = pipe.compile(backend=BACKEND)
    with pytest.raises(NonFiniteError, match="is not finite"):
        list(fit(pipe, epochs=2, compile=step))
    skips = devices.placed(pipes.digits(update.finite("skip"), update.sgd(1e30)))
    [report] = fit(skips, epochs=1, compile=skips.compile(backend=BACKEND))
    assert report.train["skipped"] > 0
    assert all(t.isfinite().all() for t in report.state.params.values())


# -- runs


def test_a_sweep_is_its_runs_there():
    """Members side by side on the accelerator are the runs alone."""
    pipe = devices.pipe("mlp")
    runs = sweep(pipe, seeds=2, hyper={"lr": [1e-3, 1e-2]})
    with mapped():
        *_, last = fit(runs, epochs=2, state=runs.init(0, steps=46), compile=runs.compile(backend=BACKEND))
    for i, own in enumerate(map(dict, runs.settings)):
        alone = pipe.init(own.pop("seed"), steps=46).with_hyper(own)
        *_, expected = fit(pipe, epochs=2, state=alone, compile=False)
        testing.same(runs.member(last.state, i).params, expected.state.params, 10 * CLOSE)


def test_a_run_goes_on_bit_for_bit(tmp_path, compiled):
    """A run that was stopped goes on with the bits of one that was not; a checkpoint of the CPU has its bits there."""
    pipe, step = compiled("convnet")
    whole = [(r.step, r.state.clone()) for r in fit(pipe, epochs=2, compile=step, every=7)]
    with Saver(tmp_path) as saver:
        for report in fit(pipe, epochs=2, compile=step, every=7):
            if report.step == 14:
                saver.offer(report, now=True)
                break
    saved = checkpoint.newest(tmp_path).saved
    for report in fit(pipe, epochs=2, compile=step, every=7, state=saved.restore(pipe), start=saved.start):
        testing.same(report.state.tree, dict(whole)[report.step].tree)
    assert report.step == whole[-1][0]
    host = pipe.replace("place.on", place.on("cpu"))
    testing.same(saved.restore(host).tree, place.host(saved.restore(pipe).tree))


def test_the_commands_run_there(tmp_path, pipe):
    """`pipe train`, `eval`, `predict` and `export` work on the accelerator, and "auto" finds it."""
    run, rows = tmp_path / "run", tmp_path / "rows.npz"
    np.savez(rows, inputs=np.random.default_rng(0).normal(size=(60, 3)), targets=np.arange(60) % 2)
    options = ["--data", rows, "--epochs", 2, "--out", run, "--device", DEVICE]
    with devices.chosen():
        code, said, error = pipe("train", *options, "--backend", "aot_eager" if not GPU else "auto")
        assert code == 0, error
        assert f"device  {DEVICE}" in said
        assert pipe("eval", run)[0] == 0
        assert pipe("predict", run, "--data", rows, "--out", tmp_path / "made.npz")[0] == 0
        assert pipe("export", run)[0] == 0
    assert all(len(values) == 60 for values in np.load(tmp_path / "made.npz").values())


@pytest.mark.skipif(
    torch.accelerator.current_accelerator().type != DEVICE.type, reason="torch is built for another one"
)
def test_auto_is_measured_where_a_step_is_small(tmp_path, pipe):
    """Of a small model the faster device is found once, and said with why; it is recorded with the run."""
    options = ["--epochs", 1, "--hidden", "7", "--batch-size", 479]
    with devices.chosen():
        first = pipe("train", *options, "--backend", BACKEND, "--out", tmp_path / "a")
        again = pipe("train", *options, "--backend", BACKEND, "--out", tmp_path / "b")
        large = pipe("train", *options, "--hidden", "9999", "--no-compile", "--out", tmp_path / "c")
    assert [code for code, *_ in (first, again, large)] == [0, 0, 0]
    told = rf"device +(cpu|{DEVICE}), .*\(the faster one: a step takes [\d.e+]+ us on cpu and [\d.e+]+ us on {DEVICE}\)"
    [found] = re.findall(told, first[1])
    assert re.search(rf"device +{found}, .*\(the faster one, measured before\)", again[1])
    kept = "auto" if found == str(DEVICE) else found
    text = (tmp_path / "a" / "config.toml").read_text()
    assert {f'device = "{kept}"', f'device = "{found}"'} == {line for line in text.splitlines() if "device =" in line}
    assert re.search(rf"device +{DEVICE}, .*\(a step has .* operations\)", large[1])


def test_too_little_memory_is_one_line(tmp_path, pipe):
    """Where the device runs out of memory, the command says so in one line with what to do, and exits with 2."""
    with devices.little_memory(2**21):
        code, _, error = pipe("train", "--device", DEVICE, "--hidden", "9999", "--out", tmp_path / "run")
    assert code == 2
    assert error.count("\n") == 1
    assert "out of memory" in error
    assert "--batch-size" in error
    with devices.little_memory(2**20), pytest.raises(torch.OutOfMemoryError):
        place.on(DEVICE).tree({"x": torch.zeros(2**22)})


def test_collectives_of_one_process():
    """A mesh of one process, by NCCL on a GPU, is the run alone; its collectives are in the graph."""
    device = DEVICE if GPU else torch.device("cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        everyone = dist.group.WORLD.group_name
        one = mesh.Mesh(1, 1, 0, device, everyone, everyone, everyone)
        pipe = pipes.digits(update.sgd(0.1)).replace("place.on", place.on(device))
        meshed = pipe.replace("place.on", evolve(place.on(device), mesh=one))
        step = meshed.compile(backend=BACKEND if GPU else "aot_eager")
        state, plain = meshed.init(0), pipe.init(0)
        for batch in list(pipe.load.epoch(0, 0))[:3]:
            state, _ = step(state, batch)
            plain, _ = pipe.step(plain, batch)
        testing.same(state.params, plain.params, 10 * CLOSE)
    finally:
        dist.destroy_process_group()


# -- faults that are planted, and have to be found


@stage(writes="inputs")
def at_home(inputs):
    return inputs + torch.ones(inputs.shape[-1])


@stage(writes="outputs")
def by_index(outputs):
    return outputs[torch.arange(len(outputs)).flip(0)]


@stage(writes="outputs")
def by_value(outputs):
    return outputs * float(outputs.detach().mean() > 0)


@stage(writes="outputs")
def by_generator(outputs):
    return outputs + torch.randn(outputs.shape, generator=torch.Generator())


FAULTS = {
    "a tensor on the host": (at_home, "forward.model", "same device"),
    "an index on the host": (by_index, "loss.cross_entropy", "same device"),
    "a generator on the host": (by_generator, "loss.cross_entropy", "torch.Generator of its own"),
}


@simulated
@pytest.mark.parametrize("name", FAULTS)
def test_a_stage_that_forgets_the_device_is_found(name):
    """What a GPU would refuse is refused by the simulated device, plain and compiled."""
    fault, before, message = FAULTS[name]
    pipe = devices.pipe("mlp").insert(fault, before=before)
    with pytest.raises(StageError, match=message):
        pipe.step(pipe.init(0, steps=99))
    with pytest.raises((StageError, CaptureError), match=message):
        pipe.compile(backend="aot_eager")(pipe.init(0, steps=99))


def test_a_value_that_is_read_is_found():
    """Code that reads a value waits for the device, which is an error where waiting is one."""
    pipe = devices.pipe("mlp").insert(by_value, after="forward.model")
    state, batch = pipe.init(0, steps=99), pipe.place.batch(pipes.first(pipe))
    pipe.step(state, batch)
    with devices.hurried(), pytest.raises(StageError, match=r"wait|synchroniz"):
        pipe.step(state, batch)


@simulated
def test_a_number_left_on_the_host_is_found(monkeypatch):
    """Were the seed not placed with the rest of State, the first draw would say so."""
    kept = place.Place.tree

    def forgets(self, tree):
        moved = kept(self, tree)
        return {**moved, "seed": tree["seed"]} if isinstance(tree, dict) and "seed" in tree else moved

    monkeypatch.setattr(place.Place, "tree", forgets)
    pipe = devices.pipe("convnet")
    with pytest.raises(StageError, match="same device"):
        pipe.step(pipe.init(0))


@simulated
def test_an_order_that_is_sent_without_being_pinned_is_found(monkeypatch, compiled):
    """Were the order of samples copied from plain memory, each window of it would wait for the device."""
    pipe, step = compiled("mlp")
    state = step.advance(pipe.init(0, steps=99), 0, 0, 3)[0]
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with devices.hurried(), pytest.raises(RuntimeError, match="not pinned"):
        step.advance(state, 5, 0, 3)


@simulated
def test_a_device_without_float64_is_refused():
    """State keeps its numbers as float64: a device without it is refused, and "auto" passes it over."""
    with sim.without_float64(), sim.chosen():
        with pytest.raises(DeviceError, match=r"'sim:0' has no float64.*use cpu"):
            place.on("sim:0")
        assert place.on("auto").device == torch.device("cpu")
        pipe = pipes.mlp().replace("place.on", evolve(place.on("cpu"), device=DEVICE))
        with pytest.raises(TypeError, match="float64"):
            pipe.init(0, steps=99)
