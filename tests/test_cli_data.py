"""The command on data of every kind, each written by other means than ours, and on modules and pipelines of users."""

import contextlib
import io
import json
import os
import struct
import sys
import tomllib

import numpy as np
import pytest
import torch

from cli.main import main
from pipeline import sources

QUICK = ["--no-compile", "--epochs", "2"]


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    """The command in a folder of its own: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*args):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["pipe", *map(str, args)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        torch.set_num_threads(threads)
        return ended.value.code, out.getvalue(), err.getvalue()

    return run


def digits():
    images, labels = (t.numpy() for t in sources.digits()[0].tensors.values())
    return images[:200], labels[:200]


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder):
    """A folder of the MNIST family's four files, with images of 28x28."""
    images, labels = digits()
    large = np.pad(np.kron((images[:, 0] * 255).astype(np.uint8), np.ones((3, 3), np.uint8)), ((0, 0), (2, 2), (2, 2)))
    folder.mkdir()
    for part, rows in (("train", slice(0, 150)), ("t10k", slice(150, 200))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(large[rows]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[rows].astype(np.uint8)))


def pictures(folder):
    image = pytest.importorskip("PIL.Image")
    for i, (picture, label) in enumerate(zip(*digits(), strict=True)):
        if label < 3:
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            image.fromarray((picture[0] * 255).astype(np.uint8)).save(folder / str(label) / f"{i}.png")


def parquet(path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    n = np.arange(80)
    city = [None if i % 7 == 0 else ("Bonn", "Ulm")[i % 2] for i in n]
    pandas.DataFrame({"age": n % 9 * 1.0, "sold": n % 2 == 0, "city": city}).to_parquet(path)


def safetensors(path):
    from safetensors.numpy import save_file

    images, labels = digits()
    save_file({"inputs": images, "targets": labels}, path)


def mixed(path):
    rows = [f"{['Bonn', 'Ulm', ''][i % 3]},{i * 1.5},{i if i % 5 else ''},2024-{i % 12 + 1:02d}-03" for i in range(90)]
    path.write_text("\n".join(["city,price,age,when", *rows]))


KINDS = {
    "idx": ("mn", mnist, ["--model", "resnet", "--widths", "4"], "150 training and 50 held-out samples, inputs 1x28"),
    "images": ("im", pictures, ["--model", "convnet", "--widths", "4"], "inputs 1x8x8, 3 classes"),
    "parquet": ("p.parquet", parquet, ["--target", "sold"], "64 training and 16 held-out samples, inputs 1, 2 classes"),
    "table": ("t.csv", mixed, ["--target", "price"], "72 training and 18 held-out samples, inputs 5, regression"),
    "npz": ("a.npz", lambda p: np.savez(p, inputs=digits()[0], targets=digits()[1]), [], "inputs 1x8x8, 10 classes"),
    "safetensors": ("a.safetensors", safetensors, [], "inputs 1x8x8, 10 classes"),
    "tokens": ("a.bin", lambda p: (np.arange(5000) % 17).astype("<u2").tofile(p),
               ["--model", "transformer", "--width", "8", "--depth", "1", "--context", "16"], "language modelling"),
    "text": ("a.txt", lambda p: p.write_text("the cat sat on the mat. " * 200),
             ["--model", "transformer", "--width", "8", "--depth", "1", "--context", "16"], "language modelling"),
    "sequences": ("s.npz", lambda p: np.savez(p, inputs=np.arange(400).reshape(50, 8) % 5, targets=np.arange(50) % 2),
                  ["--model", "lstm", "--width", "4"], "inputs 8, 2 classes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_trains(pipe, tmp_path, kind):
    """Data of a file or a folder train, and are said with their shapes, their parts and their task."""
    name, write, options, said = KINDS[kind]
    write(tmp_path / name)
    code, out, err = pipe("train", "--data", name, *QUICK, *options)
    assert (code, err) == (0, "")
    assert said in out.splitlines()[0]
    [folder] = (tmp_path / "runs").iterdir()
    facts = json.loads((folder / "data.json").read_text())
    assert facts["fixed"]["task"] in said or facts["fixed"]["task"] == "classification"
    code, out, err = pipe("train", "--resume", folder, "--verify")
    assert (code, err) == (0, "")
    assert "bit for bit" in out


@pytest.mark.parametrize(("name", "metric", "least"), [("wine", "accuracy", 96), ("diabetes", "r2", 0.4)])
def test_defaults_learn_small_tables(pipe, tmp_path, name, metric, least):
    """Scikit-learn's tables are learned by the defaults, in the best epoch."""
    assert pipe("train", "--data", f"sklearn:{name}", "-q")[0] == 0
    [folder] = (tmp_path / "runs").iterdir()
    best = max(json.loads(line)[f"validate/{metric}"] for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert best >= (least / 100 if metric == "accuracy" else least)


CODE = """
import torch
from torch import nn
from pipeline import Pipeline, backward, forward, load, loss, sources, update

def make_model(features, classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Tanh(), nn.Linear(width, classes))

def needs(vocabulary):
    return nn.Embedding(vocabulary, 2)

def no_module(features):
    return features

def make_pipeline(seed, width=8):
    train, test = sources.digits(seed=seed)
    return Pipeline(load.batches(train, size=479), forward.model(lambda: make_model(64, 10, width)),
                    loss.cross_entropy(), backward.gradients(), update.sgd(0.1)), test

class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 60
    def __getitem__(self, i):
        return torch.randn(4) + i % 2, i % 2

def make_data():
    return Noisy()

def fails():
    raise KeyError("what")
"""


def test_code_of_users(pipe, tmp_path):
    """A module, with a setting of its own, a whole pipeline and a Dataset, by the file and the name of a function."""
    (tmp_path / "my.py").write_text(CODE)
    code, out, _ = pipe("train", "--model", "my.py:make_model", "--set", "model.width=4", *QUICK, "--out", "a")
    assert (code, "my.py:make_model: Sequential: 310 parameters" in out) == (0, True)
    assert tomllib.loads((tmp_path / "a/config.toml").read_text())["model"] == {"name": "my.py:make_model", "width": 4}
    code, out, _ = pipe("train", "my.py:make_pipeline", "--set", "pipeline.width=4", *QUICK, "--out", "b")
    assert (code, "310 parameters" in out) == (0, True)
    assert pipe("train", "--data", "my.py:make_data", *QUICK, "--out", "c")[0] == 0
    for run in "abc":
        refused = pipe("train", "--resume", run, "--epochs", 3)
        assert (refused[0], f"{run}/config.toml names code, my.py:make_" in refused[2]) == (2, True)
        assert pipe("train", "--resume", run, "--epochs", 3, "--trust")[0] == 0
        code, out, _ = pipe("train", "--resume", run, "--verify", "--trust")
        assert (code, "bit for bit" in out) == (0, True)
    assert "names code" in pipe("train", "a/config.toml")[2]
    assert pipe("train", "a/config.toml", "--model", "my.py:make_model", "--epochs", 1)[0] == 0


def test_what_is_wrong_with_code_is_said(pipe, tmp_path):
    """Each is one line that names the function, and exit code 2."""
    (tmp_path / "my.py").write_text(CODE)
    (tmp_path / "bad.py").write_text("import nothing_here\n")
    (tmp_path / "worse.py").write_text("x = 1\ndef (\n")
    for args, message in {
        ("--model", "my.py:make_modl"): "my.py has no function 'make_modl'; did you mean 'make_model'?",
        ("--model", "none.py:make"): "can't read none.py",
        ("--model", "my.py:make_model", "--set", "model.widht=3"): "takes no 'widht'; did you mean 'width'?",
        ("--model", "my.py:needs"): "asks for 'vocabulary', which neither the data nor you gave",
        ("--model", "my.py:no_module"): "made int, not an nn.Module",
        ("--model", "bad.py:make"): "bad.py, line 1 can't be imported: ModuleNotFoundError",
        ("--model", "worse.py:make"): "worse.py, line 2 can't be imported: SyntaxError",
        ("my.py:make_model",): "asks for 'features'",
        (
            "my.py:make_pipeline",
            "--lr",
            "3",
        ): "--lr does not apply to a pipeline of your own; set it in my.py:make_pipeline",
        ("my.py:fails",): "my.py:fails failed: KeyError: 'what'",
        ("--set", "model.heads=3"): "--set heads belongs to --model transformer, not to mlp; leave it out",
        ("--set", "lr"): "--set 'lr' is no NAME=VALUE",
        ("--data", "sklearn:whine"): "no data 'whine'; did you mean 'wine'?",
        ("--set", "heads=3", "--model", "transformer", "--data", "a.txt"): "no multiple of --set heads=3",
    }.items():
        (tmp_path / "a.txt").write_text("abc" * 1000)
        code, _, err = pipe("train", *args)
        assert (code, len(err.splitlines())) == (2, 1), (args, err)
        assert message in err


def test_folds_are_trained_in_turn(pipe, tmp_path):
    """A run a fold, each sample held out once, and the mean and the spread of what they ended with."""
    code, out, _ = pipe("train", "--data", "sklearn:iris", "--folds", 3, "--epochs", 1, "--no-compile", "--out", "f")
    assert code == 0
    assert "folds   accuracy" in out
    assert "over 3 folds" in out
    assert sorted(p.name for p in (tmp_path / "f").iterdir() if p.is_dir()) == ["fold-0", "fold-1", "fold-2"]
    assert pipe("train", "--resume", "f/fold-1", "--epochs", 2)[0] == 0


def test_a_starter_file_trains_as_it_stands(pipe, tmp_path):
    """`pipe init` writes what `pipe train` reads, for each task, and never over a file."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 200)
    for data, model in (("sklearn:iris", "realmlp"), ("a.txt", "transformer")):
        assert pipe("init", data, "--out", f"{model}.toml")[0] == 0
        small = ["--context", 16, "--width", 8, "--depth", 1] if model == "transformer" else []
        code, out, err = pipe("train", f"{model}.toml", *QUICK, *small)
        assert (code, err) == (0, "")
        assert any(f"{model} " in line for line in out.splitlines() if line.startswith("model"))
    assert "exists already" in pipe("init", "digits", "--out", "realmlp.toml")[2]


def test_a_text_is_sampled(pipe, tmp_path):
    """What was learned by heart is said by heart; the same seed says the same."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 300)
    size = ["--width", 32, "--depth", 2, "--context", 16, "--tokenizer", "characters"]
    code, out, _ = pipe("train", "--data", "a.txt", "--model", "transformer", *size, "--no-compile", "--out", "r")
    assert code == 0
    assert "bits per byte, perplexity 1.0" in out
    assert "sample  sat on the mat. " in out
    said = pipe("sample", "r", "--prompt", "the ca", "--count", 9, "--temperature", 0)[1]
    assert said == "the cat sat on \n"
    assert pipe("sample", "r", "--seed", 3)[1] == pipe("sample", "r", "--seed", 3)[1]
    assert "no character '%'" in pipe("sample", "r", "--prompt", "%")[2]
    assert pipe("sample", "nowhere")[0] == 2


def test_transformers_models_train(pipe, tmp_path):
    """Models of the transformers library are made from a config, for tokens and for classes of them."""
    pytest.importorskip("transformers")
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for kind in ("llama", "bert"):
        (tmp_path / f"{kind}.json").write_text(json.dumps({"model_type": kind, **tiny}))
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 60)
    np.savez(tmp_path / "s.npz", inputs=np.arange(400).reshape(50, 8) % 5, targets=np.arange(50) % 2)
    vit = {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1}
    (tmp_path / "vit.json").write_text(json.dumps({**vit, **tiny}))
    for data, kind, more in (("a.txt", "llama", ["--context", 16]), ("s.npz", "bert", []), ("digits", "vit", [])):
        args = ["--data", data, "--model", "huggingface", "--config", f"{kind}.json", *more]
        code, out, err = pipe("train", *args, "--no-compile", "--epochs", 1)
        assert (code, err) == (0, ""), err
        assert f"transformers' {kind}" in out
    os.remove(tmp_path / "bert.json")
    assert (
        "can't read bert.json" in pipe("train", "--data", "s.npz", "--model", "huggingface", "--config", "bert.json")[2]
    )


def test_messages_name_flags(pipe, tmp_path):
    """A message of the library, which names arguments of Python, names the flags of the command."""
    rows = "".join(f"1,{i},{i % 2}\n" for i in range(30))
    (tmp_path / "ragged.csv").write_text(f"a,b,y\n1,2\n{rows}")
    marks = "".join(f"{i},500;{i % 2}\n" for i in range(1, 30))
    (tmp_path / "marks.csv").write_text(f"a;y\n{marks}")
    for name, flag in (("ragged", "; --skip-bad leaves such out"), ("marks", "; say which by --decimal ',' or '.'")):
        code, _, err = pipe("train", "--data", tmp_path / f"{name}.csv", *QUICK)
        assert code == 2
        assert err.strip().endswith(flag)
