"""The compiled step: donation, fallback, what it refuses, and that graphs never meet."""

import re
import warnings

import pytest
import torch

from pipeline import Pipeline, backward, fit, forward, loss, models, stage, testing, update
from pipeline.compile import CompileReport
from pipeline.errors import CaptureError, ConfigError, StageError, StateError
from tests import pipes

BATCH = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}


def small(model=pipes.Linear, *more):
    return Pipeline(forward.model(model), loss.cross_entropy(), backward.gradients(), update.sgd(0.1), *more)


def test_a_donated_state_says_so():
    """After a step, the State passed in raises, as does one that shares its tensors; its successor and copies work."""
    pipe, compiled = pipes.compiled("mlp")
    state = pipe.init(0, steps=9)
    kin, copy = state.with_hyper(lr=0.5), state.clone()
    after, _ = compiled(state, pipes.first(pipe))
    for spent in (state, kin):
        with pytest.raises(StateError, match="donated to a compiled step"):
            spent.clone()
    assert int(after.step) == 1
    assert int(copy.step) == 0
    assert "donated" in repr(state)
    with pytest.raises(StateError, match="donated"):
        compiled(state, pipes.first(pipe))


def test_donation_is_in_place():
    """The new State lives in the storage of the old one."""
    pipe, compiled = pipes.compiled("mlp")
    state = pipe.init(0, steps=9)
    before = state.params["1.weight"].data_ptr()
    after, _ = compiled(state, pipes.first(pipe))
    assert after.params["1.weight"].data_ptr() == before


def test_without_donation_the_state_stays_and_leaves_may_trade_places():
    """compile(donate=False) is pure, and a leaf that becomes another leaf's old value is read before it is written."""

    def follow(params, memory):
        return params, params

    shadow = stage(writes="params", name="shadow", init=lambda params: {k: p.clone() for k, p in params.items()})(
        follow
    )
    pipe = Pipeline(forward.model(pipes.Linear), shadow, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    state = pipe.init(0)
    expected, _ = pipe.step(pipe.step(state, BATCH)[0], BATCH)
    kept = pipe.compile(donate=False)
    after, _ = kept(testing.pure(kept, state, BATCH)[0], BATCH)
    testing.same(after.tree, expected.tree, 1e-5)
    donated, compiled = state.clone(), pipe.compile()
    for _ in range(2):
        donated, _ = compiled(donated, BATCH)
    testing.same(donated.tree, expected.tree, 1e-5)


def test_pipelines_and_shapes_of_one_process_never_meet():
    """Two pipelines that differ only in a constant, and two batch shapes of each, each keep a graph of their own."""

    def scaled(factor):
        return stage(writes="outputs", name="scaled")(lambda outputs: outputs * factor)

    batches = [BATCH, {k: v[:4] for k, v in BATCH.items()}]
    for factor in (2.0, 3.0):
        pipe = Pipeline(
            forward.model(pipes.Linear), scaled(factor), loss.cross_entropy(), backward.gradients(), update.sgd(0.1)
        )
        compiled, state = pipe.compile(), pipe.init(0)
        for batch in (*batches, *batches):
            expected = pipe.step(state.clone(), batch)[1]["loss"].item()
            state, metrics = compiled(state, batch)
            assert metrics["loss"].item() == pytest.approx(expected, abs=1e-5)
        assert len(compiled.report.graphs) == 2


class Branching(pipes.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


def test_a_model_that_cannot_be_captured_names_the_reason():
    """The error says what stands in the way, in which line, and the fallback runs the same step with one warning."""
    pipe = small(Branching)
    reason = r"'forward.model' can't be captured as a graph: it reads a tensor's value .*\(test_compiled.py:\d+\)"
    with pytest.raises(CaptureError, match=reason):
        pipe.compile()(pipe.init(0), BATCH)
    compiled = pipe.compile(fallback="eager")
    with pytest.warns(UserWarning, match="run uncompiled"):
        state, _ = compiled(pipe.init(0), BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = compiled(state, BATCH)
    assert int(state.step) == 2
    assert re.search(reason, str(compiled.report))


def test_without_a_compiler_the_fallback_runs(monkeypatch, tmp_path):
    """No C++ compiler is an error that says so, or a warning."""

    def no_compiler(*args, **options):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr("torch._inductor.cpp_builder.CppBuilder.build", no_compiler)
    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load_async", no_compiler)
    pipe = small()
    with pytest.raises(CaptureError, match=r"can't be compiled here: .*C\+\+ compiler"):
        pipe.compile()(pipe.init(0), BATCH)
    with pytest.warns(UserWarning, match="run uncompiled"):
        reports = list(fit(pipes.digits(update.sgd(0.1)), epochs=1, validate=pipes.TEST, fallback="eager"))
    assert reports[-1].validate["accuracy"] > 0.2


def test_a_models_own_error_is_not_a_capture_error():
    """Inputs that do not fit are the stage's error, compiled or not, and with the fallback too."""
    pipe = small()
    for fallback in ("error", "eager"):
        with pytest.raises(StageError, match=r"forward.model.*inputs \(6, 5\)"):
            pipe.compile(fallback=fallback)(pipe.init(0), {**BATCH, "inputs": torch.randn(6, 5)})


def test_states_and_batches_that_do_not_fit():
    """Another structure, other shapes, or other names are refused before anything runs."""
    pipe, compiled = pipes.compiled("mlp")
    with pytest.raises(StateError, match="does not fit this pipeline"):
        compiled(small().init(0), BATCH)
    wide = pipes.digits(model=lambda: models.mlp(64, 17, 10))
    compiled(pipe.init(0, steps=9), pipes.first(pipe))
    with pytest.raises(StateError, match="other shapes"):
        compiled(wide.init(0, steps=9), pipes.first(pipe))
    with pytest.raises(StateError, match="no 'targets'"):
        compiled(pipe.init(0, steps=9), {"inputs": BATCH["inputs"]})
    with pytest.raises(ConfigError, match="fallback='no'"):
        pipe.compile(fallback="no")


def test_shared_storage_is_not_donated():
    """Two leaves in one storage would write over each other."""
    pipe, compiled = pipes.compiled("mlp")
    state = pipe.init(0, steps=9)
    memory = state.memory["update.adamw"]
    shared = {**memory, "second": memory["first"]}
    with pytest.raises(StateError, match="share their storage"):
        compiled(state.replace(memory={**state.memory, "update.adamw": shared}), pipes.first(pipe))


def test_the_report_says_what_was_compiled():
    """Each graph is a line: program, batch, size, seconds."""
    pipe, compiled = pipes.compiled("mlp")
    compiled(pipe.init(0, steps=9), pipes.first(pipe))
    lines = str(compiled.report).splitlines()
    assert any("train step for inputs (64, 1, 8, 8) float32, targets (64,) int64" in line for line in lines)
    assert all(g.seconds > 0 for g in compiled.report.graphs)


def test_the_story_has_each_operation_of_a_graph_once():
    """By stage, in its order; a pipeline that can't be compiled has the reason."""
    pipe, compiled = pipes.compiled("mlp")
    compiled(pipe.init(0, steps=9), pipes.first(pipe))
    graph = compiled.report.graphs[0]
    rows = re.findall(r"^  (\(?[a-z][\w.]*(?: \w+)?\)?) {2,}([\d,]+)", graph.story(), re.MULTILINE)
    assert sum(int(n.replace(",", "")) for _, n in rows) == graph.operations
    stages = [s.name for s in pipe.graph if s.name != "backward.gradients"]
    assert stages == [name for name, _ in rows if "(" not in name]
    reason = "made uncompiled here"
    assert CompileReport((), reason).explain() == f"runs uncompiled: {reason}"
    assert graph.story() in compiled.report.explain()


def test_batches_and_states_of_any_strides():
    """A batch that is a slice of something larger is read rightly, and a State with gaps is refused."""
    pipe, compiled = pipes.compiled("mlp")
    wide = torch.randn(64, 1, 8, 9)
    batch = {"inputs": wide[..., 1:], "targets": (torch.arange(128) % 10)[::2]}
    state = pipe.init(0, steps=9)
    expected = pipe.step(state, batch)[1]["loss"].item()
    assert compiled(state.clone(), batch)[1]["loss"].item() == pytest.approx(expected, abs=1e-5)
    gaps = {k: torch.stack([p, p], -1)[..., 0] for k, p in state.params.items()}
    with pytest.raises(StateError, match="gaps in its storage"):
        compiled(state.replace(params=gaps), batch)


def test_a_refused_state_or_batch_leaves_the_step_usable():
    """After an error the same compiled step goes on, and refuses the same things again."""
    pipe, compiled = pipes.compiled("mlp")
    state = pipe.init(0, steps=9)
    memory = state.memory["update.adamw"]
    shared = state.replace(memory={**state.memory, "update.adamw": {**memory, "second": memory["first"]}})
    for _ in range(2):
        with pytest.raises(StateError, match="share their storage"):
            compiled(shared, pipes.first(pipe))
    fresh = pipe.compile()
    with pytest.raises(StageError, match="reads 'inputs', which the batch does not have"):
        fresh(state, {"x": torch.zeros(2, 64), "targets": torch.zeros(2, dtype=torch.long)})
    assert int(compiled(state, pipes.first(pipe))[0].step) == 1
