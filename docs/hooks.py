"""The site also has the README as its first page, and other Markdown of the repository, with the links between them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md", "benchmarks/results/*.md", "benchmarks/results/*.png")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages to those of docs/."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the site, docs/ is the root: links between it and the rest of the repository become shorter."""
    beside = page.file.src_uri == "index.md" or not (ROOT / "docs" / page.file.src_uri).exists()
    return markdown.replace("](docs/", "](") if beside else markdown.replace("](../", "](")
