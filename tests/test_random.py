import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline import random
from tests.strategies import fractions, seeds, shapes

N = 200_000
KEY = torch.tensor(random.key(3, 1))


def under(draw, seed=0, step=0, salt=0):
    """What `draw` gives under a key."""
    with random.keyed(torch.tensor(seed), torch.tensor(step), salt):
        return draw()


# -- the generator


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


# -- draws under a key

X = torch.ones(2, 3, 4, 4)
Q = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
DRAWS = {
    "dropout": lambda: nn.Dropout(0.5)(X),
    "torch.dropout": lambda: torch.dropout(X, 0.5, True),
    "dropout1d": lambda: nn.Dropout1d(0.5)(X[0]),
    "dropout2d": lambda: nn.Dropout2d(0.5)(X.repeat(1, 4, 1, 1)),
    "dropout3d": lambda: nn.Dropout3d(0.5)(X.repeat(1, 4, 1, 1).unsqueeze(-1)),
    "alpha_dropout": lambda: nn.AlphaDropout(0.5)(X),
    "rand": lambda: torch.rand(3, 4),
    "rand, a tuple": lambda: torch.rand((3, 4), dtype=torch.float64),
    "rand, by keyword": lambda: torch.rand(size=(3, 4)),
    "randn": lambda: torch.randn(3, 4),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X),
    "bernoulli": lambda: torch.bernoulli(X * 0.5),
    "bernoulli method": lambda: (X * 0.5).bernoulli(),
    "bernoulli_": lambda: torch.empty(50).bernoulli_(0.5),
    "normal_": lambda: torch.empty(5).normal_(2.0, 3.0),
    "uniform_": lambda: torch.empty(5).uniform_(2.0, 3.0),
    "attention": lambda: F.scaled_dot_product_attention(Q, Q, Q, dropout_p=0.5),
    "causal attention": lambda: F.scaled_dot_product_attention(Q, Q, Q, dropout_p=0.5, is_causal=True),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_is_a_function_of_its_key(draw):
    """Any draw is the same under the same (seed, step, salt), other under another, and leaves torch's generator
    alone."""
    before = torch.get_rng_state()
    first = under(draw)
    assert torch.equal(first, under(draw))
    for other in ({"seed": 1}, {"step": 1}, {"salt": 1}):
        assert not torch.equal(first, under(draw, **other))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_looks_like_torchs(draw):
    """Any draw has the shape, the dtype and, over many keys, the mean and the deviation of torch's own."""
    keyed = torch.stack([under(draw, seed) for seed in range(200)]).double()
    own = torch.stack([draw() for _ in range(200)]).double()
    assert (keyed.shape, under(draw).dtype) == (own.shape, draw().dtype)
    for mine, torchs in ((keyed, own), (keyed**2, own**2)):
        # Within a draw numbers may share their fate (channels), so the draws are what is counted.
        mine, torchs = mine.flatten(1).mean(1), torchs.flatten(1).mean(1)
        error = ((mine.var() + torchs.var()) / 200).sqrt()
        assert abs(mine.mean() - torchs.mean()) <= 5 * error


def test_draws_in_one_step_differ():
    """Two draws under one key are two draws."""
    a, b = under(lambda: (torch.rand(50), torch.rand(50)))
    assert not torch.equal(a, b)


@given(fractions, seeds)
def test_dropout_keeps_its_rate(p, seed):
    """Dropout zeroes a share p of the entries and scales the others by 1 / (1 - p)."""
    x = under(lambda: nn.Dropout(p)(torch.ones(40_000)), seed)
    kept = x != 0
    assert abs(kept.double().mean() - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / 40_000)
    torch.testing.assert_close(x[kept], torch.full_like(x[kept], 1 / (1 - p)))


@pytest.mark.parametrize("module", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout])
def test_dropout_at_its_ends(module):
    """Dropout of 0, and dropout in eval mode, change nothing; dropout of 1 leaves zeros."""
    x = torch.ones(2, 3, 4, 4, 4)[(0,) * (module is nn.Dropout1d) + (0,) * (module in (nn.Dropout1d, nn.Dropout2d))]
    assert torch.equal(under(lambda: module(0.0)(x)), x)
    assert torch.equal(under(lambda: module(0.5).eval()(x)), x)
    assert not under(lambda: module(1.0)(x)).any()


@pytest.mark.parametrize(
    ("module", "shape", "channels"),
    [
        (nn.Dropout1d, (8, 9), 1),
        (nn.Dropout1d, (8, 9, 4), 2),
        (nn.Dropout2d, (8, 9, 4), 2),
        (nn.Dropout2d, (8, 9, 4, 4), 2),
        (nn.Dropout3d, (8, 4, 4, 4), 1),
        (nn.Dropout3d, (8, 9, 4, 4, 4), 2),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_channels_drop_whole(module, shape, channels):
    """Channel dropout drops whole channels, the ones that torch takes for channels, and not all of them."""
    x = under(lambda: module(0.5)(torch.ones(shape))).flatten(channels)
    assert torch.equal(x, x[..., :1].expand_as(x))
    own = module(0.5)(torch.ones(shape)).flatten(channels)
    assert torch.equal(own, own[..., :1].expand_as(own))
    assert len(x.unique()) == 2
    assert x[..., 0].reshape(8, -1).unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
def test_attention_without_dropout_in_the_mean(masked):
    """Attention with dropout is, in the mean over many draws, attention without it, for each kind of mask."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    options = {} if masked is None else {"attn_mask": mask if masked is torch.bool else mask.float()}
    many = Q[0].expand(10_000, *Q[0].shape)
    plain = F.scaled_dot_product_attention(many, many, many, **options)
    dropped = under(lambda: F.scaled_dot_product_attention(many, many, many, dropout_p=0.2, **options))
    torch.testing.assert_close(dropped.mean(0), plain[0], atol=0.05, rtol=0)
    assert not torch.equal(dropped, plain)


def test_grouped_attention():
    """Attention with dropout takes fewer heads of keys and values than of queries."""

    def draw(dropout_p):
        return F.scaled_dot_product_attention(Q[:, :2], Q[:, :1], Q[:, :1], dropout_p=dropout_p, enable_gqa=True)

    torch.testing.assert_close(under(lambda: draw(1e-9)), draw(0.0))


def test_draws_map_over_seeds():
    """A mapped draw is the stack of the draws, one a seed."""
    seeds = torch.arange(4)

    def draw(seed):
        with random.keyed(seed, torch.tensor(5), 0):
            return F.dropout(torch.ones(30), 0.5), torch.rand(3)

    mapped = torch.vmap(draw)(seeds)
    for i in range(4):
        for together, alone in zip(mapped, draw(seeds[i]), strict=True):
            assert torch.equal(together[i], alone)
