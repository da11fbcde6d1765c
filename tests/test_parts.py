"""A batch taken in parts is the whole batch, and in a graph the parts are one loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import Pipeline, backward, evaluate, forward, loss, models, stage, testing, update
from pipeline.errors import StageError
from tests import strategies
from tests.pipes import TRACED

HELD = torch.tensor([0.5, 1.0, 2.0])


def classifier(model, parts, *extra, **options):
    return Pipeline(
        forward.model(model), *extra, loss.cross_entropy(), evaluate.accuracy(),
        backward.gradients(accumulate=parts, **options), update.clip_norm(1.0), update.sgd(0.1, momentum=0.9),
    )  # fmt: skip


@given(strategies.batches(dtype=torch.float64), st.integers(2, 17), st.lists(st.booleans(), min_size=16, max_size=16))
def test_parts_equal_the_full_batch(batch, parts, masked):
    """Over parts of a batch, equal or not, with targets that do not count, the step is that of the whole batch."""
    targets = batch["targets"].masked_fill(torch.tensor(masked[: len(batch["targets"])]), -100)
    batch = {**batch, "targets": targets}
    split, whole = (classifier(lambda: models.mlp(4, 5, 3).double(), k) for k in (parts, 1))
    state = whole.init(0)
    (a, metrics), (b, expected) = split.step(state, batch), whole.step(state, batch)
    testing.same(a.tree, b.tree, 1e-6)
    testing.same(metrics, expected, 1e-6)


class Mixed(nn.Module):
    """What may go wrong in a loop: buffers, dropout, a 0-d parameter, and a tensor that is neither of them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.3),
            nn.Linear(8, 3),
        )
        self.scale, self.mask = nn.Parameter(torch.tensor(1.5)), torch.tensor([1.0, 1.0, 0.5])

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu())) * self.scale * self.mask


@stage(writes="outputs", init=lambda params: {"count": torch.zeros(()), "sum": torch.zeros(3)})
def counting(outputs, memory):
    outputs = outputs * HELD * torch.tensor([1.0, 2.0, 3.0])
    return outputs, {"count": memory["count"] + 1, "sum": memory["sum"] + outputs.sum(0)}


@stage(writes="params")
def behind(params, outputs):
    """The outputs of all parts are there behind the backward."""
    return {k: p - 0.01 * outputs.mean() for k, p in params.items()}


def batch(size, seed=0):
    """A third of its targets do not count."""
    made = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (size,), generator=made)
    targets[: size // 3] = -100
    return {"inputs": torch.randn(size, 4, generator=made), "targets": targets}


def mixed(parts, **options):
    pipe = classifier(Mixed, parts, counting, **options)
    return Pipeline(*pipe.stages, behind)


def test_a_compiled_loop_is_the_parts_one_after_the_other():
    """Compiled, with unequal parts, two steps are those of the uncompiled pipeline; the program is kept on disk."""
    pipe = mixed(3)
    compiled = pipe.compile()
    testing.compiled_equals_eager(compiled, pipe.init(0), [batch(8), batch(8, 1)], 1e-5)
    again = pipe.compile()
    again.step(pipe.init(0), batch(8))
    [graph] = again.report.graphs
    assert (graph.backend, graph.loaded) == ("native", True) or torch.__version__ < "2.13"  # Inductor's loops had a bug


@pytest.mark.parametrize("route", ["functional", "tape"])
def test_a_loop_is_one_operation(route):
    """The graph of many parts is no larger than that of two, by either route."""
    sizes = {}
    for parts in (2, 8):
        pipe = mixed(parts, route=route)
        compiled = pipe.compile(backend=TRACED)
        testing.compiled_equals_eager(compiled, pipe.init(0), [batch(16)], 1e-5)
        sizes[parts] = compiled.report.graphs[0].operations
    assert sizes[8] == sizes[2]


def test_parts_draw_other_numbers():
    """Dropout in one part is not that in another, and is the same when the step is done again."""

    @stage(writes="params")
    def spread(params, outputs):
        return {**params, "1.bias": outputs.std(0)}

    dropped = classifier(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), 4)
    pipe = Pipeline(*dropped.stages, spread)
    same = {"inputs": torch.ones(4, 4), "targets": torch.zeros(4, dtype=torch.int64)}
    first, again = (pipe.step(pipe.init(0), same)[0] for _ in range(2))
    assert (first.params["1.bias"] > 0).all()
    testing.same(first.tree, again.tree)


@pytest.mark.parametrize("backend", [None, TRACED])
def test_a_number_of_parts_is_that_of_the_whole_batch(backend):
    """A 0-d float is a mean by the samples of each part, or by its own weight; a count of each part is refused."""

    @stage(writes=("size", "first", "first.weight", "seen"))
    def numbers(outputs, targets):
        weight = (targets == 0).sum().double()
        mean = (outputs[:, 0] * (targets == 0)).sum() / weight
        return outputs.square().mean(), mean, weight, (targets == 0).sum()

    @stage(writes="params")
    def moved(params, size, first):
        return {k: p - size * first for k, p in params.items()}

    data = {"inputs": batch(8)["inputs"], "targets": torch.tensor([0, 1, 2, 1, 1, 0, 0, 2])}
    pipe = Pipeline(*classifier(lambda: models.mlp(4, 3), 3, numbers).stages, moved)
    whole = pipe.replace("backward.gradients", backward.gradients())
    step = pipe.step if backend is None else pipe.compile(backend=backend, donate=False).step
    testing.same(step(pipe.init(0), data)[0].tree, whole.step(pipe.init(0), data)[0].tree, 1e-6)
    counted = stage(writes="params", name="counted")(lambda params, seen: {k: p * seen for k, p in params.items()})
    bad = pipe.insert(counted, after="moved")
    with pytest.raises(StageError, match=r"writes 'seen' \(\) of each part"):
        (bad.step if backend is None else bad.compile(backend=backend).step)(pipe.init(0), data)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_memory_of_another_shape_is_named(compiled):
    """What remembers another shape than it did is refused."""
    grows = stage(writes="outputs", name="grows", init=lambda params: {"n": torch.zeros(3)})(
        lambda outputs, memory: (outputs, {"n": outputs.detach()})
    )
    pipe = classifier(lambda: models.mlp(4, 3), 2, grows)
    step = pipe.compile(backend="eager").step if compiled else pipe.step
    with pytest.raises(StageError, match=r"\(4, 3\) (where it found|of) \(3,\)"):
        step(pipe.init(0), batch(8))
