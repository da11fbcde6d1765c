"""llms.txt: every page of the site's nav, with a sentence about it."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site's own packages are the extra docs")
ROOT = Path(__file__).parent.parent


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_of_the_nav_is_there():
    """In the form of llmstxt.org: a title, what it is, and sections of links, each with a note."""
    nav = [{"Home": "index.md"}, {"Guides": [{"My data": "data.md"}, {"Rules": "rules.md"}]}, {"Project": ["log.md"]}]
    pages = {
        "index.md": ("index.html", "# it\n\nA library: [fast](a.md) **too**. More.\n"),
        "data.md": ("data.html", "# Data\n\n```console\npipe data\n```\n\nA `file` or\na folder.\n\nNo.\n"),
        "rules.md": ("rules.html", "# Rules\n\n## One\n\n- a\n\n## Two\n"),
        "log.md": ("log.html", "# Log\n\n| a |\n\nWhat was tried: all.\n"),
    }
    found = hooks()
    notes = {source: (url, found.opening(text)) for source, (url, text) in pages.items()}
    assert found.llms("it", "Is it", nav, notes).splitlines() == [
        "# it", "", "> Is it", "", "## Home", "", "- [Home](index.html): A library: fast too. More.", "",
        "## Guides", "",
        "- [My data](data.html): A `file` or a folder.", "- [Rules](rules.html): One; Two", "", "## Optional", "",
        "- [Project](log.html): What was tried: all.",
    ]  # fmt: skip


def test_each_page_has_an_opening():
    """Of the pages as they are."""
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in re.findall(r": ([\w-]+\.md)", nav.partition("\nnav:")[2]):
        path = ROOT / ("README.md" if page == "index.md" else page if page.isupper() else f"docs/{page}")
        path = path if path.exists() else ROOT / page
        assert len(hooks().opening(path.read_text())) > 10, page
