"""Text: what comes from data, as a terminal, a page or a table may show it."""

from __future__ import annotations

import re

_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, turns a line around or can't be written: control characters, but for the ends of lines and tabs,
directions of writing, separators of lines, and halves of a pair."""
_FORMULA = re.compile(r"[=+\-@\t\r]")


def shown(text: str, *, lines: bool = True) -> str:
    r"""A text with its control characters made visible; without `lines`, ends of lines and tabs too.

    >>> shown("\x1b[31mred\u202e"), shown("a\nb", lines=False)
    ('\\x1b[31mred\\u202e', 'a\\x0ab')
    """
    text = _HIDDEN.sub(_escaped, text)
    return text if lines else re.sub("[\t\n]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])  # JSON and TOML read those of four digits as what they stand for
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


def quoted(cell: str) -> str:
    """A cell that a spreadsheet does not take for a formula: with a ' in front where it would.

    >>> quoted("=1+1"), quoted("-1.5"), quoted("a=b")
    ("'=1+1", '-1.5', 'a=b')
    """
    if not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
