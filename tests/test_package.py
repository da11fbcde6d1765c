"""A packaged run: the folder predicts, serves and describes itself, with nothing of ours."""

import base64
import json
import re
import runpy
import shlex
import subprocess
import sys
import urllib.request
from io import BytesIO
from urllib.error import HTTPError

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cli
from cli.handover import arrays, images, table
from pipeline import load_run, log, sources
from pipeline.errors import ConfigError
from pipeline.sources import pixels
from pipeline.sources.arrays import tensor
from pipeline.sources.encode import raw
from pipeline.sources.frame import BLANKS, MISSING, Frame
from pipeline.tree import dtype_name
from tests import commands

FAST = ("--no-compile", "-q", "--model", "mlp", "--hidden", "8", "--epochs", "2")
RUNS = {
    "kinds": ("--data", "kinds.csv", *FAST),
    "prices": ("--data", "prices.csv", *FAST),
    "digits": FAST,
    "letters": ("--data", "t.txt", "--tokenizer", "characters", "--context", "16", "--model", "transformer",
                "--width", "16", "--depth", "1", "--no-compile", "-q", "--epochs", "1"),
}  # fmt: skip
PROMPT = "the quick"


def people(n, seed):
    """A table of every kind of column, with missing values."""
    r = np.random.default_rng(seed)
    age = r.integers(18, 90, n)
    columns = {
        "age": [str(a) if r.random() > 0.1 else "NA" for a in age],
        "city": [c if r.random() > 0.1 else "" for c in r.choice(["Basel", "Zug, west"], n)],
        "since": (np.datetime64("2015-01-01") + r.integers(0, 3000, n)).astype(str),
        "at": [f"{h:02}:{h:02}" for h in r.integers(0, 24, n)],
        "says": [" ".join(r.choice(["the", "Äpfel", "of", "don't", "naïve", "x²", "3"], 6)) for _ in range(n)],
        "member": r.choice(["yes", "no"], n),
        "kind": np.where(age > 50, "old", "young"),
        "price": age * 2.5,
    }
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs, each with its package."""
    where = tmp_path_factory.mktemp("packages")
    for name, other in (("kinds", "price"), ("prices", "kind")):
        people(120, 0).drop(other).write_csv(where / f"{name}.csv")
    people(30, 1).drop("kind", "price").write_csv(where / "new.csv")
    np.savez(where / "new.npz", inputs=sources.digits()[1].tensors["inputs"][:30].numpy())
    (where / "t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    for name, args in RUNS.items():
        for words in (("train", *args, "--out", name), ("package", name)):
            code, _, err = commands.run(*words, cwd=where)
            assert code == 0, err
    return where


OUTSIDE = """
import os, runpy, sys, uvicorn
from contextlib import redirect_stdout
for words in sys.argv[1].splitlines():
    folder, given = words.split(" ", 1)
    sys.path[0], sys.argv = folder, ["predict.py", given]
    sys.modules.pop("rows", None)
    with open(f"{folder}.jsonl", "w") as file, redirect_stdout(file):
        runpy.run_path(f"{folder}/predict.py", run_name="__main__")
from serve import app
assert not any(name.split(".")[0] in ("pipeline", "cli") for name in sys.modules)
uvicorn.run(app, port=0)
"""
GIVEN = {"letters": PROMPT, "digits": "new.npz", "prices": "new.csv", "kinds": "new.csv"}


@pytest.fixture(scope="module")
def url(folder):
    """The address of a server of "kinds", in a process that has run the predict.py of each package and imported nothing
    of this project."""
    pytest.importorskip("uvicorn")
    lines = "\n".join(f"{name}/package {data}" for name, data in GIVEN.items())
    command = [sys.executable, "-c", OUTSIDE, lines]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        said = iter(server.stderr.readline, "")
        found = next((m for m in (re.search(r"http://[\d.:]+", line) for line in said) if m), None)
        assert found, "the process ended early"
        yield found[0]
        server.terminate()


def answers(folder, name):
    """What predict.py printed."""
    with (folder / name / "package.jsonl").open() as file:
        return [*map(json.loads, file)]


@pytest.mark.usefixtures("url")
def test_predict_py_gives_what_pipe_predict_gives(folder):
    """For a table with classes or values, for arrays and for a text."""
    for name in ("kinds", "prices", "digits"):
        out, made = folder / f"{name}.npz", answers(folder, name)
        assert commands.run("predict", name, "--data", GIVEN[name], "--out", out, cwd=folder).code == 0
        wanted = np.load(out)
        if name == "prices":
            np.testing.assert_allclose([a["prediction"] for a in made], wanted["prediction"], rtol=1e-5)
            continue
        assert [a["prediction"] for a in made] == wanted["prediction"].tolist()
        np.testing.assert_allclose([a["probability"] for a in made], wanted["probability"], rtol=1e-5)
        np.testing.assert_allclose([[*a["probabilities"].values()] for a in made], wanted["probabilities"], rtol=1e-5)
    sampled = commands.run("sample", "letters", "--prompt", PROMPT, cwd=folder).out
    assert answers(folder, "letters") == [{"text": sampled.removesuffix("\n")}]


def posted(url, content):
    """Status and answer of a POST."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content)) as answer:
            return answer.status, json.load(answer)
    except HTTPError as e:
        return e.code, json.load(e)


def test_values_that_the_model_never_saw_are_told(folder, monkeypatch, capsys):
    """On stderr, as pipe predict does; answers are on stdout alone."""
    people(30, 1).drop("kind", "price").with_columns(city=pl.lit("Genf")).write_csv(folder / "far.csv")
    monkeypatch.syspath_prepend(folder / "kinds" / "package")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(folder / "far.csv")])
    runpy.run_path(str(folder / "kinds" / "package" / "predict.py"), run_name="__main__")
    del sys.modules["rows"]
    out, err = capsys.readouterr()
    said = "30 of 30 rows have values of 'city' that the model never saw, such as 'Genf'; they count as missing"
    assert (len(out.splitlines()), err) == (30, f"predict.py: {said}\n")
    assert said.replace("'", "").replace("model", "run") in commands.run(
        "predict", "kinds", "--data", "far.csv", "--out", "far-kinds.csv", cwd=folder
    ).err.replace("'", "")
    assert table.unseen(json.loads((folder / "kinds/package/config.json").read_text()), people(30, 1).to_dicts()) == []


@pytest.mark.parametrize(("name", "value"), [("truth", 5), ("truth", 0.5), ("truth", [1]), ("number", True)])
def test_a_value_of_another_kind_is_refused(name, value):
    """By a line, instead of a prediction beyond what was learned."""
    with pytest.raises(ValueError, match=f"row 1, column '{name}': .* is not a {name}"):
        table.cell({"missing": MISSING, "blanks": BLANKS}, {name: value}, 1, {"name": name, "kind": name})
    assert table.cell({"missing": MISSING, "blanks": BLANKS}, {name: 1}, 1, {"name": name, "kind": name}) == [1]


@given(
    st.sampled_from([(4, 4), (1, 4, 4), (3, 2, 4), (4, 2, 3), (5, 4, 4)]), st.sampled_from(["u1", "f4", "i8"]),
    st.integers(0, 99),
)  # fmt: skip
def test_bytes_of_images_are_read_as_the_run_reads_them(tmp_path_factory, shape, dtype, seed):
    """Divided by 255, with the channels first; other arrays as they are."""
    values = np.random.default_rng(seed).integers(0, 256, (3, *shape)).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "bytes.npz"
    np.savez(path, inputs=values, targets=np.arange(3))
    wanted = tensor(values)
    facts = {"inputs": [{"name": "inputs", "dtype": dtype_name(wanted.dtype), "shape": ["batch", *wanted.shape[1:]]}]}
    images = dtype == "u1" and len(shape) > 1
    for kind in (None, images):
        [found] = arrays.tensors(facts, arrays.read({"bytes": kind}, path))
        assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="the model learned"):
        arrays.read({"bytes": not images}, path)


BAD = {
    "no column 'since'": b'{"rows": [{"age": 3}]}',
    "row 2, column 'age': 'old' is not a number": None,
    "send": b'{"rows": []}',
    "Expecting": b"{",
    "utf-8": b'"\xff"',
}


def test_the_server_answers_as_predict_py(folder, url):
    """One answer for each row; a bad request is refused in one line."""
    rows = table.read({}, folder / "new.csv")
    code, found = posted(f"{url}/predict", json.dumps({"rows": rows}).encode())
    assert (code, found) == (200, {"predictions": answers(folder, "kinds")})
    card = (folder / "kinds" / "package" / "README.md").read_text()
    assert posted(f"{url}/predict", shlex.split(re.search(r"curl \S+ -d (.*)", card)[1])[0].encode())[0] == 200
    far = json.dumps({"rows": [{**rows[0], "city": city} for city in ("Genf", 5.0, None, rows[0]["city"])]}).encode()
    _, found = posted(f"{url}/predict", far)
    assert len(found["predictions"]) == 4
    told = "2 of 4 rows have values of 'city' that the model never saw, such as 'Genf', '5'; they count as missing"
    assert found["warnings"] == [told]
    wrong = json.dumps({"rows": [rows[0], {**rows[0], "age": "old"}]}).encode()
    for said, content in BAD.items():
        code, found = posted(f"{url}/predict", content or wrong)
        assert code == 400
        assert said in found["error"]
        assert "\n" not in found["error"]
    codes = {f"{url}/predict": 400, f"{url}/health": 405, f"{url}/other": 404}
    assert codes == {address: posted(address, b"[" * 100_000)[0] for address in codes}
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("name", RUNS)
def test_the_card_is_one_of_the_hub(folder, name):
    """Its front matter names the metrics of the weights' epoch; the weights are the run's."""
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((folder / name / "package" / "README.md").read_text())
    facts = json.loads((folder / name / "package" / "config.json").read_text())
    [row] = [r for r in log.read(folder / name / "metrics.jsonl") if r["epoch"] == facts["epoch"]]
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        k.removeprefix("validate/"): v for k, v in row.items() if k.startswith("validate/")
    }
    assert card.data.license == "unknown"
    weights = [folder / name / "best.safetensors", folder / name / "package" / "model.safetensors"]
    from safetensors.torch import load_file

    best, own = map(load_file, weights)
    assert best.keys() == own.keys()
    assert all(torch.equal(best[k], own[k]) for k in best)


COLUMNS = [
    {"name": "number", "kind": "number", "form": "."},
    {"name": "truth", "kind": "truth", "form": ""},
    {"name": "date", "kind": "date", "form": "%Y-%m-%d"},
    {"name": "date", "kind": "date", "form": "%d.%m.%Y"},
    {"name": "date", "kind": "date", "form": "%Y%m%d"},
    {"name": "time", "kind": "time", "form": ""},
    {"name": "category", "kind": "category", "categories": ["1", "1.5", "a b", "False", "True"]},
    {"name": "text", "kind": "text", "words": ["don't", "naïve", "x", "\u0301", "1"], "length": 3},
]
CELLS = st.one_of(
    st.sampled_from([*BLANKS, *MISSING, "yes", "OFF", "1e3", "12:30", "7:05 pm", "2020-02-29", "a b", " 1 ", "1.0"]),
    st.from_regex(r"[-+(]?[0-9]{0,3}[.,]?[0-9]{1,3}(e[-+]?[0-9]{1,3})?[%)]?", fullmatch=True),
    st.from_regex(r"(19|20)[0-9]{2}-[01]?[0-9]-[0-3]?[0-9]([T ][0-9]{2}:[0-9]{2}(Z|\+01:00)?)?", fullmatch=True),
    st.from_regex(r"[0-3]?[0-9]\.[01]?[0-9]\.20[0-9]{2}|20[0-9]{2}[01][0-9][0-3][0-9]", fullmatch=True),
    st.text("a1 x'\u2019\u0301N_aïve-don't²", max_size=12),
    st.integers(-(10**6), 10**6), st.floats(), st.booleans(),
)  # fmt: skip


@given(
    value=CELLS | st.sampled_from([-999, -999.0, "-999", "-999.0", " -9.99e2"]), column=st.sampled_from(COLUMNS),
    missing=st.sampled_from([MISSING, (*MISSING, "-999")]),
)  # fmt: skip
def test_a_cell_that_rows_py_reads_is_read_by_the_run_so(value, column, missing):
    """Whatever a cell holds, rows.py gives what the run's own preparation gives, or refuses it."""
    shown = {**column, "codes": {w: i for i, w in enumerate(column.get("words", column.get("categories", [])), 1)}}
    facts = {"missing": missing, "blanks": BLANKS if missing == MISSING else ()}
    try:
        found = table.cell(facts, {column["name"]: value}, 1, {**shown, "words": column.get("length", 1)})
    except ValueError:
        return
    frame = Frame("x", pl.DataFrame({column["name"]: [value]}), np.array([1]), missing=missing)
    numbers, codes = raw(frame, [column])
    wanted = (codes if column["kind"] in ("category", "text") else numbers)[0].tolist()
    assert found == pytest.approx(wanted, nan_ok=True, rel=1e-15, abs=0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_images_are_decoded_as_by_the_run(mode, wanted, tmp_path):
    """To the last bit, scaled and cropped, from any mode of Pillow's that a run reads."""
    noise = np.random.default_rng(0).integers(0, 256, (21, 17, 4), dtype=np.uint8)
    kind = "jpeg" if mode == "CMYK" else "png"
    Image.fromarray(noise).convert(mode).save(tmp_path / f"x.{kind}")
    [row] = images.read({}, tmp_path)
    [mine] = images.tensors({"size": [8, 10], "mode": wanted}, [row])
    torch.testing.assert_close(mine[0], pixels.decode(tmp_path / f"x.{kind}", (8, 10), wanted) / 255.0, rtol=0, atol=0)


def test_what_is_no_image_is_refused():
    """A float image, a text, and content that is no base64."""
    content = BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(content, "tiff")
    for row in (base64.b64encode(content.getvalue()).decode(), base64.b64encode(b"text").decode(), "?", 1):
        with pytest.raises(ValueError, match="row 1 is"):
            images.tensors({"size": [4, 4], "mode": "L"}, [{"image": row}])


def test_what_cannot_be_packaged_is_refused(folder):
    """In one line, before anything is written: an existing folder, and numbers that rows.py does not read."""
    (folder / "money.csv").write_text("price,y\n" + "".join(f'"${i},500",{"ab"[i % 2]}\n' for i in range(1, 40)))
    assert commands.run("train", "--data", "money.csv", *FAST, "--out", "money", cwd=folder).code == 0
    for said, words in {"exists already": ["kinds"], "column 'price' has numbers with $": ["money"]}.items():
        code, out, err = commands.run("package", *words, cwd=folder)
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
    assert not (folder / "money" / "package").exists()


@pytest.mark.parametrize(
    ("module", "package", "words"),
    [("polars", "polars", ["train", "--data", "kinds.csv"]),
     ("sklearn", "scikit-learn", ["train", "--data", "sklearn:wine"]),
     ("scipy", "scipy", ["compare", "t.toml", "--set", "lr=0.2"])],
)  # fmt: skip
def test_a_package_that_is_not_required_is_named(folder, monkeypatch, module, package, words):
    """Digits train without it; what needs it says in one line what to install, before it trains."""
    (folder / "t.toml").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == module or name.startswith("cli.paired")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("comparison", "paired"):  # as a module and as an attribute of its package
        monkeypatch.delitem(sys.modules, f"cli.{name}", raising=False)
        monkeypatch.delattr(cli, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = commands.run(*words, cwd=folder)
    assert (code, out) == (2, "")
    assert err.endswith(f"pip install {package}\n")
    assert len(err.splitlines()) == 1
    assert commands.run("train", *FAST, "--out", f"without {package}", cwd=folder).code == 0


def test_a_file_that_hides_the_command_is_named(tmp_path, monkeypatch):
    """A user's cli.py beside a script."""
    (tmp_path / "cli.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cli\.py hides; rename that"):
        load_run(tmp_path)
    del sys.modules["cli"]
