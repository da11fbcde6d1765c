"""Folders of the transformers library: trained, sampled from, exported, and refused."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import load_run
from tests import hub

hf = pytest.importorskip("transformers")

WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
TEXT = "to be or not to be, that is the question. " * 20
FEW = ("--context", 8, "--epochs", 1, "--no-compile", "-q")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small models, and a text."""
    folder = tmp_path_factory.mktemp("hub")
    fast = hub.tokenizer(TEXT)
    count = len(fast)
    torch.manual_seed(0)
    for name, model in {
        "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=count + 500, **GPT2)),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=count, **WIDTH, num_key_value_heads=1)).bfloat16(),
        "small": hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=count - 1, **GPT2)),
        "bert": hf.BertModel(hf.BertConfig(vocab_size=count, **WIDTH)),
    }.items():
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    (folder / "t.txt").write_text(TEXT)
    return folder


@pytest.fixture
def here(models, monkeypatch):
    monkeypatch.chdir(models)
    return models


def refused(said, *words):
    code, _, err = said
    assert (code, err.count("\n")) == (2, 1), err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("name", "more"), [("gpt2", ()), ("llama", ("--lora", 2, "--lr", 0.01))], ids=["gpt2", "lora"])
def test_a_folder_is_trained_and_exported_as_one(pipe, here, name, more):
    """Its weights are where the run begins; from_pretrained of what is exported gives the run's logits, and its
    tokenizer the run's ids; a model may have more tokens than its tokenizer."""
    code, out, err = pipe("train", "--model", name, "--data", "t.txt", *FEW[:-1], *more, "--out", f"runs/{name}")
    assert (code, err) == (0, "")
    first = load_file(f"{name}/model.safetensors")
    assert f"init    {name}/model.safetensors: " in out
    assert "as initialised" not in out
    assert pipe("export", f"runs/{name}", "--format", "transformers", "--out", f"out-{name}")[0] == 0
    pipeline, state, held_out = load_run(f"runs/{name}")
    inputs = held_out.tensors["inputs"]
    again = hf.AutoModelForCausalLM.from_pretrained(f"out-{name}").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, pipeline.module(state)(inputs), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(t, first[k].float()) for k, t in again.state_dict().items() if k in first)
    ids = hf.AutoTokenizer.from_pretrained(f"out-{name}")(TEXT)["input_ids"]
    end = (len(ids) - 1) // 8 * 8
    assert ids[end - 8 : end] == inputs[-1].tolist()
    code, out, err = pipe("sample", f"runs/{name}", "--prompt", "to be", "--count", 50, "--temperature", 9)
    assert (code, err) == (0, "")
    assert out.startswith("to be")


def test_the_first_loss_is_that_of_the_folder(pipe, here):
    """At a learning rate of almost nothing the held-out loss is the model's own, from_pretrained."""
    assert pipe("train", "--model", "./llama", "--data", "t.txt", *FEW, "--lr", 1e-12, "--out", "runs/same")[0] == 0
    pipeline, state, held_out = load_run("runs/same")
    model = hf.AutoModelForCausalLM.from_pretrained("llama", dtype="float32").eval()
    with torch.no_grad():
        logits = model(held_out.tensors["inputs"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), held_out.tensors["targets"].flatten())
    assert pipeline.evaluate(state, held_out)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_classifier_begins_from_a_body(pipe, here):
    """Of token ids: the head is named as initialised, and the names of the classes are exported."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(1, 200, (60, 8))
    np.savez("ids.npz", inputs=inputs, targets=inputs[:, 0] % 2)
    given = ("--model", "bert", "--data", "ids.npz", "--epochs", 1, "--no-compile")
    refused(pipe("train", *given, "-q"), "it lacks 2 (model.classifier.weight", "write --set strict=false")
    code, out, err = pipe("train", *given, "--set", "strict=false", "--out", "runs/bert")
    assert (code, err) == (0, "")
    assert "as initialised: model.classifier.weight, model.classifier.bias" in out
    assert pipe("export", "runs/bert", "--format", "transformers")[0] == 0
    model = hf.AutoModelForSequenceClassification.from_pretrained("runs/bert/transformers")
    assert model.config.id2label == {0: "0", 1: "1"}


def test_what_is_no_such_folder_is_one_line(pipe, here, tmp_path, monkeypatch):
    """A pickle, a missing file, a tokenizer of more tokens, a long context, a model of both sides, no library."""
    given = ("--data", "t.txt", *FEW)
    refused(pipe("train", "--model", "small", *given), "tokens, but the model in small only 2")
    refused(pipe("train", "--model", "gpt2", *given, "--context", 17), "but gpt2 has 16 positions; write --context 16")
    refused(pipe("train", "--model", "bert", *given), 'write "is_decoder": true in its config')
    refused(pipe("train", "--model", "gpt2", "-q"), "gpt2 takes token ids, but digits has inputs of floats")
    old = tmp_path / "old"
    old.mkdir()
    refused(pipe("train", "--model", str(old), *given), f"{old} has no model.safetensors; write it by")
    (old / "pytorch_model.bin").write_bytes(b"pickle")
    refused(pipe("train", "--model", str(old), *given), "has no model.safetensors", "pytorch_model.bin is read from no")
    assert pipe("train", "--model", "mlp", "--epochs", 1, "--no-compile", "-q", "--out", "runs/mlp")[0] == 0
    refused(pipe("export", "runs/mlp", "--format", "transformers"), "is for a run of a model of that library")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(pipe("train", "--model", "gpt2", *given), "need the transformers library: pip install transformers")
