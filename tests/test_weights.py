"""Weights to begin from: a file's tensors reach the module by name, and what does not fit is named."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline import Pipeline, forward, loss, models, testing
from pipeline.errors import ConfigError
from tests.strategies import seeds, widths
from tests.test_forward import Two, step


def tensors(module):
    return dict(module.state_dict())


def first(weights, module):
    """The first State of a model that begins from weights."""
    return Pipeline(forward.model(module, weights=weights)).init(0)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "a.bin"])
def test_each_kind_of_file_is_loaded(tmp_path, name):
    """safetensors, a state dict, and one inside a checkpoint give the same first State; the base stays as it was."""
    base, path = models.mlp(4, 5, 3), tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors(base), path)
    else:
        torch.save({"state_dict": tensors(base), "epoch": 3} if name == "a.ckpt" else tensors(base), path)
    before = copy.deepcopy(tensors(base))
    for source in (path, str(path), tensors(base)):
        for module in (lambda: models.mlp(4, 5, 3), models.mlp(4, 5, 3)):
            testing.same(first(source, module).params, before)
    step(forward.model(lambda: models.mlp(4, 5, 3), weights=path))
    testing.same(tensors(base), before)


@given(widths(), widths(), st.booleans(), st.sampled_from(["", "net.", "module.a."]), seeds)
def test_what_fits_is_loaded_and_the_rest_is_as_initialised(own, other, strict, prefix, seed):
    """Each tensor of the module is the file's if name and shape fit, else its own; strict takes all or nothing."""
    torch.manual_seed(seed)
    base, module = models.mlp(*other), models.mlp(*own)
    names = {prefix + k: t for k, t in tensors(base).items()}
    weights = models.Weights(names, rename={prefix: ""} if prefix else {}, strict=strict)
    fit = weights.report(module)
    shapes = [{k: t.shape for k, t in tensors(m).items()} for m in (module, base)]
    fitting = {k for k, shape in shapes[0].items() if shapes[1].get(k) == shape}
    assert {*fit.matched} == fitting
    assert {*fit.missing} == shapes[0].keys() - shapes[1].keys()
    assert {*fit.unexpected} == shapes[1].keys() - shapes[0].keys()
    assert {*fit.initialised} == shapes[0].keys() - fitting
    assert fit.exact == (shapes[0] == shapes[1])
    if not fitting or (strict and not fit.exact):
        with pytest.raises(ConfigError, match="does not fit the module"):
            models.loaded(module, weights)
        return
    expected = {k: tensors(base)[k] if k in fitting else t for k, t in tensors(module).items()}
    testing.same(tensors(models.loaded(module, weights)), expected)


class Named(nn.Module):
    """Token embeddings, which the head may share."""

    def __init__(self, tokens=5, tied=False):
        super().__init__()
        self.tokens, self.head = nn.Embedding(tokens, 3), nn.Linear(3, tokens, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, inputs):
        return self.head(self.tokens(inputs).mean(1))


def test_embeddings_grow_by_request_alone():
    """The first rows are the file's, those beyond are as initialised; without `grow` it is an error that names it."""
    base, larger = Named(5), Named(8)
    with pytest.raises(ConfigError, match=r"tokens.weight is \(5, 3\), here \(8, 3\).*write grow='tokens.weight,head"):
        models.loaded(larger, tensors(base))
    weights = models.Weights(tensors(base), grow="tokens.*, head.weight")
    assert str(weights.report(larger)) == "2 of 2 tensors; grown: tokens.weight, head.weight"
    grown = models.loaded(larger, weights)
    for name, t in tensors(grown).items():
        assert torch.equal(t[:5], tensors(base)[name])
        assert torch.equal(t[5:], tensors(larger)[name][5:])
    with pytest.raises(ConfigError, match="write strict=False to begin with the 1 that fit"):
        models.loaded(Named(5), {**tensors(base), "head.weight": torch.zeros(8, 3)})  # it would shrink


def test_tied_tensors_need_one_name_of_theirs():
    """A file with one name of tied weights, as transformers writes them, lacks nothing."""
    weights = models.Weights({"tokens.weight": torch.ones(5, 3)})
    assert weights.report(Named(tied=True)).exact
    assert models.loaded(Named(tied=True), weights).head.weight.eq(1).all()
    assert first({"a.weight": torch.ones(3, 4)}, Two).params["a.weight"].eq(1).all()
    assert models.Weights({"tokens.weight": torch.ones(5, 3)}).report(Named()).missing == ("head.weight",)


def test_buffers_dtypes_and_lazy_modules():
    """Buffers are loaded too, half precision becomes the module's, and lazy layers take their shapes from the file."""
    base = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    base[1].running_mean.fill_(2)
    half = {k: t.half() if t.is_floating_point() else t for k, t in tensors(base).items()}
    for module in (lambda: nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)), copy.deepcopy(base)):
        state = first(half, module)
        assert state.buffers["1.running_mean"].eq(2).all()
        assert {t.dtype for t in state.params.values()} == {torch.float32}
        testing.same(state.params, {k: p.detach() for k, p in base.named_parameters()}, 1e-3)
    with pytest.raises(ConfigError, match=r"bias is \(3,\) int64, here \(3,\)"):
        models.loaded(nn.Linear(4, 3), {"weight": torch.zeros(3, 4), "bias": torch.zeros(3, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda d: {f"module.{k}": t for k, t in d.items()}, "write rename={'module.': ''}"),
        (lambda d: {f"_orig_mod.net.{k}": t for k, t in d.items()}, "write rename={'_orig_mod.net.': ''}"),
        (lambda d: {k.removeprefix("1."): t for k, t in d.items()}, "write rename={'': '1.'}"),
        (lambda d: {k.replace("1.", "2."): t for k, t in d.items()}, "write rename={'2.': '1.'}"),
        (lambda d: {k: t for k, t in d.items() if "bias" not in k}, r"lacks 1 \(1.bias\); write strict=False to begin"),
        (lambda d: {**d, "head.w": torch.ones(2)}, r"has 1 others \(head.w\); write strict=False to begin with the 2"),
        (lambda d: {**d, "1.weight": torch.ones(2, 2)}, r"1 differ \(1.weight is \(2, 2\), here \(3, 4\)\); write str"),
        (
            lambda d: {"x": torch.ones(1)},
            r"lacks 2 .*, it has 1 others \(x\); write rename={'OLD.': 'NEW.'} to map names",
        ),
    ],
)
def test_a_misfit_says_what_to_write(names, message):
    """One line names some tensors, and the option that would help."""
    with pytest.raises(ConfigError, match=message) as raised:
        models.loaded(models.mlp(4, 3), names(tensors(models.mlp(4, 3))))
    assert "\n" not in str(raised.value)


def test_renames_are_exact_or_of_prefixes():
    """A name with a dot at its end is a prefix, the longest counts, and one that renames nothing is an error."""
    d = tensors(models.mlp(4, 3))
    names = {"net.a.weight": d["1.weight"], "net.b": d["1.bias"]}
    models.loaded(models.mlp(4, 3), models.Weights(names, rename={"net.a.": "1.", "net.b": "1.bias", "net.": "no."}))
    for rename, message in (
        ({"net.a": "1"}, "has no 'net.a' to rename; it has net.a.weight, net.b"),
        ({"net.a.": "1.", "none.": ""}, "has no 'none.'"),
        ({"net.a.weight": "x", "net.b": "x"}, "gives two tensors of the state dict one name"),
    ):
        with pytest.raises(ConfigError, match=message):
            models.loaded(models.mlp(4, 3), models.Weights(names, rename=rename))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_can_not_be_read_is_named(tmp_path, name):
    """A missing, empty, damaged or foreign file is one line, and nothing in it runs."""
    for content in (None, b"", b"\x00\xff" * 40):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"can't read .*{name}: ") as raised:
            first(tmp_path / name, models.mlp(4, 3))
        assert "\n" not in str(raised.value)
    torch.save(models.mlp(4, 3), tmp_path / "whole.pt")
    with pytest.raises(ConfigError, match="no file of tensors alone; write it by torch"):
        first(tmp_path / "whole.pt", models.mlp(4, 3))
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="holds no state dict"):
        first(tmp_path / "other.pt", models.mlp(4, 3))


def test_a_frozen_teacher_begins_from_weights():
    """`weights` works beside the other options, and a step leaves a teacher's weights alone."""
    base = models.mlp(4, 3)
    teacher = forward.model(
        lambda: models.mlp(4, 3), weights=tensors(base), params="teacher", outputs="soft", frozen=True, name="t"
    )
    pipe = Pipeline(teacher, forward.model(lambda: models.mlp(4, 3)), loss.cross_entropy())
    testing.same(pipe.init(0)["teacher"], tensors(base))
