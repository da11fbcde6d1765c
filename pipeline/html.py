"""HTML for notebooks and reports: tables, with everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as plainly

from pipeline.text import shown


def escape(text: str) -> str:
    """Text for a page."""
    return plainly(shown(text))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, foot: Sequence[object] = ()) -> str:
    """A table, its numbers aligned to the right.

    >>> table(["name"], [["<b>"]])
    '<table><thead><tr><th>name</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    body = "".join(_row(row) for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    end = f"<tfoot>{_row(foot)}</tfoot>" if foot else ""
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody>{end}</table>"


def _row(cells: Sequence[object]) -> str:
    return "<tr>" + "".join(_cell(cell) for cell in cells) + "</tr>"


def _cell(cell: object) -> str:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        text = f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
        return f'<td style="text-align: right">{text}</td>'
    return f"<td>{escape(str(cell))}</td>"
