"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.sources.files import reading
from pipeline.sources.frame import Frame, package

ROWS = 1 << 15
"""Rows of a block."""


def blocks(path: Path, _header: bool | None, *, at_once: bool) -> Iterator[Frame]:
    """The rows of a file, as one Frame or in blocks. Raises DataError for a file that is damaged."""
    pl = package()
    with reading(path, "is no Parquet file, or cut short"):
        lazy = pl.scan_parquet(files.plain(path), low_memory=not at_once)
        count = int(lazy.select(pl.len()).collect().item())
        size = max(count, 1) if at_once else ROWS
        for begin in range(0, count, size):
            data = lazy.slice(begin, size).collect()
            yield Frame(str(path), data, np.arange(begin, begin + len(data)) + 1)
