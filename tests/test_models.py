from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import models
from pipeline.errors import ConfigError
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


@given(small, small, small, st.integers(4, 12), st.integers(4, 12), st.lists(small, min_size=1, max_size=3), small)
def test_resnet(batch, channels, outputs, height, width, sizes, depth):
    """A resnet gives (B, outputs) for images of any size, by `depth` blocks a stage, each sample by itself."""
    model = models.resnet(channels, outputs, widths=sizes, depth=depth).eval()
    images = torch.randn(batch, channels, height, width)
    logits = model(images)
    assert logits.shape == (batch, outputs)
    assert len(model.blocks) == depth * len(sizes)
    torch.testing.assert_close(model(images.flip(0)), logits.flip(0))


@given(st.lists(st.integers(1, 200), max_size=3), st.integers(0, 3), small, st.data())
def test_a_tables_categories_are_embedded(categories, features, outputs, data):
    """A row of a table depends on each of its categories; 0, of what is missing, is one of them."""
    if not categories and not features:
        return
    torch.manual_seed(0)
    model = models.table(features, outputs, categories=categories, hidden=())
    codes = torch.stack([torch.tensor([0, n - 1]) for n in categories], 1) if categories else None
    rows = model(torch.zeros(2, features), codes)
    assert rows.shape == (2, outputs)
    assert torch.allclose(rows[0], rows[1]) == (max(categories, default=1) == 1)
    assert all(1 <= e.embedding_dim <= 16 for e in model.embeddings)


@given(st.sampled_from(["lstm", "gru"]), small, st.integers(1, 6), st.integers(1, 2), st.booleans(), st.booleans())
def test_recurrent(kind, batch, length, depth, both, ids):
    """A recurrent network gives (B, outputs) for sequences of any length, of numbers or of ids."""
    what = {"vocabulary": 5} if ids else {"features": 2}
    model = models.recurrent(3, kind=kind, **what, width=4, depth=depth, bidirectional=both)
    inputs = torch.randint(5, (batch, length)) if ids else torch.randn(batch, length, 2)
    assert model(inputs).shape == (batch, 3)
    with pytest.raises(ConfigError, match="features= of floats, or the vocabulary="):
        models.recurrent(3)


@given(seeds, st.integers(1, 12), st.integers(1, 6), st.integers(1, 12))
def test_what_is_generated_is_a_function_of_the_seed(seed, length, count, context):
    """Tokens follow the prompt, the likeliest at temperature 0, and the model stays in the mode it was in."""
    torch.manual_seed(0)
    model = models.transformer(7, context=12, width=8, heads=2, depth=1, dropout=0.5)
    prompt = torch.randint(7, (2, length))
    made = [models.generate(model, prompt, count, context=context, seed=seed) for _ in range(2)]
    assert torch.equal(*made)
    assert torch.equal(made[0][:, :length], prompt)
    assert made[0].shape == (2, length + count)
    assert model.training
    likeliest = models.generate(model, prompt, 1, context=context, temperature=0)
    assert torch.equal(likeliest, models.generate(model, prompt, 1, context=context, top_k=1, seed=seed))
    model.eval()
    assert torch.equal(likeliest[:, -1], model(prompt[:, -context:])[:, -1].argmax(-1))


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "task", "inputs", "shape"),
    [
        ({"model_type": "llama"}, "language modelling", torch.ones(2, 5).long(), (2, 5, 9)),
        ({"model_type": "bert"}, "classification", torch.ones(2, 5).long(), (2, 3)),
        ({"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1}, "classification",
         torch.ones(2, 1, 8, 8), (2, 3)),
    ],
)  # fmt: skip
def test_models_of_transformers(config, task, inputs, shape):
    """A config makes a model of logits, for tokens, for classes of them, and for images."""
    pytest.importorskip("transformers")
    vocabulary = None if inputs.ndim == 4 else 9
    assert models.from_config({**config, **TINY}, task, classes=3, vocabulary=vocabulary)(inputs).shape == shape
    with pytest.raises(ConfigError, match="no model_type 'lama'; did you mean"):
        models.from_config({"model_type": "lama"}, task, classes=3)


MODELS = {
    "mlp": (lambda dropout: models.mlp(4, 32, 3, dropout=dropout), torch.ones(2, 4)),
    "convnet": (lambda dropout: models.convnet(1, 3, dropout=dropout), torch.ones(2, 1, 8, 8)),
    "transformer": (lambda dropout: models.transformer(9, width=8, depth=1, dropout=dropout), torch.ones(2, 4).long()),
    "table": (lambda dropout: models.table(4, 3, hidden=(32,), dropout=dropout), torch.ones(2, 4)),
    "resnet": (lambda dropout: models.resnet(1, 3, dropout=dropout), torch.ones(2, 1, 8, 8)),
    "lstm": (lambda dropout: models.recurrent(3, vocabulary=9, width=8, dropout=dropout), torch.ones(2, 4).long()),
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


@pytest.mark.parametrize(
    "told",
    [
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"_attn_implementation": "paged|org/name"},
        {"_attn_implementation_internal": "flash_attention_2"},
        {"attn_implementation": {"": "eager", "text_config": "org/name@main:f"}},
        {"experts_implementation": "sonicmoe"},
        {"text_config": {"model_type": "llama", "_attn_implementation": "org/name"}},
        {"vision_config": {"backbone": "resnet50"}},
        {"layers": [{"quantization_config": {"quant_method": "fp8"}}]},
        {"use_kernels": True},
        {"trust_remote_code": True},
        {"decoder": "org/name"},
    ],
    ids=str,
)
def test_a_config_names_nothing_to_fetch_or_run(told):
    """Kernels of the hub, backbones and code of others are refused by the setting's name, however deep it stands."""
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="may fetch or run code of others: leave it out"):
        models.from_config({"model_type": "gpt2", **TINY, **told}, "language modelling", classes=3, vocabulary=20)


def test_where_a_config_came_from_does_not_matter(monkeypatch):
    """Its name and its code are left out, and nothing asks the network."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("socket.socket.connect", None)
    came = {"_name_or_path": "org/name", "auto_map": {"AutoModelForCausalLM": "org/name--net.Net"}}
    told = {**came, "attn_implementation": "eager", "id2label": {"0": "cat/dog"}}
    made = models.from_config({"model_type": "gpt2", **TINY, **told}, "language modelling", classes=3, vocabulary=20)
    assert type(made.model).__name__ == "GPT2LMHeadModel"
