"""Runs that begin from weights: what they load, record, resume, replay and refuse."""

import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import models, testing

FEW = ("--data", "sklearn:iris", "--model", "mlp", "--hidden", "8", "--schedule", "constant", "--epochs", 2,
       "--no-compile", "-q")  # fmt: skip


@pytest.fixture
def base(pipe, tmp_path, monkeypatch):
    """A run to begin from, in a clean folder."""
    monkeypatch.chdir(tmp_path)
    assert pipe("train", *FEW, "--out", "base")[0] == 0
    return load_file("base/best.safetensors")


def refused(said, *words):
    code, _, err = said
    assert (code, err.count("\n")) == (2, 1), err
    assert all(word in err for word in words), err


@pytest.mark.parametrize("kind", ["run", "safetensors", "pt"])
def test_a_run_begins_from_weights(pipe, base, kind):
    """At a learning rate of almost nothing the weights stay the file's; the report and the checksum are kept."""
    source = {"run": "base", "safetensors": "base/best.safetensors", "pt": "base.pt"}[kind]
    torch.save(base, "base.pt")
    code, out, err = pipe("train", *FEW[:-1], "--init", source, "--out", "new", "--lr", 1e-12)
    assert (code, err) == (0, "")
    assert "best.safetensors: 4 of 4 tensors\n" in out or "init    base.pt: 4 of 4 tensors\n" in out
    testing.same(load_file("new/model.safetensors"), base, 1e-6)
    config = tomllib.loads(Path("new/config.toml").read_text())
    assert config["finetune"]["init"] == source
    assert len(config["finetune"]["init_sha256"]) == 64


def test_what_does_not_fit_is_refused_with_flags_to_write(pipe, base):
    """A missing file, other shapes, other names, and settings without --init are one line; --rename and strict help."""
    refused(pipe("train", *FEW, "--init", "none.pt"), "can't read none.pt, which the run begins from: No such file")
    wide = (*FEW, "--hidden", "16", "--init", "base")
    refused(pipe("train", *wide), "1.weight is (8, 4), here (16, 4)", "write --set strict=false")
    code, out, err = pipe("train", *FEW[:-1], *wide[len(FEW) :], "--set", "strict=false")
    assert code == 0, err
    assert "1 of 4 tensors; as initialised: 1.weight, 1.bias, 3.weight\n" in out
    save_file({f"module.{k}": t for k, t in base.items()}, "wrapped.safetensors")
    refused(pipe("train", *FEW, "--init", "wrapped.safetensors"), "write --rename module.=\n")
    given = ("--init", "wrapped.safetensors", "--rename", "module.=", "--lr", 1e-12, "--out", "b")
    assert pipe("train", *FEW, *given)[0] == 0
    testing.same(load_file("b/model.safetensors"), base, 1e-6)
    refused(pipe("train", *FEW, "--rename", "a=b"), "add --init FILE")
    refused(pipe("train", *FEW, "--init", "base", "--rename", "ab"), "--rename 'ab' is no OLD=NEW")
    Path("own.py").write_text("def make(): ...\n")
    refused(pipe("train", "own.py:make", "--init", "base"), "--init does not apply to a pipeline of your own")
    Path("base/best.safetensors").write_bytes(b"\0" * 100)
    refused(pipe("train", *FEW, "--init", "base"), "is not as the run wrote it")


def test_embeddings_grow_by_the_command(pipe, base):
    """`grow` takes the larger tensors of the model, and the message names it."""
    save_file({**base, "3.weight": base["3.weight"][:2], "3.bias": base["3.bias"][:2]}, "two.safetensors")
    refused(pipe("train", *FEW, "--init", "two.safetensors"), "write --set grow='3.weight,3.bias' to keep the rows")
    given = ("--init", "two.safetensors", "--set", "grow=3.*", "--lr", 1e-12, "--out", "b")
    assert pipe("train", *FEW, *given)[0] == 0
    testing.same(load_file("b/model.safetensors")["3.weight"][:2], base["3.weight"][:2], 1e-6)


def test_a_run_is_resumed_replayed_and_evaluated_without_the_file(pipe, base):
    """Once there is a checkpoint, the file may go; what begins from it again refuses another file in its place."""
    given = ("train", *FEW, "--init", "base.pt")
    torch.save(base, "base.pt")
    assert pipe(*given, "--out", "whole", "--epochs", 4)[0] == 0
    assert pipe(*given, "--out", "part")[0] == 0
    assert pipe("train", "--resume", "part", "--verify")[0] == 0
    assert pipe("train", "part", "--out", "again", "-q")[0] == 0
    same = [Path(name, "model.safetensors").read_bytes() for name in ("part", "again")]
    assert same[0] == same[1]
    torch.save(dict(models.mlp(4, 8, 3).state_dict()), "base.pt")
    refused(pipe("train", "part", "--out", "other", "-q"), "base.pt is another file than the run began from")
    assert pipe("train", "part", "--init", "base.pt", "--out", "other", "-q")[0] == 0
    Path("base.pt").unlink()
    code, _, err = pipe("train", "--resume", "part", "--epochs", 4, "-q")
    assert (code, err) == (0, "")
    assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    for command in (("eval", "part"), ("export", "part"), ("train", "--resume", "part", "--verify")):
        code, _, err = pipe(*command)
        assert code == 0, err
    refused(pipe("train", "--resume", "part", "--init", "base"), "--init base would not be the same run")
    testing.same(load_file("part/model.safetensors"), load_file("whole/model.safetensors"))


def test_without_a_checkpoint_before_it_a_replay_needs_the_file(pipe, base):
    """A replay from the beginning, and a run without checkpoints, begin from the file, or say that it is gone."""
    torch.save(base, "base.pt")
    assert pipe("train", *FEW, "--epochs", 1, "--init", "base.pt", "--out", "a")[0] == 0
    assert "replayed: every tensor" in pipe("train", "--resume", "a", "--verify")[1]
    Path("base.pt").rename("gone.pt")
    refused(pipe("train", "--resume", "a", "--verify"), "can't read base.pt, which the run begins from")
    [only] = Path("a/checkpoints").glob("step-*")
    for path in [*only.iterdir(), only]:
        path.unlink() if path.is_file() else path.rmdir()
    said = pipe("train", "--resume", "a", "-q", "--accept")
    assert said[0] == 2
    assert "can't read base.pt, which the run begins from" in said[2]


def test_folds_sweeps_and_ensembles_begin_from_weights(pipe, base):
    """Every run and every member begins from the file."""
    for command, folder in (("--folds", "a/fold-1"), ("--ensemble", "b")):
        code, _, err = pipe("train", *FEW, "--init", "base", "--lr", 1e-12, command, 2, "--out", folder[0])
        assert code == 0, err
        for name, t in load_file(f"{folder}/model.safetensors").items():
            torch.testing.assert_close(t, base[".".join(name.split(".")[-2:])].expand_as(t), rtol=0, atol=1e-6)
    sweep = ("sweep", *FEW, "--init", "base", "--lr", "1e-12,1e-11", "--out", "s")
    code, _, err = pipe(*sweep)
    assert code == 0, err
    members = [*Path("s").rglob("model.safetensors")]
    assert len(members) >= 2
    for path in members:
        testing.same(load_file(path), base, 1e-6)
