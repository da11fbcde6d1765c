"""Images in folders are samples of their classes; what can't be decoded is named."""

import io
import json
import os
import subprocess
import sys
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Pipeline, backward, fit, forward, load, loss, models, sources, testing, update
from pipeline.errors import ConfigError, DataError
from pipeline.sources import Split, Tensors, new_data
from pipeline.sources import pixels as px
from tests.strategies import seeds

Image = pytest.importorskip("PIL.Image")


def pixels(seed, height, width, *channels):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


def folder(root, count=6, classes=("cat", "dog"), size=(8, 8), channels=(3,), suffix="png"):
    """Images by class; returns their pixels in the order of the files."""
    made = []
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            made.append(pixels(100 * c + i, *size, *channels))
            Image.fromarray(made[-1]).save(root / name / f"{i:03}.{suffix}")
    return made


def everything(source, seed=0, epoch=0):
    [batch] = load.batches(source, size=len(source), shuffle=False).epoch(seed, epoch)
    return batch["inputs"], batch["targets"]


def refused(message, *args, error=DataError, **kwargs):
    with pytest.raises(error, match=message):
        sources.images(*args, **kwargs)


# -- what is read


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "RGB"])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_pixels_are_what_was_saved(tmp_path, channels, suffix):
    """Each image is in one part, with its class, and its pixels are those of the file, in [0, 1]."""
    made = folder(tmp_path, channels=channels, suffix=suffix)
    data = sources.images(tmp_path)
    assert (data.task, data.classes, len(data.train), len(data.held_out)) == ("classification", ("cat", "dog"), 9, 3)
    assert isinstance(data.train, Tensors)
    found = {}
    for part in (data.train, data.held_out):
        for image, target in zip(*everything(part), strict=True):
            found[image.numpy().tobytes()] = (image, int(target))
    for k, image in enumerate(made):
        expected = torch.from_numpy(image).reshape(8, 8, -1).permute(2, 0, 1).contiguous() / 255.0
        assert found[expected.numpy().tobytes()][1] == k // 6
    assert data.fitted == {"size": [8, 8], "mode": "RGB" if channels else "L"}
    assert data.notes[0].startswith("12 images of 2 classes; to train on: cat ")


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24), st.sampled_from(["L", "RGB"]))
def test_an_image_is_scaled_to_cover_its_size(tmp_path_factory, h, w, height, width, mode):
    """An image of any size becomes the size that is asked for, from its centre, without being stretched."""
    path = tmp_path_factory.getbasetemp() / "one.png"
    Image.fromarray(pixels(0, h, w, 3)).save(path)
    image = px.decode(path, (height, width), mode)
    assert (image.shape, image.dtype) == ((len(mode), height, width), torch.uint8)
    if (h, w) == (height, width) and mode == "RGB":
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(0, h, w, 3))


def test_the_middle_is_kept(tmp_path):
    """A wide image loses its left and right, and nothing of its height."""
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = np.arange(8)[:, None] * 30
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(px.decode(tmp_path / "wide.png", (8, 8), "L")[0].numpy(), wide[:, 8:16])


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(10, 12)] * 2, (10, 12)),
        ([(10, 12), (40, 32)], (24, 24)),
        ([(3, 3), (4, 4)], (8, 8)),
        ([(400, 600), (500, 500)], (224, 224)),
        ([(600, 600)] * 2, (224, 224)),
    ],
)
def test_the_size_is_that_of_the_images(tmp_path, sizes, size):
    """Images that are alike keep their size; others get the median of their short sides, a multiple of 8 up to 224."""
    for name in "ab":
        for i, (h, w) in enumerate(sizes):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.zeros((h, w), np.uint8)).save(tmp_path / name / f"{i}.png")
    data = sources.images(tmp_path, test=tmp_path)
    assert everything(data.train)[0].shape[1:] == (1, *size)
    assert sources.images(tmp_path, size=5, mode="RGB").train.tensors["inputs"].shape[1:] == (3, 5, 5)
    assert sources.images(tmp_path, size=(5, 7)).train.tensors["inputs"].shape[1:] == (1, 5, 7)


@pytest.mark.parametrize("kind", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixel(tmp_path, kind):
    """Palettes, transparency, 1 and 16 bits, and CMYK are read as what they look like; grey kinds have one channel."""
    grey = kind in ("L", "LA", "1", "I;16")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.fromarray(np.full((8, 8, 3), 255, np.uint8))
            image = Image.fromarray(np.full((8, 8), 65535, np.uint16)) if kind == "I;16" else image.convert(kind)
            image.save(tmp_path / name / f"{i}.{'tif' if kind == 'CMYK' else 'png'}")
    inputs, _ = everything(sources.images(tmp_path, parts=Split(share=0.5)).train)
    assert inputs.shape[1:] == (1 if grey else 3, 8, 8)
    assert (inputs == 1.0).all()


@pytest.mark.parametrize("kind", ["LA", "RGBA", "P"])
def test_what_is_transparent_is_white(tmp_path, kind):
    """An icon that is black with a shape in its transparency shows that shape."""
    icon = np.zeros((8, 8, 4), np.uint8)
    icon[2:6, 2:6, 3] = 255
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.fromarray(icon).quantize() if kind == "P" else Image.fromarray(icon).convert(kind)
            image.save(tmp_path / name / f"{i}.png")
    inputs, _ = everything(sources.images(tmp_path).train)
    assert torch.equal(inputs[0, 0], torch.tensor(icon[..., 3] == 0).float())


def test_photos_are_upright(tmp_path):
    """A JPEG that EXIF says lies on its side is turned, and its size with it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    lying = np.zeros((16, 32), np.uint8)
    lying[:, :16] = 255
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(lying).save(tmp_path / name / f"{i}.jpg", exif=exif, quality=100)
    inputs, _ = everything(sources.images(tmp_path).train)
    assert inputs.shape[1:] == (1, 32, 16)
    assert inputs[0, 0, :12].min() > 0.9 > 0.1 > inputs[0, 0, 20:].max()


def test_parts_of_ones_own(tmp_path):
    """Folders train and val, or test, beside it are the parts; `test` names another; a class may be called train."""
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        folder(tmp_path / part, count)
    data = sources.images(tmp_path)
    assert (len(data.train), len(data.held_out)) == (8, 4)
    assert f"{tmp_path / 'test'} is not read" in data.notes
    assert len(sources.images(tmp_path, test=tmp_path / "test").held_out) == 6
    with pytest.raises(ConfigError, match="folds hold out each sample once"):
        sources.images(tmp_path, parts=sources.Split(folds=2))
    assert len(sources.images(tmp_path / "train", test=tmp_path / "test").train) == 8
    folder(tmp_path / "vehicles", classes=("car", "train"))
    assert sources.images(tmp_path / "vehicles").classes == ("car", "train")


def test_folders_with_the_same_folders_inside_are_parts_or_asked_for(tmp_path):
    """seg_train beside seg_test, each with the classes; of years nothing tells, so they are classes, and it is noted; a
    class whose name begins like a part is one."""
    for part, count in (("seg_train", 4), ("seg_test", 2)):
        folder(tmp_path / "seg" / part, count)
    data = sources.images(tmp_path / "seg")
    assert (data.classes, len(data.train), len(data.held_out)) == (("cat", "dog"), 8, 4)
    assert "seg_train is trained on" in data.notes
    for year in ("2019", "2020"):
        folder(tmp_path / "years" / year, 4)
    data = sources.images(tmp_path / "years")
    assert data.classes == ("2019", "2020")
    assert any("if those are the classes" in note for note in data.notes)
    folder(tmp_path / "toys", 4, classes=("trains", "tests"))
    data = sources.images(tmp_path / "toys")
    assert data.classes == ("tests", "trains")
    assert not any("classes, name" in note for note in data.notes)


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "dev"), ("train", "Validation"), ("Training", "eval")],
)
def test_parts_by_their_usual_names(tmp_path, names):
    """In any case, they are the parts, and not the classes; with other images beside them, neither is guessed."""
    for part, count in zip(names, (4, 2), strict=True):
        folder(tmp_path / part, count)
    data = sources.images(tmp_path)
    assert (data.classes, len(data.train), len(data.held_out)) == (("cat", "dog"), 8, 4)
    for beside in ("__MACOSX", "scripts"):
        (tmp_path / beside).mkdir()
        (tmp_path / beside / "x.txt").touch()
    assert sources.images(tmp_path).classes == ("cat", "dog")
    folder(tmp_path, 2, classes=("other",))
    with pytest.raises(DataError, match=r"the same classes in .*, and images in other; name"):
        sources.images(tmp_path)


@given(st.sampled_from([8, 10, 12, 14, 16]), seeds)
def test_sixteen_bits_that_hold_fewer(tmp_path_factory, bits, seed):
    """Images of 16 bits are divided by the largest value of the bits that all training images use, in new data too."""
    root = tmp_path_factory.mktemp("deep")
    r = np.random.default_rng(seed)
    for name in "ab":
        (root / name).mkdir()
        for i in range(3):
            image = r.integers(0, 2**bits, (4, 4)).astype(np.uint16)
            image[0, 0] = 2**bits - 1
            Image.fromarray(image).save(root / name / f"{i}.png")
    data = sources.images(root, test=root)
    assert data.fitted["white"] == 2**bits - 1
    assert f"images of more than 8 bits: white is {2**bits - 1}, of {bits} bits" in data.notes
    assert data.train.tensors["inputs"].amax((1, 2, 3)).eq(1).all()
    last = torch.from_numpy(image.astype(np.int64) * 255 // (2**bits - 1)) / 255.0
    assert torch.equal(data.train.tensors["inputs"][-1, 0], last.float())
    [rows] = new_data.of_images(root, data.fitted, targets=True, classes=data.classes)
    Image.fromarray(np.full((4, 4), 2**16 - 1, np.uint16)).save(root / "a" / "0.png")
    if bits < 15:
        with pytest.raises(DataError, match="scale it as those are"):
            list(new_data.of_images(root, data.fitted, targets=True, classes=data.classes))
    assert torch.equal(rows.batch["inputs"], data.train.tensors["inputs"])


def packed(path, members, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_images_of_a_table_and_of_an_archive(tmp_path):
    """The same images by folder, by a table of their paths and by WebDataset's tar give the same tensors."""
    folder(tmp_path / "by", 6)
    files = sorted((tmp_path / "by").rglob("*.png"))
    rows = [{"file": str(f.relative_to(tmp_path)), "mean": 0.5 + i, "kind": f.parent.name} for i, f in enumerate(files)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("\n".join(["file,mean,kind", *(",".join(map(str, r.values())) for r in rows)]))
    members = []
    for i, (f, row) in enumerate(zip(files, rows, strict=True)):
        meta = json.dumps({"mean": row["mean"]}).encode()
        members += [
            (f"d/{i:03}.png", f.read_bytes()),
            (f"d/{i:03}.txt", row["kind"].encode()),
            (f"d/{i:03}.json", meta),
        ]
    packed(tmp_path / "w.tar", members)
    packed(tmp_path / "w.tar.gz", members[::-1], "w:gz")
    wanted = sources.images(tmp_path / "by", test=tmp_path / "by")
    for name in ("t.jsonl", "t.csv", "w.tar"):
        data = sources.images(tmp_path / name, test=tmp_path / name)
        assert (data.task, data.classes) == ("classification", ("cat", "dog"))
        for key, t in wanted.train.tensors.items():
            assert torch.equal(t, data.train.tensors[key]), name
        [rows] = new_data.of_images(tmp_path / name, data.fitted, targets=True, classes=data.classes)
        assert torch.equal(rows.batch["targets"], wanted.train.tensors["targets"])
        assert len(next(iter(rows.beside.values()))) == 12
    for name in ("t.csv", "w.tar", "w.tar.gz"):
        data = sources.images(tmp_path / name, target="mean")
        assert data.task == "regression"
        assert {"target_mean", "targets"} <= {*data.fitted}
        [rows] = new_data.of_images(tmp_path / name, data.fitted, targets=True, classes=())
        assert sorted(rows.batch["targets"].tolist()) == [0.5 + i for i in range(12)]
    (tmp_path / "fewer.csv").write_text((tmp_path / "t.csv").read_text().replace(",cat", ","))
    data = sources.images(tmp_path / "t.csv", test=tmp_path / "fewer.csv")
    assert f"{tmp_path / 'fewer.csv'}: 6 images without 'kind' are left out" in data.notes
    [rows] = new_data.of_images(tmp_path / "fewer.csv", data.fitted, targets=True, classes=data.classes)
    assert (rows.untargeted, len(rows.batch["targets"])) == (6, 6)


def test_what_is_wrong_in_a_list_of_images(tmp_path):
    """A path without a file is named with its line, and a sample without an image, or with two, by its name."""
    folder(tmp_path, 3)
    (tmp_path / "t.csv").write_text("file,kind\ncat/000.png,a\ncat/001.png,b\ncat/009.png,a\n")
    refused(r"t.csv, line 4, column 'file': 'cat/009.png' is no file beside", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,kind\ncat/000,a\n")
    refused("has no column of names of images", tmp_path / "t.csv")
    refused("is a column of a table", tmp_path, target="kind", error=ConfigError)
    png = (tmp_path / "cat" / "000.png").read_bytes()
    for members, message in [
        ([("0.png", png), ("1.cls", b"0")], "w.tar/1 has a target, but no image"),
        ([("0.png", png), ("0.jpg", png)], "w.tar/0 has two images"),
        ([("0.png", png)], "w.tar has no targets"),
        ([("0.cls", b"0")], "has a target, but no image"),
        ([("0.png", png), ("0.cls", b"cat")], "w.tar/0.cls is no target"),
        ([("0.png", png), ("0.json", b"{")], "w.tar/0.json is no target"),
        ([], "w.tar has no images"),
    ]:
        packed(tmp_path / "w.tar", members)
        refused(message, tmp_path / "w.tar")


@given(st.data())
def test_a_damaged_archive_is_read_or_refused(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("tar")
    folder(root, 3)
    files = sorted(root.rglob("*.png"))
    packed(
        root / "w.tar",
        [x for i, f in enumerate(files) for x in ((f"{i}.png", f.read_bytes()), (f"{i}.cls", b"%d" % (i % 2)))],
    )
    raw = bytearray((root / "w.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (root / "w.tar").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(DataError):
        sources.images(root / "w.tar")


def test_what_is_no_image_is_passed_over(tmp_path):
    """Nested folders are of their class, hidden files are not looked at, other files are counted."""
    folder(tmp_path, 3)
    folder(tmp_path / "cat", 2, classes=("more",))
    folder(tmp_path, 2, classes=(".hidden",))
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / "dog" / "labels.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "dog" / "waits.png")
    data = sources.images(tmp_path)
    assert len(data.train) + len(data.held_out) == 8
    assert data.classes == ("cat", "dog")
    assert "3 other files passed over" in data.notes


# -- augmentation


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.sampled_from([("flip",), ("crop",), ("flip", "crop"), ()]))
def test_an_augmented_image_has_the_pixels_of_the_image(seed, h, w, kinds):
    """Flipped, it is the image or its mirror image; shifted, a window of the image padded by reflection."""
    torch.manual_seed(seed)
    image = torch.from_numpy(pixels(seed, h, w, 2)).permute(2, 0, 1)
    found = px.augmented(image, kinds)
    mirrored = [image, image.flip(-1)] if "flip" in kinds else [image]
    dy, dx = (h // 8, w // 8) if "crop" in kinds else (0, 0)
    padded = [np.pad(m.numpy(), ((0, 0), (dy, dy), (dx, dx)), mode="reflect") for m in mirrored]
    windows = (p[:, y : y + h, x : x + w] for p in padded for y in range(2 * dy + 1) for x in range(2 * dx + 1))
    assert any(np.array_equal(found.numpy(), window) for window in windows)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    folder(root, 10, size=(40, 40))
    return root


@pytest.mark.parametrize("kinds", [(), ("flip",), ("flip", "crop")])
@pytest.mark.parametrize("kept", [True, False])
def test_a_batch_is_its_samples_one_by_one(large, kinds, kept):
    """A batch of images equals the single samples, stacked, bit for bit."""
    files = sorted(large.rglob("*.png"))
    images = px.Images(files, torch.arange(len(files)), (32, 24), "RGB", kinds)
    images = evolve(images, pixels=images.decoded()) if kept else images

    class Singly:
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i]

    order = torch.arange(len(files)).flip(0).split(6)
    each = (sources.dataset(data).epoch(2, 3, order) for data in (images, Singly()))
    for together, stacked in zip(*each, strict=True):
        assert all(torch.equal(together[name], stacked[name]) for name in ("inputs", "targets"))


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "from the disk"])
def test_augmentation_does_not_depend_on_who_reads(large, memory, monkeypatch):
    """Each epoch has images of its own, the same ones with any number of workers, in memory or not; the held-out ones
    stay as they are."""
    expected = sources.images(large, augment="auto")
    plain = sources.images(large, augment="none")
    assert isinstance(plain.train, Tensors)
    monkeypatch.setattr("pipeline.sources.pixels.MEMORY", memory)
    first, second = (everything(expected.train, 5, epoch)[0] for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain.train.tensors["inputs"])
    for workers in (0, 1, 2):
        data = sources.images(large, workers=workers)
        assert not isinstance(data.train, Tensors)
        assert (data.train.reader.data.pixels is None) == (memory == 0)
        assert torch.equal(everything(data.train, 5, 1)[0], second)
        assert torch.equal(everything(data.held_out, 5, 1)[0], plain.held_out.tensors["inputs"])


def test_augmentation_by_itself(tmp_path, large):
    """Small or grey images are not augmented unless that is asked for."""
    folder(tmp_path / "small", size=(16, 16))
    folder(tmp_path / "grey", size=(40, 40), channels=())
    for root in (tmp_path / "small", tmp_path / "grey"):
        assert isinstance(sources.images(root).train, Tensors)
        assert not isinstance(sources.images(root, augment="flip").train, Tensors)
    assert sources.images(large).notes[2] == "augmented in training: flip and crop; kept in memory"
    assert sources.images(large, augment="none").notes[2] == "augmented in training: no; kept in memory"


def test_a_run_on_images_resumes(large):
    """A run with augmentation that is stopped in mid-epoch and resumed with workers has the bits of the whole."""

    def pipe(workers):
        return Pipeline(
            load.batches(sources.images(large, workers=workers).train, size=3),
            forward.model(lambda: torch.nn.Sequential(torch.nn.Flatten(), models.mlp(4800, 2))),
            loss.cross_entropy(), backward.gradients(), update.sgd(0.01),
        )  # fmt: skip

    for whole in fit(pipe(0), epochs=2, compile=False, every=1):
        if (whole.epoch, whole.batch) == (2, 2):
            kept = whole.state.clone()
    *_, resumed = fit(pipe(2), epochs=2, compile=False, state=kept, start=(1, 2))
    testing.same(resumed.state.tree, whole.state.tree)


# -- what can't be read


def test_a_folder_that_holds_no_classes_is_refused(tmp_path):
    """A folder that is not there, without images, without classes, or with one, says so and what to do."""
    refused("can't read .*none: No such file", tmp_path / "none")
    refused(r"has no images: put .png or .jpg files in a folder for each class", tmp_path)
    Image.fromarray(pixels(0, 4, 4)).save(tmp_path / "a.png")
    refused("has images, but not by class: put the images of each class in a folder", tmp_path)
    refused("can't read .*a.png: Not a directory", tmp_path / "a.png")
    folder(tmp_path / "one", classes=("cat",))
    refused("of one class alone, 'cat'", tmp_path / "one")


def test_a_class_that_was_not_trained_on_is_refused(tmp_path):
    """A held-out folder of a class without training images is named."""
    folder(tmp_path / "train")
    folder(tmp_path / "test", classes=("cat", "dogs"))
    refused("test/dogs is of a class that .*train has no images of; did you mean 'dog'", tmp_path)


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "from the disk"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_a_truncated_image_is_named(tmp_path, suffix, augment, memory, monkeypatch):
    """An image that is cut short is a DataError with its path, when it is decoded, in a worker too."""
    monkeypatch.setattr("pipeline.sources.pixels.MEMORY", memory)
    folder(tmp_path, 2, size=(40, 40), suffix=suffix)
    cut = tmp_path / "dog" / f"001.{suffix}"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])

    def read():
        data = sources.images(tmp_path, augment=augment, parts=Split(0.5), workers=int(suffix == "png"))
        for part in (data.train, data.held_out):
            everything(part)

    with pytest.raises(DataError, match=rf"can't read .*dog/001.{suffix}: ."):
        read()


@settings(max_examples=60)
@given(
    st.sampled_from(["png", "jpg", "gif", "bmp", "webp", "tif"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_an_image_or_refused(tmp_path_factory, suffix, changed, cut):
    """Bytes that are changed or cut off are an image of the right shape or a DataError, nothing else."""
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    Image.fromarray(pixels(0, 12, 9, 3)).save(path)
    raw = bytearray(path.read_bytes())
    for where, byte in changed:
        raw[int(where * len(raw))] = byte
    path.write_bytes(raw[: max(int(cut * 2 * len(raw)), 1)])
    try:
        px.header(path)
        assert px.decode(path, (8, 8), "RGB").shape == (3, 8, 8)
    except DataError as e:
        said = str(e)
        assert str(path) in said


def test_a_file_of_another_kind_is_no_image(tmp_path):
    """What only has the name of an image is refused, even where Pillow could run a program to read it."""
    folder(tmp_path, 2)
    (tmp_path / "cat" / "000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    refused(r"can't read .*cat/000.png: it is no image of PNG, JPEG", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "flop"}, "augment='flop' is unknown; did you mean 'flip'"),
        ({"mode": "HSV"}, "mode='HSV' is unknown"),
        ({"size": 0}, "size=0 is not a positive whole number"),
        ({"size": (8, 2.5)}, r"size=\(8, 2.5\) is not"),
        ({"workers": -1, "augment": "flip"}, "workers=-1 is not"),
    ],
)
def test_settings_are_checked(large, options, message):
    """An unknown setting is a ConfigError."""
    refused(message, large, error=ConfigError, **options)


def test_without_pillow(large):
    """The library is imported without Pillow, which images need: a ConfigError says how to install it."""
    code = f"""
import sys
sys.modules["PIL"] = None
from pipeline import errors, sources
assert "datasets" not in sys.modules
try:
    sources.images({str(large)!r})
except errors.ConfigError as e:
    assert "pip install pillow" in str(e)
else:
    raise SystemExit(1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
