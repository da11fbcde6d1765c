import math
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import order
from tests.strategies import batch_sizes, samples, seeds

epochs = st.integers(0, 2**40)


def split(n, size, seed, epoch, *, shuffle=True, **options):
    return order.batches(order.Whole(n, shuffle), size, seed, epoch, **options)


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return order.permute(np.arange(n), n, order.keys(n, seed, epoch))


@given(samples, batch_sizes, seeds, epochs, st.booleans())
def test_an_epoch_holds_every_sample_once(n, size, seed, epoch, shuffle):
    """The batches of an epoch, the short last one too, hold each of n samples exactly once."""
    batches = list(split(n, size, seed, epoch, shuffle=shuffle))
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == order.count(n, size)


@given(samples, batch_sizes, seeds, epochs)
def test_drop_last_leaves_out_only_the_short_batch(n, size, seed, epoch):
    """With drop_last an epoch is the whole batches of the same order."""
    whole = [b.tolist() for b in split(n, size, seed, epoch) if len(b) == size]
    assert [b.tolist() for b in split(n, size, seed, epoch, drop_last=True)] == whole
    assert order.count(n, size, drop_last=True) == len(whole)


@given(samples, batch_sizes, seeds, epochs, st.integers(0, 20))
def test_start_gives_the_tail(n, size, seed, epoch, start):
    """An epoch from batch k on is the whole epoch without its first k batches."""
    whole = [b.tolist() for b in split(n, size, seed, epoch)]
    assert [b.tolist() for b in split(n, size, seed, epoch, start=start)] == whole[start:]


@given(st.integers(1, 2**60), seeds, epochs, st.lists(st.integers(0, 2**60), min_size=1, max_size=5))
def test_ints_arrays_and_tensors_agree(n, seed, epoch, positions):
    """`permute` gives the same integers for ints, NumPy arrays and tensors, and for keys that are tensors."""
    positions = [p % n for p in positions]
    keys = order.keys(n, seed, epoch)
    expected = [order.permute(p, n, keys) for p in positions]
    assert order.permute(np.array(positions), n, keys).tolist() == expected
    assert order.permute(torch.tensor(positions), n, torch.tensor(keys)).tolist() == expected
    assert all(0 <= p < n for p in expected)


@given(st.integers(30, 300), seeds, seeds, st.integers(0, 100), st.integers(0, 100))
def test_seeds_and_epochs_have_orders_of_their_own(n, seed, other, epoch, later):
    """Two epochs, or two seeds, of 30 samples and more have different orders."""
    assume(seed != other and epoch != later)
    orders = {tuple(shuffled(n, s, e)) for s in (seed, other) for e in (epoch, later)}
    assert len(orders) == 4


def test_every_permutation_is_equally_likely():
    """Over many keys the 24 orders of four samples come equally often, by a chi-square test at 1e-6."""
    keys = order.keys(4, 0, np.arange(12_000)).transpose(1, 2, 0)
    orders = np.stack([order.permute(np.full(12_000, p), 4, keys) for p in range(4)], 1)
    found, counts = np.unique(orders, axis=0, return_counts=True)
    expected = 12_000 / 24
    assert sorted(map(tuple, found.tolist())) == sorted(permutations(range(4)))
    assert ((counts - expected) ** 2 / expected).sum() < 71  # the 1 - 1e-6 quantile of 23 degrees of freedom


@pytest.mark.parametrize("n", [7, 64, 1000])
def test_each_position_goes_everywhere_equally_often(n):
    """Over many keys each of some positions spreads evenly over all places, by the chi-square's mean and spread."""
    keys = order.keys(n, np.arange(20 * n)[:, None], 3).transpose(1, 2, 0)
    for position in (0, 1, n // 2, n - 1):
        counts = np.bincount(order.permute(np.full(20 * n, position), n, keys), minlength=n)
        chi = ((counts - 20) ** 2 / 20).sum().item()
        assert abs(chi - (n - 1)) < 6 * math.sqrt(2 * (n - 1))


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_part(seed):
    """After a shuffle, neighbours are neighbours no more often than by chance, and places say nothing of each other."""
    n = 10_000
    moved = shuffled(n, seed, epoch=0)
    assert (np.abs(np.diff(moved)) == 1).sum() < 12  # 2 by chance
    assert abs(np.corrcoef(np.arange(n), moved)[0, 1]) < 0.05
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(moved, shuffled(n, seed, epoch=1))[0, 1]) < 0.05


@pytest.mark.parametrize("n", [10**6, 2**32 + 1, 10**12, 2**61])
def test_a_huge_data_set_is_spread_too(n):
    """The first samples of any data set, however large, come from all over it, by the median chi-square of some
    seeds."""
    chis = []
    for seed in range(9):
        places = order.permute(np.arange(10_000), n, order.keys(n, seed, 0))
        counts = np.bincount(places // (n // 10 + 1), minlength=10)
        chis.append(((counts - 1000) ** 2 / 1000).sum())
        assert len(set(places.tolist())) == 10_000
    assert np.median(chis) < 20  # of a chi-square with 9 degrees of freedom it is 8.3


def test_samples_2_to_the_32_apart_part():
    """Samples that are a multiple of 2**32 apart, where a hash of 32 bits can't tell them apart, are so no more."""
    places = order.permute(np.arange(10_000) << 32, 2**61, order.keys(2**61, 0, 0))
    assert len(set((places % 2**32).tolist())) > 9_000  # they are what 16 yes-or-no decisions leave


def test_memory_does_not_grow_with_the_data_set():
    """A batch in the middle of an epoch of 10**12 samples costs a few megabytes."""
    tracemalloc.start()
    batch = next(split(10**12, 64, seed=0, epoch=0, start=10**9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batch) == 64
    assert peak < 4e6
