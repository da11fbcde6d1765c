"""Runs that begin from weights: what they load, record, resume, replay and refuse."""

import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoint, load_run, models, testing

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
    refused(pipe("train", *FEW, "--rename", "a=b"), "--rename needs --init; add it")
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


def adapted(pipe, *more):
    code, out, err = pipe("train", *FEW[:-1], "--init", "base", "--lora", 2, "--lr", 0.1, "--out", "tuned", *more)
    assert (code, err) == (0, "")
    return out


def test_a_run_with_adapters_is_merged_at_export(pipe, base):
    """The weights and the program that are exported are the plain model's, and answer as the run to 1e-5."""
    out = adapted(pipe, "--ema", 0.5)
    assert "lora 2: 46 parameters, and 67 frozen\n" in out
    tensors = load_file("tuned/best.safetensors")
    testing.same({k: tensors[k.replace(".", ".base.")] for k in base}, base)
    for words in (["--format", "weights"], [], ["--weights", "ema", "--out", "ema.pt2"]):
        code, _, err = pipe("export", "tuned", *words)
        assert code == 0, err
    plain = models.mlp(4, 8, 3)
    plain.load_state_dict(load_file("tuned/weights.safetensors"))
    pipeline, state, held_out = load_run("tuned")
    inputs = held_out.tensors["inputs"]
    with torch.no_grad():
        expected = pipeline.module(state)(inputs)
        testing.same(plain.eval()(inputs), expected, 1e-5)
        plain.load_state_dict(base)
        assert (plain(inputs) - expected).abs().max() > 1e-2
    assert not any("lora" in name for name in torch.export.load("tuned/model.pt2").state_dict)
    assert pipe("export", "tuned", "--format", "peft")[0] == 0
    again = models.read_adapter(lambda: models.loaded(models.mlp(4, 8, 3), base), "tuned/adapter")()
    with torch.no_grad():
        testing.same(again.eval()(inputs), expected, 1e-6)
    refused(pipe("export", "base", "--format", "peft"), "trained with --lora, which base is not")


def test_a_run_with_adapters_goes_on_exactly(pipe, base):
    """Resumed, replayed and evaluated, in the State of its adapters alone; its folder is no plain file of weights."""
    adapted(pipe, "--set", "lora_dropout=0.2", "--epochs", 4)
    whole = Path("tuned/model.safetensors").read_bytes()
    for path in sorted(Path("tuned").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    adapted(pipe, "--set", "lora_dropout=0.2")
    assert pipe("train", "--resume", "tuned", "--epochs", 4, "-q")[0] == 0
    assert Path("tuned/model.safetensors").read_bytes() == whole
    assert "replayed: every tensor" in pipe("train", "--resume", "tuned", "--verify")[1]
    assert pipe("eval", "tuned")[0] == 0
    refused(pipe("train", "--resume", "tuned", "--lora", 3), "--lora 3 would not be the same run, which has 2")
    refused(pipe("train", *FEW, "--init", "tuned"), "does not fit the module")


def test_parts_are_frozen_and_thaw(pipe, base):
    """--freeze leaves what it names as it was; with --thaw it is trained after so many epochs, and not before."""
    given = ("train", *FEW[:-1], "--init", "base", "--lr", 0.1, "--freeze", "1.*", "--epochs", 2)
    code, out, err = pipe(*given, "--out", "frozen")
    assert (code, err) == (0, "")
    assert "27 parameters, and 40 frozen\n" in out
    assert pipe(*given, "--thaw", 1, "--save-steps", 2, "--out", "early")[0] == 0
    frozen, early = (load_file(f"{name}/model.safetensors") for name in ("frozen", "early"))
    late = load_file(checkpoint.steps("early/checkpoints")[0][1] / checkpoint.STATE)  # of the first epoch
    for name, t in base.items():
        assert torch.equal(frozen[name], t) == torch.equal(late[f"params/{name}"], t) == name.startswith("1.")
        assert not torch.equal(early[name], t)
    assert "replayed: every tensor" in pipe("train", "--resume", "early", "--verify")[1]


def test_settings_of_what_is_trained_that_do_not_fit_are_refused(pipe, base):
    """Random weights that would be frozen, names of nothing, and settings without the one they need: one line each."""
    new = ("train", *FEW, "--init", "base", "--hidden", 16, "--set", "strict=false")
    for words, message in (
        (("train", *FEW, "--lora", 2), "--lora would freeze random weights; name those to begin from by --init FILE"),
        ((*new, "--lora", 2), "1.weight is not in base, and would be frozen at random values; see --set lora_full"),
        ((*new, "--freeze", "3.*"), "3.weight is not in base, and would be frozen at random values; see !NAME"),
        (("train", *FEW, "--init", "base", "--lora", 2, "--lora-targets", "no"), "'no' is no part of the module"),
        (("train", *FEW, "--init", "base", "--lora", 2, "--freeze", "1.*"), "--lora freezes all but its additions"),
        (("train", *FEW, "--freeze", "no.*"), "--freeze 'no.*' matches none of the parameters 1.weight, 1.bias, 3."),
        (("train", *FEW, "--freeze", "*"), "--freeze '*' matches all of the parameters"),
        (("train", *FEW, "--thaw", 2), "--thaw needs --freeze; add it"),
        (("train", *FEW, "--lora-targets", "1"), "--lora-targets needs --lora; add it"),
        (("train", *FEW, "--lora", 0), "--lora 0 is out of range"),
    ):
        refused(pipe(*words), message)
    full = ("--lora", 2, "--lora-targets", "3", "--set", "lora_full=1")
    assert pipe(*new, *full)[0] == 2  # 3.weight has another shape too
    head = ("--init", "two.safetensors", "--set", "strict=false", "--lora", 2, "--set", "lora_full=3", "--out", "head")
    save_file({**base, "3.weight": base["3.weight"][:2], "3.bias": base["3.bias"][:2]}, "two.safetensors")
    assert pipe("train", *FEW, *head)[0] == 0
    assert {k for k in load_file("head/model.safetensors") if "lora" in k} == {"1.lora_A", "1.lora_B"}


def test_folds_ensembles_and_own_models_have_adapters(pipe, base):
    """Folds are exported as one program without adapters; a function of the user's may begin from weights itself."""
    common = ("train", *FEW, "--init", "base", "--lora", 2, "--lr", 0.1)
    for words in (("--folds", 2), ("--ensemble", 2)):
        assert pipe(*common, *words, "--out", words[0][2:])[0] == 0
        code, out, err = pipe("export", words[0][2:])
        assert code == 0, err
        assert "off by" in out
        refused(pipe("export", words[0][2:], "--format", "peft"), "--format peft is of one run")
    Path("own.py").write_text(
        "from pipeline import models\n"
        "def make(features, classes):\n"
        "    return models.loaded(models.mlp(features, 8, classes), 'base/best.safetensors')\n"
    )
    own = ("--model", "own.py:make", "--lora", 2, "--out", "own")
    assert pipe("train", *FEW[:2], *FEW[6:], *own)[0] == 0
    assert pipe("export", "own", "--trust")[0] == 0
