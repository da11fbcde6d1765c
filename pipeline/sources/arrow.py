"""Arrow's IPC files, also called Feather, and streams."""

from __future__ import annotations

from collections.abc import Iterator
from glob import escape
from io import BytesIO
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.sources.dialect import Dialect
from pipeline.sources.files import reading, whole
from pipeline.sources.frame import Frame, package
from pipeline.sources.parquet import ROWS

FILE = b"ARROW1"
"""First bytes of a file; all others are streams."""


def blocks(path: Path, _: Dialect) -> Iterator[Frame]:
    """The rows of a file in blocks; a stream is read as a whole. Raises DataError for a file that is damaged."""
    pl = package()
    with reading(path, "is no Arrow file, or cut short"):
        with files.opened(path) as file:
            is_file = file.read(len(FILE)) == FILE
        lazy = pl.scan_ipc(escape(str(path))) if is_file else pl.read_ipc_stream(BytesIO(whole(path, copies=2))).lazy()
        count = int(lazy.select(pl.len()).collect().item())
        for begin in range(0, max(count, 1), ROWS):
            data = lazy.slice(begin, ROWS).collect()
            yield Frame(str(path), data, np.arange(begin, begin + len(data)) + 1)
