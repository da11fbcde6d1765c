"""Text: strings from data made safe for a terminal, a page or a table."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than newline and tab, bidirectional controls, line separators, and lone surrogates."""
_FORMULA = re.compile(r"[=+\-@\t\r]")


def shown(text: str, *, lines: bool = True) -> str:
    r"""Text with control characters escaped; newlines and tabs too unless `lines`.

    >>> shown("\x1b[31mred\u202e"), shown("a\nb", lines=False)
    ('\\x1b[31mred\\u202e', 'a\\x0ab')
    """
    text = _HIDDEN.sub(_escaped, text)
    return text if lines else re.sub("[\t\n]", _escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])  # JSON and TOML read four-digit escapes back as the character
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


def some(names: Iterable[str], most: int = 4) -> str:
    """The first of some names.

    >>> some("abcde")
    'a, b, c, d, ...'
    """
    names = list(names)
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def quoted(cell: str) -> str:
    """A cell with a ' in front if a spreadsheet would take it for a formula.

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
