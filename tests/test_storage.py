"""Packages: what was compiled once is loaded, and what is damaged never is."""

import json
import shutil
import tempfile
import types

import pytest
import torch

from pipeline import Pipeline, backward, forward, loss, testing, update
from pipeline.compile import storage
from tests import pipes

BATCH = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}


def small(lr):
    return Pipeline(forward.model(pipes.Linear), loss.cross_entropy(), backward.gradients(), update.sgd(lr))


def ran(compiled, seed):
    """Two steps; the last State and its metrics."""
    state, _ = compiled(compiled.pipe.init(seed), BATCH)
    return compiled(state, BATCH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with one package, and the compiled step that made it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPE_CACHE", str(tmp_path_factory.mktemp("made")))
        compiled = small(0.1).compile()
        ran(compiled, 0)
        [found] = storage.packages()
        yield compiled, found


@pytest.fixture
def copied(made, monkeypatch, tmp_path):
    """A copy of the package, in a cache of its own."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    shutil.copytree(made[1].path, tmp_path / made[1].path.name)
    [found] = storage.packages()
    return found


def test_another_lr_and_seed_load_what_was_compiled(made, copied):
    """A second Compiled loads the package, and its results are those of the first, bit for bit."""
    second = small(0.5).compile()
    state, metrics = ran(second, 1)
    [graph] = second.report.graphs
    assert graph.loaded
    first = made[0]
    state_1, metrics_1 = first(first(second.pipe.init(1), BATCH)[0], BATCH)
    testing.same(state.tree, state_1.tree, 0)
    testing.same(metrics, metrics_1, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(**changes):
    def damage(folder):
        facts = json.loads((folder / "package.json").read_text())
        (folder / "package.json").write_text(json.dumps({**facts, **changes}))

    return damage


def without(key):
    def damage(folder):
        facts = json.loads((folder / "package.json").read_text())
        del facts[key]
        (folder / "package.json").write_text(json.dumps(facts))

    return damage


def text(content):
    return lambda folder: (folder / "package.json").write_text(content)


def a_folder_for(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir(mode=0o700)

    return damage


OUTPUT = {"name": "loss", "shape": [], "dtype": "float32"}
KEYS = ("path", "identity", "program", "batch", "operations", "entry", "inputs", "checksum", "outputs")
DAMAGES = {
    "a flipped byte": lambda folder: flip(folder / "step.so"),
    "half a library": lambda folder: (folder / "step.so").write_bytes((folder / "step.so").read_bytes()[:4000]),
    "an empty library": lambda folder: (folder / "step.so").write_bytes(b""),
    "no library": lambda folder: (folder / "step.so").unlink(),
    "no facts": lambda folder: (folder / "package.json").unlink(),
    "folders for the library": a_folder_for("step.so"),
    "folders for the facts": a_folder_for("package.json"),
    "a library that all may write": lambda folder: (folder / "step.so").chmod(0o702),
    "facts that a group may write": lambda folder: (folder / "package.json").chmod(0o620),
    "a folder that all may write": lambda folder: folder.chmod(0o777),
    "no JSON": text("{"),
    "no text": lambda folder: (folder / "package.json").write_bytes(b"\xff\xfe\xfd"),
    "a list": text("[]"),
    "a number": text("1"),
    "a text": text('"outputs"'),
    "null": text("null"),
    "too deep": text("[" * 100_000),
    "another identity": rewrite(identity={"torch": "1.0"}),
    "no identity": rewrite(identity=[]),
    "a key too many": rewrite(more=1),
    "no checksum": rewrite(checksum=None),
    "outputs of no list": rewrite(outputs=3),
    "an output of no dtype": rewrite(outputs=[{**OUTPUT, "dtype": "nn"}]),
    "an output of another shape": rewrite(outputs=[{**OUTPUT, "shape": [1000]}]),
    "an output of no shape": rewrite(outputs=[{**OUTPUT, "shape": ["a"]}]),
    "an output fewer": rewrite(outputs=[]),
    "inputs of no list": rewrite(inputs=3),
    "inputs of no numbers": rewrite(inputs=["a"]),
    "an entry of no name": rewrite(entry=3),
    **{f"no {key}": without(key) for key in KEYS if key not in ("path", "checksum")},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_removed_and_never_loaded(copied, damage):
    """A package of any fault is not found, and a new one can take its place."""
    damage(copied.path)
    for found in storage.packages():
        assert found.fault() or found.identity != copied.identity
    assert storage.find(copied.identity) is None
    assert not copied.path.exists()
    again = kept(copied.identity)
    assert again is not None
    assert storage.find(copied.identity) == again


def kept(identity):
    """A stand-in for a compiled program, put into the cache."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"code")
        file.flush()
        library = types.SimpleNamespace(path=file.name, entry="run", inputs=(0,), outputs=())
        return storage.keep(library, identity, "train step", "b", 1)


def test_whole_packages_are_found_under_their_identity_alone(copied):
    """An identity that differs in one word finds nothing, and removes nothing."""
    assert storage.find({**copied.identity, "torch": "1.0"}) is None
    assert storage.find(copied.identity) == copied
    assert copied.fault() is None
    assert (copied.path / "step.so").stat().st_size > 1000


def test_clear_removes_packages_and_what_was_never_finished_but_nothing_else(copied, tmp_path):
    """What somebody else keeps in the folder stays."""
    (tmp_path / ".making-abc").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert [p.path for p in storage.packages()] == [copied.path]
    assert storage.clear() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "photos"]
    assert storage.clear() == 0


@pytest.mark.parametrize("place", ["file/cache", "no/such/folder"])
def test_a_cache_that_is_not_there_is_empty(monkeypatch, tmp_path, place):
    """Looking into it makes nothing and raises nothing."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / place))
    assert (list(storage.packages()), storage.clear(), storage.find({"a": 1})) == ([], 0, None)


def test_an_unwritable_cache_still_compiles(monkeypatch, tmp_path):
    """The program is this process's alone, and does the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / "file" / "cache"))
    compiled = small(0.1).compile()
    state, _ = ran(compiled, 0)
    assert not compiled.report.graphs[0].loaded
    pipe, expected = compiled.pipe, compiled.pipe.init(0)
    for _ in range(2):
        expected, _ = pipe.step(expected, BATCH)
    testing.same(state.tree, expected.tree, 1e-5)


def test_a_relative_cache_is_kept_too(monkeypatch, tmp_path):
    """$PIPE_CACHE may be a path from where the process began."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPE_CACHE", "cache")
    made = kept({"a": 1})
    assert storage.find({"a": 1}) == made
    assert made.path.parent == tmp_path / "cache"


def test_something_else_in_a_packages_place_gives_way(monkeypatch, tmp_path):
    """A file of the package's name is replaced, and a package that is there already stays."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    path = kept({"a": 1}).path
    shutil.rmtree(path)
    path.write_text("")
    assert storage.find({"a": 1}) is None
    assert kept({"a": 1}).path == path
    assert kept({"a": 1}).path == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
