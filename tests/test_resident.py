"""A data set on the device: every batch comes once, in the order that its load stage has."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import load, order, resident, testing
from pipeline.compile.batches import resident_batch
from pipeline.resident import Resident
from tests.strategies import batch_sizes, samples, seeds

epochs = st.integers(0, 200)


@st.composite
def loads(draw):
    """A load stage of numbered samples."""
    n = draw(samples)
    data = {"inputs": torch.arange(n), "targets": torch.arange(2 * n).reshape(n, 2)}
    return load.batches(data, size=draw(batch_sizes), shuffle=draw(st.booleans()), drop_last=draw(st.booleans()))


def placed(source, window=None):
    """A data set with a window of so many batches, so that small ones have several."""
    data = Resident(lambda tree: tree, source)
    if window is not None:
        data.window = min(window, data.window)
        data.order = torch.zeros(data.window * source.size, dtype=torch.int64)
        data.static = (*data.tensors.values(), data.order, data.cursor)
    return data


def gathered(data, size, steps):
    """The batches of a stretch, each read as a program reads it, which moves the cursor on."""
    for _ in range(steps):
        shard, [cursor] = resident_batch(data, size).read(data.static)
        data.cursor.copy_(cursor)
        yield shard.values


def walked(data, seed, epoch, start, count, permute=None):
    """All batches of a walk."""
    stretches = data.walk(seed, epoch, start, count, permute)
    return [batch for size, steps in stretches for batch in gathered(data, size, steps)]


@st.composite
def stretches(draw):
    """A load stage, a window, and batches `start` to `start + count` of its epoch."""
    source = draw(loads().filter(lambda source: source.batches))
    start = draw(st.integers(0, source.batches - 1))
    return source, draw(st.integers(1, 5)), start, draw(st.integers(1, source.batches - start))


@given(stretches(), seeds, epochs)
def test_a_walk_is_the_load_stages_own_epoch(stretch, seed, epoch):
    """Batches gathered on the device are those of the host, from any batch on, across any number of windows."""
    source, window, start, count = stretch
    expected = list(source.epoch(seed, epoch, start))[:count]
    testing.same(walked(placed(source, window), seed, epoch, start, count), expected)


@given(stretches(), seeds, epochs, st.integers(1, 3))
def test_a_walk_goes_on_where_the_last_one_ended(stretch, seed, epoch, later):
    """Walks that follow each other, in an epoch or in another one, and one back to the start, need no more care."""
    source, window, start, _ = stretch
    data = placed(source, window)
    for e, first, count in (
        (epoch, 0, start),
        (epoch, 0, start),
        (epoch, start, source.batches - start),
        (epoch + later, start, 1),
        (epoch, 0, source.batches),
    ):
        expected = list(source.epoch(seed, e, first))[:count]
        testing.same(walked(data, seed, e, first, count), expected)


@given(stretches(), seeds, epochs)
def test_a_fast_permutation_is_given_what_it_needs(stretch, seed, epoch):
    """What works the order out is told the place, the first position, the number of samples, and the epoch's keys."""
    source, window, start, count = stretch
    calls = []

    def permute(out, first, n, keys):
        assert out.is_contiguous()
        assert keys.is_contiguous()
        calls.append(first)
        positions = torch.arange(first, first + len(out))
        out.copy_(order.permute(positions, n, keys))

    expected = list(source.epoch(seed, epoch, start))[:count]
    testing.same(walked(placed(source, window), seed, epoch, start, count, permute), expected)
    assert bool(calls) == source.order.shuffle


@given(stretches())
def test_stretches_are_of_one_size_and_one_window(stretch):
    """Each stretch is as long as it can be: it ends with the window, with the whole batches, or with the walk."""
    source, window, start, count = stretch
    data = placed(source, window)
    whole, at = data.n // source.size, start
    for size, steps in data.walk(0, 0, start, count):
        assert size == (source.size if at < whole else data.n % source.size)
        assert int(data.cursor) == at % data.window
        at += steps
        assert (at - steps) // data.window == (at - 1) // data.window
        assert at == start + count or at == whole or at % data.window == 0
        data.cursor += steps
    assert at == start + count


@given(stretches())
def test_sizes_are_those_of_the_batches(stretch):
    """The sizes for which a program is needed are those of the batches, each once."""
    source, _, start, count = stretch
    found = [len(batch["inputs"]) for batch in list(source.epoch(0, 0, start))[:count]]
    assert placed(source).sizes(start, count) == list(dict.fromkeys(found))


@given(loads(), seeds, st.integers(0, 2 * resident.AHEAD))
def test_each_epoch_has_the_order_of_the_load_stage(source, seed, first):
    """Keys that are worked out for many epochs together are those of each."""
    data = placed(source)
    for epoch in (first, first + 1, first + resident.AHEAD, first):
        data.seek(seed, epoch, 0)
        n = min(data.n, len(data.order))
        expected = torch.arange(data.n)
        if source.order.shuffle:
            expected = torch.from_numpy(order.permute(expected.numpy(), data.n, order.keys(data.n, seed, epoch)))
        assert torch.equal(data.order[:n], expected[:n])


def test_an_order_that_is_there_is_not_worked_out_again():
    """Within a window only the cursor moves, and not even that where it stands there already."""
    data = placed(load.batches({"inputs": torch.arange(40)}, size=4), window=5)
    calls = []

    def permute(out, first, n, keys):
        calls.append(first)

    for batch in (0, 3, 4, 5, 7, 2):
        assert data.seek(0, 0, batch, permute) == batch % 5
        assert int(data.cursor) == batch % 5
    assert calls == [0, 20, 0]


def test_the_window_is_bounded():
    """A large data set's order is there for some batches only, and at least for so many samples or batches."""
    assert placed(load.batches({"x": torch.zeros(10**6)}, size=1)).window == resident.WINDOW
    assert placed(load.batches({"x": torch.zeros(10**6)}, size=1000)).window == resident.BATCHES
    assert placed(load.batches({"x": torch.zeros(100)}, size=10)).window == 10


def test_a_look_at_the_beginning_does_not_move_a_walk():
    """After another run was begun, as `fit` does to compile, one goes on at the batch that it asks for."""
    source = load.batches({"inputs": torch.arange(40)}, size=4)
    data = placed(source)
    walked(data, 0, 0, 0, 3)
    data.seek(0, 0, 0)
    testing.same(walked(data, 0, 0, 3, 2), list(source.epoch(0, 0, 3))[:2])
