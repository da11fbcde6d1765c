"""`--optimizer muon`: matrices inside the network by Muon; embeddings, first filters, last layers and vectors by
AdamW."""

import tomllib

import pytest
import torch
from torch import nn

from cli import build, config
from cli.inside import inside
from pipeline import models

IDS = torch.zeros(2, 3, dtype=torch.long)


class Tied(nn.Module):
    """Two heads, made before the body, one of them the embedding, and positions that are only added."""

    def __init__(self):
        super().__init__()
        self.head, self.other = nn.Linear(8, 5, bias=False), nn.Linear(8, 2)
        self.embed, self.positions = nn.Embedding(5, 8), nn.Parameter(torch.zeros(3, 8))
        self.head.weight = self.embed.weight
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids):
        x = self.body(self.embed(ids) + self.positions)
        return {"logits": self.head(x), "other": self.other(x)}


class Plain(nn.Module):
    """Matrices without layers, and one that nothing reads."""

    def __init__(self):
        super().__init__()
        self.out, self.inner, self.unused = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return ((x @ self.inner).relu() * self.scale[0]) @ self.out.T


BODY = {"linear1.weight", "linear2.weight", "self_attn.in_proj_weight", "self_attn.out_proj.weight"}
BLOCK = {"mlp.0.weight", "mlp.2.weight", "out.weight", "qkv.weight"}
INSIDE = {
    "mlp": (lambda: models.mlp(4, 3, 3, 2), torch.zeros(2, 4), {"1.weight", "3.weight"}),
    "linear": (lambda: models.mlp(4, 2), torch.zeros(2, 4), set()),
    "convnet": (lambda: models.convnet(1, 3, widths=(2, 3)), torch.zeros(2, 1, 4, 4), {"features.4.weight"}),
    "resnet": (
        lambda: models.resnet(1, 3, widths=(2, 3)),
        torch.zeros(2, 1, 4, 4),
        {f"blocks.{i}.conv{k}.weight" for i in (0, 1) for k in (1, 2)} | {"blocks.1.short.weight"},
    ),
    "lstm": (
        lambda: models.recurrent(3, vocabulary=5, width=4), IDS, {"layers.weight_hh_l0", "layers.weight_ih_l0"},
    ),
    "gru": (
        lambda: models.recurrent(3, kind="gru", vocabulary=5, width=4), IDS,
        {"layers.weight_hh_l0", "layers.weight_ih_l0"},
    ),
    "transformer": (
        lambda: models.transformer(5, context=4, width=4, heads=2, depth=1), IDS, {f"blocks.0.{n}" for n in BLOCK},
    ),
    "tied": (Tied, IDS, {f"body.{n}" for n in BODY}),
    "plain": (Plain, torch.zeros(2, 4), {"inner"}),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_inside(name):
    """Whatever modules are called, and in whatever order they are made."""
    made, inputs, names = INSIDE[name]
    assert inside(made, "x", {"x": inputs}) == names
    assert inside(made, ("x",), {"x": inputs}) == names


def test_the_command_trains_by_it():
    """As an ensemble, and without decay of some, as well; each part has a rate of its own."""
    made, state = build.begin(config.make({"optimizer": "muon", "model": "convnet", "widths": [4, 8], "rest_lr": 0.01}))
    assert {*state.memory["update.muon"]["matrices"]["velocity"]} == {"features.4.weight"}
    hyper = state.hyper
    assert (float(hyper["update.muon.matrices.lr"]), float(hyper["update.muon.otherwise.lr"])) == (0.05, 0.01)
    for chosen, beta2 in ({}, 0.999), ({"beta2": 0.5}, 0.5), ({"beta2": 0.0}, 0.0):
        _, state = build.begin(config.make({"optimizer": "muon", "hidden": [8], **chosen}))
        assert float(state.hyper["update.muon.otherwise.beta2"]) == pytest.approx(beta2)
    for more in ({"ensemble": 2}, {"no_decay": "*.bias"}):
        made, state = build.begin(config.make({"optimizer": "muon", "hidden": [8], **more}))
        after, _ = made.pipe.step(state)
        assert all(not torch.equal(after.params[k], p) for k, p in state.params.items())


def test_the_rates_are_settings(pipe, tmp_path, monkeypatch):
    """Shown by the help and the run's config; for another rule, or where nothing is inside, refused in a line."""
    monkeypatch.chdir(tmp_path)
    assert "rest_lr" in pipe("train", "--help-all")[1]
    run = ["train", "--no-compile", "--epochs", 1, "--hidden", 8, "-q", "--out"]
    assert pipe(*run, "a", "--optimizer", "muon")[::2] == (0, "")
    hyper = tomllib.loads((tmp_path / "a/config.toml").read_text())["facts"]["hyper"]
    assert (hyper["update.muon.matrices.lr"], hyper["update.muon.otherwise.lr"]) == (0.05, 0.02)
    assert pipe("train", "--resume", "a", "--epochs", 2, "--set", "rest_lr=0.01")[::2] == (0, "")
    sweep = ["sweep", "--no-compile", "--epochs", 1, "--hidden", 8, "--optimizer", "muon", "--set", "rest_lr=0.01,0.02"]
    assert "2 settings x 1 seeds, in 1 group\n" in pipe(*sweep)[1]
    for args, message in (
        (["--set", "rest_lr=0.1"], "--set rest_lr belongs to --optimizer muon, not to sgd; leave it out"),
        (
            ["--optimizer", "muon", "--hidden", ""],
            "--optimizer muon has no matrix between this model's inputs and outputs",
        ),
    ):
        code, _, err = pipe(*run, "b", *args)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
