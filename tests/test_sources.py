import gzip
import math
import pickle
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.errors import DataError
from pipeline.sources import Tensors
from tests.strategies import seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


def parts(data):
    return data.tensors["inputs"], data.tensors["targets"]


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


# -- round trips


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_gives_back_what_was_written(tmp_path, suffix):
    """A pair of IDX files, gzipped or not, holds images in [0, 1] and their labels, found by name."""
    images, targets = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.array([2, 0, 1, 2], np.uint8)
    pack = gzip.compress if suffix else bytes
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(idx(images)))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(targets)))
    inputs, found = parts(sources.idx(path))
    torch.testing.assert_close(inputs, torch.tensor(images).unsqueeze(1) / 255.0)
    assert found.tolist() == [2, 0, 1, 2]


# -- made and bundled


def test_digits():
    """The digits are 1,797 images in [0, 1] of ten classes, in two disjoint parts with the same shares of each
    class."""
    train, test = sources.digits()
    (x, y), (held_x, held_y) = parts(train), parts(test)
    assert (x.shape, x.dtype, y.dtype) == ((1437, 1, 8, 8), torch.float32, torch.int64)
    assert len(held_x) == 360
    assert (x.min(), x.max(), train.classes) == (0.0, 1.0, tuple("0123456789"))
    shares = [labels.bincount(minlength=10) / len(labels) for labels in (y, held_y)]
    assert (shares[0] - shares[1]).abs().max() < 0.005
    rows = torch.cat([x, held_x]).flatten(1).unique(dim=0)
    assert len(rows) == 1797  # no image is there twice, so none is in both parts


@given(seeds, seeds)
def test_made_data_is_a_function_of_its_seed(seed, other):
    """`random` gives the same data for the same seed, of the shapes and classes asked for."""
    data, same = (sources.random(50, 7, 3, seed) for _ in range(2))
    assert torch.equal(data.tensors["inputs"], same.tensors["inputs"])
    assert torch.equal(data.tensors["targets"], same.tensors["targets"])
    assert (data.tensors["inputs"].shape, set(data.tensors["targets"].tolist())) == ((50, 7), {0, 1, 2})
    if seed != other:
        assert not torch.equal(data.tensors["inputs"], sources.random(50, 7, 3, other).tensors["inputs"])


@given(st.integers(2, 100), st.integers(1, 4), st.floats(0.1, 0.9), seeds)
def test_a_split_is_two_disjoint_parts(n, classes, held_out, seed):
    """Each sample is in one part, the held-out part has its size, and the split is a function of the seed."""
    data = Tensors({"inputs": torch.arange(n), "targets": torch.arange(n) % classes})
    held = math.ceil(held_out * n)
    if held == n:
        with pytest.raises(DataError, match="can't be split"):
            sources.split(data, held_out, seed)
        return
    train, test = sources.split(data, held_out, seed)
    assert len(test) == held
    assert sorted([*train.tensors["inputs"].tolist(), *test.tensors["inputs"].tolist()]) == list(range(n))
    assert torch.equal(test.tensors["inputs"], sources.split(data, held_out, seed)[1].tensors["inputs"])


def test_splits_have_seeds_of_their_own():
    """Two seeds hold out different samples."""
    data = Tensors({"inputs": torch.arange(100)})
    assert (
        sources.split(data, seed=0)[1].tensors["inputs"].tolist()
        != sources.split(data, seed=1)[1].tensors["inputs"].tolist()
    )


# -- what people have


@pytest.mark.parametrize(
    "data",
    [
        (torch.eye(3), torch.arange(3)),
        [np.eye(3), np.arange(3)],
        (np.eye(3)[:, ::-1][:, ::-1], np.arange(3, dtype=np.uint16)),
        (np.eye(3).astype(">f8"), np.arange(3, dtype=">i4")),
        {"inputs": np.eye(3).tolist(), "targets": [0, 1, 2]},
        torch.utils.data.TensorDataset(torch.eye(3), torch.arange(3)),
        Tensors({"inputs": torch.eye(3), "targets": torch.arange(3)}),
    ],
)
def test_a_source_from_what_people_have(data):
    """Arrays of any order and width, lists, pairs, mappings and TensorDatasets are sources of float32 and int64."""
    found = sources.source(data)[torch.tensor([2, 0])]
    torch.testing.assert_close(dict(found), {"inputs": torch.eye(3)[[2, 0]], "targets": torch.tensor([2, 0])})


def test_a_tensor_dataset_of_ones_own_is_read_by_its_getitem():
    """Its transforms are not left out."""

    class Flipped(torch.utils.data.TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return -x, y

    found = sources.source(Flipped(torch.eye(3), torch.arange(3)))[torch.tensor([2, 0])]
    torch.testing.assert_close(dict(found), {"inputs": -torch.eye(3)[[2, 0]], "targets": torch.tensor([2, 0])})


def test_tensors_are_not_copied():
    """A source over tensors, or float32 arrays, shares their memory."""
    tensor, array = torch.zeros(3, 2), np.zeros((3, 2), np.float32)
    data = sources.source({"a": tensor, "b": array})
    assert data.tensors["a"] is tensor
    assert data.tensors["b"].numpy().base is array or np.shares_memory(data.tensors["b"].numpy(), array)


# -- what can't be read


def refused(message, read, *args, **kwargs):
    with pytest.raises(DataError, match=message):
        read(*args, **kwargs)


@pytest.mark.parametrize("read", [sources.arrays, sources.table, sources.idx])
def test_a_missing_file_is_named(tmp_path, read):
    """A file that is not there, or is a folder, raises a DataError with its path and the reason."""
    refused(r"can't read .*none: No such file", read, tmp_path / "none")
    refused(r"can't read .*: is not a regular file|holds no array|is a folder without files", read, tmp_path)


@pytest.mark.parametrize("read", [sources.arrays, sources.table, sources.idx])
@given(raw=st.binary(max_size=200))
def test_bytes_that_mean_nothing_are_refused(folder, read, raw):
    """Arbitrary bytes are data or a DataError, nothing else."""
    (folder / "bytes").write_bytes(raw)
    with suppress(DataError):
        read(folder / "bytes")


@pytest.mark.parametrize("kind", ["npz", "npz, compressed", "idx", "csv"])
@pytest.mark.filterwarnings("ignore")
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.floats(0, 1))
def test_a_damaged_file_is_refused(folder, kind, where, byte, cut):
    """A file with a changed byte, or cut short, is read or raises a DataError, nothing else."""
    path, (x, y) = folder / "damaged.gz", (np.ones((3, 2, 2), np.uint8), np.arange(3, dtype=np.uint8))
    if kind == "idx":
        (folder / "labels").write_bytes(idx(y))
        path.write_bytes(gzip.compress(idx(x)))
    elif kind == "csv":
        path.write_text("a,b\n1,2\n3,4\n5,6\n")
    else:
        with path.open("wb") as file:
            (np.savez if kind == "npz" else np.savez_compressed)(file, inputs=x, targets=y)
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw))] = byte
    damaged = path.with_suffix(".csv") if kind == "csv" else path
    damaged.write_bytes(raw[: max(int(cut * 2 * len(raw)), 1)])
    read = {"idx": lambda p: sources.idx(p, folder / "labels"), "csv": sources.table}.get(kind, sources.arrays)
    with suppress(DataError):
        read(damaged)


class Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_run(tmp_path):
    """An archive of objects, or a pickle by another name, is refused and its code not run."""
    proof, archive, bare = tmp_path / "proof", tmp_path / "a.npz", tmp_path / "b.npz"
    objects = np.array([Malicious(proof)], dtype=object)
    np.savez(archive, inputs=objects, targets=np.zeros(1))
    bare.write_bytes(pickle.dumps(Malicious(proof)))
    for path in (archive, bare):
        refused("is no .npz archive of plain arrays", sources.arrays, path)
    assert not proof.exists()
    with np.load(archive, allow_pickle=True) as trusted:
        trusted["inputs"]
    assert proof.exists()  # so there was something to refuse


def test_what_an_archive_lacks_is_named(tmp_path):
    """An array that is not there, an archive of no samples, and a single array raise a DataError that says so."""
    path = tmp_path / "a.npz"
    np.savez(path, input=np.ones((2, 2)), targets=np.zeros(2))
    refused("holds no array 'inputs'; did you mean 'input'", sources.arrays, path)
    np.savez(path, inputs=np.ones((0, 2)), targets=np.zeros(0))
    refused("is empty", sources.arrays, path)
    np.save(tmp_path / "a.npy", np.ones(3))
    refused("holds no array 'targets'", sources.arrays, tmp_path / "a.npy")


def test_bad_idx_files_are_refused(tmp_path):
    """An IDX file that is cut short, of another kind, or of another length than its labels raises a DataError."""
    images, targets = tmp_path / "images", tmp_path / "labels"
    good = idx(np.zeros((2, 3, 3), np.uint8))
    targets.write_bytes(idx(np.zeros(2, np.uint8)))
    for raw, message in (
        (good[:-1], r"cut short: it declares \(2, 3, 3\), 18 bytes, but holds 17"),
        (good[:6], "is no IDX file"),
        (b"\x89PNG" + good, "is no IDX file"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4), "cut short"),
        (idx(np.zeros(2, np.uint8)), "holds 1-d data, not images"),
        (idx(np.zeros((3, 3, 3), np.uint8)), "differ in length: inputs 3, targets 2"),
        (idx(np.zeros((0, 3, 3), np.uint8)), "differ in length|empty"),
    ):
        images.write_bytes(raw)
        refused(message, sources.idx, images, targets)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "is empty"),
        ((torch.zeros(0, 2), torch.zeros(0)), "is empty"),
        ((torch.tensor(1.0), torch.tensor(1.0)), "is empty"),
        ((torch.zeros(3), torch.zeros(2)), "differ in length: inputs 3, targets 2"),
        (([[1], [1, 2]], [0, 1]), "rows of different lengths"),
        ((np.array(["a", "b"]), [0, 1]), "which can't be a tensor; encode them as numbers"),
        ((np.array([object(), object()]), [0, 1]), "object values"),
        ([1, 2, 3], "list is no data set"),
        (5, "int is no data set: pass a Source"),
    ],
)
def test_what_is_no_data_set_is_refused(data, message):
    """What is empty, uneven or no numbers raises a DataError that says what to do."""
    refused(message, sources.source, data)


@given(st.integers(1, 20), st.integers(1, 4), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_numbers_that_are_none_are_refused(n, d, bad, data):
    """NaN and infinite inputs raise a DataError with the first sample that has one and how many do."""
    inputs = torch.zeros(n, d)
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    inputs[rows, data.draw(st.integers(0, d - 1))] = bad
    refused(
        rf"inputs holds {bad} in sample {min(rows)} \({len(rows)} of {n} ", sources.source, (inputs, torch.zeros(n))
    )


def test_large_numbers_are_numbers():
    """Finite inputs whose sum overflows are data."""
    assert len(sources.source({"inputs": torch.full((10,), 3e38)})) == 10
