"""Ids out of range are refused equally: uncompiled and compiled, by each backend, one step a call and many."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, forward, load, loss, place, testing, update
from pipeline.errors import StageError
from tests import pipes

ROWS = 7


def put(rows, ids):
    made = torch.zeros(ROWS, 4)
    made[ids] = rows[: len(ids)]
    return made[: len(ids)]


def column(ids):
    return ids[:, None].expand(-1, 4)


def zeros():
    return torch.zeros(ROWS, 4)


TAKING = {
    "embedding": lambda w, i: F.embedding(i, w),
    "embedding_bag": lambda w, i: F.embedding_bag(i[:, None], w),
    "one_hot": lambda w, i: F.one_hot(i, ROWS).float() @ w,
    "scatter": lambda w, i: zeros().scatter(0, column(i), w[: len(i)])[: len(i)],
    "scatter_": lambda w, i: torch.zeros(len(i), ROWS).scatter_(1, i[:, None], 1.0) @ w,
    "scatter_add": lambda w, i: zeros().scatter_add(0, column(i), w[: len(i)])[: len(i)],
    "scatter_reduce": lambda w, i: zeros().scatter_reduce(0, column(i), w[: len(i)], "mean")[: len(i)],
    "gather": lambda w, i: w.gather(0, column(i)),
    "take": lambda w, i: w[:, 0].take(column(i)),
    "index_select": lambda w, i: w.index_select(0, i),
    "index": lambda w, i: w[i],
    "two indices": lambda w, i: w[i, torch.arange(len(i))][:, None].expand(-1, 4),
    "index_add": lambda w, i: zeros().index_add(0, i, w[: len(i)])[: len(i)],
    "index_copy": lambda w, i: zeros().index_copy(0, i, w[: len(i)])[: len(i)],
    "index_put": put,
    "index_fill": lambda w, i: w.index_fill(0, i, 0.5)[: len(i)],
    "nll": lambda w, i: F.nll_loss(torch.log_softmax(w[: len(i)] @ torch.ones(4, ROWS), 1), i) * w[: len(i)],
    "cross_entropy": lambda w, i: F.cross_entropy(w[: len(i)] @ torch.ones(4, ROWS), i, ignore_index=-5) * w[: len(i)],
}
"""Rows of what is trained, and ids among them."""
WRAPPING = ("take", "index", "two indices", "index_put", "index_fill")
"""Of these, -1 is the last row."""


class Taking(nn.Module):
    def __init__(self, function, computed):
        super().__init__()
        self.rows, self.function, self.computed = nn.Parameter(torch.randn(ROWS, 4)), function, computed

    def forward(self, x):
        return self.function(self.rows, x + 0 if self.computed else x)


def pipe(name, wrong=None, computed=True, accumulate=1):
    ids = torch.arange(16) % 4
    if wrong is not None:
        ids[9] = wrong  # of the third batch
    return Pipeline(
        load.batches({"inputs": ids, "targets": torch.zeros(16, 4)}, size=4, shuffle=False),
        place.on("cpu"),
        forward.model(lambda: Taking(TAKING[name], computed)),
        loss.mse(),
        backward.gradients(accumulate=accumulate),
        update.sgd(0.1, momentum=0.9),
    )


def batches(pipe):
    return list(pipe.load.epoch(0, 0))


def refused(run, state, value):
    """A run fails on the id, and leaves the State as it was."""
    before = state.clone()
    with pytest.raises(StageError, match=rf"stage 'forward.model'.* id {value} is outside the 7 rows") as caught:
        run(state)
    assert "\n" not in str(caught.value)
    testing.same(state.tree, before.tree)


def equally(name, backend, computed=True, accumulate=1):
    own = pipe(name, None, computed, accumulate)
    single, state, plain = own.compile(backend=backend), own.init(0), own.init(0)
    first = batches(own)[0]
    for wrong in (ROWS, -1, -ROWS - 1, 2**40, -(2**40)):
        batch = {**first, "inputs": torch.tensor([0, wrong, 1, 2])}
        if wrong == -1 and name in WRAPPING:
            state, _ = single(state, batch)
            plain, _ = own.step(plain, batch)
        else:
            refused(lambda s, b=batch: own.step(s, b), plain, wrong)
            refused(lambda s, b=batch: single(s, b), state, wrong)
    state, _ = single(state, first)
    plain, _ = own.step(plain, first)
    testing.same(state.tree, plain.tree, 1e-5)
    wrong = ROWS if name in WRAPPING else -1
    own = pipe(name, wrong, computed, accumulate)
    fused = own.compile(backend=backend, steps=4)
    refused(fused, own.init(0), wrong)
    if accumulate == 1:
        refused(lambda s: own.evaluate(s), own.init(0), wrong)
        refused(fused.evaluate, own.init(0), wrong)


COMPILED = [
    ("scatter_", "native"),
    pytest.param("one_hot", "native", marks=pytest.mark.thorough),
    pytest.param("embedding", "inductor", marks=pytest.mark.thorough),
    ("gather", "aot_eager"),
]


FEW = ("embedding", "one_hot", "index", "index_put", "cross_entropy")
"""Of these, ids of the data are tried too, which are looked at once and not in each step; the others are thorough."""
PLACES = [
    pytest.param(name, computed, id=f"{name}-{where}", marks=[] if computed or name in FEW else [pytest.mark.thorough])
    for computed, where in ((True, "computed"), (False, "of the data"))
    for name in TAKING
]


@pytest.mark.parametrize(("name", "computed"), PLACES)
def test_ids_out_of_range_are_refused_equally(name, computed):
    """By an uncompiled step, a compiled one, many in a call and an evaluation, with stage, value and range; the State
    stays as it was before the call. What torch takes, as -1 by an index, is taken."""
    equally(name, pipes.TRACED, computed)


@pytest.mark.parametrize("name", [pytest.param("one_hot", marks=pytest.mark.thorough), "embedding", "cross_entropy"])
def test_ids_of_a_part_are_refused_too(name):
    """Where a batch is taken in parts, which is a loop in the graph."""
    equally(name, pipes.TRACED, True, 2)


@pytest.mark.parametrize(("name", "backend"), COMPILED)
def test_ids_are_refused_by_compilers_that_check_none(name, backend):
    """Generated code would write behind the rows, or take -1 for the last."""
    equally(name, backend)


def test_ignored_ids_are_no_ids():
    """Labels that are ignored are outside the classes, and taken."""
    own = pipe("cross_entropy", -5)
    own.compile(backend=pipes.TRACED, steps=4)(own.init(0))


def test_a_step_fails_once_and_the_run_goes_on_from_its_state():
    """Without donation too, a State that was given to a failed call is what it was, and can be used."""
    own = pipe("gather", ROWS)
    steps, state = own.compile(backend=pipes.TRACED, steps=2, donate=False), own.init(0)
    state, _ = steps(state)
    for _ in range(2):
        refused(steps, state, ROWS)


class Pooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(ROWS, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embed(x).gather(1, x[:, :, None].expand(-1, -1, 4) % x.shape[1]).mean(1))


def test_ids_are_checked_where_sizes_are_symbols():
    """One graph for many lengths refuses them too."""
    own = Pipeline(forward.model(Pooling), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    step, state = own.compile(backend=pipes.TRACED), own.init(0)
    for length in range(3, 8):
        batch = {"inputs": torch.arange(4 * length).reshape(4, length) % ROWS, "targets": torch.arange(4) % 3}
        state, _ = step(state, batch)
    assert len(step.report.graphs) == 3
    refused(lambda s: step(s, {**batch, "inputs": batch["inputs"] + 1}), state, ROWS)
