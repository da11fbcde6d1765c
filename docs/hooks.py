"""What the site has besides docs/: the README as its first page, other Markdown of the repository, and the reference.

The reference has all names of `pipeline.__all__`. Of a module, it has the names of its own `__all__`, or else its
public functions and classes. The code is read, not run.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md", "benchmarks/results/*.md", "benchmarks/results/*.png")
ALSO = ["testing"]
"""Public modules that `import pipeline` alone does not import."""


def on_files(files: Files, config: Any) -> Files:
    """Add pages that are not in docs/."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, markdown in reference():
        files.append(File.generated(config, f"reference/{name}.md", content=markdown))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shorten links between docs/, which is the root of the site, and the rest of the repository."""
    in_docs = (ROOT / "docs" / page.file.src_uri).exists()
    return markdown.replace("](../", "](") if in_docs else markdown.replace("](docs/", "](")


def reference() -> Iterator[tuple[str, str]]:
    """Name and Markdown of each page of the reference."""
    pipeline = griffe.load("pipeline", search_paths=[ROOT])
    own, steps = [], list(ALSO)
    for name in pipeline.exports or []:
        (steps if pipeline.imports[str(name)] == f"pipeline.{name}" else own).append(str(name))
    listed = "\n".join(f"- [`pipeline.{name}`]({name}.md): {summary(pipeline[name])}" for name in sorted(steps))
    yield "index", f"# pipeline\n\n{listed}\n\n{entries(pipeline, own)}"
    for name in steps:
        module = pipeline[name]
        options = "{members: false, show_root_heading: false}"
        yield name, f"# pipeline.{name}\n\n::: pipeline.{name}\n    options: {options}\n\n{entries(module)}"


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
