"""What does not fit, what can't be written, and what would take a terminal over, in one line or harmless."""

import errno
import gzip
import io
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cli import config, ending, room
from cli.recipes import settings
from cli.recipes.data_card import About
from cli.recipes.run import Run
from pipeline import html, log, memory, plot, sources, text
from pipeline.errors import ConfigError, DataError, PipeError

HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
names = st.text(st.characters() | st.sampled_from("\x1b\x9b\x7f\r\u202e\u2066\u2028\ud800$=+-@\t\n<&"), min_size=1)


def pipe(*arguments, into="", limit=None, **options):
    """The command, as a shell has it."""
    line = f'exec "$0" -m cli.main "$@" {into}'
    before = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *arguments], capture_output=True, text=True, preexec_fn=before, **options
    )


def one_line(done, code=2):
    assert done.returncode == code, done
    assert done.stderr.startswith("pipe: "), done
    assert done.stderr.count("\n") == 1, done


# -- text


@given(names)
def test_no_control_character_is_shown(name):
    """Of any text, nothing that a terminal obeys is left; one without any stays as it is."""
    assert not HIDDEN.search(text.shown(name))
    assert "\n" not in text.shown(name, lines=False)
    if not HIDDEN.search(name) and name.isprintable():
        assert text.shown(name) == name


@given(names)
def test_what_is_shown_is_the_same_in_json_and_toml(name):
    """A text that was escaped for a file is read as it was."""
    assert json.loads(text.shown(json.dumps({"a": name}, ensure_ascii=False))) == {"a": name}
    if text.shown(name) == name or name.isascii():
        assert tomllib.loads(text.shown(tomli_w.dumps({"a": name}))) == {"a": name}


@given(names)
def test_names_in_pages_and_pictures_are_text(name):
    """No name makes an element or keeps a control character, and none is taken for mathematics."""
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)

    page = html.table([name], [[name]])
    Reader().feed(page)
    assert set(seen) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert not HIDDEN.search(page)


@pytest.mark.parametrize("name", ["\x1b[31m", r"$\bad{$", "a$b", "\u202ex", "<b>"])
def test_curves_take_any_name(name):
    """A metric of any name is drawn, and none of its control characters are kept."""
    drawn = plot.svg(plot.curves([{"epoch": 1, "step": 1, f"train/{name}": 0.5}]))
    assert not HIDDEN.search(drawn)
    assert name in drawn or HIDDEN.search(name) or "<" in name


@given(st.text(min_size=1))
def test_a_cell_is_no_formula(cell):
    """What a spreadsheet would compute has a quote in front; numbers and other texts are as they were."""
    made = text.quoted(cell)
    assert made in (cell, f"'{cell}")
    if made[0] in "=+-@\t\r":
        float(made)


# -- bounds


@pytest.mark.parametrize("setting", [{"hidden": [9999999999999]}, {"hidden": [2**40, 2**40]}, {"ensemble": 10**9}])
def test_a_model_that_does_not_fit_is_not_begun(setting):
    """What it needs and what is free is said before any of it is made."""
    from cli.build import job

    with pytest.raises(ConfigError, match=r"needs? .* [PTEB]+ for its weights.* are free"):
        job(config.make(setting))


NUMBERS = [n for n, f in settings(Run).items() if str(f.type).startswith(("int", "float"))]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**23, -(10**23), 1e308, float("nan"), float("inf")])
def test_each_number_of_a_run_has_a_range(name, value):
    """A number of any size is refused, or is one that the run can have."""
    with pytest.raises(PipeError):
        config.make({f"run.{name}": value})


@pytest.mark.parametrize("value", ["a\0b", "a\udc80b"])
def test_a_text_that_no_file_holds_is_refused(value):
    """Before a folder is made."""
    with pytest.raises(ConfigError, match="is no text"):
        config.make({"out": value})


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_archives_say_how_large_they_would_be(tmp_path, monkeypatch):
    """A header of terabytes, a label of 2**40, and what unpacks to more than there is."""
    path = tmp_path / "a.npz"
    good = npy(np.zeros((4, 2), np.float32))
    npz(path, inputs=good.replace(b"(4, 2)", b"(4, 9)"), targets=npy(np.arange(4)))
    with pytest.raises(DataError, match=r"declares \(4, 9\) of float32, but holds"):
        sources.arrays(path)
    np.savez(path, inputs=np.arange(16.0).reshape(8, 2), targets=np.array([0, 2**40] * 4))
    assert sources.arrays(path).classes == ("0", str(2**40))
    npz(path, inputs=npy(np.zeros((1000, 1000), np.float32)), targets=npy(np.arange(1000)))
    monkeypatch.setattr(memory, "free", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"needs 4.01 MB of memory, and 1.05 MB are free"):
        sources.arrays(path)


@pytest.mark.parametrize("name", ["bomb.csv.gz", "x-images-idx3-ubyte.gz"])
def test_bombs_are_not_unpacked(tmp_path, name, monkeypatch):
    """No more of them is read than fits in memory."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\x7f" * 12 + b"a,b\n" * (1 << 22)))
    monkeypatch.setattr(memory, "free", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"needs .* of memory, and 1\.05 MB are free"):
        (sources.idx if "idx" in name else sources.table)(path)


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.npy", "a.safetensors", "a.txt", "a.bin", "a.parquet", "a-ubyte"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path, name):
    """A FIFO is refused at once."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(PipeError, match="is not a regular file"):
        config.make({"data": str(tmp_path / name)}).data.prepare(sources.Split())


# -- one line


@pytest.mark.parametrize(("into", "code"), [(">/dev/full", 2), (">&-", 2)])
@pytest.mark.parametrize("command", ["show", "--help"])
def test_an_output_that_takes_nothing_is_one_line(command, into, code):
    """A full or a closed one, in any command."""
    one_line(pipe(command, into=into), code)


def test_a_closed_stderr_ends_no_command():
    """What would be said there is not, and the result is the same."""
    done = pipe("runs", "/none", into="2>&-")
    assert (done.returncode, done.stderr) == (2, "")
    assert pipe("--help", into="2>&-").returncode == 0


def test_a_reader_that_has_gone_is_no_error():
    """Of any command, also of click's own output."""
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -m cli.main --help | exec 0<&-; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_a_limit_of_memory_is_one_line(tmp_path):
    """Under ulimit -v, what is too much is told, and not where in the code."""
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", 1 << 32)
    one_line(pipe("show", "--data", "a.txt", "--model", "transformer", cwd=tmp_path, limit=3 << 30,
                  env={**os.environ, "OMP_NUM_THREADS": "1"}))  # fmt: skip


def test_the_net_has_the_machine_s_refusals_alone():
    """A full disk, too little memory; a mistake of ours is none of them, whatever it is about."""
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE):
        assert os.strerror(number) in ending.machine_error(OSError(number, "x", "file"))
    assert "too little memory" in ending.machine_error(MemoryError())
    assert "too little memory" in ending.machine_error(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    )
    for error in (KeyError("x"), TypeError("x"), FileNotFoundError(errno.ENOENT, "x"), OSError(errno.EBADF, "x"),
                  RuntimeError("shape"), AssertionError(), RecursionError()):  # fmt: skip
        assert ending.machine_error(error) is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ABOUT = {
    "format": 1, "classes": ["a", "b"], "notes": [],
    "fixed": {"source": "x.csv", "inputs": [2], "floats": True, "outputs": 2, "task": "classification", "sizes": {},
              "values": ["inputs", "targets"]},
    "fitted": {"columns": [{"name": "x", "kind": "number", "mean": 0.0, "std": 1.0, "missing": False}],
               "targets": {"names": ["y"], "task": "classification", "kinds": ["category"], "classes": ["a", "b"]}},
}  # fmt: skip


def places(value, at=()):
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


@given(st.sampled_from([p for p in places(ABOUT) if p]), plain)
def test_a_data_json_of_other_types_is_refused(place, value):
    """Whatever stands in a place of it, it is read as what it is, or refused in one line."""
    made = json.loads(json.dumps(ABOUT))
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        found = About.read(made, "data.json")
    except PipeError as e:
        assert "\n" not in str(e)  # noqa: PT017  # both ends are right
        return
    assert found.task in ("classification", "regression", "several labels", "language modelling")
    assert isinstance(found.target, str)


drawn_rows = st.fixed_dictionaries(
    {"epoch": st.integers(0, 3) | plain, "step": st.integers(0, 3), "validate/loss": plain, "better": plain,
     "seconds": plain}
)  # fmt: skip


@given(st.lists(plain | drawn_rows))
def test_rows_that_are_none_are_left_out(lines):
    """Whatever a metrics.jsonl holds, its rows are numbers, and can be drawn and ranked."""
    from cli import ranking

    with TemporaryDirectory() as folder:
        (Path(folder) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = ranking.read(Path(folder))
    for r in rows:
        assert sum([r.get("seconds") or 0.0]) < 1e301
        ranking.best_epoch(rows, None)
        ranking.validation(r)
    assert all(type(r["epoch"]) is int for r in log.read("/none/x")) or not rows


def test_init_writes_no_settings_of_a_name(tmp_path, monkeypatch):
    """A newline in a column's name makes no line of the file; what is not commented is as it was."""
    from cli.main import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text('"x\n[run]\nepochs = 7","\x1b[31m\u202ey"\n' + "1,a\n2,b\n" * 20)
    cli.main(["init", "a.csv"], standalone_mode=False)
    written = (tmp_path / "pipe.toml").read_text()
    assert not HIDDEN.search(written)
    assert tomllib.loads(written).get("run", {}).get("epochs") != 7


def test_room_is_not_asked_of_what_can_not_be_made_without_memory():
    """A module that reads its own numbers while it is made is let through."""
    import torch
    from torch import nn

    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            assert float(torch.ones(()) + self.weight.sum()) < 100

    room.check(Odd, (), 1, "cpu")


@given(st.lists(names, min_size=1, max_size=3), st.booleans())
def test_csv_is_safe_unless_it_is_asked_raw(cells, raw):
    """No cell is a formula, and none has a control character; `--raw-text` leaves all as it is."""
    pl = pytest.importorskip("polars")
    from cli import prediction_files

    cells = [c.encode(errors="replace").decode() for c in cells]
    frame = pl.DataFrame({"=x": cells})
    made = frame if raw else prediction_files._safe(frame)
    assert made.columns == (["=x"] if raw else ["'=x"])
    for before, after in zip(cells, made.to_series(), strict=True):
        assert after == (before if raw else text.quoted(before))
