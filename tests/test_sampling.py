"""Sampling: draws by weights, and batches of several data sets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    Pipeline,
    backward,
    evaluate,
    fit,
    forward,
    load,
    loss,
    models,
    order,
    stage,
    sweep,
    testing,
    update,
)
from pipeline.errors import ConfigError, DataError
from tests.pipes import TRACED
from tests.strategies import batch_sizes, seeds

N, M = 50, 137
DATA = {"inputs": torch.randn(N, 4), "targets": torch.arange(N) % 3}
EXTRA = {"unlabelled": torch.randn(M, 4)}
WEIGHTS = torch.rand(N)


@stage(writes="loss")
def both(supervised, guessed):
    return supervised + 0.1 * guessed.softmax(-1).square().mean()


def drawn(source):
    model = forward.model(lambda: models.mlp(4, 8, 3, dropout=0.1))
    metrics = loss.cross_entropy(), evaluate.accuracy()
    return Pipeline(source, model, *metrics, backward.gradients(), update.sgd(0.1, momentum=0.9))


def joined(source, **options):
    model = forward.model(lambda: models.mlp(4, 8, 3))
    again = model.again(inputs="unlabelled", outputs="guessed")
    losses = loss.cross_entropy().rename(loss="supervised"), again, both
    return Pipeline(source, model, *losses, backward.gradients(**options), update.sgd(0.1, momentum=0.9))


def two(epoch="first", size=12):
    return load.together(load.batches(DATA, size=8), load.batches(EXTRA, size=size), epoch=epoch)


RUNS = {
    "weights": lambda: drawn(load.batches(DATA, size=8, weights=WEIGHTS)),
    "without replacement": lambda: drawn(load.batches(DATA, size=8, weights=WEIGHTS, replacement=False, draws=30)),
    "balanced": lambda: drawn(load.batches(DATA, size=8, balanced="targets", draws=77, drop_last=True)),
    "together": lambda: joined(two()),
    "longest": lambda: joined(two("longest")),
    "accumulated": lambda: joined(two(), accumulate=2),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_fused_and_swept_equal_single_steps(name):
    """A run resumed in the middle of an epoch is the same bits; one fused graph, and a member of a sweep, the same."""
    pipe = RUNS[name]()
    *_, single = fit(pipe, epochs=3, compile=False)
    for middle in fit(pipe, epochs=3, compile=False, every=5):
        if middle.step == 5:
            break
    at = {"state": middle.state.clone(), "start": (middle.epoch - 1, middle.batch)}
    *_, resumed = fit(pipe, epochs=3, compile=False, **at)
    testing.same(resumed.state.tree, single.state.tree)
    compiled = pipe.compile(backend=TRACED)
    assert compiled.resident
    *_, fused = fit(pipe, epochs=3, compile=compiled, steps_per_call="epoch")
    testing.same(fused.state.tree, single.state.tree, 1e-6)
    assert fused.samples == single.samples
    *_, fused = fit(pipe, epochs=3, compile=compiled, **at)
    testing.same(fused.state.tree, single.state.tree, 1e-6)
    runs = sweep(pipe, seeds=2)
    *_, report = fit(runs, epochs=3, compile=False)
    testing.same(runs.member(report.state, 0).params, single.state.params, 1e-5)


@pytest.mark.parametrize("name", ["weights", "together"])
def test_members_draw_inside_the_graph(name):
    """Each member of a compiled sweep gathers by its own order; all by the first one's with order="shared"."""
    pipe = RUNS[name]()
    for kind in ("own", "shared"):
        runs = sweep(pipe, seeds=2, order=kind)
        *_, plain = fit(runs, epochs=2, compile=False)
        *_, fused = fit(runs, epochs=2, backend=TRACED)
        testing.same(fused.state.tree, plain.state.tree, 1e-5)


def test_native_gathers_what_is_drawn():
    """The native engine's walk over several windows is the host's."""
    weights = torch.rand(3008)  # batches of one size, so one program
    data = {"inputs": torch.randn(3008, 4), "targets": torch.arange(3008) % 3}
    first = load.batches(data, size=16, weights=weights)
    pipe = joined(load.together(first, load.batches(EXTRA, size=5)))
    *_, single = fit(pipe, epochs=1, compile=False)
    *_, fused = fit(pipe, epochs=1)
    testing.same(fused.state.params, single.state.params, 1e-5)


@given(seeds, st.integers(0, 100))
def test_frequencies_are_the_weights(seed, epoch):
    """With replacement, each sample comes as often as its weight says, to 5 sigma; one of weight 0 never."""
    weights, draws = np.array([0.0, 1.0, 2.0, 5.0, 0.0]), 4000
    where = order.Weighted(draws, weights).places(seed, epoch)(np.arange(draws))
    counts, p = np.bincount(where, minlength=5), weights / weights.sum()
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p))).all()


def test_without_replacement_the_first_is_drawn_by_the_weights():
    """No sample comes twice, and over many epochs the first and the second are drawn as one by one, to 5 sigma."""
    weights, epochs = np.array([1.0, 2.0, 0.0, 3.0]), 6000
    ways = order.Weighted(3, weights, replacement=False)
    seen = np.array([ways.places(0, epoch)(np.arange(3)) for epoch in range(epochs)])
    assert {tuple(sorted(row)) for row in seen.tolist()} == {(0, 1, 3)}
    p = weights / 6
    second = np.array([p[1] * 1 / 4 + p[3] * 1 / 3, p[0] * 2 / 5 + p[3] * 2 / 3, 0, p[0] * 3 / 5 + p[1] * 3 / 4])
    for column, expected in ((0, p), (1, second)):
        counts = np.bincount(seen[:, column], minlength=4)
        assert (np.abs(counts - epochs * expected) <= 5 * np.sqrt(epochs * expected * (1 - expected))).all()


def test_classes_are_balanced():
    """Each class comes equally often, to 5 sigma, and the samples of one class too."""
    targets = torch.tensor([0] * 90 + [7] * 9 + [-1])
    source = load.batches({"targets": targets, "i": torch.arange(100)}, size=512, balanced="targets", draws=9000)
    seen = torch.cat([batch["targets"] for batch in source.epoch(0, 0)])
    for label in (0, 7, -1):
        assert abs(int((seen == label).sum()) - 3000) <= 5 * (9000 * 2 / 9) ** 0.5
    assert len({int(i) for batch in source.epoch(0, 0) for i in batch["i"]}) == 100


@given(st.integers(1, 60), batch_sizes, seeds, st.integers(0, 20), st.booleans(), st.integers(0, 30))
def test_an_epoch_of_draws_can_begin_anywhere(n, size, seed, epoch, replacement, start):
    """From batch k on, an epoch is its tail, and no two epochs draw alike."""
    weights = torch.arange(1.0, n + 1)
    source = load.batches({"i": torch.arange(n)}, size=size, weights=weights, replacement=replacement)
    whole = [b["i"].tolist() for b in source.epoch(seed, epoch)]
    assert [b["i"].tolist() for b in source.epoch(seed, epoch, start)] == whole[start:]
    assert sum(map(len, whole)) == n
    if n > 30:
        assert whole != [b["i"].tolist() for b in source.epoch(seed, epoch + 1)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), seeds, st.integers(0, 9))
def test_the_others_pass_again_and_again(n, m, size, other, seed, start):
    """Of the first, each sample once an epoch; of the others one pass after the other, each sample once in each, in
    full batches; from batch k on it is the tail."""
    one, rest = load.batches({"a": torch.arange(n)}, size=size), load.batches({"b": torch.arange(m)}, size=other)
    source = load.together(one, rest)
    epochs = [list(source.epoch(seed, epoch)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch["a"].tolist()) == list(range(n))
    stream = [i for epoch in epochs for batch in epoch for i in batch["b"].tolist()]
    assert len(stream) == 3 * source.batches * min(other, m)
    for at in range(0, len(stream) - m, m):
        assert sorted(stream[at : at + m]) == list(range(m))
    testing.same(list(source.epoch(seed, 1, start)), epochs[1][start:])


def test_an_epoch_may_be_that_of_the_longest():
    """Then the first passes again; in either way data sets of one length have orders of their own."""
    assert (two().batches, two("longest").batches) == (7, 12)
    assert {len(b["inputs"]) for b in two("longest").epoch(0, 0)} == {8}
    alike = load.together(*(load.batches({name: torch.arange(64)}, size=64) for name in "ab"))
    [batch] = alike.epoch(0, 0)
    assert batch["a"].tolist() != batch["b"].tolist()


def test_what_is_not_in_memory_is_joined_too():
    """A data set that is read batch by batch goes beside one in memory, in single steps, also with a number of them a
    call."""

    class Read:
        names = ("unlabelled",)

        def __len__(self):
            return M

        def __getitem__(self, indices):
            return {"unlabelled": EXTRA["unlabelled"][indices]}

    pipe = joined(load.together(load.batches(DATA, size=8), load.batches(Read(), size=12)))
    *_, single = fit(joined(two()), epochs=2, compile=False)
    for options in ({"compile": False}, {"backend": TRACED}, {"backend": TRACED, "steps_per_call": 3}):
        *_, report = fit(pipe, epochs=2, **options)
        testing.same(report.state.tree, single.state.tree, 1e-6)


def test_evaluation_looks_at_each_sample_once():
    """Over its own data, of draws and of several data sets, evaluation is in the data's order, nothing drawn."""
    for source in (load.batches(DATA, size=8, weights=WEIGHTS), two()):
        batches = list(source.over(source).epoch(0, 0))
        testing.same(torch.cat([b["targets"] for b in batches]), DATA["targets"])
    with pytest.raises(DataError, match="each sample once; leave out the weights"):
        load.batches(DATA, size=8).over(load.batches(DATA, size=8, weights=WEIGHTS))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": WEIGHTS[:3]}, r"weights \(3,\) are not 50 finite numbers"),
        ({"weights": -WEIGHTS}, "of at least 0"),
        ({"weights": torch.zeros(N)}, "not all of them 0"),
        ({"weights": WEIGHTS / 0}, "finite numbers"),
        ({"weights": WEIGHTS, "shuffle": False}, "not with shuffle=False"),
        ({"weights": WEIGHTS, "balanced": "targets"}, "one of them"),
        ({"balanced": "target"}, "did you mean 'targets'"),
        ({"balanced": "inputs"}, "are no classes"),
        ({"weights": WEIGHTS, "draws": 0}, "draws=0"),
        ({"weights": WEIGHTS, "draws": N + 1, "replacement": False}, "without replacement to 50"),
        ({"draws": 8}, "go with weights= or balanced="),
        ({"replacement": False}, "go with weights= or balanced="),
    ],
)
def test_what_can_not_be_drawn_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        load.batches(DATA, size=8, **options)


def test_what_can_not_be_joined_is_refused():
    one = load.batches(DATA, size=8)
    with pytest.raises(DataError, match="values called inputs, targets; give one other names"):
        load.together(one, one)
    with pytest.raises(DataError, match=r"takes one load\.batches\(\) for each data set"):
        load.together(one, load.loader([EXTRA]))
    with pytest.raises(DataError, match=r"takes one load\.batches\(\) for each data set"):
        load.together(one, EXTRA)
    with pytest.raises(ConfigError, match="use 'first' or 'longest'"):
        load.together(one, load.batches(EXTRA, size=8), epoch="shortest")
    with pytest.raises(DataError, match="for one process"):
        next(two().shards(0, 0, 0, lambda n: None))
    assert repr(two()) == (
        "load.together(load.batches(50 samples of inputs, targets, size=8), load.batches(137 samples of unlabelled, "
        "size=12))"
    )
