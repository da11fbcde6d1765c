"""The README's Python blocks run, one after the other in one namespace, and its install commands are the ones CI
runs."""

import re
from pathlib import Path

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


def test_ci_runs_the_test_command_of_the_readme():
    """There is one command that installs and tests, and .ci/run has it from the README."""
    assert "pytest" in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_readme_points_to_files_that_are_there():
    """Links within the repository lead somewhere."""
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
