from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import models
from tests.strategies import labels, normals, seeds, widths

small = st.integers(1, 4)


@given(st.integers(1, 8).flatmap(lambda features: st.tuples(st.just(features), widths(features))), small, st.booleans())
def test_mlp(sizes, batch, dropout):
    """An MLP has a linear layer between each two widths, and gives (B, widths[-1])."""
    features, sizes = sizes
    model = models.mlp(*sizes, dropout=0.5 * dropout)
    assert model(torch.zeros(batch, features, 1)).shape == (batch, sizes[-1])
    pairs = list(pairwise(sizes))
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(b, a) for a, b in pairs]
    assert sum(p.numel() for p in model.parameters()) == sum((a + 1) * b for a, b in pairs)


@given(normals((7, 4)), widths())
def test_mlp_is_its_formula(inputs, sizes):
    """An MLP is max(0, xW + b) for each layer but the last."""
    model = models.mlp(*sizes)
    weights, x = list(model.parameters()), inputs
    for i, (w, b) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        x = x @ w.T + b if i == 0 else x.clamp(min=0) @ w.T + b
    torch.testing.assert_close(model(inputs), x)


@given(small, small, st.integers(2, 5), st.integers(1, 12), st.integers(1, 12), st.lists(small, min_size=1, max_size=3))
def test_convnet(batch, channels, classes, height, width, sizes):
    """A convnet gives (B, C) for images of any size."""
    model = models.convnet(channels, classes, widths=sizes).eval()
    images = torch.randn(batch, channels, height, width)
    logits = model(images)
    assert logits.shape == (batch, classes)
    torch.testing.assert_close(model(images.flip(0)), logits.flip(0))


@given(st.integers(2, 20), st.sampled_from([1, 2, 4]), st.integers(1, 2), st.integers(2, 8), st.data())
def test_transformer_is_causal(vocabulary, heads, depth, length, data):
    """A transformer gives (B, T, V), where no logit depends on a later token, and the last ones on the first."""
    model = models.transformer(vocabulary, context=8, width=8, heads=heads, depth=depth).eval()
    tokens = data.draw(labels((3, length), vocabulary))
    logits = model(tokens)
    assert logits.shape == (3, length, vocabulary)
    where = data.draw(st.integers(0, length - 1))
    changed = tokens.clone()
    changed[:, where] = (changed[:, where] + 1) % vocabulary
    other = model(changed)
    torch.testing.assert_close(other[:, :where], logits[:, :where])
    assert not torch.allclose(other[:, where], logits[:, where])
    assert not torch.equal(other[:, -1], logits[:, -1])


@given(normals((2, 5, 8)))
def test_a_transformer_adds_to_its_input(x):
    """A block whose last layers are zero leaves its input as it is."""
    [block] = models.transformer(3, width=8, heads=2, depth=1).blocks
    for layer in (block.out, block.mlp[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert torch.equal(block(x), x)


MODELS = {
    "mlp": (lambda dropout: models.mlp(4, 32, 3, dropout=dropout), torch.ones(2, 4)),
    "convnet": (lambda dropout: models.convnet(1, 3, dropout=dropout), torch.ones(2, 1, 8, 8)),
    "transformer": (lambda dropout: models.transformer(9, width=8, depth=1, dropout=dropout), torch.ones(2, 4).long()),
}


@pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)
@given(seed=seeds)
def test_weights_and_dropout(make, inputs, seed):
    """A model is a function of torch's seed, and dropout changes its outputs in training alone."""
    states = []
    for _ in range(2):
        torch.manual_seed(seed)
        states.append(make(0.5).state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)
    model = make(0.5)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))
