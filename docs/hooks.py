"""What the site has besides docs/: the README as its first page, other Markdown of the repository, and the reference.

The reference has all names of `pipeline.__all__`. Of a module, it has the names of its own `__all__`, or else its
public functions and classes. The code is read, not run.
"""

from collections.abc import Iterator
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
        names = [str(k) for k in module.exports or ()] or [k for k, x in module.members.items() if is_own(x, module)]
        options = "{members: false, show_root_heading: false}"
        yield name, f"# pipeline.{name}\n\n::: pipeline.{name}\n    options: {options}\n\n{entries(module, names)}"


def is_own(member: Any, module: Any) -> bool:
    """Whether a public function or class is defined in a module, or in one of its own files."""
    if member.name.startswith("_") or (member.is_alias and not member.target_path.startswith(f"{module.path}.")):
        return False
    return bool(member.is_function or member.is_class)


def summary(module: Any) -> str:
    """The first sentence of a module's docstring, without the module's name."""
    text = " ".join(module.docstring.value.split("\n\n")[0].split()) if module.docstring else ""
    return text.split(". ")[0].partition(": ")[2].rstrip(".") or text.split(". ")[0].rstrip(".")


def entries(module: Any, names: list[str]) -> str:
    """An entry for each name, by the path of its definition: `pipeline.update.adam` is a module and a rule."""
    imported = [module.imports.get(name, f"{module.path}.{name}") for name in sorted(names)]
    found = module.modules_collection
    known = [path for path in imported if path.rpartition(".")[2] in found[path.rpartition(".")[0]].members]
    return "\n\n".join(f"::: {found[path].canonical_path}" for path in known) + "\n"  # griffe misses A, B = 1, 2
