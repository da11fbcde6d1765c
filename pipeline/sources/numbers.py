"""Numbers in texts: `4,500`, `5,1`, `$1.20`, `39%`, `(12)`.

A form is the decimal mark, followed by the mark of thousands, if there is one: "." is the form of 4500.5, ".," of
4,500.5, and ",." of 4.500,5. All numbers of a column have one form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.sources.frame import most_read, package

FORMS = (".", ".,", ". ", ".'", ",", ",.", ", ", ",'")
UNITS = r"[$€£¥₹₩₽₺฿₪₫₴]|[A-Z]{1,2}\$|USD|EUR|GBP|CHF|JPY|INR|kr|zł|Kč|%"
WHOLE = re.compile(
    rf"^(?P<minus>[-+(]?)\s*(?P<before>{UNITS})?\s*(?P<sign>[-+]?)(?P<body>[\d.,][\d.,' ]*(?:[eE][-+]?\d+)?)"
    rf"\s*(?P<after>{UNITS})?\s*(?P<close>[-)]?)$"
)
PERCENT = "%"
SPACES = "[\u00a0\u2007\u2009\u202f]"
LONG = r"^[-+]?\d{16,}$"
"""A whole number that may be none of float64's."""
ZEROS = r"^[-+]?0\d+$"
"""A whole number with leading zeros."""


def like(text: str) -> bool:
    """Whether a cell may be a number of any form."""
    found = WHOLE.match(text.strip())
    return found is not None and any(re.match(_body(form), found["body"].strip()) for form in FORMS)


def _body(form: str) -> str:
    decimal, *thousands = (re.escape(mark) for mark in form)
    mark = "".join(thousands)
    grouped = rf"[1-9]\d{{0,2}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}(?:{decimal}\d*)?|" if thousands else ""
    return rf"^(?:{grouped}(?:\d+(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][-+]?\d+)?)$"


def numbers(texts: Any, form: str, unit: str | None = None) -> Any:
    """Texts as float64, null if not a number of this form.

    A currency sign is dropped, and so is a percent sign, if all numbers have one; two signs are no one unit. If the
    `unit` is known, all have it, or, of a currency, none.
    """
    pl = package()
    simple = texts.cast(pl.Float64, strict=False) if form == "." and unit != PERCENT else None
    if simple is not None and simple.null_count() == texts.null_count():
        return simple
    cell = _cells(texts)
    body = cell["body"].str.strip_chars()
    units = cell["before"] + cell["after"]
    known = body.str.contains(_body(form)) & ((cell["minus"] == "(") == (cell["close"] == ")"))
    known &= ((cell["minus"] != "").cast(int) + (cell["sign"] != "").cast(int) + (cell["close"] == "-").cast(int)) < 2
    kinds = set(units.filter(known).unique()) - {""}
    if unit is not None:
        known &= units == PERCENT if unit == PERCENT else units.is_in(["", unit])
    elif len(kinds) > 1 or (PERCENT in kinds and bool((known & (units == "")).any())):
        return pl.Series([None], dtype=pl.Float64).new_from_index(0, len(texts))
    if len(form) > 1:
        body = body.str.replace_all(form[1], "", literal=True)
    values = body.str.replace(form[0], ".", literal=True).cast(pl.Float64, strict=False)
    below = (cell["minus"] == "-") | (cell["sign"] == "-") | cell["close"].is_in(["-", ")"])
    return pl.select(pl.when(known).then(pl.when(below).then(-values).otherwise(values))).to_series()


def _cells(texts: Any) -> dict[str, Any]:
    """The parts of numbers, by the groups of WHOLE."""
    plain = texts.str.replace_all(SPACES, " ").str.replace_all("\u2212", "-").str.replace_all("\u2019", "'")
    cells = plain.str.extract_groups(WHOLE.pattern)
    return {name: cells.struct.field(name).fill_null("") for name in WHOLE.groupindex}


def unit_of(texts: Any) -> str:
    """The unit of numbers that have one alone, or none."""
    cell = _cells(texts)
    return max((cell["before"] + cell["after"]).unique().to_list(), default="")


def forms(texts: Any, counts: Any, share: float, decimal: str | None = None) -> list[str]:
    """Forms that read the most of some different texts, each occurring so many times, and at least a `share` of all;
    several if these read different values. `decimal` is the mark, if it is known."""
    if bool(texts.str.contains(ZEROS).any()):
        return []
    read = {form: numbers(texts, form) for form in FORMS if decimal is None or form[0] == decimal}
    return most_read(read, counts, share)


def chosen(candidates: Sequence[str], decimal: str | None) -> str | None:
    """The form with this decimal mark, where several read different values; None if nothing tells."""
    if len(candidates) == 1:
        return candidates[0]
    fitting = [form for form in candidates if form[0] == decimal]
    return fitting[0] if fitting else None
