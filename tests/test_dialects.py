"""Tables in text as people write them: read right, or refused with the file; never silently as other values."""

import math
from datetime import datetime, timedelta

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.sources.columns import DATE, NUMBER, TIME, TRUTH, names, readings, values
from pipeline.sources.formats import read_table

FORMS = {
    "iso": "%Y-%m-%d", "iso time": "%Y-%m-%d %H:%M:%S", "T": "%Y-%m-%dT%H:%M:%S", "zone": "%Y-%m-%dT%H:%M:%S+02:00",
    "us": "%m/%d/%Y", "us time": "%m/%d/%Y %H:%M", "uk": "%d/%m/%Y", "dots": "%d.%m.%Y", "short": "%m/%d/%y",
    "word": "%d-%b-%Y", "long": "%B %d, %Y", "compact": "%Y%m%d", "slash": "%Y/%m/%d", "half": "%d/%m/%Y %I:%M %p",
}  # fmt: skip
TRUTHS = [("True", "False"), ("yes", "no"), ("TRUE", "FALSE"), ("t", "f"), ("Y", "N"), ("on", "off")]
WORDS = ["red", "green", "dark blue", "Köln", "a, b", "x;y", 'said "so"', "it's", "5 kg", "1-2", "$", "12b", "=1+1"]


def grouped(x, decimal, thousands, digits):
    """A number with marks."""
    whole, _, fraction = f"{abs(x):.{digits}f}".partition(".")
    head = whole[: len(whole) % 3]
    parts = ([head] if head else []) + [whole[i : i + 3] for i in range(len(head), len(whole), 3)]
    text = (thousands.join(parts) if thousands else whole) + (decimal + fraction if digits else "")
    return ("-" if x < 0 else "") + text


@st.composite
def columns(draw, rows, decimal, missing):
    """A column's kind, texts and values: numbers, days since 1970, 0 and 1, or texts; None if missing."""
    kind = draw(st.sampled_from(["float", "whole", "money", "share", "bracket", "date", "truth", "word"]))
    if kind in ("float", "whole", "money", "share", "bracket"):
        digits = 0 if kind == "whole" else draw(st.integers(1, 4))
        thousands = draw(st.sampled_from(["", "", {".": ",", ",": "."}[decimal], " ", "'"]))
        most = draw(st.sampled_from([9, 999, 10**7]))
        found = [round(draw(st.floats(-most, most)), digits) + 0.0 for _ in range(rows)]
        texts = [grouped(x, decimal, thousands, digits) for x in found]
        if kind == "money":
            sign = draw(st.sampled_from(["$", "€", "£"]))
            texts = [t.replace("-", f"-{sign}") if t.startswith("-") else sign + t for t in texts]
        elif kind == "share":
            texts = [f"{t}%" for t in texts]
        elif kind == "bracket":
            texts = [f"({t[1:]})" if t.startswith("-") else t for t in texts]
    elif kind == "date":
        form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
        step = draw(st.sampled_from([1, 3, 37]))
        begin = datetime(draw(st.integers(1971, 2060)), draw(st.integers(1, 12)), draw(st.integers(1, 28)))
        clock = timedelta(hours=5, minutes=30) * ("H" in form or "I" in form)
        days = [begin + timedelta(days=step * i) + clock * (i % 3) for i in range(rows)]
        texts = [d.strftime(form) for d in days]
        offset = timedelta(hours=2) * ("+02" in form)
        found = [(d - offset - datetime(1970, 1, 1)) / timedelta(days=1) for d in days]
    elif kind == "truth":
        pair = draw(st.sampled_from(TRUTHS))
        truths = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
        texts, found = [pair[not t] for t in truths], [float(t) for t in truths]
    else:
        found = texts = draw(st.lists(st.sampled_from(WORDS), min_size=rows, max_size=rows))
    absent = draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) if draw(st.booleans()) else [False] * rows
    texts = [missing if a else t for a, t in zip(absent, texts, strict=True)]
    return kind, texts, [None if a else x for a, x in zip(absent, found, strict=True)]


def quoted(cell, separator, quote, every, escape):
    if not every and not any(mark in cell for mark in (separator, quote, "\n")):
        return cell
    return quote + cell.replace(quote, (escape or quote) + quote) + quote


@st.composite
def files(draw):
    rows = draw(st.integers(6, 30))
    decimal, missing = draw(st.sampled_from(".,")), draw(st.sampled_from(["", "NA", "nan", "null", "?", "-", "N/A"]))
    made = [draw(columns(rows, decimal, missing)) for _ in range(draw(st.integers(2, 5)))]
    separator, quote = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(['"', '"', '"', "'"]))
    every, escape = draw(st.booleans()), draw(st.sampled_from([None, None, None, "\\"]))
    header = draw(st.booleans())
    table = [[f"name {i}" for i in range(len(made))]] * header + [
        list(row) for row in zip(*(m[1] for m in made), strict=True)
    ]
    lines = [separator.join(quoted(c, separator, quote, every, escape) for c in row) for row in table]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(1, len(lines))), "")
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(lines) + end * draw(st.booleans())
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    return text.encode(encoding), header, made


def is_read(frame, made, found):
    """Whether each column has the known values."""
    for name, (kind, texts, wanted) in zip(frame.data.columns, made, strict=True):
        reading = found[name]
        if all(x is None for x in wanted):
            assert frame.column(name).null_count() == len(frame) or texts[0] == "-", name
        elif reading.kind in (NUMBER, DATE, TIME, TRUTH):
            assert kind != "word", (name, reading)
            expected = np.array([math.nan if x is None else x for x in wanted])
            np.testing.assert_allclose(values(frame, name, reading), expected, rtol=1e-12, atol=1e-9)
        else:
            # As text, nothing is changed; but numbers in one form are no texts.
            found_texts = [None if x is None and t in (None, "-") else t for x, t in
                           zip(wanted, names(frame, name, reading).to_list(), strict=True)]  # fmt: skip
            assert found_texts == [None if x is None else t for x, t in zip(wanted, texts, strict=True)]
            assert kind in ("word", "truth") or (kind == "share" and "" in texts), (name, reading)


@settings(max_examples=200)
@given(files())
def test_a_dialect_is_read_right_or_refused(tmp_path_factory, file):
    """Separator, quotes, header, decimal mark, dates, words for a missing value, encoding and line ends of any kind."""
    content, header, made = file
    assume(header or any(kind != "word" for kind, *_ in made))  # else nothing tells
    path = tmp_path_factory.getbasetemp() / "dialect.csv"
    path.write_bytes(content)
    refused = ""
    try:
        frame = read_table(path)
        found = readings(frame)
        for name in frame.data.columns:
            if found[name].kind in (NUMBER, DATE, TIME, TRUTH):
                values(frame, name, found[name])
    except DataError as e:
        refused = str(e)
    if refused:
        assert refused.startswith(str(path))
        return
    assert len(frame.data.columns) == len(made)
    assert len(frame) == len(made[0][1])
    is_read(frame, made, found)
