"""Rows of a table, as the program takes them: columns by name, with null or an empty text for a missing value."""

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Any

import torch

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
FORMS = {"%Y-%m-%d": re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII),
         "%Y%m%d": re.compile(r"(19|20|21)\d{6}", re.ASCII)}  # fmt: skip
"""Texts of forms of which strptime reads more."""
CLOCK = re.compile(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
TRUTHS = {"false": 0, "no": 0, "f": 0, "n": 0, "off": 0, "true": 1, "yes": 1, "t": 1, "y": 1, "on": 1}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(_: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header, in UTF-8."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head, *rows = csv.reader(file, strict=True)
    except csv.Error as e:
        raise ValueError(f"{path} is no CSV: {e}") from None
    if len({*head}) < len(head):
        raise ValueError(f"{path} has two columns of one name")
    return [dict(zip(head, row, strict=True)) for row in rows if row]


def tensors(facts: Mapping[str, Any], rows: Sequence[Any]) -> list[torch.Tensor]:
    """Rows as the inputs of the program. Raises ValueError for a cell of another kind than its column."""
    found = []
    for given in facts["inputs"]:
        cells = [[code for c in given["columns"] for code in cell(facts, row, i, c)] for i, row in enumerate(rows, 1)]
        width = sum(c.get("words", 1) for c in given["columns"])
        found.append(torch.tensor(cells, dtype=getattr(torch, given["dtype"])).reshape(len(rows), width))
    return found


def cell(facts: Mapping[str, Any], row: Any, number: int, column: Mapping[str, Any]) -> list[float]:
    """The number, the code, or the codes of the words in a cell."""
    name, kind = column["name"], column["kind"]
    if not isinstance(row, dict) or name not in row:
        raise ValueError(f"row {number} has no column {name!r}; null is a missing value")
    value = row[name].strip() if isinstance(row[name], str) else row[name]
    words = isinstance(value, str) and value.lower()
    blank = value is None or (words or label(value).lower()) in facts["missing"]
    if kind in ("category", "text"):
        if isinstance(value, list | dict):
            raise ValueError(f"row {number}, column {name!r}: {value!r} is no text")
        if kind == "category":
            return [0 if blank else column["codes"].get(label(value), 0)]
        codes = [] if blank else [column["codes"].get(word) for word in split(label(value))]
        known = [code for code in codes if code is not None][: column["words"]]
        return known + [0] * (column["words"] - len(known))
    if blank or words in facts["blanks"]:
        return [float("nan")]
    try:
        read = READERS[kind](value, column)
    except (ValueError, TypeError, OverflowError, KeyError):
        read = float("inf")
    named = [float(text) for text in facts["missing"] if NUMBER.fullmatch(text)]
    if kind == "number" and read in named:  # "-999.0" for -999
        return [float("nan")]
    if abs(read) == float("inf"):
        form = f" as {column['form']}" if column.get("form") else ""
        raise ValueError(f"row {number}, column {name!r}: {value!r} is not a {kind}{form}")
    return [read]


def label(value: Any) -> str:
    """A cell as text: 5.0 is "5"."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def unseen(facts: Mapping[str, Any], rows: Sequence[Any]) -> list[str]:
    """A line for each column with categories that the model never saw; of rows that `tensors` takes."""
    found = []
    for column in (c for given in facts["inputs"] for c in given["columns"] if c["kind"] == "category"):
        name, codes, missing = column["name"], column["codes"], facts["missing"]
        cells = [label(row[name]) for row in rows if row[name] is not None]
        if new := [c for c in cells if c not in codes and c.lower() not in missing]:
            some = ", ".join(map(repr, [*dict.fromkeys(new)][:3]))
            about = f"{len(new)} of {len(rows)} rows have values of {name!r} that the model never saw, such as {some}"
            found.append(f"{about}; they count as missing")
    return found


def split(text: str) -> list[str]:
    """The words of a text in lower case: letters, marks and digits, with what follows an apostrophe."""
    text = text.lower()
    kinds = "".join("'" if c in "'\u2019" else unicodedata.category(c)[0] for c in text)
    return [text[m.start() : m.end()] for m in re.finditer("[LMN]+(?:'L+)?", kinds)]


def number(value: Any, _: Any) -> float:
    """A number, or a text such as 4500.5."""
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value)):
        raise ValueError
    return float(value)


def truth(value: Any, _: Any) -> float:
    """A truth value, 0 or 1, or a word for it."""
    if isinstance(value, str):
        return TRUTHS[value.lower()]
    if value not in (0, 1) and value == value:  # NaN is missing
        raise ValueError
    return float(value)


def day(value: Any, column: Mapping[str, Any]) -> float:
    """Days since 1970 of a date in ISO 8601, or in the form of the training data; UTC without another zone."""
    form, text = column.get("form") or "%Y-%m-%d", str(value)
    if form in FORMS and not FORMS[form].fullmatch(text):
        raise ValueError
    if form == "%Y-%m-%d":
        when = datetime.fromisoformat(text)
    else:
        when = datetime.strptime(text, form) if "%d" in form else datetime.strptime(f"1 {text}", f"%d {form}")
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH
    return since.days + (since.seconds + since.microseconds / 1e6) / 86400


def clock(value: Any, _: Any) -> float:
    """Seconds of a time such as 17:05:30."""
    if not CLOCK.fullmatch(value):
        raise ValueError
    at = time.fromisoformat(value)
    return at.hour * 3600 + at.minute * 60 + at.second + at.microsecond / 1e6


READERS = {"number": number, "truth": truth, "date": day, "time": clock}
