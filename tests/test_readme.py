"""The README is short and true: its Python is the run of its command, its figures are those of the results, and CI runs
its test command. The pages of the docs run as written."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint, fit, schedules, testing, update
from tests import pipes
from tests.pipes import TRACED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
RUN = [page for page in DOCS if page.stem not in ("benchmarks", "examples")]
"""Without the page that has no code, and the one of test_examples."""


@pytest.mark.parametrize("start", [(), ("--no-eager-start",)], ids=["as it is", "compiled"])
def test_the_command_and_python_of_the_readme_are_the_same_run(tmp_path, monkeypatch, capsys, pipe, start):
    """Every line of an epoch but for its speed, every bit of the weights, and what print(pipe) shows."""
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "eager_steps=1000" in block
    block = block.replace("eager_steps=1000", "eager_steps=0") if start else block
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), namespace)
    python = capsys.readouterr().out
    code, out, err = pipe("train", "--out", "run", *start)
    assert (code, err) == (0, "")
    epochs = [re.findall(r"(epoch .*)  [\d,]+ samples/s", said) for said in (python, out)]
    assert len(epochs[0]) == 20
    assert epochs[0] == epochs[1]
    weights = namespace["pipe"].weights(namespace["report"].state)
    testing.same({**weights}, {k: load_file(tmp_path / "run" / "model.safetensors")[k] for k in weights})
    assert f"```\n{namespace['pipe']}\n```" in README


def test_the_readme_is_read_in_five_minutes():
    """It has at most 900 words."""
    assert len(README.split()) <= 900


def test_the_figures_of_the_readme_are_those_of_the_results():
    """Each number of times is in the page that its row names."""
    rows = re.findall(r"^\|.*\| ([\d.]+) x.*\]\((benchmarks/results/\w+\.md)\) \|$", README, re.MULTILINE)
    assert len(rows) >= 5
    for figure, page in rows:
        results = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(rf" {re.escape(figure)}( x)? \|", results), f"{figure} is not in {page}"


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
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
    """The rule of docs/rules.md has at most ten lines; grouped and scheduled, it compiles, and resumes bit for bit."""
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    [text] = re.findall(r"(@update.rule.*?)\n```", page, re.DOTALL)
    assert len(text.splitlines()) <= 10
    namespace = {"torch": torch, "update": update}
    exec(text, namespace)
    rule = namespace["heavy_ball"]
    pipe = pipes.digits(update.groups({"*.bias": rule(0.03)}, otherwise=rule(schedules.cosine(0.1))), size=256)
    step = pipe.compile(backend=TRACED, donate=False)
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


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    """Links within the repository are to files that are there."""
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
