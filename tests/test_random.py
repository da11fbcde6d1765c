import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import random
from tests.strategies import seeds, shapes

N = 200_000
KEY = torch.tensor(random.key(3, 1))


@given(seeds, shapes, st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_uniform_is_in_the_half_open_unit_interval(seed, shape, dtype):
    """`uniform` has the shape and dtype asked for and values in [0, 1)."""
    x = random.uniform(torch.tensor(seed), (*shape, 100), dtype)
    assert (x.shape, x.dtype) == ((*shape, 100), dtype)
    assert ((x >= 0) & (x < 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_uniform_stays_below_one(dtype):
    """No number among many rounds up to 1 in a narrow dtype."""
    assert random.uniform(KEY, (N,), dtype).max() < 1


def test_uniform_is_uniform():
    """Uniform numbers have the mean, the deviation and the evenly filled bins of their distribution."""
    x = random.uniform(KEY, (N,)).double()
    assert abs(x.mean() - 1 / 2) < 5 / math.sqrt(12 * N)
    assert abs(x.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / N)
    counts = torch.histc(x, 100, 0, 1)
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 99 + 5 * math.sqrt(2 * 99)


def test_normal_is_normal():
    """Normal numbers have the first four moments of their distribution, and its tails."""
    x = random.normal(KEY, (N,)).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / N)
    assert abs((x.abs() > 3).double().mean() - 0.0027) < 5 * math.sqrt(0.0027 / N)


def test_streams_are_not_correlated():
    """Numbers do not tell of the next ones, nor of those under the next key, shifted or not."""
    x, y = (random.uniform(torch.tensor(random.key(0, s)), (N,)).double() - 0.5 for s in (0, 1))
    for a, b in ((x[1:], x[:-1]), (x, y), (x[1:], y[:-1])):
        assert abs((a * b).mean()) < 5 / 12 / math.sqrt(N)


@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=4, unique=True))
def test_the_order_of_key_parts_counts(parts):
    """A key is the same for the same parts, as ints or tensors, and another for another order or fewer of them."""
    k = random.key(*parts)
    assert k == random.key(*map(torch.tensor, parts))
    assert 0 <= k < 2**32
    assert len({k, random.key(*reversed(parts)), random.key(*parts[:-1])}) == 3


def test_mix_is_a_bijection_that_spreads_every_bit():
    """`mix` gives different numbers for different ones, and one changed bit changes about half of them."""
    x = torch.arange(1 << 20)
    assert len(random.mix(x).unique()) == len(x)
    x = x[:4096]
    for bit in range(32):
        changed = random.mix(x) ^ random.mix(x ^ (1 << bit))
        ones = (changed.unsqueeze(1) >> torch.arange(32)) & 1
        assert abs(ones.double().mean() - 0.5) < 0.03


@given(st.integers(0, 2**32 - 1), st.integers(0, 40_000), st.integers(0, 2**31))
def test_numbers_are_the_same_by_numpy_and_by_torch(key, n, first):
    """Numbers hashed on the host are those of a key under vmap, which only tensors compute, at any offset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random.mesh, "draw_offset", lambda shape: first)
        mapped = torch.vmap(lambda k: random.bits(k, (n,)))(torch.tensor([key]))[0]
        for k in (key, torch.tensor(key)):
            assert torch.equal(random.bits(k, (n,)), mapped)
