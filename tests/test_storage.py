"""Packages: what was compiled once is loaded, and what is damaged never is."""

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import types
from pathlib import Path

import pytest
import torch

from cli import measure
from pipeline import Pipeline, backward, forward, loss, testing, update
from pipeline.compile import cache as storage
from pipeline.compile.backends import library
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
        made = types.SimpleNamespace(path=file.name, entry="run", inputs=(0,), outputs=())
        storage.keep(made, identity, "train step", "b", 1)
    return storage.find(identity)


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
    for _ in range(2):
        storage.clear()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "photos"]


@pytest.mark.parametrize("place", ["file/cache", "no/such/folder"])
def test_a_cache_that_is_not_there_is_empty(monkeypatch, tmp_path, place):
    """Looking into it makes nothing and raises nothing."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / place))
    assert (list(storage.packages()), storage.clear(), storage.find({"a": 1})) == ([], None, None)


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


@pytest.mark.parametrize(
    ("mode", "above", "said"),
    [
        (0o700, 0o755, None),
        (0o755, 0o1777, None),
        (0o770, 0o755, "others may write into .*/root; run chmod go-w .*/root, or set PIPE_CACHE"),
        (0o702, 0o755, "others may write into .*/root;"),
        (0o1777, 0o755, "others may write into .*/root;"),
        (0o700, 0o777, "others may write into .*/above;"),
        (0o700, 0o775, "others may write into .*/above;"),
    ],
)
def test_a_place_that_others_may_write_is_neither_read_nor_written(made, monkeypatch, tmp_path, mode, above, said):
    """The cache's folder has to be ours alone, and those above it ours or root's, or sticky; a link there is followed
    first."""
    root = tmp_path / "above" / "root"
    shutil.copytree(made[1].path, root / made[1].path.name)
    (tmp_path / "link").symlink_to(root)
    root.chmod(mode)
    root.parent.chmod(above)
    for place in (root, tmp_path / "link"):
        monkeypatch.setenv("PIPE_CACHE", str(place))
        found = storage.find(made[1].identity)
        assert (found is None, storage.usable()) == (said is not None, said is None)
        assert re.match(said, storage.refusal()) if said else storage.refusal() is None
    if said:
        assert re.match(f"root: {said}", next(storage.packages()).fault())
        assert (kept({"a": 1}), [p.name for p in root.iterdir()]) == (None, [made[1].path.name])


@pytest.mark.parametrize("foreign", ["above", "root", "root/inductor"])
def test_a_place_of_somebody_else_is_refused(monkeypatch, tmp_path, foreign):
    """It may have been made by another user first, as a name in /tmp may; nothing is looked up in it, nor removed."""
    root = tmp_path / "above" / "root"
    (root / storage.INDUCTOR).mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("PIPE_CACHE", str(root))
    path = kept({"a": 1}).path
    theirs = root if foreign == "root" else root / "inductor" if "/" in foreign else root.parent
    lstat = Path.lstat

    def of_another(path):
        status = list(lstat(path))
        status[stat.ST_UID] += (path == theirs) * 4321
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", of_another)
    assert storage.find({"a": 1}) is None
    assert kept({"a": 2}) is None
    assert storage.refusal().startswith(f"{theirs} is another user's")
    assert path.exists()


def test_without_a_home_the_cache_is_in_a_folder_that_nobody_else_made(monkeypatch, tmp_path):
    """Whoever made that folder first, with permissions of their choice, is not believed."""
    for name in ("PIPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert storage.folder() == tmp_path / f"pipe-train-{os.getuid()}"
    storage.folder().mkdir()
    storage.folder().chmod(0o777)
    assert kept({"a": 1}) is None
    assert not list(storage.folder().iterdir())


def test_a_refused_place_is_said_once_and_steps_run(monkeypatch, tmp_path):
    """The warning and the report name the folder, and what to do; what is compiled is this process's alone."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o777)
    compiled = small(0.1).compile()
    with pytest.warns(UserWarning, match="neither kept nor loaded: others may write into") as told:
        ran(compiled, 0)
    assert len(told) == 1
    assert "chmod go-w" in compiled.report.unkept
    assert compiled.report.unkept in str(compiled.report)
    assert not list((tmp_path / "root").iterdir())


LINKED = ("", "step.so", "package.json")


@pytest.mark.parametrize("name", LINKED)
def test_no_link_is_followed(copied, tmp_path_factory, name):
    """A link in the place of a package, or of a file of it, is removed; what it leads to stays."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    path = copied.path / name if name else copied.path
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert storage.find(copied.identity) is None
    assert elsewhere.exists()
    assert not copied.path.is_symlink()


@pytest.mark.parametrize("name", LINKED[1:])
def test_what_is_no_plain_file_is_not_waited_for(copied, name):
    """A FIFO or a device in the place of a file is a fault as any other."""
    (copied.path / name).unlink()
    os.mkfifo(copied.path / name, 0o600)
    assert storage.find(copied.identity) is None
    assert not copied.path.exists()


@pytest.mark.parametrize("name", LINKED[1:])
def test_what_is_too_large_is_not_read(copied, name):
    """Of a file in the cache, no more is read than it may hold."""
    with (copied.path / name).open("r+b") as file:
        file.truncate(1 << 40)
    assert storage.find(copied.identity) is None
    assert not copied.path.exists()


@pytest.mark.parametrize("memory", [True, False])
def test_what_was_checked_is_what_is_loaded(copied, made, monkeypatch, memory):
    """A library that is changed after the check does not matter, whether there are files in memory or not."""
    if not memory:
        monkeypatch.setattr(library, "_memory", lambda name: (_ for _ in ()).throw(OSError))
    found = storage.find(copied.identity)
    (copied.path / "step.so").write_bytes(b"another")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "find", lambda identity: found)
        second = small(0.5).compile()
        state, _ = ran(second, 1)
    assert second.report.graphs[0].loaded
    first = made[0]
    testing.same(state.tree, first(first(second.pipe.init(1), BATCH)[0], BATCH)[0].tree, 0)
    assert copied.fault().startswith("step.so: it or package.json is damaged")


def built(folder, number):
    """A shared library whose function gives a number."""
    (folder / "code.c").write_text(f"int number(void) {{ return {number}; }}")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "code.so", folder / "code.c"], check=True)
    return (folder / "code.so").read_bytes()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory")
def test_libraries_in_memory_are_not_taken_for_one_another(tmp_path, monkeypatch):
    """Each does what is in it, also where its file in memory has the path of one that was loaded before, as where a
    daemon closed all that it inherited."""
    codes = {f"{tmp_path.name}-{n}": built(tmp_path, n) for n in range(6)}
    names = list(codes)
    for n, (name, code) in enumerate(codes.items()):
        with monkeypatch.context() as patch:
            if n % 2:
                taken = library._memory(names[n - 1])
                os.dup2(os.memfd_create(name, os.MFD_ALLOW_SEALING), taken)
                patch.setattr(library, "_memory", lambda name, taken=taken: taken)
            assert [library.loaded(code, name).number() for _ in range(2)] == [n, n]
    assert [library.loaded(code, name).number() for name, code in codes.items()] == list(range(6))
    assert library.loaded(codes[names[1]], names[1])._handle == library.loaded(codes[names[1]], names[1])._handle


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory")
def test_a_library_in_memory_is_sealed_and_known_by_its_name(tmp_path):
    """Nobody writes into it, not we ourselves, and what shows the memory of a process shows its name."""
    library.loaded(built(tmp_path, 3), f"{tmp_path.name}-named")
    with pytest.raises(PermissionError):
        os.pwrite(library._memory(f"{tmp_path.name}-named"), b"other", 0)
    assert f"/memfd:{tmp_path.name}-named" in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("refused", [False, True])
def test_compilers_keep_nothing_where_anybody_could_have_been_first(monkeypatch, tmp_path, refused):
    """Inductor runs what it finds in its folder: that is in the cache, or one for this process, but never torch's."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache").chmod(0o777 if refused else 0o700)
    for named in (None, os.path.join(tempfile.gettempdir(), "torchinductor_somebody")):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if named:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", named)
        small(0.1).compile()
        place = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert (place == tmp_path / "cache" / "inductor") is not refused
        assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_uid) == (0o700, os.getuid())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/named/by/the/user")
    storage.keep_compiler_caches()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/named/by/the/user"


MEASUREMENTS = {
    "none": (b"{}", {}),
    "sane ones": (b'{"device a": "cpu"}', {"device a": "cpu"}),
    "of wrong types": (b'{"a": [], "b": null, "c": true, "d": 1.5, "e": {}, "f": 1}', {}),
    "no JSON": (b"{", {}),
    "no text": (b"\xff\xfe", {}),
    "a list": (b"[1]", {}),
    "too deep": (b"[" * 100_000, {}),
    "too long a number": (b'{"a": ' + b"1" * 5000 + b"}", {}),
    "too large": (b'{"a": "cpu"}' + b" " * measure.MOST, {}),
}


@pytest.mark.parametrize(("content", "known"), MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_measurements_are_sane_or_ignored(monkeypatch, tmp_path, content, known):
    """Whatever is in their file, one can be stored afterwards."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    (tmp_path / storage.MEASURED).write_bytes(content)
    assert measure.known() == known
    measure.keep("new", "cpu")
    assert measure.known() == {**known, "new": "cpu"}


def test_measurements_of_others_are_ignored(monkeypatch, tmp_path):
    """Neither a link, nor a FIFO, nor a file in a place that others may write is read, and that is not written."""
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    path = tmp_path / storage.MEASURED
    (tmp_path / "elsewhere").write_text('{"a": "cpu"}')
    path.symlink_to(tmp_path / "elsewhere")
    assert measure.known() == {}
    path.unlink()
    os.mkfifo(path)
    assert measure.known() == {}
    measure.keep("a", "cpu")
    assert measure.known() == {"a": "cpu"}
    tmp_path.chmod(0o777)
    assert measure.known() == {}
    measure.keep("a", "cuda")
    tmp_path.chmod(0o700)
    assert measure.known() == {"a": "cpu"}
