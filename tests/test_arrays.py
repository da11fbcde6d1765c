"""Arrays, token files and texts: what was written comes back, in memory or a batch at a time, and damage is named."""

import importlib
import os
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cli.recipes.loss import scaled_targets
from pipeline import load, sources
from pipeline.errors import ConfigError, DataError
from pipeline.sources import memmap
from pipeline.sources.new_data import of_arrays
from pipeline.sources.prefetch import prefetch
from pipeline.sources.text import Windows
from tests.strategies import seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


def whole(data):
    """All samples of both parts, by their first input, in their units."""
    both = [part[torch.arange(len(part))] for part in (data.train, data.held_out)]
    inputs, targets = (torch.cat([b[n] for b in both]) for n in ("inputs", "targets"))
    if columns := data.fitted.get("columns"):
        mean, std = (torch.tensor([c[k] for c in columns], dtype=torch.float64) for k in ("mean", "std"))
        inputs = (inputs.double() * std + mean).round().float()
    order = inputs.flatten(1)[:, 0].argsort()
    return inputs[order], targets[order]


def save(folder, kind, inputs, targets):
    if kind == "npz":
        np.savez(folder / "a.npz", inputs=inputs, targets=targets)
        return folder / "a.npz"
    if kind == "safetensors":
        save_file({"inputs": inputs, "targets": targets}, folder / "a.safetensors")
        return folder / "a.safetensors"
    (folder / "npy").mkdir(exist_ok=True)
    np.save(folder / "npy" / "inputs.npy", inputs)
    np.save(folder / "npy" / "targets.npy", targets)
    return folder / "npy" if kind == "folder" else folder / "npy" / "inputs.npy"


@pytest.mark.parametrize("kind", ["npz", "safetensors", "folder", "npy"])
@given(n=st.integers(6, 40), dtype=st.sampled_from(["f4", "f8", "i2", "u1"]), task=st.sampled_from("cvl"), seed=seeds)
def test_arrays_come_back(folder, kind, n, dtype, task, seed):
    """Both parts have each sample once, floats as a table's columns, ids as int64; the targets tell the task."""
    random = np.random.default_rng(seed)
    inputs = np.stack([random.permutation(n) for _ in range(3)], 1).astype(dtype)
    targets = {"c": np.arange(n) % 2, "v": np.arange(n) + 0.5, "l": random.integers(0, 2, (n, 4))}[task]
    data = sources.arrays(save(folder, kind, inputs, targets), parts=sources.Split(0.3, seed))
    assert data.task == {"c": "classification", "v": "regression", "l": "several labels"}[task]
    found, wanted = whole(data), inputs[:, 0].argsort()
    assert found[0].dtype == (torch.float32 if dtype[0] == "f" else torch.int64)
    np.testing.assert_array_equal(found[0], inputs[wanted])
    np.testing.assert_array_equal(found[1], targets[wanted])


@given(st.integers(3, 50), st.floats(0.05, 0.9), st.integers(2, 5), seeds)
def test_what_stays_on_disk_is_parted_and_read_as_in_memory(folder, n, share, folds, seed):
    """Any rows are those of the array, in an epoch as alone; parts are a partition, and folds hold each out once."""
    path = save(folder, "folder", np.arange(n * 300, dtype=np.float64).reshape(n, 300), np.arange(n))
    before = memmap.HELD
    memmap.HELD = 64  # so that rows are read one by one
    try:
        data = memmap.Mapped({k: np.load(path / f"{k}.npy", mmap_mode="r") for k in ("inputs", "targets")})
    finally:
        memmap.HELD = before
    rows = torch.from_numpy(np.random.default_rng(seed).integers(0, n, 20))
    np.testing.assert_array_equal(data[rows]["inputs"], np.load(path / "inputs.npy")[rows].astype(np.float32))
    for split in [sources.Split(share, seed), *(sources.Split(seed=seed, folds=folds, fold=k) for k in range(folds))]:
        if n < folds or (split.folds is None and np.ceil(share * n) == n):
            continue
        train, held = data.split(split)
        assert sorted(torch.cat([p[torch.arange(len(p))]["targets"] for p in (train, held)]).tolist()) == [*range(n)]
        epoch = load.batches(train, size=4)
        for batch, again in zip(epoch.epoch(seed, 1), epoch.epoch(seed, 1), strict=True):
            assert torch.equal(batch["targets"], again["targets"])
            assert torch.equal(batch["inputs"][:, 0], (batch["targets"] * 300).float())
    if n >= folds:
        held = [data.split(sources.Split(seed=seed, folds=folds, fold=k))[1] for k in range(folds)]
        assert sorted(torch.cat([p[torch.arange(len(p))]["targets"] for p in held]).tolist()) == [*range(n)]


def test_large_arrays_are_not_read_as_a_whole(folder, monkeypatch):
    """Above a size, a source reads what a batch needs; what is cut off later is named."""
    path = save(folder, "folder", np.ones((40, 300), np.float32), np.arange(40) % 2)
    monkeypatch.setattr(importlib.import_module("pipeline.sources.arrays"), "IN_MEMORY", 0)
    monkeypatch.setattr(memmap, "HELD", 64)
    data = sources.arrays(path)
    assert isinstance(data.train, sources.Mapped)
    assert (data.task, len(data.train), len(data.held_out)) == ("classification", 32, 8)
    with (path / "inputs.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="has become shorter than it was"):
        list(load.batches(data.train, size=8).epoch(0, 0))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, ">f8"])
def test_rows_from_the_cache_and_from_the_disk_are_those_in_memory(folder, monkeypatch, cached, dtype):
    """Both ways give the batches of an array in memory, bit for bit, also from the middle of an epoch on."""
    values = np.random.default_rng(0).integers(0, 256, (101, 6, 5)).astype(dtype)
    path = save(folder, "folder", values, np.arange(101))
    monkeypatch.setattr(memmap, "HELD", 64)
    monkeypatch.setattr(memmap.FileRows, "cached", lambda self: cached)
    on_disk = memmap.Mapped({"inputs": np.load(path / "inputs.npy", mmap_mode="r")})
    ours, wanted = load.batches(on_disk, size=7), load.batches({"inputs": values}, size=7)
    for start in (0, 9):
        pairs = list(zip(ours.epoch(3, 1, start), wanted.epoch(3, 1, start), strict=True))
        assert len(pairs) == 15 - start
        assert all(a["inputs"].dtype == b["inputs"].dtype and torch.equal(a["inputs"], b["inputs"]) for a, b in pairs)


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_cut_between_batches_is_named(folder, monkeypatch, cached):
    """A map of a file that was cut in an epoch is not touched beyond its end, which would end the process."""
    path = save(folder, "folder", np.ones((4000, 300), np.float32), np.arange(4000) % 2)
    monkeypatch.setattr(memmap, "HELD", 64)
    monkeypatch.setattr(memmap.FileRows, "cached", lambda self: cached)
    data = memmap.Mapped({"inputs": np.load(path / "inputs.npy", mmap_mode="r")})
    epoch = load.batches(data, size=8).epoch(0, 0)
    assert torch.equal(next(epoch)["inputs"], torch.ones(8, 300))
    time.sleep(0.05)  # until what is read ahead is read: a file cut within a copy ends the process
    os.truncate(path / "inputs.npy", 100_000)
    with pytest.raises(DataError, match="has become shorter than it was"):
        list(epoch)


def test_a_file_that_was_just_written_and_one_put_out_of_the_cache(folder):
    """What was written just now is cached, where the system tells; what the system has dropped is not."""
    path = save(folder, "folder", np.ones((40_000, 300), np.float32), np.arange(40_000) % 2) / "inputs.npy"
    rows = memmap.FileRows(np.load(path, mmap_mode="r"))
    handle = rows.file.fileno()
    try:
        os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)
    except (AttributeError, OSError):
        pytest.skip("this system can't tell if a file is cached")
    assert rows.cached()
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    with suppress(OSError):
        os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)
        pytest.skip("this file system drops nothing")
    assert not rows.cached()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "folder"])
def test_what_is_wrong_with_arrays_is_said(folder, kind):
    """Files that are cut short, lack an array, or have others of another length raise a DataError with their path."""
    path = save(folder, kind, np.ones((10, 2), np.float32), np.arange(10) % 2)
    file = path / "inputs.npy" if kind == "folder" else path
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut short|no \.npz archive"):
        sources.arrays(path)
    path = save(folder, kind, np.ones((10, 2), np.float32), np.arange(9) % 2)
    with pytest.raises(DataError, match="has 10 inputs and 9 targets"):
        sources.arrays(path)
    np.savez(folder / "b.npz", input=np.ones(3), targets=np.ones(3))
    with pytest.raises(DataError, match="no array 'inputs'; did you mean 'input'"):
        sources.arrays(folder / "b.npz")
    known = save(folder, kind, np.arange(20.0).reshape(10, 2), np.arange(10) % 2)
    np.savez(folder / "new.npz", inputs=np.ones((4, 2)), targets=np.arange(4))
    with pytest.raises(DataError, match="sample 2, column 'targets': 2 is no class that the training data have"):
        sources.arrays(known, test=folder / "new.npz")
    for shape, said in (((5, 2), "has 5 inputs and 4 targets"), ((4, 3), r"shape \(3,\) to hold out, but \(2,\)")):
        np.savez(folder / "new.npz", inputs=np.ones(shape), targets=np.ones(4, int))
        with pytest.raises(DataError, match=said):
            sources.arrays(known, test=folder / "new.npz")
    np.savez(folder / "new.npz", inputs=np.ones((5, 2)), targets=np.ones(4, int))
    with pytest.raises(DataError, match="has 5 inputs and 4 targets"):
        next(of_arrays(folder / "new.npz", sources.arrays(known).fitted, (2,), targets=True, task="classification"))


PARTS = {
    ("X", "y", "X_test", "y_test"): [], ("train_images", "train_labels", "test_images", "test_labels"): [],
    ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"): ["x_test, y_test are not read"],
    ("inputs", "targets", "val_inputs", "val_targets", "attention_mask"): ["attention_mask is not read"],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("names", PARTS)
def test_a_file_has_its_own_held_out_samples(tmp_path, names, kind):
    """The first of what HELD_OUT names; what is not read is said. As a test set, such a file is refused."""
    many = {name: 10 + i // 2 for i, name in enumerate(names)}
    made = {n: np.arange(size) % 2 if i % 2 else np.eye(size, 3) for i, (n, size) in enumerate(many.items())}
    np.savez(path := tmp_path / "both.npz", **made)
    if kind == "folder":
        (path := tmp_path / "both").mkdir()
        for name, array in made.items():
            np.save(path / f"{name}.npy", array)
    data = sources.arrays(path)
    assert (len(data.train), len(data.held_out)) == (10, 11)
    assert [note for note in data.notes if "not read" in note] == PARTS[names]
    new = of_arrays(path, data.fitted, (3,), targets=True, task=data.task)
    for read in (lambda: sources.arrays(path, test=path), lambda: next(new)):
        with pytest.raises(DataError, match="samples to train on and others to hold out; give a file with one of the"):
            read()
    with pytest.raises(ConfigError, match="folds hold out each sample once"):
        sources.arrays(path, parts=sources.Split(folds=5))


@pytest.mark.parametrize(("before", "now"), [(np.uint8, np.float32), (np.float32, np.uint8), (np.uint8, np.uint8)])
def test_bytes_are_scaled_on_both_sides_or_the_file_is_refused(tmp_path, before, now):
    """Bytes of images are divided by 255, so that a model of the one does not know the other."""
    pixels, path = np.full((8, 1, 4, 4), 51), tmp_path / "new.npz"
    np.savez(tmp_path / "a.npz", inputs=pixels.astype(before), targets=np.arange(8) % 2)
    np.savez(path, inputs=pixels.astype(now), targets=np.arange(8) % 2)
    data = sources.arrays(tmp_path / "a.npz")
    new = of_arrays(path, data.fitted, (1, 4, 4), targets=True, task=data.task)

    def both():
        return sources.arrays(tmp_path / "a.npz", test=path)

    if before == now:
        assert next(new).batch["inputs"].max() == pytest.approx(0.2)
        assert both().held_out.tensors["inputs"].max() == pytest.approx(0.2)
        return
    for read in (lambda: next(new), both):
        with pytest.raises(DataError, match=r"divided by 255|numbers, not bytes"):
            read()


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_a_folder_of_the_mnist_family(tmp_path):
    """Its t10k files are held out; without them, a part is; a class that training has not is an error."""
    for part, n in (("train", 20), ("t10k", 6)):
        (tmp_path / f"{part}-images.idx3-ubyte").write_bytes(idx(np.zeros((n, 4, 4), np.uint8)))
        (tmp_path / f"{part}-labels.idx1-ubyte").write_bytes(idx((np.arange(n) % 5).astype(np.uint8)))
    data = sources.images_idx(tmp_path)
    assert (len(data.train), len(data.held_out), len(data.classes)) == (20, 6, 5)
    with pytest.raises(ConfigError, match="folds hold out each sample once"):
        sources.images_idx(tmp_path, parts=sources.Split(folds=2))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(np.full(6, 7, np.uint8)))
    with pytest.raises(DataError, match="has the class 7, but the training labels end at 4"):
        sources.images_idx(tmp_path)
    (tmp_path / "t10k-images.idx3-ubyte").unlink()
    assert len(sources.images_idx(tmp_path).held_out) == 4


@given(st.text(min_size=60, max_size=200), st.integers(1, 9), st.sampled_from(["bytes", "characters"]))
def test_windows_tile_a_text(folder, words, context, tokenizer):
    """Windows give the text back, one after the other; each target is the token after its input."""
    (folder / "t.txt").write_text(words, encoding="utf-8", newline="")
    try:
        data = sources.text(folder / "t.txt", context=context, tokenizer=tokenizer, parts=sources.Split(0.3))
    except UnicodeEncodeError:
        return
    ids = sources.encode(data.fitted, words)
    assert sources.decode(data.fitted, ids) == words
    parts = [part[torch.arange(len(part))] for part in (data.train, data.held_out)]
    inputs, targets = (torch.cat([p[n] for p in parts]).flatten().tolist() for n in ("inputs", "targets"))
    assert inputs == ids[: len(inputs)]
    assert targets == ids[1 : len(inputs) + 1]
    assert max(ids) < data.sizes["vocabulary"] <= 256 or tokenizer == "characters"


@given(st.integers(30, 500), st.sampled_from(["uint16", "uint32"]), st.integers(1, 9))
def test_token_files_are_read_in_memory_or_not(folder, n, dtype, context):
    """A small file is read as a whole, a large one by batches; both give the same."""
    ids = np.random.default_rng(n).integers(0, 1000, n).astype(dtype)
    ids.astype(ids.dtype.newbyteorder("<")).tofile(folder / "t.bin")
    small = sources.tokens(folder / "t.bin", dtype=dtype, context=context)
    large = Windows(ids, context, 0, len(small.train))
    assert small.sizes == {"vocabulary": int(ids.max()) + 1, "context": context}
    rows = torch.arange(len(small.train)).flip(0)
    for name in ("inputs", "targets"):
        assert torch.equal(small.train[rows][name], large[rows][name])
    [batch] = large.epoch(0, 0, [rows])
    assert torch.equal(batch["inputs"], large[rows]["inputs"])


@given(st.integers(2, 6), st.integers(0, 20))
def test_folds_of_a_text_hold_out_each_window_once(folder, folds, more):
    """Each is trained on all other windows, and its note names the tokens."""
    count = folds + more
    np.arange(4 * count + 1, dtype="<u2").tofile(folder / "f.bin")
    made = [sources.tokens(folder / "f.bin", context=4, parts=sources.Split(folds=folds, fold=k)) for k in range(folds)]
    held, train = ([side.tensors["inputs"].flatten().tolist() for side in sides] for sides in
                   ([m.held_out for m in made], [m.train for m in made]))  # fmt: skip
    assert [i for fold in held for i in fold] == [*range(4 * count)]
    assert all(sorted(h + t) == [*range(4 * count)] for h, t in zip(held, train, strict=True))
    assert f"number 1 to {len(held[0])} of them held out" in made[0].notes[0]
    assert f"the last {len(held[-1])} of them held out" in made[-1].notes[0]


def test_what_is_wrong_with_tokens_is_said(folder):
    """Each is a DataError with the byte or the token, and what to do."""
    (folder / "odd.bin").write_bytes(b"123")
    (folder / "short.bin").write_bytes(b"12" * 9)
    np.array([1, 2, 900, 3] * 50, "<u2").tofile(folder / "big.bin")
    (folder / "latin.txt").write_bytes(b"abc\xe9" * 50)
    for read, path, options, message in (
        (sources.tokens, "odd.bin", {}, "3 bytes, which are no tokens of 2 bytes each"),
        (sources.tokens, "short.bin", {}, "9 tokens, fewer than two windows of 128"),
        (sources.tokens, "big.bin", {"vocabulary": 900}, "token 2 is 900, but there are 900 tokens"),
        (sources.tokens, "none.bin", {}, "can't read .*none.bin: No such file"),
        (sources.text, "latin.txt", {"tokenizer": "characters"}, "not UTF-8: byte 3 is 0xe9"),
        (sources.text, "latin.txt", {"tokenizer": "bites"}, "not UTF-8|is no tokenizer"),
    ):
        with pytest.raises(DataError, match=message):
            read(folder / path, **options)


def test_what_a_thread_meets_is_raised_in_its_place():
    """Items come in their order; an error after those before it; a thread that is not wanted any more ends."""

    def items():
        yield from range(5)
        raise DataError("the sixth is bad")

    seen = []
    with pytest.raises(DataError, match="the sixth is bad"):
        seen.extend(iter_all(prefetch(items()), seen))
    assert seen == [0, 1, 2, 3, 4]
    taken = []
    endless = prefetch(taken.append(i) or i for i in range(10**9))
    assert [next(endless) for _ in range(3)] == [0, 1, 2]
    endless.close()
    assert len(taken) < 100


def iter_all(items, seen):
    for item in items:
        seen.append(item)
    return []


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return torch.tensor([float(i), 0.0]), i % 3


@pytest.mark.parametrize(
    ("data", "task", "outputs"),
    [
        (Noisy(), "classification", 3),
        ((torch.zeros(20, 2), torch.arange(20) * 0.5), "regression", 0),
        (({"inputs": torch.zeros(20, 2), "targets": torch.arange(20) % 2}, {"inputs": torch.zeros(4, 2),
          "targets": torch.arange(4)}), "classification", 4),
        ((torch.zeros(20, 5, dtype=torch.long), torch.ones(20, 5, dtype=torch.long)), "language modelling", 0),
        ((torch.zeros(20, 2), torch.ones(20, 3, dtype=torch.long)), "several labels", 0),
        ((torch.zeros(20, 3), torch.ones(20, 3, dtype=torch.long)), "several labels", 0),
        ((torch.zeros(20, 2), torch.arange(60).reshape(20, 3)), "regression", 0),
        ((torch.zeros(20, 2), torch.ones(20, 3)), "several labels", 0),
        ((torch.zeros(20, 2), torch.ones(20, 3, 4)), "regression", 0),
    ],
)  # fmt: skip
def test_whatever_is_given_is_prepared(data, task, outputs):
    """A Dataset, tensors or a pair of data sets tell their task, and are parted where they are not yet."""
    made = sources.given(data)
    assert (made.task, len(made.classes)) == (task, outputs)
    assert len(made.train) > len(made.held_out) > 0
    assert sources.given(made) is made
    for whole in (made, (made.train, made.held_out)):
        with pytest.raises(ConfigError, match="folds hold out each sample once"):
            sources.given(whole, sources.Split(folds=2))


@pytest.mark.parametrize("task", ["classes", "many classes", "values", "words"])
def test_rows_are_the_same_from_all_sources(folder, task):
    """The same rows as a table, as arrays and as a data set of Hugging Face give the same tensors, bit for bit."""
    datasets = pytest.importorskip("datasets")
    pl = pytest.importorskip("polars")
    random = np.random.default_rng(0)
    x, n = random.normal(size=(400, 3)).round(3), 400
    y = {"classes": np.arange(n) % 3, "many classes": np.arange(n) % 60, "values": x.sum(1) * 1e4 + 5e4,
         "words": np.array(["no", "yes", "maybe"])[np.arange(n) % 3]}[task]  # fmt: skip
    frame = pl.DataFrame({**{f"inputs_{i}": x[:, i] for i in range(3)}, "targets": y})
    frame.write_csv(folder / "same.csv")
    frame.write_csv(folder / "comma.csv", separator=";", decimal_comma=True)
    frame.write_parquet(folder / "same.parquet")
    np.savez(folder / "same.npz", inputs=x, targets=y)
    made = [
        sources.table(folder / "same.csv"), sources.table(folder / "comma.csv"), sources.table(folder / "same.parquet"),
        sources.arrays(folder / "same.npz"), sources.huggingface(datasets.Dataset.from_polars(frame)),
    ]  # fmt: skip
    for data in made[1:]:
        assert (data.task, data.classes, data.fitted.get("target_std")) == (
            made[0].task, made[0].classes, made[0].fitted.get("target_std"))  # fmt: skip
        for side, other in ((data.train, made[0].train), (data.held_out, made[0].held_out)):
            assert side.tensors.keys() == other.tensors.keys()
            for name, t in side.tensors.items():
                assert torch.equal(t, other.tensors[name]), name


def test_one_column_of_floats(tmp_path):
    """Inputs (N,) are those of (N, 1), as X and y of one variable are saved."""
    x = np.random.default_rng(0).normal(size=50)
    for name, inputs in (("flat", x), ("column", x[:, None])):
        np.savez(tmp_path / f"{name}.npz", X=inputs, y=3 * x)
    flat, column = (sources.arrays(tmp_path / f"{name}.npz") for name in ("flat", "column"))
    assert flat.train.tensors["inputs"].shape == (40, 1)
    assert torch.equal(flat.train.tensors["inputs"], column.train.tensors["inputs"])


def test_whole_targets_are_scaled_as_values():
    """To mean 0 and deviation 1, whatever their dtype."""
    x, y = torch.randn(40, 2), torch.arange(40) % 2
    made = sources.given((x, y), task="regression")
    scaled = scaled_targets(made, made.train.tensors["targets"])
    torch.testing.assert_close((scaled.mean(), scaled.std(correction=0)), (torch.tensor(0.0), torch.tensor(1.0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_column_of_classes_is_learned_as_classes(tmp_path, dtype):
    """Targets (N, 1), as Keras has them, are those of (N,), in new data too; more values than classes stay (N, 1)."""
    x, y = np.zeros((60, 8, 8, 3), np.uint8), (np.arange(60) % 3).astype(dtype)
    for name, targets in (("flat", y), ("column", y[:, None]), ("values", y[:, None] + np.linspace(0, 1, 60)[:, None])):
        np.savez(tmp_path / f"{name}.npz", inputs=x, targets=targets)
    flat, column, values = (sources.arrays(tmp_path / f"{n}.npz") for n in ("flat", "column", "values"))
    assert (column.task, column.classes, column.fitted) == (flat.task, flat.classes, flat.fitted)
    assert torch.equal(column.held_out.tensors["targets"], flat.held_out.tensors["targets"])
    [new] = of_arrays(tmp_path / "column.npz", column.fitted, (3, 8, 8), targets=True, task=column.task)
    assert new.batch["targets"].tolist() == y.tolist()
    assert (values.task, values.train.tensors["targets"].shape) == ("regression", (48, 1))
    with pytest.raises(DataError, match="whole numbers of shape"):
        sources.given((torch.zeros(20, 2), torch.arange(20).reshape(20, 1)))


def test_a_dataset_of_large_values_is_noted():
    """As its targets are learned as they are, while those of tensors are scaled."""
    x = torch.randn(40, 2)
    for scale, noted in ((1.0, 0), (5e4, 1)):
        made = sources.given(sources.dataset([(row, scale * row[0]) for row in x]))
        assert len(made.notes) == noted
        assert not made.fitted


def test_tokens_of_another_dtype_are_refused(tmp_path):
    """uint32 read as uint16 would be ids and zeros in turn; a text of UTF-16 would be, too."""
    np.arange(4000, dtype=np.uint32).tofile(tmp_path / "t.bin")
    with pytest.raises(DataError, match="as in a file of uint32"):
        sources.tokens(tmp_path / "t.bin", context=8)
    assert len(sources.tokens(tmp_path / "t.bin", dtype="uint32", context=8).train)
    (tmp_path / "t.txt").write_text("two words " * 99, encoding="utf-16")
    with pytest.raises(DataError, match="save it as UTF-8"):
        sources.text(tmp_path / "t.txt", context=8)
