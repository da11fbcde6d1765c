"""The columns of a table, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.text import shown

if TYPE_CHECKING:
    from pipeline.sources.prepared import Column


def table(columns: Sequence[Column], most: int | None = None) -> Padding:
    """The decision on each of the first columns: kind, range, missing values and note."""
    rows = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("column", "kind", "range", "missing", "note"):
        rows.add_column(name, justify="right" if name == "missing" else "left", overflow="fold")
    for c in columns[:most]:
        cells = (c.name, c.kind, c.range, f"{c.missing:,}" if c.missing else "", c.note)
        rows.add_row(*(Text(shown(cell, lines=False)) for cell in cells), style="yellow" if c.alarm else "")
    return Padding(rows, (0, 0, 0, 8))
