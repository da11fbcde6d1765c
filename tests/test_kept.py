"""Runs that earlier versions made: the command does with them what it did, to the recorded values.

`tests/kept/VERSION` has the folder of a run, its data, and `values.json`, what that version found: `python -m
tests.test_kept FOLDER` writes it for a new version's.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands import run

KEPT = Path(__file__).parent / "kept"
VERSIONS = sorted(path.name for path in KEPT.iterdir())
CALLS = {
    "eval": ("eval", "run", "--json"),
    "eval last": ("eval", "run", "--weights", "last", "--json"),
    "eval data": ("eval", "run", "--data", "houses.csv", "--json"),
    "runs": ("runs", "run", "--json"),
    "export": ("export", "run", "--format", "torch", "--out", "model.pt2", "--json"),
}
SAME = ("metrics", "baseline", "temperature", "confusion", "epoch", "step", "runs", "inputs", "outputs", "classes")
"""Keys of an object whose values are kept; settings may get more."""


def found(here):
    """What the command finds in a folder with a run."""
    values = {}
    for name, args in CALLS.items():
        code, out, err = run(*args, cwd=here)
        assert code == 0, err
        values[name] = {key: value for key, value in json.loads(out).items() if key in SAME}
    for entry in values["runs"]["runs"]:
        entry["settings"] = {k: v for k, v in entry["settings"].items() if v is not None}
    code, values["predict"], err = run("predict", "run", "--data", "houses.csv", cwd=here)
    assert code == 0, err
    code, out, err = run("train", "--resume", "run", "--epochs", "5", "--json", cwd=here)
    assert code == 0, err
    values["resume"] = {key: json.loads(out)[key] for key in ("state", "epochs", "best", "last")}
    del values["resume"]["last"]["seconds"]
    return values


def like(now, kept):
    """Whether values equal kept ones up to rounding; an object may have more keys than it had."""
    if isinstance(kept, dict):
        return all(key in now and like(now[key], value) for key, value in kept.items() if key not in VARYING)
    if isinstance(kept, list):
        return len(now) == len(kept) and all(map(like, now, kept))
    return now == pytest.approx(kept, rel=1e-4, abs=1e-6) if isinstance(kept, float) else now == kept


VARYING = ("seconds", "samples_per_second", "check")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_run_does_what_it_did(tmp_path, version):
    """Evaluated, predicted with, exported, listed, resumed, plotted and reported."""
    shutil.copytree(KEPT / version, tmp_path, dirs_exist_ok=True)
    kept, now = json.loads((tmp_path / "values.json").read_text()), found(tmp_path)
    for name in kept.keys() - {"predict"}:
        assert like(now[name], kept[name]), (name, now[name], kept[name])
    rows = [text["predict"].splitlines() for text in (now, kept)]
    assert len(rows[0]) == len(rows[1])
    for line, before in zip(*rows, strict=True):
        *cells, last = line.split(",")
        *others, value = before.split(",")
        assert cells[:5] == others[:5]
        assert last == value or float(last) == pytest.approx(float(value), rel=1e-3, abs=1e-5)
    assert run("plot", "run", "--out", "c.svg", cwd=tmp_path).code == 0
    assert run("report", "run", "--out", "r.html", cwd=tmp_path).code == 0
    assert "houses.csv" in (tmp_path / "r.html").read_text()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    (folder / "values.json").write_text(json.dumps(found(copy), indent=1) + "\n")
    shutil.rmtree(copy)
