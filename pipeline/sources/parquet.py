"""Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from glob import escape
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
        lazy = pl.scan_parquet(escape(str(files.plain(path))))  # polars takes a name for a pattern
        names = _index_first(lazy.collect_schema().names(), path)
        count = int(lazy.select(pl.len()).collect().item())
        for begin in range(0, max(count, 1), ROWS):
            data = lazy.slice(begin, ROWS).select(names).collect()
            yield Frame(str(path), data, np.arange(begin, begin + len(data)) + 1)


def _index_first(names: Sequence[str], path: Path) -> list[str]:
    """Columns in the order of pandas, which writes the index of a frame last here, and first in other formats."""
    with files.opened(path) as file:
        index = json.loads(package().read_parquet_metadata(file).get("pandas", "{}")).get("index_columns", [])
    return sorted(names, key=lambda name: name not in index)
