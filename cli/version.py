"""The version of the command."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def own_version() -> str:
    """The installed version, or pyproject.toml's in a checkout that is not installed."""
    try:
        return version("pipe-train")
    except PackageNotFoundError:
        project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
