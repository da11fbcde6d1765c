"""LoRA: its formula by hand and beside peft, what is trained, merging, and adapters on disk."""

import copy
import json
import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, forward, loss, models, testing, update
from pipeline.errors import ConfigError
from pipeline.models.huggingface import Logits
from pipeline.models.lora import Adapted, without_adapters
from tests.pipes import TRACED
from tests.strategies import seeds

peft = None
with suppress(ImportError):
    import peft
with_peft = pytest.mark.skipif(peft is None, reason="peft is not installed")


class Net(nn.Module):
    """Tokens (B, T) -> logits (B, 3)."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6, bias=False))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.body(self.emb(inputs).mean(1)))


BATCH = {"inputs": torch.arange(40).reshape(8, 5) % 7, "targets": torch.arange(8) % 3}
TARGETS, FULL = ("emb", "body.*"), "head"


def pipeline(module):
    return Pipeline(forward.model(module), loss.cross_entropy(), backward.gradients(), update.adamw(0.01))


def trained(module, steps=5, batch=BATCH):
    """The module after some steps, and its State."""
    pipe = pipeline(module)
    state = pipe.init(0)
    for _ in range(steps):
        state, _ = pipe.step(state, batch)
    return pipe.module(state), state


@given(st.integers(1, 4), st.floats(0.5, 8), st.sampled_from(["linear", "embedding"]), seeds)
def test_an_adapter_is_its_formula(rank, alpha, kind, seed):
    """The layer's output plus alpha / rank B A x; it begins as the layer, and merged it is one again."""
    torch.manual_seed(seed)
    layer, x = (nn.Linear(5, 3), torch.randn(4, 5)) if kind == "linear" else (nn.Embedding(5, 3), torch.arange(4))
    net = models.lora(layer, rank, targets="*", alpha=alpha)
    assert torch.equal(net(x), layer(x))
    assert all(p.requires_grad for p in layer.parameters())
    bound = 1 / math.sqrt(5)  # Kaiming's with a = sqrt(5)
    assert kind == "embedding" or 0 < net.lora_A.abs().max() <= bound
    with torch.no_grad():
        net.lora_A.normal_()
        net.lora_B.normal_()
        hot = x if kind == "linear" else F.one_hot(x, 5).float()
        expected = layer(x) + alpha / rank * hot @ net.lora_A.T @ net.lora_B.T
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        plain = models.merged(net)
        assert type(plain) is type(layer)
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(plain.weight, net.weight)


def test_only_adapters_and_full_modules_are_trained():
    """Steps leave every base weight as it was, bit for bit; a compiled step does the same as a plain one."""
    module = Net()
    before = copy.deepcopy(dict(module.state_dict()))
    after, state = trained(models.lora(module, 2, TARGETS, full=FULL))
    assert sum(p.numel() for p in state.params.values()) == 2 * (7 + 4) + 2 * (4 + 6) + 2 * (6 + 6) + (6 * 3 + 3)
    tensors = dict(after.state_dict())
    for name, t in before.items():
        kept = tensors.get(name.replace("weight", "base.weight").replace("bias", "base.bias"))
        assert torch.equal(tensors[name], t) == (not name.startswith("head")) if kept is None else torch.equal(kept, t)
    assert all(m.lora_B.abs().sum() > 0 for m in after.modules() if isinstance(m, Adapted))
    testing.same(dict(module.state_dict()), before)
    pipe = pipeline(models.lora(Net, 2, TARGETS, full=FULL, dropout=0.1))
    testing.compiled_equals_eager(pipe.compile(backend=TRACED, donate=False), pipe.init(0), [BATCH, BATCH])


def test_merged_is_the_plain_module():
    """The merged module has the names of the plain one, loads into it, and answers as the adapted one to 1e-5."""
    after, _ = trained(models.lora(Net, 2, TARGETS, alpha=16, full=FULL))
    plain = models.merged(after)
    assert [*plain.state_dict()] == [*Net().state_dict()]
    fresh = Net()
    fresh.load_state_dict(plain.state_dict())
    assert all(p.requires_grad for p in plain.parameters())
    with torch.no_grad():
        testing.same(fresh(BATCH["inputs"]), after(BATCH["inputs"]), 1e-5)
        assert (fresh(BATCH["inputs"]) - models.merged(models.lora(Net(), 2))(BATCH["inputs"])).abs().max() > 1e-2
    assert any(isinstance(m, Adapted) for m in after.modules())


def test_shared_and_directly_read_layers():
    """A layer that two names share is adapted under both, and code that reads a weight gets the adapted one."""
    shared = nn.Linear(3, 3)
    net = models.lora(nn.Sequential(shared, nn.ReLU(), shared), 1)
    assert net[0] is net[2]
    plain = models.merged(net)
    assert plain[0] is plain[2]
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    net = models.lora(nn.Sequential(block), 2)
    assert {k for k, m in net.named_modules() if isinstance(m, Adapted)} == {"0.linear1", "0.linear2"}
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 3, 4)
    slow = net(x)
    with torch.no_grad():
        testing.same(net.eval()(x), slow.detach(), 1e-5)  # torch's fast path, which reads the weights
        testing.same(models.merged(net)(x), slow.detach(), 1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: models.mlp(4, 3), {"targets": "nothing"}, r"'nothing' is no part of the module; it has 0, 1"),
        (lambda: models.mlp(4, 3), {"targets": "0"}, "'0' is Flatten, which has no adapter; name 1"),
        (lambda: models.mlp(4, 3), {"full": "head"}, "'head' is no part"),
        (lambda: models.mlp(4, 3), {"full": "1"}, "no layer to adapt is chosen"),
        (lambda: models.mlp(4, 3), {"rank": 0}, r"lora\(rank=0"),
        (lambda: models.mlp(4, 3), {"dropout": 1.0}, "dropout=1.0"),
        (lambda: models.mlp(4, 3), {"alpha": 0}, "alpha=0"),
        (nn.Flatten, {}, "no layer to adapt"),
        (lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), {"targets": "0"}, "'0' is of nn.MultiheadAttention, wh"),
        (
            lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
            {"targets": "out_proj"},
            "'0.out_proj' is of nn.Multihead",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(2)), {}, "no layer to adapt"),
        (lambda: models.lora(models.mlp(4, 3)), {}, "has adapters already"),
    ],
)
def test_what_has_no_adapter_is_refused(make, options, message):
    """Each in one line, with names that would do."""
    with pytest.raises(ConfigError, match=message) as raised:
        models.lora(make(), **options)
    assert "\n" not in str(raised.value)


def test_adapters_come_back_from_disk(tmp_path):
    """What is written is read into a new base, and answers the same, bit for bit."""
    torch.manual_seed(3)
    base = Net()
    after, _ = trained(models.lora(base, 2, TARGETS, alpha=3, full=FULL))
    models.write_adapter(after, tmp_path / "a", base="base.safetensors")
    again = models.read_adapter(base, tmp_path / "a")
    made = models.read_adapter(lambda: copy.deepcopy(base), tmp_path / "a")()
    for module in (again, made):
        assert torch.equal(module.eval()(BATCH["inputs"]), after(BATCH["inputs"]))
        assert {k for k, p in module.named_parameters() if p.requires_grad} == {
            k for k, p in after.named_parameters() if p.requires_grad
        }
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (2, 3.0, ["head"])
    for change, message in (
        ({"use_dora": True}, "use_dora is True, but only False is known"),
        ({"rank_pattern": {"a": 1}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": "x"}, "can't read .*adapter_config.json: invalid literal"),
        ({"r": 3}, r"of another model: .*lora_A, .* do not fit this one"),
    ):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ConfigError, match=message):
            models.read_adapter(base, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"this one has no body.0, body.2, emb"):
        models.read_adapter(models.mlp(4, 3), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"can't read .*none.adapter_config.json: No such file"):
        models.read_adapter(base, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"as models.lora\(\) makes it"):
        models.write_adapter(base, tmp_path / "b")


def test_the_names_on_disk_are_those_of_peft(tmp_path):
    """As peft 0.21 writes the same adapters, found by running it."""
    models.write_adapter(models.lora(Net(), 2, TARGETS, full=FULL), tmp_path)
    shapes = {k: tuple(t.shape) for k, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {f"base_model.model.{k}": shape for k, shape in {
        "body.0.lora_A.weight": (2, 4), "body.0.lora_B.weight": (6, 2), "body.2.lora_A.weight": (2, 6),
        "body.2.lora_B.weight": (6, 2), "emb.lora_embedding_A": (2, 7), "emb.lora_embedding_B": (4, 2),
        "head.bias": (3,), "head.weight": (3, 6),
    }.items()}  # fmt: skip


@with_peft
@pytest.mark.parametrize("kind", ["net", "gpt2"])
def test_steps_are_those_of_peft(tmp_path, kind):
    """From peft's first adapter, its outputs, its trained numbers and ten steps are the same to 1e-5, both ways."""
    torch.manual_seed(1)
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["emb", "body.0", "body.2"], "modules_to_save": ["head"]}
    base, x, y = Net(), BATCH["inputs"], BATCH["targets"]
    if kind == "gpt2":
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0,
                                         embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip
        base, y = Logits(transformers.GPT2LMHeadModel(config)), x.roll(-1, 1)
        options = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    inner = base.model if kind == "gpt2" else base
    theirs = peft.get_peft_model(copy.deepcopy(inner), peft.LoraConfig(**options))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = models.read_adapter(base, tmp_path / "theirs")
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    pipe = Pipeline(forward.model(ours), loss.cross_entropy(), backward.gradients(), update.sgd(0.5))
    state, optimizer = pipe.init(0), torch.optim.SGD(theirs.parameters(), 0.5)
    assert sum(p.numel() for p in state.params.values()) == count

    def call():
        outputs = theirs(x)
        return outputs.logits if kind == "gpt2" else outputs

    first = call().detach()
    testing.same(pipe.module(state)(x).detach(), first, 1e-5)
    for _ in range(10):
        state, _ = pipe.step(state, {"inputs": x, "targets": y})
        optimizer.zero_grad()
        F.cross_entropy(call().flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    expected = call().detach()
    assert (expected - first).abs().max() > 1e-2
    module = pipe.module(state)
    testing.same(module(x).detach(), expected, 1e-5)
    testing.same(models.merged(module)(x).detach(), expected, 1e-5)
    models.write_adapter(module, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(copy.deepcopy(inner), tmp_path / "ours").eval()
    outputs = back(x)
    testing.same((outputs.logits if kind == "gpt2" else outputs).detach(), expected, 1e-5)


def test_a_shared_weight_is_reported_as_loaded():
    """Also if one of the layers that share it has an adapter; a merged module has a weight of its own there."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.tokens.weight

    weights = models.Weights({"tokens.weight": torch.randn(5, 3)})
    adapted = models.lora(models.loaded(Tied(), weights), rank=1, targets="head")
    assert str(weights.report(without_adapters(adapted))) == "2 of 2 tensors"
    assert models.merged(adapted).head.weight is not models.merged(adapted).tokens.weight
