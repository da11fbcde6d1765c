"""Texts in tables: which columns are texts, the same words from each format, and that they are learned."""

import random
import re

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.models.columns import Texts
from pipeline.sources import words
from pipeline.sources.columns import Readings, readings
from pipeline.sources.dialect import Dialect
from pipeline.sources.frame import Frame

FILL = re.findall(r"\w+", "the a it was and I bought this for my sister last week in a box, really very on time")
SAID = {"good": ["great", "lovely", "superb", "sturdy"], "bad": ["awful", "broken", "poor", "useless"]}


def reviews(rows, seed=0):
    """Texts with a word that says their label, among others, and prices that say nothing."""
    chance, found = random.Random(seed), []
    for _ in range(rows):
        label = chance.choice(["good", "bad"])
        text = chance.choices(FILL, k=chance.randint(5, 15))
        text.insert(chance.randrange(len(text)), chance.choice(SAID[label]))
        found.append({"review": " ".join(text).capitalize() + ".", "price": chance.gauss(20, 5), "label": label})
    return pl.DataFrame(found)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["It was great, really.", "What a poor lamp!", "The lamp is great."], "text"),
        (["Sehr gute Lampe, danke", "Trop cher à mon goût", "ОЧЕНЬ хорошая лампа"], "text"),
        (["a-1", "b-2", "c-3"], "category"),
        (["Ann Lee", "Bo Ek", "Cy Orr"], "category"),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "category"),
        (["not at all", "not at all", "very much so", "very much so"], "category"),
    ],
)
def test_texts_have_several_words_and_differ(cells, kind):
    """Names, keys and answers that come again are categories; an option makes them of any column."""
    frame = Frame("t.csv", pl.DataFrame({"x": cells}), np.arange(len(cells)) + 2, "line", (), Dialect().words)
    assert readings(frame)["x"].kind == kind
    assert readings(frame, Readings(categorical="x"))["x"].kind == "category"


# An apostrophe may be a quote, whose files test_dialects has.
WORDS = st.text(st.sampled_from('abcdeäßéжあ-,;"\n 7'), max_size=12).map(lambda s: f"one two three {s}")


@given(st.lists(st.one_of(st.none(), WORDS), min_size=4, max_size=20, unique=True))
def test_the_same_texts_give_the_same_words(tmp_path_factory, texts):
    """By CSV, Parquet and JSON lines, with quotes, ends of lines and missing texts; a row has its words in order."""
    folder = tmp_path_factory.mktemp("texts")
    frame = pl.DataFrame({"t": texts, "y": [i % 2 * 1.5 for i in range(len(texts))]}, {"t": pl.String, "y": pl.Float64})
    frame.write_csv(folder / "t.csv")
    frame.write_parquet(folder / "t.parquet")
    frame.write_ndjson(folder / "t.jsonl")
    made = [sources.table(folder / f"t.{kind}", task="regression") for kind in ("csv", "parquet", "jsonl")]
    for other in made[1:]:
        assert other.fitted["columns"] == made[0].fitted["columns"]
        for side in ("train", "held_out"):
            for name, values in getattr(made[0], side).tensors.items():
                assert torch.equal(values, getattr(other, side).tensors[name])
    [column] = made[0].fitted["columns"]
    assert made[0].sizes["categories"] == ((len(column["words"]) + 1, column["length"]),)
    codes = words.codes(pl.Series(["Three two NEW one", None, "three " * 500]), column)
    known = [column["words"].index(w) + 1 for w in ("three", "two", "one")]
    assert codes[0].tolist() == (known + [0] * column["length"])[: column["length"]]
    assert not codes[1].any()
    assert set(codes[2]) == {known[0]}


def test_held_out_rows_decide_no_words():
    """The vocabulary is that of words in two training rows, frequent ones first."""
    fitted = words.fit(pl.Series(["b a", "a b a", "b c", "d"]))
    assert fitted == {"words": ["b", "a"], "length": 3}
    assert words.fit(pl.Series(["a", "b"])) == "no word is in two rows"


def test_a_text_is_the_mean_of_its_words():
    """Padding does not count, and no text is 0."""
    texts = Texts([(4, 3), (9, 1)])
    made = texts(torch.tensor([[4, 1, 3, 0, 8], [0, 0, 0, 0, 0]]))
    weight = texts.each[0].words.weight
    torch.testing.assert_close(made[0, :32], (weight[1] + weight[3]) / 2)
    assert not made[1].any()


def test_blocks_of_a_transformer_see_the_order_of_words():
    """The mean of words is one for both orders; with a block it is not, padding still counts for nothing, and texts
    without words are 0 and have finite gradients."""
    codes = torch.tensor([[1, 2, 3, 0, 0], [3, 2, 1, 0, 0], [0, 0, 0, 0, 0]])
    first, other, none = Texts([(4, 5)])(codes)
    torch.testing.assert_close(first, other)
    texts = Texts([(4, 5)], depth=1)
    first, other, none = texts(codes)
    assert (first - other).abs().max() > 0.01
    assert not none.any()
    with torch.no_grad():
        texts.each[0].words.weight[0] += 1.0
    torch.testing.assert_close(texts(codes)[0], first)
    texts(codes).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in texts.parameters())


@pytest.mark.parametrize(("model", "epochs"), [("mlp", 15), ("realmlp", 80), ("tabm", 10)])
def test_texts_are_learned_predicted_and_exported(pipe, model, epochs, tmp_path, monkeypatch):
    """Far better than the larger class; new rows and an exported program answer as in training."""
    monkeypatch.chdir(tmp_path)
    reviews(400).write_csv("reviews.csv")
    reviews(50, 1).drop("label").write_parquet("new.parquet")
    given = ("--model", model, "--epochs", epochs, "--no-compile", "--out", "run", "-q")
    code, _, err = pipe("train", "--data", "reviews.csv", "--target", "label", *given)
    assert code == 0, err
    assert "accuracy" in (said := pipe("eval", "run")[1])
    assert float(said.split("accuracy")[1].split()[0]) > 85
    assert pipe("predict", "run", "--data", "new.parquet", "--out", "new.csv")[0] == 0
    right = pl.read_csv("new.csv")["prediction"] == reviews(50, 1)["label"]
    assert right.mean() > 0.8
    code, out, err = pipe("export", "run")
    assert code == 0, err
    assert "held-out samples, off by" in out


@pytest.mark.parametrize("model", ["mlp --text-depth 1", "realmlp", "tabm"])
def test_a_text_alone_is_predicted_and_exported(pipe, model, tmp_path, monkeypatch):
    """A table of a text and a label has no numbers, and its run is read again all the same."""
    monkeypatch.chdir(tmp_path)
    reviews(200).drop("price").write_csv("reviews.csv")
    trained = ("train", "--data", "reviews.csv", "--target", "label", "--epochs", 1, "--model", *model.split())
    predicted = ("predict", "run", "--data", "reviews.csv", "--out", "new.csv")
    for line in ((*trained, "--no-compile", "--out", "run", "-q"), ("eval", "run"), predicted, ("export", "run")):
        code, _, err = pipe(*line)
        assert code == 0, err
