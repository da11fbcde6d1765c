"""The output file of a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline import files
from pipeline.errors import ConfigError


@contextmanager
def written(path: Path, *, new: bool = False) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` when it is complete.

    Raises ConfigError if it can't be written, or if it is to be `new` and exists.
    """
    try:
        files.folder(path.parent)
        if path.is_dir():
            raise OSError(None, "Is a directory", str(path))
        with files.writing(path, new=new) as file:
            yield file
    except OSError as e:
        if isinstance(e, BrokenPipeError):
            raise
        raise ConfigError(f"can't write {path}: {e.strerror or e}") from None
