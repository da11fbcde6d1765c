"""The README's Python blocks run, one after the other in one namespace, and its install commands are the ones CI
runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint, fit, schedules, testing, update
from tests import pipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    """Each block does what it says, from a folder of its own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert "epoch 20/20" in capsys.readouterr().out


def test_the_command_and_python_of_the_first_screen_are_the_same_run(tmp_path, monkeypatch, capsys, pipe):
    """Every line of an epoch but for its speed, and every bit of the weights."""
    monkeypatch.chdir(tmp_path)
    block = re.search(r"The same in Python.*?```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(block[1], "README.md", "exec"), namespace)
    python = capsys.readouterr().out
    code, out, err = pipe("train", "--out", "run")
    assert (code, err) == (0, "")
    epochs = [re.findall(r"(epoch .*)  [\d,]+ samples/s", said) for said in (python, out)]
    assert len(epochs[0]) == 20
    assert epochs[0] == epochs[1]
    weights = namespace["pipe"].weights(namespace["report"].state)
    testing.same({**weights}, {k: load_file(tmp_path / "run" / "model.safetensors")[k] for k in weights})


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_of_the_docs_works_as_written(page, tmp_path, monkeypatch, pipe):
    """In a clean folder, each Python block runs and each command ends well, in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    namespace: dict[str, object] = {"__name__": page.stem}
    blocks = re.findall(r"```(python|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert {kind for kind, _ in blocks} >= {"python"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page.name, "exec"), namespace)
            continue
        for line in block.splitlines():
            name, *words = shlex.split(line, comments=True)
            code, out, err = pipe(*words)
            assert (name, code) == ("pipe", 0), f"{line}\n{out}\n{err}"


def test_the_rule_of_ten_lines_has_all_that_others_have(tmp_path):
    """The README's rule is at most ten lines; in groups, with a schedule, it compiles, and resumes bit for bit."""
    [text] = re.findall(r"(@update.rule.*?)\n```", README, re.DOTALL)
    assert len(text.splitlines()) <= 10
    namespace = {"torch": torch, "update": update}
    exec(text, namespace)
    rule = namespace["heavy_ball"]
    pipe = pipes.digits(update.groups({"*.bias": rule(0.03)}, otherwise=rule(schedules.cosine(0.1))), size=256)
    step = pipe.compile(backend="aot_eager", donate=False)
    batch = pipes.first(pipe)
    testing.compiled_equals_eager(step, pipe.init(0, steps=12), [batch, batch])
    with checkpoint.Saver(tmp_path) as saver:
        for whole in fit(pipe, epochs=2, every=3, compile=False):
            if whole.step == 3:
                saver.offer(whole, now=True)
    saved = checkpoint.newest(tmp_path).saved
    *_, resumed = fit(pipe, epochs=2, state=saved.restore(pipe), start=saved.start, compile=False)
    testing.same(resumed.state.tree, whole.state.tree)


def test_ci_runs_the_test_command_of_the_readme():
    """There is one command that installs and tests, and .ci/run has it from the README."""
    assert "pytest" in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    """Links within the repository are to files that are there."""
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
