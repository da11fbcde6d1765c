"""Every program is made by torch.compile: the laws with each backend, what they hold, and what happens where one
fails."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import Pipeline, backward, evaluate, forward, load, loss, place, stage, testing, update
from pipeline.compile.backends import BACKENDS as TABLE
from pipeline.compile.backends import text
from pipeline.compile.backends.backend import Backend
from pipeline.compile.backends.torch import Function
from pipeline.errors import CaptureError, ConfigError
from tests import pipes, strategies


def plain(graph, inputs):
    """A backend of one's own: the graph as it is."""
    return graph.forward


BACKENDS = {"native": "native", "inductor": "inductor", "aot_eager": "aot_eager", "own": plain}

backends = pytest.mark.parametrize("backend", BACKENDS)
INDUCTOR = pytest.param("inductor", marks=pytest.mark.thorough)
"""For what takes long by it, and is said of the others too: the native backend's code is Inductor's."""


def compiled(backend, name):
    if backend == "native":
        return pipes.compiled(name)
    pipe = {**pipes.ALL, "small": pipes.small}[name]()
    return pipe, pipes.prepared(pipe, BACKENDS[backend])


# Inductor takes long, and has a pipeline of its own. The native backend's graphs have been through AOTAutograd too.
LAWFUL = [
    pytest.param(b, n, marks=[pytest.mark.thorough] if b == "inductor" or (b != "native" and n != "mlp") else [])
    for b in BACKENDS
    for n in pipes.ALL
]


@pytest.mark.parametrize(("backend", "name"), [*LAWFUL, ("inductor", "small")])
def test_laws_of_a_compiled_step_hold_with_each_backend(backend, name):
    """Single steps, fused ones and evaluation are those of the plain functions, whatever compiles them."""
    pipe, step = compiled(backend, name)
    testing.compiled_equals_eager(step, pipe.init(0, steps=99), [pipes.first(pipe, k) for k in range(2)])
    fused, metrics = step.advance(pipe.init(0, steps=99), 0, 0, pipe.load.batches, results=True)
    fused, single = fused.clone(), pipe.init(0, steps=99)
    for k in range(pipe.load.batches):
        single, one = step(single)
        testing.same({name: m[k] for name, m in metrics.items()}, one)
    # Inductor's own code adds up an embedding's gradient from several threads, in the order in which they come.
    testing.same(fused.tree, single.tree, 1e-6 if backend == "inductor" else 0.0)
    assert step.evaluate(fused) == pytest.approx(pipe.evaluate(fused), rel=1e-5)
    assert {g.backend for g in step.report.graphs} == {"plain" if backend == "own" else backend}


@backends
def test_without_donation_a_compiled_step_is_pure(backend):
    """Neither State nor batch changes, and the same call gives the same bits."""
    pipe = Pipeline(forward.model(pipes.Linear), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    batch = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}
    testing.pure(pipe.compile(backend=BACKENDS[backend], donate=False), pipe.init(0), batch)


@pytest.mark.parametrize("backend", ["native", INDUCTOR, "aot_eager", "own"])
def test_torch_compile_makes_every_program(backend, pipe, monkeypatch, tmp_path):
    """`pipe train` calls torch.compile once for each graph that was not in the cache, with its backend."""
    calls = []
    kept = torch.compile

    def counted(*args, **options):
        calls.append(options["backend"])
        return kept(*args, **options)

    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / "cache"))
    name = BACKENDS[backend]
    if callable(name):
        name = "eager"  # the command takes names
    options = ("--hidden", 4, "--batch-size", 479, "--epochs", 1, "--backend", name)
    for run, built in enumerate((2, 0 if backend == "native" else 2)):
        calls.clear()
        code, out, _ = pipe("train", *options, "--out", tmp_path / str(run))
        assert code == 0
        assert f"compiled 2 graphs by {name} in" in out
        assert len(calls) == built
        assert all(callable(b) if backend == "native" else b == name for b in calls)


# -- tensors that a program holds


class Holding(nn.Module):
    """Tensors that are neither parameters nor buffers, in each place where people keep them."""

    def __init__(self, shift, layers=1):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.shift, self.table = shift, {"scale": torch.linspace(0.5, 1.5, 3)}
        self.more = [nn.Linear(3, 3) for _ in range(layers)]

    def forward(self, x):
        x = self.layer(x) * self.table["scale"] + self.shift
        for layer in self.more:
            x = layer(x).tanh()
        return x * torch.tensor(2.0) + torch.tensor([1.0, 2.0, 3.0])


def closing(parameter, double):
    @stage(writes="outputs", name="closing")
    def closing(outputs):
        return outputs * parameter + double.float()[torch.tensor([2, 0, 1])] + outputs[:, [1, 2, 0]]

    return closing


def counting():
    return evaluate.metric(
        "seen", lambda targets: {"n": torch.tensor(len(targets))}, lambda sums: {"seen": sums["n"]}, {"n": torch.int64}
    )


@st.composite
def holders(draw):
    """A pipeline whose stages hold some of them, and its class weights."""
    weight = draw(strategies.normals((3,))).abs() + 0.1
    shift = draw(strategies.normals((3,)))
    stages = [
        *draw(st.sampled_from([[], [closing(nn.Parameter(draw(strategies.normals((3,)))), weight.double())]])),
        loss.cross_entropy(weight=draw(st.sampled_from([None, weight]))),
        *draw(st.sampled_from([[], [counting()]])),
        backward.gradients(),
        update.adamw(1e-2),
    ]
    data = load.batches(
        {"inputs": torch.randn(12, 4), "targets": torch.arange(12) % 3}, size=draw(st.sampled_from([4, 12]))
    )
    layers = draw(st.integers(0, 2))
    return Pipeline(data, place.on("cpu"), forward.model(lambda: Holding(shift, layers)), *stages)


def holds(pipe, step):
    """Single and fused steps and evaluation equal the plain ones."""
    step.prepare(pipe.init(0), pipe.load)
    testing.compiled_equals_eager(step, pipe.init(0), [pipes.first(pipe, k) for k in range(2)])
    eager = pipe.init(0)
    for _ in range(3):
        eager, _ = pipe.step(eager)
    fused, _ = step._own_steps(pipe.init(0), 3)
    testing.same(fused.tree, eager.tree, 1e-4)
    assert step.evaluate(fused) == pytest.approx(pipe.evaluate(fused), rel=1e-4)


@settings(max_examples=settings.default.max_examples // 5)
@given(holders())
def test_programs_may_hold_tensors(pipe):
    """Class weights, tables, plain lists of layers, closures and numbers made tensors are a program's inputs."""
    holds(pipe, pipe.compile(backend="aot_eager"))


@pytest.mark.parametrize("backend", ["native", INDUCTOR])
def test_programs_may_hold_tensors_in_memory_of_their_own(backend, monkeypatch, tmp_path):
    """The same, all of them at once, where a compiler lays them out; from the cache too, which another tensor does not
    find."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    weight, parameter, shift = torch.rand(3) + 0.1, nn.Parameter(torch.rand(3)), torch.rand(3)

    def made(weight):
        torch.manual_seed(1)  # the plain list's layers are the same
        model = Holding(shift)
        return Pipeline(
            load.batches({"inputs": torch.randn(12, 4), "targets": torch.arange(12) % 3}, size=12),
            place.on("cpu"),
            forward.model(model),
            closing(parameter, weight.double()),
            loss.cross_entropy(weight=weight),
            counting(),
            backward.gradients(),
            update.adamw(1e-2),
        )

    step = made(weight).compile(backend=backend)
    holds(step.pipe, step)
    if backend == "native":
        again, other = (made(w).compile(backend=backend) for w in (weight.clone(), weight + 1.0))
        holds(again.pipe, again)
        testing.compiled_equals_eager(other, other.pipe.init(0), [pipes.first(other.pipe)])
        for step, loaded in ((again, True), (other, False)):
            assert {g.loaded for g in step.report.graphs} == {loaded}


# -- where a backend fails

BATCH = {"inputs": torch.arange(24.0).reshape(6, 4) / 24, "targets": torch.arange(6) % 3}


def small():
    return Pipeline(forward.model(pipes.Linear), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))


def wrong(graph, inputs):
    """Its results are a hundredth too large."""
    return lambda *args: [t * 1.01 for t in graph.forward(*args)]


def raising(graph, inputs):
    raise NotImplementedError("no such operation here")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (wrong, "wrong: its results are not those of the plain functions"),
        (raising, "raising: no such operation here"),
    ],
)
def test_a_backend_that_fails_is_not_used(backend, reason):
    """The error says which and why; with the fallback, steps run uncompiled, with one warning, and are right."""
    pipe = small()
    with pytest.raises(CaptureError, match=reason):
        pipe.compile(backend=backend)(pipe.init(0), BATCH)
    step = pipe.compile(backend=backend, fallback="eager")
    with pytest.warns(UserWarning, match=reason) as caught:
        testing.compiled_equals_eager(step, pipe.init(0), [BATCH, BATCH])
    assert len([w for w in caught if "uncompiled" in str(w.message)]) == 1
    assert reason in str(step.report)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "_HEADER",
            "#include <elsewhere.h>\n",
            "native: Inductor's C++ is not as known: it has 0 times a header, not 1",
        ),
        ("_source", lambda name: "#error not today\n", "native: the C++ can't be compiled here"),
    ],
)
def test_what_native_cannot_do_inductor_does(name, value, reason, monkeypatch, tmp_path):
    """Text that is not as known, or does not compile: the next backend is taken, and a line says why."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(text, name, value)
    pipe = small()
    with pytest.raises(CaptureError, match=reason.replace("+", r"\+")):
        pipe.compile(backend="native")(pipe.init(0), BATCH)
    step = pipe.compile()
    testing.compiled_equals_eager(step, pipe.init(0), [BATCH, BATCH])
    [graph] = step.report.graphs
    assert graph.backend == "inductor"
    assert len(graph.refused) == 1
    assert graph.refused[0].startswith(reason)


def test_a_native_program_with_wrong_numbers_is_not_used(monkeypatch, tmp_path):
    """What was miscompiled is seen on the step itself, and never kept."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    kept = text.joined

    def miscompiled(codes, kind):
        calls, kernels = kept(codes, kind)
        changed = kernels.replace(" - ", " + ")
        assert changed != kernels
        return calls, changed

    monkeypatch.setattr(text, "joined", miscompiled)
    step = small().compile()
    testing.compiled_equals_eager(step, step.pipe.init(0), [BATCH, BATCH])
    [graph] = step.report.graphs
    assert graph.backend == "inductor"
    assert "native: its results are not those of the plain functions" in str(graph)
    # In a new process, the first build puts compilers' own caches there.
    assert [path.name for path in tmp_path.iterdir() if path.name != "inductor"] == []


def test_calls_that_need_more_headers_have_them(monkeypatch, tmp_path):
    """Calls that don't compile with the few headers are compiled with all, by the same backend."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "_USED", "#include <torch/missing.h>\n")
    step = small().compile(backend="native")
    testing.compiled_equals_eager(step, step.pipe.init(0), [BATCH, BATCH])
    [graph] = step.report.graphs
    assert (graph.backend, graph.loaded, graph.refused) == ("native", False, ())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other registers")
@pytest.mark.parametrize("numbers", [100, 1 << 20])
def test_what_decays_is_zero_in_native_steps_and_nowhere_else(numbers):
    """Numbers too small to be normal ones are 0 on every thread while steps run, since they take 100 times as long."""

    def decays(memory):
        return 0.1 * memory

    small = torch.full((numbers,), 2e-38)
    pipe = Pipeline(load.batches(torch.zeros(2, 1), size=1), stage(decays, init=lambda: small.clone()))
    before, threads = pipe.step(pipe.init(0)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state, _ = pipe.compile(backend="native", steps=1)(pipe.init(0))
    finally:
        torch.set_num_threads(threads)
    assert (before[0].memory["decays"] > 0).all()
    assert not state.memory["decays"].any()
    assert (0.1 * small > 0).all()


def test_an_unknown_backend_is_refused_at_once(pipe):
    """By name, with a guess; the command too."""
    with pytest.raises(ConfigError, match="backend='inductr' is unknown; did you mean 'inductor'"):
        small().compile(backend="inductr")
    code, _, err = pipe("train", "--backend", "natve")
    assert code == 2
    assert "did you mean 'native'" in err


class Plain(Backend):
    """Runs the graph as it is."""

    name = "plain"

    def begin(self, traced, args, outputs, context):
        return lambda: Function(self.name, traced.graph, outputs, 0, context)


class Elsewhere(Plain):
    name, devices = "elsewhere", ("cuda",)


class Failing(Plain):
    name = "failing"

    def begin(self, traced, args, outputs, context):
        raise CaptureError("not today")


@pytest.fixture
def table():
    """The table of backends, put back in its order."""
    entries = dict(TABLE)
    yield TABLE
    TABLE.clear()
    TABLE.update(entries)


def test_a_backend_is_an_entry_of_the_table(table):
    """It is found by name, and "auto" takes the first entry that compiles for the device; an unfit one says why."""
    table.clear()
    table.update({kind.name: kind for kind in (Elsewhere, Failing, Plain)})
    for backend, refused in (("plain", ()), ("auto", ("failing: not today",))):
        step = small().compile(backend=backend)
        testing.compiled_equals_eager(step, step.pipe.init(0), [BATCH, BATCH])
        [graph] = step.report.graphs
        assert (graph.backend, graph.refused) == ("plain", refused)
    with pytest.raises(CaptureError, match="elsewhere: takes no cpu device"):
        small().compile(backend="elsewhere")(small().init(0), BATCH)
