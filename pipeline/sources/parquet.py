"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.sources.dialect import Dialect
from pipeline.sources.files import reading
from pipeline.sources.frame import Frame, package

ROWS = 1 << 17
"""Rows of a block."""


def blocks(path: Path, _: Dialect) -> Iterator[Frame]:
    """The rows of a file in blocks. Raises DataError for a file that is damaged."""
    pl = package()
    with reading(path, "is no Parquet file, or cut short"):
        lazy = pl.scan_parquet(files.plain(path))
        count = int(lazy.select(pl.len()).collect().item())
        for begin in range(0, max(count, 1), ROWS):
            data = lazy.slice(begin, ROWS).collect()
            yield Frame(str(path), data, np.arange(begin, begin + len(data)) + 1)
