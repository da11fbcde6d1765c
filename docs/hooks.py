"""What the site has besides docs/: the README as its first page, other Markdown, the reference, and llms.txt.

The reference has all names of `pipeline.__all__`. Of a module, it has the names of its own `__all__`, or else its
public functions and classes. The code is read, not run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md", "benchmarks/results/*.md", "benchmarks/results/*.png")
ALSO = ["testing"]
"""Public modules that `import pipeline` alone does not import."""
LONGEST = 200
"""Characters of what a page is about, in llms.txt."""
OPTIONAL = {"Project": "Optional"}
"""Sections of the nav that a reader of llms.txt may skip."""


def on_files(files: Files, config: Any) -> Files:
    """Add pages that are not in docs/."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    notes = {}
    for name, note, markdown in reference():
        notes[f"reference/{name}.md"] = note
        files.append(File.generated(config, f"reference/{name}.md", content=markdown))
    pages = {
        file.src_uri: (file.url, notes.get(file.src_uri) or opening(file.content_string))
        for file in files
        if file.is_documentation_page()
    }
    text = llms(config.site_name, config.site_description, config.nav, pages)
    files.append(File.generated(config, "llms.txt", content=text))
    return files


def llms(name: str, about: str, nav: Sequence[Any], pages: Mapping[str, tuple[str, str]]) -> str:
    """The pages of the site in the form of https://llmstxt.org: a section for each of the nav, a line for each page.

    `pages`: source -> its address in the site, and what it is about.
    """
    lines = [f"# {name}", "", f"> {about}"]
    for section, entries in (item for part in nav for item in part.items()):
        lines += ["", f"## {OPTIONAL.get(section, section)}", ""]
        for entry in [{section: entries}] if isinstance(entries, str) else entries:
            title, source = next(iter(entry.items())) if isinstance(entry, dict) else (section, entry)
            url, note = pages[source]
            lines.append(f"- [{title}]({url}): {note}")
    return "\n".join(lines) + "\n"


def opening(markdown: str) -> str:
    """The begin of the first paragraph that is plain text, or else the headings of the sections."""
    plain = [p for p in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL).split("\n\n") if re.match(r"[\w`*]", p)]
    text = plain[0] if plain else "; ".join(re.findall(r"^##+ (.*)", markdown, re.MULTILINE))
    return shorten(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("**", ""), LONGEST, placeholder=" ...")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shorten links between docs/, which is the root of the site, and the rest of the repository."""
    in_docs = (ROOT / "docs" / page.file.src_uri).exists()
    return markdown.replace("](../", "](") if in_docs else markdown.replace("](docs/", "](")


def reference() -> Iterator[tuple[str, str, str]]:
    """Name of each page of the reference, what it is about, and its Markdown."""
    pipeline = griffe.load("pipeline", search_paths=[ROOT])
    own, steps = [], list(ALSO)
    for name in pipeline.exports or []:
        (steps if pipeline.imports[str(name)] == f"pipeline.{name}" else own).append(str(name))
    listed = "\n".join(f"- [`pipeline.{name}`]({name}.md): {summary(pipeline[name])}" for name in sorted(steps))
    yield "index", "all public names", f"# pipeline\n\n{listed}\n\n{entries(pipeline, own)}"
    for name in steps:
        module = pipeline[name]
        options = "{members: false, show_root_heading: false}"
        yield (
            name,
            summary(module),
            f"# pipeline.{name}\n\n::: pipeline.{name}\n    options: {options}\n\n{entries(module)}",
        )


def summary(module: Any) -> str:
    """The first sentence of a module's docstring, without the module's name."""
    text = " ".join(module.docstring.value.split("\n\n")[0].split()) if module.docstring else ""
    return text.split(". ")[0].partition(": ")[2].rstrip(".") or text.split(". ")[0].rstrip(".")


def entries(module: Any, names: Iterable[str] = ()) -> str:
    """An entry for each name, by the path of its definition: `pipeline.update.adam` is a module and a rule."""
    names = names or [str(name) for name in module.exports or ()]
    return "\n\n".join(f"::: {path}" for path in sorted(definitions(module, names), key=last)) + "\n"


def definitions(module: Any, names: Iterable[str]) -> Iterator[str]:
    """Paths of the definitions of these names, or of all public functions and classes of a module without `__all__`."""
    for name in names or module.members:
        path = module.imports.get(name, f"{module.path}.{name}")
        own = path.startswith(f"{module.path}.") and not name.startswith("_")
        if not (names or own) or last(path) not in module.modules_collection[path.rpartition(".")[0]].members:
            continue  # griffe does not see A and B in `A, B = 1, 2`
        found = module.modules_collection[path]
        if names or found.is_function or found.is_class:
            yield found.canonical_path


def last(path: str) -> str:
    return path.rpartition(".")[2]
