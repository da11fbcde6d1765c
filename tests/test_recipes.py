"""The recipes of texts and images: their ingredients, the dial of depth, and runs made before there were recipes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cli import config
from cli.build import job
from cli.inside import inside
from cli.prepared import fixed, prepared
from cli.recipes import TABLES, settings
from cli.settled import settled
from pipeline import fit, models, sources
from pipeline.errors import ConfigError
from pipeline.models.resnet import Whitening, shifted
from pipeline.models.transformer import rotated, turning
from pipeline.schedules import Schedule
from tests.strategies import labels, normals, seeds

MODERN = {
    "positions": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "bias": False, "softcap": 15.0,
    "bigrams": 64,
}  # fmt: skip
OLD = """
[data]
source = "{source}"
[model]
name = "{name}"
dropout = 0.0
{model}
[optimizer]
name = "{optimizer}"
[schedule]
name = "auto"
[loss]
name = "auto"
smoothing = 0.0
[run]
epochs = 2
batch_size = 8
clip = 1.0
[versions]
torch = "2.13.0"
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("All that is gold does not glitter, not all those who wander are lost. " * 60)
    return str(path)


def recipe(**chosen):
    return settled(config.make(chosen))[0]


@given(normals((2, 1, 6)), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_rotary_positions_are_relative(pair, m, n, by):
    """The product of a query at m and a key at n is that of the two at m + by and n + by."""
    q, k = pair[:, None, None]

    def product(m, n):
        return (rotated(q, turning(torch.tensor([m]), 6)) * rotated(k, turning(torch.tensor([n]), 6))).sum()

    torch.testing.assert_close(product(m, n), product(m + by, n + by), atol=1e-4, rtol=1e-3)


@given(
    st.sampled_from(["relu2", "swiglu"]),
    st.booleans(),
    st.sampled_from([1, 2, 8]),
    st.integers(2, 12),
    seeds,
    st.data(),
)
def test_the_new_transformer_is_causal_and_bounded(activation, tied, heads, length, seed, data):
    """No logit depends on a later token, none is above the cap, and windows may be longer than its context."""
    torch.manual_seed(seed)
    options = {**MODERN, "activation": activation, "tied": tied, "softcap": 2.0}
    model = models.transformer(20, context=4, width=8, heads=heads, depth=2, **options).eval()
    tokens = data.draw(labels((2, length), 20))
    where = data.draw(st.integers(0, length - 1))
    changed = tokens.clone()
    changed[:, where] = (changed[:, where] + 1) % 20
    logits, other = model(tokens), model(changed)
    torch.testing.assert_close(other[:, :where], logits[:, :where])
    assert not torch.equal(other[:, where], logits[:, where])
    assert logits.abs().max() <= 2.0


def test_blocks_of_zeros_change_nothing_at_first():
    """With zero_init, a block is the identity, each logit is 0, and a residual block only adds its input."""
    model = models.transformer(9, width=8, heads=2, depth=2, zero_init=True, **MODERN)
    x = torch.randn(2, 5, 8)
    assert torch.equal(model.blocks(x), x)
    assert not model(torch.zeros(2, 5, dtype=torch.long)).any()
    net = models.resnet(1, 3, widths=(4,), zero_init=True)
    y = torch.randn(2, 4, 6, 6).relu()
    assert torch.equal(net.blocks(y), y)


def test_muon_has_the_matrices_of_blocks_alone():
    """Embeddings, the head and the first filters that are trained, but for those behind a whitening, are AdamW's."""
    ids = {"inputs": torch.zeros(2, 4, dtype=torch.long)}
    block = {f"blocks.0.{name}.weight" for name in ("qkv", "out", "mlp.0", "mlp.2")}
    for tied in (False, True):
        options = {**MODERN, "zero_init": True, "tied": tied}
        assert inside(lambda o=options: models.transformer(9, width=8, depth=1, **o), "inputs", ids) == block
    image = {"inputs": torch.zeros(2, 1, 4, 4)}
    found = inside(lambda: models.resnet(1, 3, widths=(4,), whitening=True), "inputs", image)
    assert found == {"stem.0.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight"}


def test_whitening_whitens():
    """Patches of the sample get uncorrelated features, of variance 1 if theirs is not tiny."""
    images = torch.randn(50, 1, 9, 1) + 0.3 * torch.randn(50, 1, 9, 9)
    layer = Whitening(1, images)
    features = layer(images)[:, :4].permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(features.T.cov(), torch.eye(4), atol=0.02, rtol=0)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@given(seeds, st.integers(1, 3))
def test_images_are_moved(seed, most):
    """Each pixel of a moved image is one of at most so many pixels away; views of mirrored images are the same."""
    torch.manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    at = torch.stack([rows, columns]).expand(5, 2, 6, 7)
    away = shifted(at, most) - at
    assert away.abs().max() <= most
    net = models.resnet(1, 3, widths=(4,), views=2).eval()
    images = torch.randn(2, 1, 6, 7)
    torch.testing.assert_close(net(images), net(images.flip(3)))


def test_alternate_flips_show_both_sides_in_two_epochs():
    """Each image is mirrored in one of two epochs, half of them in the first."""
    pixels = torch.arange(40 * 4).remainder(251).to(torch.uint8).view(40, 1, 1, 4)
    images = sources.pixels.Images([], torch.zeros(40), (1, 4), "L", ("alternate",), pixels=pixels)
    plain = pixels.float() / 255
    mirrored = []
    for epoch in (0, 1):
        seen, _ = images.batch(range(40), epoch, lambda i: None)
        assert all(torch.equal(x, y) or torch.equal(x, y.flip(2)) for x, y in zip(seen, plain, strict=True))
        mirrored.append((seen != plain).flatten(1).any(1))
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert 8 < mirrored[0].sum() < 32


def test_the_dial_of_depth(text):
    """A deeper model is wider, its batches are no smaller, its embeddings learn slower; chosen settings stay."""
    runs = [recipe(data=text, model="transformer", depth=depth) for depth in (1, 2, 4, 6, 12, 24)]
    for key in ("model.width", "run.batch_size", "optimizer.rest_lr"):
        table, name = key.split(".")
        values = [getattr(getattr(r, table), name) for r in runs]
        assert values == sorted(values, reverse=name == "rest_lr"), key
    assert len({r.model.width for r in runs}) == len(runs)
    nets = [recipe(data="digits", model="resnet", depth=depth).model.widths for depth in (1, 2, 3)]
    assert nets == sorted(nets)
    own = recipe(data=text, model="transformer", depth=2, width=24, batch_size=5, norm="layer", optimizer="adamw")
    assert (own.model.width, own.run.batch_size, own.model.norm) == (24, 5, "layer")
    assert (own.optimizer.lr, own.optimizer.rest_lr, own.model.positions) == (None, None, "rotary")
    assert settled(config.make(own.tables))[0] == own


@pytest.mark.parametrize("name", ["transformer", "resnet", "tabm", "mlp"])
def test_auto_is_as_if_it_was_not_given(name, text):
    """Of each setting with that default, also over another value in a file."""
    given = {"data": {"transformer": text, "tabm": "sklearn:wine"}.get(name, "digits"), "model": name}
    autos = {f"{table}.{key}" for table, t in TABLES.items() for key, f in settings(t.recipes[0]).items()
             if f.default == "auto"}  # fmt: skip
    assert autos >= {"schedule.name", "loss.name", "run.backend"}
    assert recipe(**given) == settled(config.make(given, {"schedule": "linear"}, dict.fromkeys(autos, "auto")))[0]


def test_images_in_colours_are_mirrored_by_auto(tmp_path):
    """As without --set augment."""
    for kind in "ab":
        (tmp_path / kind).mkdir()
        for i in range(4):
            pixels = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    given = {"data": str(tmp_path), "model": "resnet"}
    assert recipe(**given).data.augment == "alternate+crop"
    assert recipe(**given, augment="auto") == recipe(**given)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "sgd"])
@pytest.mark.parametrize("options", [{}, {"no_decay": "*.bias"}, {"weight_decay": 0.5}], ids=str)
def test_any_weight_decay_is_scheduled(name, options):
    """Also the rule's own; without one there is nothing to schedule."""
    model = "resnet" if name == "muon" else "mlp"
    chosen = config.make({"data": "digits", "model": model, "optimizer": name, "regularization": "flat-cos"}, options)
    if name == "sgd" and "weight_decay" not in options:
        with pytest.raises(ConfigError, match=r"has nothing to (change|leave out)"):
            job(chosen)
        return
    stage = next(s for s in job(chosen).pipe.stages if "params" in s.writes)
    decays = {key: value for key, value in stage.hyper.items() if key.endswith("weight_decay") and value != 0}
    assert decays
    assert all(isinstance(value, Schedule) for value in decays.values())


@pytest.mark.parametrize("name", ["transformer", "resnet"])
def test_runs_from_before_are_as_they_were(name, text, tmp_path):
    """A run's config without the new settings has none of them, and its model computes what it did, to the bit."""
    sizes = "width = 16\ndepth = 1" if name == "transformer" else "widths = [4, 8]\ndepth = 1"
    source, optimizer = (text, "adamw") if name == "transformer" else ("digits", "sgd")
    path = tmp_path / "config.toml"
    path.write_text(OLD.format(source=source, name=name, model=sizes, optimizer=optimizer))
    old, data = settled(config.make(config.read(path)))
    assert (old.optimizer.lr, old.schedule.name, old.run.clip, old.run.ema) == (None, "auto", 1.0, None)
    what = fixed(source, data or prepared(old))
    torch.manual_seed(0)
    module = old.model.make(what)[0]().eval()
    torch.manual_seed(0)
    if name == "transformer":
        layers = [nn.Embedding(256, 16), nn.Embedding(what.inputs[0], 16), nn.LayerNorm(16), nn.LayerNorm(16),
                  nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(64, 16), nn.LayerNorm(16),
                  nn.Linear(16, 256, bias=False)]  # fmt: skip
        tokens, positions, n1, n2, qkv, out, up, down, norm, head = layers
        ids = torch.arange(20).view(2, 10)
        x = tokens(ids) + positions(torch.arange(10))
        q, k, v = qkv(n1(x)).view(2, 10, 3, 8, 2).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + out(a.transpose(1, 2).reshape(2, 10, 16))
        expected = head(norm(x + down(nn.functional.gelu(up(n2(x))))))
        assert torch.equal(module(ids), expected)
    else:
        assert not any(n.startswith("whitening") for n, _ in module.named_parameters())
        x = torch.randn(2, 1, 8, 8)
        y = module.stem(x)
        for b in module.blocks:
            y = (b.norm2(b.conv2(b.norm1(b.conv1(y)).relu())) + b.short(y)).relu()
        assert torch.equal(module(x), module.head(y.mean((2, 3))))


@pytest.mark.parametrize("name", ["transformer", "resnet"])
def test_recipes_train(name, text):
    """A step of two members by the recipe lowers the loss, as a step of one does."""
    source = text if name == "transformer" else "digits"
    image = {"optimizer": "muon", "lr": 0.05, "rest_lr": 0.01, "zero_init": True, "shift": 1, "smoothing": 0.1}
    small = {"depth": 1, "width": 16} if name == "transformer" else {"widths": [4, 8], **image}
    start = config.make(
        {"data": source, "model": name, "ensemble": 2, "batch_size": 16 if name == "transformer" else 128, **small}
    )
    made = job(start)
    first, *_, last = fit(made.pipe, epochs=4 if name == "transformer" else 2, compile=False)
    assert last.train["loss"] < first.train["loss"]
