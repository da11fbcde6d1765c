"""`pipe cache`: what is listed, what is found at fault, and what is removed."""

import os
import re
import types

import pytest
import torch

from pipeline.compile import cache as storage
from pipeline.compile import key


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a function that puts a package into it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PIPE_CACHE", str(folder))

    def add(name):
        (tmp_path / "code").write_bytes(name.encode() * 1000)
        library = types.SimpleNamespace(path=tmp_path / "code", entry="run", inputs=(0,), outputs=())
        batch = f"inputs {name} (64, 1, 28, 28), targets (64,) of its own 60,000 samples, whose line is long"
        identity = {**key.machine(), "batch": name}
        storage.keep(library, identity, "train step", batch, 12)
        return storage.find(identity)

    return folder, add


@pytest.mark.parametrize("action", [(), ("list",), ("verify",), ("clear",)])
@pytest.mark.parametrize("there", [True, False])
def test_an_empty_cache_says_so(pipe, cache, action, there):
    """With nothing in the folder, or without one, each action says so and is well."""
    folder, _ = cache
    if there:
        folder.mkdir()
    assert pipe("cache", *action) == (0, f"no packages in {folder}\n", "")


def test_list(pipe, cache):
    """The folder, a line for each package with its whole batch, and the totals."""
    folder, add = cache
    made = [add("a"), add("b")]
    code, out, err = pipe("cache")
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", str(folder))
    assert lines[2].split() == ["program", "operations", "size", "made", "torch", "model", "batch"]
    for p, line in zip(sorted(made, key=lambda p: p.path), lines[3:], strict=False):
        day = r"\d{4}-\d\d-\d\d \d\d:\d\d"
        pattern = rf"train step +12 +[\d.]+ kB +{day} +{re.escape(torch.__version__)} +{re.escape(p.batch)} *"
        assert re.fullmatch(pattern, line)
    assert re.fullmatch(r"2 packages, [\d.]+ kB", lines[-1])


def test_verify(pipe, cache):
    """Whole packages are ok; a damaged, a writable and an unreadable one are told, and the exit code is 1."""
    folder, add = cache
    whole, damaged, writable, unreadable, gone = (add(name) for name in "abcde")
    assert pipe("cache", "verify")[0] == 0
    (damaged.path / "step.so").write_bytes(b"other")
    writable.path.chmod(0o777)
    (unreadable.path / "package.json").write_text("{}")
    (gone.path / "step.so").unlink()
    (folder / ".making-now").mkdir()
    code, out, err = pipe("cache", "verify")
    said = dict(line.split("  ", 1) for line in out.splitlines()[:-1])
    assert (code, err) == (1, "")
    assert said == {
        whole.path.name[:8]: f"ok  train step for {whole.batch}",
        damaged.path.name[:8]: "step.so: it or package.json is damaged: their checksum is another",
        writable.path.name[:8]: f"{writable.path.name}: could have been written by somebody else",
        unreadable.path.name[:8]: "package.json can't be read",
        gone.path.name[:8]: "step.so: No such file or directory",
    }
    assert out.splitlines()[-1] == "4 of 5 at fault; each is rebuilt when it is needed"
    code, out, _ = pipe("cache", "list")
    assert code == 0
    assert re.search(r"4 packages, [\d.]+ kB; 2 unfinished or broken: see pipe cache verify", out)


def test_a_folder_that_others_may_write_is_said(pipe, cache):
    """What is there is listed and not believed: it says which folder that is, and what to do; clear removes it."""
    folder, add = cache
    made = add("a")
    folder.chmod(0o777)
    why = f"others may write into {folder}; run chmod go-w {folder}, or set PIPE_CACHE"
    code, out, _ = pipe("cache")
    assert (code, out.splitlines()[0]) == (0, f"programs are neither kept here nor loaded: {why}")
    code, out, _ = pipe("cache", "verify")
    assert code == 1
    assert f"{made.path.name[:8]}  cache: {why}" in out.splitlines()
    assert pipe("cache", "clear")[0] == 0
    assert not made.path.exists()


def test_a_link_among_packages_is_not_followed(pipe, cache, tmp_path):
    """It is at fault, counts no bytes, and clear removes the link alone."""
    folder, add = cache
    made = add("a")
    made.path.rename(tmp_path / "moved")
    made.path.symlink_to(tmp_path / "moved")
    code, out, _ = pipe("cache", "verify")
    assert (code, out.splitlines()[0]) == (1, f"{made.path.name[:8]}  package.json can't be read")
    assert "0 packages, 0 bytes" in pipe("cache")[1]
    assert pipe("cache", "clear")[0] == 0
    assert sorted(p.name for p in (tmp_path / "moved").iterdir()) == ["package.json", "step.so"]
    assert list(folder.iterdir()) == []


def test_clear(pipe, cache):
    """All packages go, whole, broken or unfinished; what somebody else keeps in that folder stays."""
    folder, add = cache
    total = sum(os.path.getsize(add(name).path / "step.so") for name in "ab")
    (add("c").path / "package.json").write_text("no JSON")
    (folder / ".making-before").mkdir()
    (folder / "photos").mkdir()
    (folder / "photos" / "one").write_text("")
    code, out, _ = pipe("cache", "clear")
    assert code == 0
    removed = re.fullmatch(rf"removed 4 packages, ([\d.]+) kB, from {re.escape(str(folder))}\n", out)
    assert removed
    assert float(removed[1]) * 1000 > total
    assert [path.name for path in folder.iterdir()] == ["photos"]
    assert (folder / "photos" / "one").exists()
    assert pipe("cache")[1].startswith("no packages in")


def test_an_unknown_action_is_one_line_and_exit_code_2(pipe, cache):
    """It names the actions, and touches nothing."""
    folder, add = cache
    add("a")
    code, out, err = pipe("cache", "cler")
    assert (code, out) == (2, "")
    assert "'cler' is not one of 'list', 'verify', 'clear'" in err
    assert len(list(folder.iterdir())) == 1
