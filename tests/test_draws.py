import math
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch import distributions as D
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pipeline import Pipeline, backward, checkpoint, evaluate, forward, load, loss, place, stage, testing, update
from pipeline.draws import keyed
from pipeline.errors import ImpureError, StageError
from pipeline.programs import data
from tests.pipes import TRACED
from tests.strategies import fractions, seeds

N = 200_000


def under(draw, seed=0, step=0, salt=0):
    """What `draw` gives under a key."""
    with keyed(torch.tensor(seed), torch.tensor(step), salt):
        return draw()


X = torch.ones(2, 3, 4, 4)
Q = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4])
MHA = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
ENCODER = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
LSTM, GRU = nn.LSTM(4, 3, 3, dropout=0.5, batch_first=True), nn.GRU(4, 3, 2, dropout=0.5, bidirectional=True)
PACKED = nn.utils.rnn.pack_padded_sequence(Q[0], [5, 4, 2], batch_first=True)
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
    "randint": lambda: torch.randint(3, 9, (3, 4)),
    "randint, by keyword": lambda: torch.randint(high=5, size=(9,)),
    "randint, half by keyword": lambda: torch.randint(2, high=5, size=(9,)),
    "a wide randint": lambda: torch.randint(2**40, (3,)) / 2**40,
    "randint_like": lambda: torch.randint_like(X, 7),
    "randperm": lambda: torch.randperm(20)[:3],
    "multinomial": lambda: torch.multinomial(WEIGHTS, 2),
    "multinomial, replaced": lambda: torch.multinomial(WEIGHTS.expand(3, 4), 5, replacement=True),
    "normal": lambda: torch.normal(2.0, 3.0, (4,)),
    "normal of tensors": lambda: torch.normal(torch.arange(4.0), torch.arange(1.0, 5.0)),
    "normal of a mean": lambda: torch.normal(torch.arange(4.0)),
    "exponential_": lambda: torch.empty(9).exponential_(2.0),
    "gamma": lambda: torch._standard_gamma(torch.tensor([0.1, 0.7, 1.0, 5.0, 90.0])),
    "dirichlet": lambda: torch._sample_dirichlet(torch.tensor([0.2, 1.0, 3.0])),
    "feature alpha dropout": lambda: nn.FeatureAlphaDropout(0.5)(X),
    "in place": lambda: nn.Dropout(0.5, inplace=True)(X.clone()),
    "gumbel softmax": lambda: F.gumbel_softmax(WEIGHTS.log()),
    "hard gumbel softmax": lambda: F.gumbel_softmax(WEIGHTS.log(), hard=True),
    "fractional pooling": lambda: nn.FractionalMaxPool2d(2, output_size=4)(torch.arange(432.0).view(1, 3, 12, 12)),
    "multi-head attention": lambda: MHA(Q[0], Q[0], Q[0])[0],
    "multi-head attention, no weights": lambda: MHA(Q[0], Q[0], Q[0], need_weights=False)[0],
    "encoder layer": lambda: ENCODER(Q[0]),
    "lstm": lambda: LSTM(Q[0])[0],
    "gru": lambda: GRU(Q[0])[1],
    "packed lstm": lambda: LSTM(PACKED)[0].data,
    "categorical": lambda: D.Categorical(WEIGHTS).sample((3,)),
    "beta": lambda: D.Beta(torch.tensor([2.0]), torch.tensor([0.5])).rsample(),
    "student": lambda: D.StudentT(torch.tensor([9.0])).sample(),
    "multivariate": lambda: D.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1).sample(),
    "mixture": lambda: D.MixtureSameFamily(D.Categorical(WEIGHTS), D.Normal(torch.arange(4.0), 0.1)).sample((2,)),
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
    keyed = torch.stack([under(draw, seed) for seed in range(100)]).double()
    own = torch.stack([draw() for _ in range(100)]).double()
    assert (keyed.shape, under(draw).dtype) == (own.shape, draw().dtype)
    for mine, torchs in ((keyed, own), (keyed**2, own**2)):
        # Within a draw numbers may share their fate (channels), so the draws are what is counted.
        mine, torchs = mine.flatten(1).mean(1), torchs.flatten(1).mean(1)
        error = ((mine.var() + torchs.var()) / 100).sqrt()
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
        with keyed(seed, torch.tensor(5), 0):
            return F.dropout(torch.ones(30), 0.5), torch.rand(3)

    mapped = torch.vmap(draw)(seeds)
    for i in range(4):
        for together, alone in zip(mapped, draw(seeds[i]), strict=True):
            assert torch.equal(together[i], alone)


def test_more_draws_map_over_seeds():
    """Draws by whatever torch's Python functions are made of map too, with what those functions do besides."""
    seeds = torch.arange(3)

    def draw(seed):
        with keyed(seed, torch.tensor(5), 0):
            numbers = torch.randint(9, (4,)), torch.normal(0.0, 1.0, (2,)), torch.randperm(3)
            return *numbers, F.gumbel_softmax(WEIGHTS.log()), MHA(Q[0], Q[0], Q[0])[0]

    mapped = torch.vmap(draw)(seeds)
    for i in range(3):
        for together, alone in zip(mapped, draw(seeds[i]), strict=True):
            torch.testing.assert_close(together[i], alone)


OWN = torch.Generator()
REFUSED = {
    "a generator": (lambda: torch.rand(3, generator=OWN), "torch.Generator of its own"),
    "a generator, in place": (lambda: torch.empty(3).normal_(generator=OWN), "torch.Generator of its own"),
    "binomial": (lambda: torch.binomial(X, X * 0.5), "draws by binomial, which is no function of (seed, step); write"),
    "an operator": (lambda: torch.ops.aten.poisson(X), "draws by poisson"),
    "poisson": (lambda: D.Poisson(X).sample(), "write torch.normal(rate, rate.sqrt()).round()"),
    "cauchy": (lambda: torch.empty(9).cauchy_(), "write torch.tan(math.pi * (torch.rand(shape) - 0.5))"),
    "geometric": (
        lambda: torch.empty(9).geometric_(0.3),
        "write torch.empty(shape).exponential_(-math.log1p(-p)).ceil()",
    ),
    "log_normal": (lambda: torch.empty(9).log_normal_(), "write torch.exp(mean + std * torch.randn(shape))"),
    "random_": (lambda: torch.empty(9).random_(3, 8), "write torch.randint(low, high, shape)"),
    "rrelu": (lambda: nn.RReLU()(X), "write nn.LeakyReLU()"),
}


@pytest.mark.parametrize(("draw", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_keyed_is_refused(draw, said):
    """A draw that would depend on more than its key is an error that names it."""
    with pytest.raises(ImpureError, match=re.escape(said)):
        under(draw)


@pytest.mark.parametrize("fill", [Tensor.normal_, torch.ops.aten.normal_, torch.relu_])
def test_what_is_given_is_not_written_into(fill):
    """Neither a draw nor another operator, however it is called, writes into what was given."""
    x = torch.ones(3)
    with keyed(torch.tensor(0), torch.tensor(0), 0, {"inputs": x}), pytest.raises(ImpureError, match="into 'inputs'"):
        fill(x.view(3))
    assert x.tolist() == [1.0, 1.0, 1.0]


# -- in a pipeline


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(4, 5, 2, dropout=0.5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


@stage(writes="inputs", when="always")
def noised(inputs):
    """Diffusion's way: a time for each sample, an order, and noise."""
    times = torch.randint(1, 10, (len(inputs), 1, 1)) / 10
    return inputs[torch.randperm(len(inputs))] + times * torch.randn_like(inputs)


BATCH = {"inputs": torch.randn(6, 5, 4), "targets": torch.arange(6) % 3}


def training(model, *before):
    return Pipeline(
        *before, forward.model(model), loss.cross_entropy(), evaluate.accuracy(), backward.gradients(), update.sgd(0.1)
    )


KINDS = {
    "recurrent": training(Recurrent),
    "encoder": training(Encoder),
    "noise": training(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(20, 3)), noised),
}


@pytest.mark.parametrize("pipe", KINDS.values(), ids=KINDS)
def test_steps_that_draw_are_pure_and_compile(pipe):
    """A step with draws of any kind is the same when it is done again, eager and compiled, and another when the step
    is another."""
    state = pipe.init(0)
    testing.lawful(pipe, state, BATCH)
    after, metrics = testing.pure(pipe.step, state, BATCH)
    compiled = pipe.compile(backend=TRACED, donate=False)
    again, same = compiled(state, BATCH)
    testing.same((after.tree, metrics), (again.tree, same), 1e-5)
    assert pipe.step(after, BATCH)[1]["loss"] != compiled(again.replace(step=again.step + 1), BATCH)[1]["loss"]


def test_an_evaluation_that_draws_is_a_function_of_the_state():
    """What a model draws in eval mode, as a sampler does, comes from its State too."""

    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.mean(1)) + torch.randn(3)

    pipe = training(Sampler)
    state = pipe.init(0)
    first = testing.pure(pipe.evaluate, state, BATCH)
    assert first == pipe.evaluate(state, BATCH)


def test_each_batch_of_an_evaluation_has_draws_of_its_own():
    """So that a loss of noisy samples rests on as many draws as samples; the same in a graph, and the next time."""

    @stage(writes="times", when="always")
    def times(inputs):
        return torch.randint(10**6, (len(inputs),))

    seen = evaluate.on_host("seen", lambda times: {*times.tolist()}, lambda seen: {"all": len(set().union(*seen))})
    mean = evaluate.metric("mean", lambda times: {"sum": times.sum()}, lambda sums: {"sum": sums["sum"]},
                           {"sum": torch.int64})  # fmt: skip
    pipe = Pipeline(load.batches(torch.zeros(64, 2), size=8), times, mean)
    state = pipe.init(0)
    assert pipe.evaluate(state) == pipe.evaluate(state)
    assert pipe.compile(backend=TRACED).evaluate(state) == pipe.evaluate(state)
    assert Pipeline(*pipe.stages, seen).evaluate(state)["all"] > 60


def test_draws_of_a_stage_on_the_host_are_a_function_of_its_batch():
    """Of the seed, the epoch and the batch, by whatever generator: two runs are the same, and global ones untouched."""

    @stage(writes="noise", when="train")
    def noise(inputs):
        return torch.rand(len(inputs)) + random.random() + np.random.rand()

    pipe = Pipeline(load.batches(torch.zeros(8, 2), size=4), noise, place.on("cpu"))
    before = torch.get_rng_state()
    epochs = [[b.values["noise"] for b in data.epoch(pipe.program, pipe.load, *at)] for at in ((0, 0), (0, 1), (1, 0))]
    again = [b.values["noise"] for b in data.epoch(pipe.program, pipe.load, 0, 0, 1)]
    assert torch.equal(again[0], epochs[0][1])
    assert len({float(x) for epoch in epochs for batch in epoch for x in batch}) == 24
    assert torch.equal(torch.get_rng_state(), before)


def test_complex_draws_are_complex():
    """Both parts, of half the variance, and in [0, 1)."""
    z = under(lambda: torch.randn(N, dtype=torch.complex64))
    assert z.real.var().item() == pytest.approx(0.5, rel=0.02)
    assert z.imag.var().item() == pytest.approx(0.5, rel=0.02)
    u = under(lambda: torch.rand_like(z))
    assert [u.real.mean().item(), u.imag.mean().item()] == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_row_that_attends_to_nothing_is_zero():
    """As in torch, where it is not NaN."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    made = under(lambda: F.scaled_dot_product_attention(Q, Q, Q, attn_mask=mask, dropout_p=0.5))
    assert not made[..., 0, :].any()
    assert made.isfinite().all()


def test_a_refused_draw_names_its_stage():
    """The message says which stage draws, by what, and what to do."""
    own = stage(lambda inputs: inputs + torch.rand(4, generator=OWN), writes="inputs", name="noise")
    pipe = training(lambda: nn.Linear(20, 3), own)
    for step in (pipe.step, pipe.compile()):
        with pytest.raises(
            StageError, match=r"stage 'noise' draws by a torch.Generator of its own \(rand\); leave it out"
        ):
            step(pipe.init(0), BATCH)


def test_draws_are_the_same_eager_compiled_fused_and_resumed(tmp_path):
    """Three steps that draw by everything above leave the same numbers, in whatever way they are done."""
    left = {"packed lstm"}  # no graph has lengths
    if TRACED != "aot_eager":  # what others of them are made of, and takes long to trace, is thorough
        left |= {"gru", "encoder layer", "multi-head attention", "causal attention", "mixture", "dirichlet", "beta"}
    plain = {name: draw for name, draw in DRAWS.items() if name not in left}

    def draw(memory):
        return {name: draw().detach().clone() for name, draw in plain.items()}

    with keyed(torch.tensor(0), torch.tensor(0), 0):
        shapes = {name: torch.zeros_like(draw()).detach() for name, draw in plain.items()}
    pipe = Pipeline(load.batches(torch.zeros(6, 1), size=2), stage(draw, init=lambda: shapes))

    def steps(step, state, count):
        for _ in range(count):
            state, _ = step(state)
        return state

    eager = steps(pipe.step, pipe.init(7), 3)
    assert all(any(x.any() for x in pytree.tree_leaves(v)) for v in eager.memory["draw"].values())
    first = steps(pipe.step, pipe.init(7), 1)
    with checkpoint.Saver(tmp_path) as saver:
        saver.save(first, epoch=0, batch=1)
    resumed = checkpoint.newest(tmp_path).saved.restore(pipe)
    testing.same(steps(pipe.step, resumed, 2).tree, eager.tree)
    compiled = pipe.compile(backend="as traced")  # of so many operations, others take a minute
    testing.same(steps(compiled, pipe.init(7), 3).tree, eager.tree, 1e-5)
    testing.same(compiled.advance(pipe.init(7), 0, 0, 3)[0].tree, eager.tree, 1e-5)


@pytest.mark.parametrize(
    ("instead", "torchs"),
    [
        (lambda: torch.tan(math.pi * (torch.rand(N) - 0.5)), D.Cauchy(0.0, 1.0)),
        (lambda: torch.empty(N).exponential_(-math.log1p(-0.3)).ceil() - 1, D.Geometric(0.3)),
        (lambda: torch.exp(0.5 + 0.3 * torch.randn(N)), D.LogNormal(0.5, 0.3)),
        (lambda: torch.bernoulli(torch.full((N,), 0.3).expand(4, N)).sum(0), D.Binomial(4, torch.tensor(0.3))),
    ],
)
def test_what_a_refusal_names_has_the_distribution(instead, torchs):
    """The draw that a refusal proposes has the quantiles of the refused one."""
    quantiles = torch.linspace(0.05, 0.95, 7)
    keyed, own = under(instead), torchs.sample((N,))
    torch.testing.assert_close(keyed.quantile(quantiles), own.quantile(quantiles), atol=0.03, rtol=0.03)


MAPPED = {
    "rand": lambda x: torch.rand(50),
    "dropout": F.dropout,
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "multinomial": lambda x: torch.multinomial(x, 40),
    "gumbel_softmax": F.gumbel_softmax,
}


@pytest.mark.parametrize("draw", MAPPED.values(), ids=MAPPED)
def test_a_vmap_of_ones_own_draws_as_its_randomness_says(draw):
    """Each sample has draws of its own, or all have the same, or it is torch's error."""
    x = torch.ones(2, 50)
    one, other = under(lambda: torch.vmap(draw, randomness="different")(x))
    assert not torch.equal(one, other)
    testing.same(under(lambda: torch.vmap(draw, randomness="different")(x)), torch.stack([one, other]), 0)
    one, other = under(lambda: torch.vmap(draw, randomness="same")(x))
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        under(lambda: torch.vmap(draw)(x))


@pytest.mark.parametrize("draw", [torch.normal, lambda mean, std: torch.bernoulli(mean * std)])
def test_no_gradient_goes_through_a_draw(draw):
    """The gradients with respect to what it is drawn from are zeros, as torch's: sampling is no reparametrisation."""
    given = [torch.full((3,), 0.5, requires_grad=True) for _ in range(2)]
    grads = under(lambda: torch.autograd.grad(draw(*given).sum(), given))
    assert not any(g.any() for g in grads)
    assert not any(
        g.any() for g in torch.func.grad(lambda xs: under(lambda: draw(*xs)).sum())([g.detach() for g in given])
    )


WRONG = {
    "multinomial of NaN": lambda: torch.multinomial(torch.tensor([math.nan, 1.0]), 1),
    "multinomial below 0": lambda: torch.multinomial(torch.tensor([-1.0, 1.0]), 1),
    "multinomial of zeros": lambda: torch.multinomial(torch.zeros(2), 1),
    "bernoulli above 1": lambda: torch.bernoulli(torch.tensor([1.5])),
    "bernoulli of NaN": lambda: torch.bernoulli(torch.tensor([math.nan])),
    "bernoulli_ above 1": lambda: torch.empty(3).bernoulli_(1.5),
    "randint of nothing": lambda: torch.randint(5, 5, (2,)),
    "normal below 0": lambda: torch.normal(torch.zeros(2), -1.0),
    "normal_ below 0": lambda: torch.empty(2).normal_(0, -1),
    "dropout above 1": lambda: F.dropout(torch.ones(3), 1.5),
    "alpha dropout above 1": lambda: F.alpha_dropout(torch.ones(3), 1.5, True),
    "attention above 1": lambda: F.scaled_dot_product_attention(Q, Q, Q, dropout_p=1.5),
}


@pytest.mark.parametrize("draw", WRONG.values(), ids=WRONG)
def test_a_draw_that_torch_refuses_is_refused(draw):
    """Neither torch nor a key draws from chances that are none."""
    for run in (draw, lambda: under(draw)):
        with pytest.raises((RuntimeError, ValueError), match=r"[Ee]xpect|probability|invalid"):
            run()


def test_a_seed_that_a_stage_sets_is_refused():
    """It would change no draw."""
    with torch.random.fork_rng(devices=[]), pytest.raises(ImpureError, match=r"sets torch's generator.*draws follow"):
        under(lambda: torch.manual_seed(int(torch.default_generator.initial_seed()) + 1))
