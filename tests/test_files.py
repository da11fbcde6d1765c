"""Files are whole or not there."""

import errno
import hashlib
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import files

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full(monkeypatch):
    """A disk that takes nothing more."""

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_replace_writes_a_file_anew_or_for_the_first_time(tmp_path):
    """The content is the one that was written last, and nothing else is left."""
    for content in (b"one", b"", b"two"):
        files.replace(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert names(tmp_path) == ["file"]


def test_replace_that_fails_leaves_the_old_file(tmp_path, full):
    """On a full disk the file is what it was."""
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def made(path, content="new"):
    with files.making(path) as work:
        (work / "inside").write_text(content)
        files.put(work, path)


def test_put_makes_a_folder_or_takes_the_place_of_one(tmp_path):
    """What was there before is gone, be it a folder that is not empty."""
    path = tmp_path / "folder"
    made(path, "old")
    (path / "more").mkdir()
    made(path)
    assert names(tmp_path) == ["folder"]
    assert names(path) == ["inside"]
    assert (path / "inside").read_text() == "new"


def test_put_that_fails_leaves_the_old_folder(tmp_path, full):
    """On a full disk the folder is what it was, and what was made is removed."""
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="No space"):
        made(path)
    assert names(tmp_path) == ["folder"]
    assert names(path) == []


def test_what_is_being_made_is_known_by_its_name_and_removed(tmp_path):
    """Two that make one folder do not meet; neither leaves anything that it did not put."""
    path = tmp_path / "folder"
    with files.making(path, 0o700) as one, files.making(path, 0o700) as other:
        assert one != other
        assert all(name.startswith(files.MAKING) for name in names(tmp_path))
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
    assert names(tmp_path) == []


def test_only_a_plain_file_is_plain(tmp_path):
    """A folder, a pipe and a link to a device are named; a link to a file is that file."""
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "link").symlink_to(path)
    assert files.plain(tmp_path / "link") == tmp_path / "link"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for other in (tmp_path, tmp_path / "fifo", tmp_path / "zero"):
        with pytest.raises(OSError, match="is not a regular file") as error:
            files.plain(other)
        assert error.value.filename == str(other)
    with pytest.raises(FileNotFoundError):
        files.plain(tmp_path / "none")


@given(content=st.binary())
def test_sha256_is_of_the_content(tmp_path_factory, content):
    """The hash of a file is that of its bytes."""
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(content)
    assert files.sha256(path) == hashlib.sha256(content).hexdigest()


@given(st.dictionaries(st.text(), json_values, max_size=4), st.text())
def test_a_checksum_is_of_what_json_keeps_but_for_itself(facts, own):
    """It is the same after a round trip through JSON, in any order and with a checksum in the facts."""
    facts.pop("checksum", None)
    back = json.loads(json.dumps({"checksum": own, **dict(reversed(facts.items()))}))
    assert files.checksum(back) == files.checksum(facts)
    assert files.checksum({**facts, "checksum more": own}) != files.checksum(facts)
