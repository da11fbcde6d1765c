"""Questions and answers: only answers are learned, and nothing is cut or left out in silence."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import config, sampling
from cli.recipes.data.files import Chat, Table
from pipeline import PipeError, loss, models, sources
from pipeline.sources.chat import IGNORED
from tests import hub

LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
CHAT = [{"messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"},
                      {"role": "assistant", "content": "2"}, {"role": "user", "content": "1+2"},
                      {"role": "assistant", "content": "3"}]}] * 20  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>{% "
    "endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% "
    "endif %}"
)


def written(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def whole(data):
    """All samples."""
    return {name: torch.cat([data.train.tensors[name], data.held_out.tensors[name]]) for name in ("inputs", "targets")}


def learned(batch):
    """The bytes that are learned, and all of them, of each sample."""
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        yield bytes(targets[targets != IGNORED].tolist()).decode(errors="replace"), bytes(inputs.tolist())


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=3, max_size=6), st.integers(1, 40))
def test_the_targets_are_the_next_tokens_of_answers(tmp_path_factory, pairs, context):
    """For any texts: inputs are the text's bytes, targets those of the answer and its end, one place before."""
    pairs = [("?" + prompt, answer) for prompt, answer in pairs]
    path = written(tmp_path_factory.getbasetemp(), [{"prompt": p, "completion": c} for p, c in pairs])
    rows = [(p.encode(), (c + "\n" * (not c.endswith("\n"))).encode()) for p, c in pairs]
    cut = [(p, a[: max(context + 1 - len(p), 0)]) for p, a in rows]
    kept = sum(bool(a) for _, a in cut)
    if kept < 2:
        with pytest.raises(PipeError):
            sources.chat(path, context=context)
        return
    data = sources.chat(path, context=context)
    found = whole(data)
    assert len(found["inputs"]) == kept
    expected = set()
    for p, a in cut:
        text, at = (p + a)[: context + 1], len(p)
        if a:
            width = data.sizes["context"]
            inputs = [*text[:-1], *[0] * (width - len(text) + 1)]
            targets = [b if i + 1 >= at else IGNORED for i, b in enumerate(text[1:])]
            expected.add((*inputs, *targets, *[IGNORED] * (width - len(targets))))
    assert {(*i.tolist(), *t.tolist()) for i, t in zip(found["inputs"], found["targets"], strict=True)} == expected
    longer = sum(len(p) + len(a) - 1 > context for p, a in rows)
    assert any(f"{longer} rows are cut to {context} tokens, and {len(rows) - kept} left" in n for n in data.notes) == (
        longer > 0
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_are_lines_without_a_chat_template(tmp_path, kind):
    """All answers are learned, with their line's end; a note says the form."""
    path = written(tmp_path, CHAT)
    if kind == "parquet":
        pl.DataFrame(CHAT).write_parquet(path := tmp_path / "rows[1].parquet")
    data = sources.chat(path)
    [(answers, text), *_] = learned(whole(data))
    assert answers == "2\n3\n"
    assert text.rstrip(b"\0") == b"system: Add.\nuser: 1+1\nassistant: 2\nuser: 1+2\nassistant: 3"
    assert any("messages are lines of 'role: ...'" in note for note in data.notes)


def test_a_template_and_prompts_of_messages(tmp_path):
    """The last column of a template is the answer; of a prompt of messages, none of its answers are learned."""
    rows = [{"q": f"{i}+1", "a": i + 1} for i in range(20)]
    found = learned(whole(sources.chat(written(tmp_path, rows), template="Q: {q}\nA: {a}.")))
    assert sorted(answer for answer, _ in found) == sorted(f"{i + 1}.\n" for i in range(20))
    [messages] = CHAT[0].values()
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]}] * 20
    assert {answer for answer, _ in learned(whole(sources.chat(written(tmp_path, rows))))} == {"3\n"}
    [(text, _), *_] = learned(whole(sources.chat(written(tmp_path, [{"text": "abc"}] * 20))))
    assert text == "bc\n"  # nothing comes before the first


def test_the_loss_and_its_gradient_are_those_of_answers_alone(tmp_path):
    """The loss is the mean over learned tokens, as written by hand; logits of others have no gradient."""
    data = sources.chat(
        written(tmp_path, [{"prompt": "?" * (i % 7), "completion": "ab" * (1 + i % 3)} for i in range(20)])
    )
    model, batch = models.transformer(256, context=data.sizes["context"], width=16, heads=2, depth=1), whole(data)
    total, count = 0.0, 0
    logits = model(batch["inputs"]).detach().requires_grad_()
    for row, targets in zip(logits, batch["targets"], strict=True):
        for scores, target in zip(row, targets.tolist(), strict=True):
            if target != IGNORED:
                total, count = total - scores.log_softmax(0)[target], count + 1
    value, weight = loss.cross_entropy(dim=-1)(logits, batch["targets"])
    assert weight == count
    assert value.item() == pytest.approx(total.item() / count, rel=1e-6)
    [gradient] = torch.autograd.grad(value, logits)
    assert ((gradient != 0).any(-1) == (batch["targets"] != IGNORED)).all()


def tokens(folder, pre, words, post=None):
    """The file of a tokenizer of such words, beside its end of a text."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({w: i for i, w in enumerate(["?", "<end>", *words])}, "?"))
    made.pre_tokenizer = pre(library)
    made.add_special_tokens(["<end>"])
    if post is not None:
        made.post_processor = post(library)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return str(folder / "tokenizer.json")


def byte_level(library):
    return library.pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("pre", "post", "words", "answers"),
    [(byte_level, lambda library: library.processors.ByteLevel(trim_offsets=False), ["In", ":", "ĠParis"], [4]),
     (byte_level, lambda library: library.processors.ByteLevel(trim_offsets=True), ["In", ":", "ĠParis"], [4]),
     (byte_level, lambda library: library.processors.ByteLevel(trim_offsets=True), ["In", ":", "Ġ", "ĠParis"], [4, 5]),
     (lambda library: library.pre_tokenizers.Metaspace(), None, ["▁In:", "▁Paris"], [3])],
)  # fmt: skip
def test_a_token_that_overlaps_the_answer_is_learned(tmp_path, pre, post, words, answers):
    """Also if the tokenizer joins it with the space before it, or gives a space no place; so is the end."""
    blank = " " * (len(answers) - 1)
    rows = [{"prompt": "In: " if not blank else "In:", "completion": f"{blank} Paris" if blank else "Paris"}] * 20
    data = sources.chat(written(tmp_path, rows), tokenizer=tokens(tmp_path, pre, words, post))
    targets = whole(data)["targets"][0]
    assert targets[targets != IGNORED].tolist() == [*answers, 1]


def test_what_a_tokenizer_last_did_is_not_done_again(tmp_path):
    """A file that keeps the truncation and padding of a call gives all tokens, and no others."""
    path = tokens(tmp_path, lambda library: library.pre_tokenizers.WhitespaceSplit(), ["a", "b", "c"])
    rows = written(tmp_path, [{"prompt": "a b a b", "completion": " c" * 9}] * 20)
    ids, data = sources.encode({"tokenizer": path}, "a b " * 9), whole(sources.chat(rows, tokenizer=path))
    made = pytest.importorskip("tokenizers").Tokenizer.from_file(path)
    for change in (lambda: made.enable_truncation(4), made.no_truncation, lambda: made.enable_padding(length=64)):
        change()
        made.save(path)
        assert sources.encode({"tokenizer": path}, "a b " * 9) == ids
        now = whole(sources.chat(rows, tokenizer=path))
        assert all(torch.equal(now[name], data[name]) for name in data)


class Next(torch.nn.Module):
    """The token after each is surely the next id."""

    def forward(self, tokens):
        return 1e3 * torch.nn.functional.one_hot((tokens + 1) % 5, 5)


def test_an_answer_is_sampled_from_its_question_and_ends(tmp_path):
    """From the ids that were trained on, special ones among them, to the end of an answer; a text goes on."""
    path = tokens(tmp_path, lambda library: library.pre_tokenizers.WhitespaceSplit(), ["a", "b", "c"])
    rows = written(tmp_path, [{"prompt": "c <end> a b", "completion": " c"}] * 20)
    data, module = sources.chat(rows, tokenizer=path), Next()
    job = SimpleNamespace(prepared=data, pipe=SimpleNamespace(module=lambda state: module))
    assert sampling.sample_held_out(job, None) == "c <end> a b c ?"
    text = {name: value for name, value in data.fitted.items() if name != "template"}
    assert sampling.continued(module, text, [4], 4, temperature=0) == "c ? <end> a b"


def test_messages_end_with_the_end_of_a_text(tmp_path):
    """Without a chat template, after an answer: it is learned. After a question it is not."""

    def pre(library):
        return library.pre_tokenizers.Split("", "isolated")

    tokenizer = tokens(tmp_path, pre, [*"aeinrstu: 123+.Adsmy\n"])
    found = whole(sources.chat(written(tmp_path, CHAT), tokenizer=tokenizer))
    assert (found["targets"][:, -1] == 1).all()
    [messages] = CHAT[0].values()
    found = whole(sources.chat(written(tmp_path, [{"messages": messages[:-1]}] * 20), tokenizer=tokenizer))
    assert (found["targets"] != 1).all()


def test_rows_without_an_answer_are_told_from_cut_ones(tmp_path):
    """A row of questions alone is not one whose answer begins later."""
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    long = {"prompt": "?" * 50, "completion": "a"}
    data = sources.chat(written(tmp_path, [question, question, long, *CHAT]), context=40)
    assert "21 rows are cut to 40 tokens, and 1 left out, whose answer begins later" in data.notes
    assert "2 rows without an answer are left out" in data.notes


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"a": 1}], {}, "row 1 has a, but no messages"),
        ([{"prompt": 1, "completion": "b"}], {}, "row 1 has a prompt that is no text"),
        ([{"messages": [{"role": "user"}]}], {}, "row 1 has a content that is no text"),
        ([{"text": "b"}, {"text": "a \ud800"}], {}, "row 2 has a lone surrogate"),
        ([{"messages": "hi"}], {}, "that are no list of a role and a content each"),
        ([{"q": "a", "answer": "b"}], {"template": "{q} {anser}"}, "has no 'anser'; did you mean 'answer'"),
        ([{"q": "a"}], {"template": "{q.__class__}"}, "its fields are the names of columns"),
        ([{"q": "a"}], {"template": "{q!r:>9}"}, "its fields are the names of columns"),
        ([{"q": "a"}], {"template": "{q"}, "template '{q' is none"),
        ([{"prompt": "abc", "completion": "d"}], {"context": 2}, "no row with an answer within 2 tokens"),
        ([{"text": "a"}], {"tokenizer": "characters"}, "not characters"),
    ],
)  # fmt: skip
def test_other_rows_are_one_line(tmp_path, rows, options, said):
    """With the row, and what to write."""
    with pytest.raises(PipeError) as refused:
        sources.chat(written(tmp_path, rows), **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of the transformers library, whose tokenizer has a chat template."""
    hf, home = pytest.importorskip("transformers"), tmp_path_factory.mktemp("hub") / "gpt2"
    special = [f"<|{role}|>" for role in ("system", "user", "assistant")]
    fast = hub.tokenizer("the answer is the answer of the question " * 9, *special, chat_template=TEMPLATE)
    fast.save_pretrained(home)
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "attn_pdrop": 0, "embd_pdrop": 0}
    hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=len(fast), **sizes, resid_pdrop=0)).save_pretrained(home)
    return home


def test_a_file_is_a_chat_by_its_columns(tmp_path):
    """With --model FOLDER, a table of other columns is a table, unless a template names them."""
    rows = {"chat": {"prompt": "a", "completion": "b"}, "table": {"x": 1, "y": 2}}
    for kind, row in rows.items():
        written(tmp_path, [row], f"{kind}.jsonl")
        pl.DataFrame([row]).write_parquet(tmp_path / f"{kind}.parquet")
        for end in ("jsonl", "parquet"):
            layer = {"model": str(tmp_path), "data": str(tmp_path / f"{kind}.{end}")}
            assert type(config.make(layer).data).__name__.lower() == kind
            assert isinstance(config.make({**layer, "data": f"table:{layer['data']}"}).data, Table)
    assert isinstance(config.make({**layer, "template": "{x} {y}"}).data, Chat)
    (tmp_path / "bad.jsonl").write_text("{")
    assert isinstance(config.make({**layer, "data": str(tmp_path / "bad.jsonl")}).data, Chat)


def test_a_chat_template_has_the_masks_of_transformers(tmp_path, folder):
    """Ids and learned tokens are those of apply_chat_template, whose template marks the answers."""
    hf = pytest.importorskip("transformers")
    data = sources.chat(written(tmp_path, CHAT), tokenizer=str(folder / "tokenizer.json"))
    expected = hf.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CHAT[0]["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = np.array(expected["input_ids"]), np.array(expected["assistant_masks"], bool)
    assert data.train.tensors["inputs"][0].tolist() == ids[:-1].tolist()
    assert data.train.tensors["targets"][0].tolist() == np.where(mask, ids, IGNORED)[1:].tolist()
    assert sources.decode(data.fitted, ids[mask].tolist()).replace("<eos>", "") == "23"


def test_the_command_has_the_loss_of_labels_by_hand(tmp_path, folder, pipe, monkeypatch):
    """Of prompts and completions, as transformers computes it from labels that are -100 on prompts and padding."""
    hf = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {i}:", "completion": " the answer" * (1 + i % 3)} for i in range(20)]
    written(tmp_path, rows)
    code, out, err = pipe("train", "--model", folder, "--data", "rows.jsonl", "--epochs", 1, "--lr", 1e-12,
                          "--no-compile", "--out", "run")  # fmt: skip
    assert (code, err) == (0, "")
    assert "20 rows of " in out
    assert pipe("eval", "run", "--data", "chat:rows.jsonl", "--json")[0] == 0
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for row in rows:
        prompt, answer = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["completion"] + "<eos>"))
        labels = torch.tensor([[*[-100] * len(prompt), *answer]])
        with torch.no_grad():
            total += model(torch.tensor([[*prompt, *answer]]), labels=labels).loss.item() * len(answer)
        count += len(answer)
    found = json.loads(pipe("eval", "run", "--data", "chat:rows.jsonl", "--json")[1])["metrics"]["loss"]
    assert found == pytest.approx(total / count, rel=1e-6)
    long = [{"prompt": "question:", "completion": " the answer" * 9}, {"prompt": "question" * 99, "completion": "a"}]
    written(tmp_path, [*rows, *long, {"messages": [{"role": "user", "content": "Hi"}]}], "new.jsonl")
    code, _, err = pipe("eval", "run", "--data", "chat:new.jsonl")
    most = json.loads((tmp_path / "run/data.json").read_text())["fitted"]["context"]
    cut = f"2 rows are cut to {most} tokens, the most that the run was trained on, and 1 left out, whose answer begins"
    lines = [f"pipe: chat:new.jsonl: {cut} later", "pipe: chat:new.jsonl: 1 rows without an answer are left out"]
    assert (code, err.splitlines()) == (0, lines)
