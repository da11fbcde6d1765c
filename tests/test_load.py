from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Pipeline, backward, fit, forward, load, loss, testing, update
from pipeline.errors import ConfigError, DataError
from tests import pipes
from tests.pipes import TRACED
from tests.strategies import batch_sizes, samples, seeds


def numbered(n):
    """Samples whose inputs and targets both tell which they are."""
    return {"inputs": torch.arange(n, dtype=torch.float32).reshape(n, 1), "targets": torch.arange(n)}


def seen(batches):
    return [batch["targets"].tolist() for batch in batches]


@given(samples, batch_sizes, seeds, st.integers(0, 100), st.booleans())
def test_an_epoch_is_every_sample_once_with_its_target(n, size, seed, epoch, shuffle):
    """An epoch holds each sample once, in batches of the size, with the target that belongs to it."""
    stage = load.batches(numbered(n), size=size, shuffle=shuffle)
    batches = list(stage.epoch(seed, epoch))
    assert sorted(chain(*seen(batches))) == list(range(n))
    assert len(batches) == stage.batches
    assert all(len(b["targets"]) == min(size, n) for b in batches[:-1])
    assert all(torch.equal(b["inputs"].flatten(), b["targets"].float()) for b in batches)


@given(samples, batch_sizes, seeds, st.integers(0, 10))
def test_an_epoch_can_begin_anywhere(n, size, seed, start):
    """An epoch from batch k on is its tail, for a data set and for an iterable."""
    data = load.batches(numbered(n), size=size)
    whole = list(data.epoch(seed, 0))
    for stage in (data, load.loader(whole)):
        assert seen(stage.epoch(seed, 0, start)) == seen(whole)[start:]


@given(samples, batch_sizes)
def test_an_order_of_ones_own(n, size):
    """Without shuffling, every epoch is in the data's order."""
    stage = load.batches(numbered(n), size=size, shuffle=False)
    for epoch in (0, 1):
        assert [*chain(*seen(stage.epoch(0, epoch)))] == list(range(n))


@given(samples, batch_sizes, seeds)
def test_drop_last_gives_batches_of_one_size(n, size, seed):
    """With drop_last all batches have one size, and what is left over is less than one."""
    stage = load.batches(numbered(n), size=size, drop_last=True)
    sizes = {len(b) for b in seen(stage.epoch(seed, 0))}
    assert sizes == {min(size, n)}
    assert 0 <= n - stage.batches * min(size, n) < size


@given(samples, batch_sizes)
def test_validation_reads_everything_in_order(n, size):
    """Over other data a load stage gives all of it, in order, in batches of its size."""
    stage = load.batches(numbered(3), size=3, drop_last=True).over(numbered(n))
    assert [*chain(*seen(stage.epoch(0, 0)))] == list(range(n))
    assert {*map(len, seen(stage.epoch(0, 0)))} <= {3, n % 3}
    other = load.batches(numbered(1), size=1).over([{"targets": torch.arange(size)}])
    assert seen(other.epoch(0, 0)) == [list(range(size))]


@pytest.mark.parametrize(
    "data",
    [
        [{"inputs": torch.zeros(2, 1), "targets": torch.arange(2)}],
        [(torch.zeros(2, 1), torch.arange(2))],
        [[torch.zeros(2, 1), torch.arange(2)]],
        DataLoader(TensorDataset(torch.zeros(2, 1), torch.arange(2)), batch_size=2),
    ],
    ids=["mappings", "tuples", "lists", "a DataLoader"],
)
def test_an_iterable_of_batches(data):
    """Any iterable of mappings or tuples is read anew each epoch, its length known where it tells."""
    stage = load.loader(data)
    assert (stage.batches, stage.known) == (1, False)
    for epoch in (0, 1):
        [batch] = stage.epoch(0, epoch)
        assert batch["inputs"].shape == (2, 1)
        assert batch["targets"].tolist() == [0, 1]


def test_parts_have_names():
    """The parts of what an iterable yields get the names that were given."""
    stage = load.loader([torch.zeros(2, 1)], names=("pixels",))
    assert [set(b) for b in stage.epoch(0, 0)] == [{"pixels"}]
    three = load.loader([(torch.zeros(1), torch.ones(1), torch.ones(1))], names=("a", "b", "c"))
    assert [set(b) for b in three.epoch(0, 0)] == [{"a", "b", "c"}]


def test_an_iterator_is_refused():
    """An epoch iterates anew, which an iterator can't."""
    with pytest.raises(DataError, match="not an iterator"):
        load.loader(iter([]))


@pytest.mark.parametrize("item", [(torch.zeros(1),), (torch.zeros(1),) * 3, torch.zeros(1), 5, "ab1"])
def test_parts_that_do_not_fit_their_names_are_an_error(item):
    """A batch with more or fewer parts than names raises a DataError that says how to name them."""
    with pytest.raises(DataError, match=r"does not fit the names inputs, targets; pass names="):
        list(load.loader([item]).epoch(0, 0))


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", None])
def test_a_batch_size_is_a_positive_whole_number(size):
    """Any other batch size raises a ConfigError with the value."""
    with pytest.raises(ConfigError, match=f"batch size {size} is not a positive whole number"):
        load.batches(numbered(3), size=size)


def test_what_is_no_data_is_an_error():
    """What can't be read raises a DataError that says which of the two stages takes it."""
    with pytest.raises(DataError, match=r"load\.loader"):
        load.batches(iter([]), size=2)
    with pytest.raises(DataError, match="takes an iterable of batches, not int"):
        load.loader(5)


@given(samples, st.integers(1, 5))
def test_a_first_look(n, count):
    """The first samples of a data set, or what an iterable yields first."""
    assert load.first(load.batches(numbered(n), size=3), count)["targets"].tolist() == list(range(min(count, n)))
    assert load.first(load.loader([numbered(n), numbered(1)]), count)["targets"].tolist() == list(range(n))


def test_load_names_what_it_reads():
    """A load stage writes the names of its data set, from arrays too."""
    assert load.batches((np.zeros((3, 2)), np.zeros(3)), size=2).writes == ("inputs", "targets")
    assert load.batches({"a": torch.zeros(3)}, size=2).writes == ("a",)


def test_a_data_set_may_be_nested():
    """A batch is nested as the data set is, and trains on the device as a whole, in one graph."""
    n, data = 10, {"inputs": {"a": np.ones((10, 2)), "b": (torch.ones(10, 3), torch.arange(10.0)[:, None])}}
    at = load.batches({**data, "targets": torch.arange(n) % 2}, size=4)
    first = next(iter(at.epoch(0, 0)))
    assert at.writes == ("inputs", "targets")
    assert torch.equal(first["inputs"]["b"][1][:, 0].long() % 2, first["targets"])

    class Joins(pipes.Linear):
        def forward(self, x):
            return self.layer(torch.cat([x["a"], *x["b"]], 1))

    pipe = Pipeline(at, forward.model(lambda: Joins(6)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    [eager] = fit(pipe, epochs=1, compile=False)
    [compiled] = fit(pipe, epochs=1, backend=TRACED)
    testing.same(compiled.state.tree, eager.state.tree, 1e-6)


def test_a_source_gives_mappings():
    """A data set of single samples is told where it belongs."""

    class Single:
        names = ("inputs", "targets")

        def __len__(self):
            return 3

        def __getitem__(self, indices):
            return torch.zeros(2), 1

    with pytest.raises(DataError, match=r"Single\[indices\] gave tuple.*sources.dataset"):
        next(iter(load.batches(Single(), size=2).epoch(0, 0)))
