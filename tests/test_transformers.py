"""Models of transformers, as they come and with their own dropout, train as any module does."""

import zlib

import pytest
import torch
from torch.nn import functional as F

from pipeline import Pipeline, backward, forward, stage, testing, update
from pipeline.draws import keyed
from tests import pipes

hf = pytest.importorskip("transformers")

WORDS = torch.arange(36).reshape(3, 12) * 7 % 47 + 3
MASK = (torch.arange(12) < torch.tensor([[12], [9], [5]])).long()
BATCH = {
    "words": WORDS,
    "mask": MASK,
    "labels": WORDS.where(MASK > 0, -100),
    "images": torch.arange(3 * 3 * 8 * 8).reshape(3, 3, 8, 8).sin(),
    "sounds": torch.arange(3 * 4 * 20).reshape(3, 4, 20).sin(),
    "kinds": torch.arange(3),
}

WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGE = {"image_size": 8, "patch_size": 4}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
WHISPER = {
    f"{part}_{what}": n
    for part in ("encoder", "decoder")
    for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}


def llama():
    config = hf.LlamaConfig(**TEXT, **WIDTH, num_key_value_heads=1, attention_dropout=0.1, tie_word_embeddings=True)
    return hf.LlamaForCausalLM(config)


def gpt2():
    return hf.GPT2LMHeadModel(hf.GPT2Config(**TEXT, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def bert():
    return hf.BertForMaskedLM(hf.BertConfig(**TEXT, **WIDTH, **DROPS, max_position_embeddings=16))


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(**WIDTH, **IMAGE, **DROPS, num_labels=3))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(**TEXT, **sizes, decoder_start_token_id=0, dropout_rate=0.1))


def whisper():
    sizes = {**WHISPER, "d_model": 16, "num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 12}
    drops = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**TEXT, **sizes, **drops, decoder_start_token_id=1))


def clip():
    text = {**TEXT, **WIDTH, "max_position_embeddings": 12, "attention_dropout": 0.1}
    image = {**IMAGE, **WIDTH, "attention_dropout": 0.1}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=16))


def mamba():
    return hf.MambaForCausalLM(hf.MambaConfig(**TEXT, hidden_size=16, num_hidden_layers=1, state_size=4))


@stage(writes="loss")
def own(outputs):
    return outputs.loss


@stage(writes="loss")
def next_word(outputs, labels):
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@stage(writes="loss")
def pairs(outputs):
    scores = outputs.logits_per_image
    right = torch.arange(scores.shape[0], device=scores.device)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


READ = {"input_ids": "words", "attention_mask": "mask"}
MODELS = {
    "llama": (llama, {**READ, "labels": "labels"}, own),
    "gpt2": (gpt2, READ, next_word),
    "bert": (bert, {**READ, "labels": "labels"}, own),
    "vit": (vit, {"pixel_values": "images", "labels": "kinds"}, own),
    "t5": (t5, {**READ, "labels": "labels"}, own),
    "whisper": (whisper, {"input_features": "sounds", "labels": "labels"}, own),
    "clip": (clip, {**READ, "pixel_values": "images"}, pairs),
    "mamba": (mamba, {"input_ids": "words", "labels": "labels"}, own),
}
UPDATES = {
    "sgd": (update.sgd(0.1), lambda params: torch.optim.SGD(params, lr=0.1)),
    "adamw": (update.adamw(0.01, eps=1e-4), lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-4)),
}


def by_hand(build, inputs, loss, optimizer):
    """The module after three steps of the loop by hand."""
    torch.manual_seed(0)
    module = build().train()
    optimizer = optimizer(module.parameters())
    for step in range(3):
        optimizer.zero_grad()
        with keyed(torch.tensor(0), torch.tensor(step), zlib.crc32(b"forward.model")):
            outputs = module(**{argument: BATCH[value] for argument, value in inputs.items()})
        loss(**{name: {**BATCH, "outputs": outputs}[name] for name in loss.reads}).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "t5", "whisper", "mamba"])
def test_the_loss_of_a_model_says_what_it_is_a_mean_of(name):
    """Of parts with other numbers of labels, it makes that of the whole: shifted or not, ignored ones left out."""
    build, inputs, _ = MODELS[name]
    model = forward.model(build, inputs={**inputs, "labels": inputs.get("labels", "labels")}, outputs={"loss": "loss"})
    state = Pipeline(model, backward.gradients(), update.sgd(0.1)).init(0)

    def run(rows):
        batch = {name: values[rows] for name, values in BATCH.items()}
        return model.run({**state.tree, "training": False, **batch}, {}, None)[0]

    parts, whole = [run(slice(0, 1)), run(slice(1, 3))], run(slice(0, 3))
    total = sum(part["loss.weight"] for part in parts)
    assert total == whole["loss.weight"]
    mean = sum(part["loss"] * part["loss.weight"] for part in parts) / total
    torch.testing.assert_close(mean, whole["loss"].double(), atol=1e-5, rtol=1e-5)


MORE = [("llama", "adamw", "native"), ("llama", "sgd", "native"), ("whisper", "adamw", pipes.TRACED)]
CASES = [(name, "sgd", pipes.TRACED) for name in MODELS]
CASES += [("llama", "adamw", "aot_eager")]
CASES = [
    pytest.param(*case, id="-".join(case), marks=[pytest.mark.thorough] if case in MORE else [])
    for case in CASES + MORE
]


@pytest.mark.parametrize(("name", "rule", "backend"), CASES)
def test_a_model_trains_as_by_hand_and_as_one_graph(name, rule, backend):
    """Three steps are those of the module in a loop by hand, each is pure, and one graph does the same."""
    build, inputs, loss = MODELS[name]
    ours, theirs = UPDATES[rule]
    pipe = Pipeline(forward.model(build, inputs=inputs), loss, backward.gradients(), ours)
    batch = {value: BATCH[value] for value in {*inputs.values(), *loss.reads} & BATCH.keys()}
    compiled = pipe.compile(backend=backend)
    plain, donated = pipe.init(0), pipe.init(0)
    for _ in range(3):
        plain, expected = testing.pure(pipe.step, plain, batch)
        donated, metrics = compiled(donated, batch)
        testing.same(metrics, expected, 1e-5)
    testing.same(donated.tree, plain.tree, 1e-5)
    [graph] = compiled.report.graphs
    assert (graph.backend, str(pipe).count("by tape")) == (backend, 0)
    module, trained = by_hand(build, inputs, loss, theirs), {**plain.params, **plain.buffers}
    testing.same({name: trained[name] for name, _ in module.named_parameters()}, dict(module.named_parameters()), 1e-5)
