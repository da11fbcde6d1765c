"""What `datasets` has on this machine is a data set; nothing comes from anywhere else."""

import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.errors import DataError
from pipeline.sources import Split, Tensors
from pipeline.sources.huggingface import rows as rows_of
from tests.strategies import labels, normals

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """The cache is the test's own, and a connection is a failure."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*_):
        pytest.fail("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def table(n=10, classes=2):
    features = datasets.Features(
        {"a": datasets.Value("float64"), "b": datasets.Value("int32"), "label": datasets.ClassLabel(classes)}
    )
    rows = {"a": [i / 4 for i in range(n)], "b": list(range(n)), "label": [i % classes for i in range(n)]}
    return datasets.Dataset.from_dict(rows, features=features)


def pictures(n=8, size=10):
    shades = [Image.fromarray(np.full((size, size), 10 * i, np.uint8)) for i in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    return datasets.Dataset.from_dict({"image": shades, "label": [i % 2 for i in range(n)]}, features=features)


def refused(message, *args, **kwargs):
    with pytest.raises(DataError, match=message):
        sources.huggingface(*args, **kwargs)


def rows(data):
    """Inputs, in their units, and targets of both parts, by the inputs."""
    inputs, targets = (torch.cat([p.tensors[k] for p in (data.train, data.held_out)]) for k in ("inputs", "targets"))
    columns = data.fitted["columns"]
    mean, std = (torch.tensor([c[k] for c in columns], dtype=torch.float64) for k in ("mean", "std"))
    order = inputs[:, 0].argsort()
    return (inputs.double() * std + mean)[order].float(), targets[order]


@settings(max_examples=10)
@given(st.integers(5, 30), st.integers(1, 4), st.data())
def test_rows_are_what_was_given(n, d, data):
    """Each row is in one part, with its inputs, scaled as a table's, and its class."""
    x, y = data.draw(normals((n, d))), data.draw(labels((n,), 3))
    x = x.clamp(-4, 4) + torch.arange(n)[:, None] * 10
    given = datasets.Dataset.from_dict({"x": x.tolist(), "target": y.tolist()}).cast_column(
        "target", datasets.ClassLabel(names=["a", "b", "c"])
    )
    made = sources.huggingface(given)
    assert (made.task, made.classes) == ("classification", ("a", "b", "c"))
    torch.testing.assert_close(rows(made), (x, y), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet", "csv", "json", "jsonl"])
def test_paths(tmp_path, kind):
    """What was saved, and a file of each kind, holds the rows of the data set, also where its name has brackets."""
    path = tmp_path / f"data[1].{kind}"
    if kind == "save_to_disk":
        table().save_to_disk(str(path))
    else:
        getattr(table(), f"to_{kind.replace('jsonl', 'json')}")(str(path))
    made = sources.huggingface(path, parts=Split(share=0.5))
    inputs, targets = rows(made)
    assert len(made.train) == len(made.held_out) == 5
    torch.testing.assert_close(inputs, torch.tensor([[i / 4, i] for i in range(10)]))
    assert targets.tolist() == [0, 1] * 5
    assert made.notes[0] == "target 'label': 2 classes (0, 1)"


def test_splits_of_its_own(tmp_path):
    """Splits train and test are the parts, in a DatasetDict, saved or as files by name; others are told of."""
    whole = datasets.DatasetDict({"train": table(7), "test": table(4), "more": table(2)})
    whole.save_to_disk(str(tmp_path / "saved"))
    for name, part in whole.items():
        part.to_parquet(tmp_path / "files" / "data" / f"{name}-00000-of-00001.parquet")
    for data in (whole, tmp_path / "saved", tmp_path / "files"):
        made = sources.huggingface(data)
        assert (len(made.train), len(made.held_out)) == (7, 4)
        assert made.notes[-2:] == ("split 'test' is held out", "split 'more' is not read")
    refused("the splits are train, more; give one", datasets.DatasetDict({"train": table(), "more": table()}))


def test_kinds_of_targets():
    """Words are classes, numbers that are not whole are values, rows of integers are tokens."""
    words = datasets.Dataset.from_dict({"x": [1.0, 2, 3, 4, 5], "y": list("abaab")})
    assert sources.huggingface(words).classes == ("a", "b")
    z = [[i, -i] for i in range(5)]
    values = datasets.Dataset.from_dict({"x": [1.0, 2, 3, 4, 5], "y": [0.5, 1, 2, 3, 4], "z": z})
    assert sources.huggingface(values).task == "regression"
    assert sources.huggingface(values).train.tensors["inputs"].shape == (4, 3)
    ids = datasets.Dataset.from_dict({"z": [[i, 2 * i] for i in range(5)]})
    tokens = sources.huggingface(ids, inputs="z", targets="z")
    assert (tokens.task, tokens.train.tensors["inputs"].dtype) == ("language modelling", torch.int64)


def test_images(tmp_path):
    """A column of images is decoded as a folder of images is, from bytes or from files."""
    pictures().save_to_disk(str(tmp_path / "saved"))
    made = sources.huggingface(tmp_path / "saved")
    assert isinstance(made.train, Tensors)
    assert (made.classes, made.train.tensors["inputs"].shape) == (("dark", "bright"), (6, 1, 10, 10))
    found = {round(float(x.max()) * 25.5): int(y) for part in (made.train, made.held_out) for x, y in
             zip(*part.tensors.values(), strict=True)}  # fmt: skip
    assert found == {i: i % 2 for i in range(8)}
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((10, 10), 10 * i, np.uint8)).save(path)
    files = pictures().remove_columns("image").add_column("image", paths).cast_column("image", datasets.Image())
    assert torch.equal(sources.huggingface(files).train.tensors["inputs"], made.train.tensors["inputs"])


def test_nothing_is_downloaded(tmp_path):
    """A name that is no path, and an image that is an address, are one line, and no connection."""
    refused("mnist is no path here, and nothing is downloaded: write datasets.load_dataset", "mnist")
    away = datasets.Dataset.from_dict({"image": ["https://example.com/a.png"] * 4, "label": [0, 1, 0, 1]})
    refused("can't read https:/example.com/a.png: No such file", away.cast_column("image", datasets.Image()))
    sound = datasets.Dataset.from_dict({"sound": ["https://example.com/a.wav"] * 4, "label": [0, 1, 0, 1]})
    refused("column 'sound' holds .*Audio.*inputs=", sound.cast_column("sound", datasets.Audio()))


def test_code_in_a_folder_is_not_run(tmp_path):
    """A folder with a loading script is refused, and the script not run."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    refused("is no data set: known are", folder)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": [1, 2], "y": [0, 1]}, {"inputs": "z"}, "no column 'z'; known: x, y"),
        ({"xs": [1, 2], "y": [0, 1]}, {"targets": "x"}, "no column 'x'; did you mean 'xs'"),
        ({"x": [1, 2], "z": [0, 1]}, {}, "which column is learned.*one of x, z"),
        ({"y": [0, 1]}, {}, "the column 'y' alone"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, {}, "column 'x' holds .*string.*inputs="),
        ({"x": ["a", "a"], "y": [0, 1]}, {}, "all its values are 'a'"),
        ({"x": [[1], [1, 2]], "y": [0, 1]}, {}, "column 'x' has rows of different lengths"),
        ({"x": [[1, 2], [1, None]], "y": [0, 1]}, {}, "a value is missing"),
        ({"x": [1, 2], "y": [None, None]}, {}, "'y', which is to be learned, has no values"),
        ({"x": [1.0, float("inf")], "y": [0, 1]}, {}, "column 'x': inf is infinite"),
        ({"x": [], "y": []}, {}, "empty|holds|no values"),
    ],
)
def test_columns_that_can_not_be_learned_from(columns, options, message):
    """A column that is missing, or holds what is no number, is a DataError with its name and row."""
    refused(message, datasets.Dataset.from_dict(columns), parts=Split(share=0.5), **options)


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    """A file that its reader can't read is a DataError with its path."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\x00\xffPAR1{" * 3)
    refused(r"can't read .*a\.\w+: .|which column", path)


def test_what_is_no_data_set_is_refused():
    """Anything else is a DataError with its type."""
    refused(r"list is no datasets\.Dataset", [1, 2])


def test_without_datasets():
    """The library is imported without `datasets`; what needs it says how to install it."""
    code = """
import sys
sys.modules["datasets"] = None
from pipeline import errors, sources
try:
    sources.huggingface("x")
except errors.ConfigError as e:
    assert "pip install datasets" in str(e)
else:
    raise SystemExit(1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rows_without_a_class_are_refused():
    """-1, as of a test set without labels, is not the last class; beside columns of values, such rows are missing."""
    features = datasets.Features({"x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(2)})
    made = {"x": [[0.0, 1.0]] * 20, "label": [0, 1] * 9 + [-1] * 2}
    refused("'label' has no class in row 18", datasets.Dataset.from_dict(made, features=features))


def test_one_part_is_asked_for(tmp_path):
    """Splits in folders of several configurations are not joined, and several splits are no new data."""
    for name in ("de", "fr", ".cache"):
        (tmp_path / name).mkdir()
        table().to_parquet(tmp_path / name / "train-0.parquet")
    refused(f"'train' in several folders, {tmp_path / 'de'}, {tmp_path / 'fr'}; give one", tmp_path)
    fitted = sources.huggingface(tmp_path / "de").fitted
    assert len(rows_of(tmp_path / "de", fitted)) == 10
    table().to_parquet(tmp_path / "de" / "test-0.parquet")
    with pytest.raises(DataError, match="has the splits test, train; give the file or the folder of one"):
        rows_of(tmp_path / "de", fitted)
