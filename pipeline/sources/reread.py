"""Columns of another file than the one that told what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.sources import dates, numbers
from pipeline.sources.columns import (
    DATE,
    NUMBER,
    Reading,
    counted,
    decimal_of,
    from_texts,
    refuse_days,
    refuse_decimal,
)
from pipeline.sources.frame import Frame, package

SAME = "write them as the training rows are"


def reread(frame: Frame, known: Mapping[str, Reading], held: dict[str, Reading]) -> dict[str, Reading]:
    """`held`, with the readings of further columns: as they are `known` of the training rows, or, for texts that do not
    fit these, in another form. The decimal mark of the file, if some columns tell it, holds for all.

    Raises DataError, with a cell, for a column that can be read in two ways.
    """
    new = {name: reading for name, reading in known.items() if name not in held}
    valued = {name: frame.column(name) for name, reading in new.items() if reading.kind in (NUMBER, DATE)}
    texts = {name: counted(frame, column) for name, column in valued.items() if column.dtype == package().String}
    texts = {name: (seen, counts) for name, (seen, counts) in texts.items() if len(seen)}
    other = [name for name, (seen, _) in texts.items() if from_texts(seen, new[name]).null_count()]
    forms = {name: numbers.forms(*texts[name], 0.0) for name in texts if new[name].kind == NUMBER}
    decimal = decimal_of({}, texts, forms)
    held |= new
    for name, reading in new.items():
        if reading.kind == DATE and name in other:
            held[name] = _days(frame, name, *texts[name], reading)
        elif name in forms and (name in other or decimal not in (None, reading.form[:1])):
            held[name] = _numbers(frame, name, texts[name][0], forms[name], decimal, reading)
    return held


def _numbers(frame: Frame, name: str, texts: Any, forms: list[str], decimal: str | None, known: Reading) -> Reading:
    unit = numbers.unit_of(texts)
    if not forms or (unit != known.unit and (numbers.PERCENT in (unit, known.unit) or (unit and known.unit))):
        return known
    form = numbers.chosen(forms, decimal or ("." if "." in forms else frame.decimal))
    if form is None:
        raise refuse_decimal(frame, name, forms, SAME)
    return Reading(NUMBER, form, unit=unit)


def _days(frame: Frame, name: str, texts: Any, counts: Any, known: Reading) -> Reading:
    """In the known order of day and month, if rows leave it open."""
    forms = dates.forms(texts, counts, 0.0)
    if len(forms) > 1:
        first = dates.day_first(known.form)
        forms = [form for form in forms if first is not None and dates.day_first(form) == first] or forms
    if len(forms) > 1:
        raise refuse_days(frame, name, forms, f"{SAME}, {known.form or '%Y-%m-%d'}")
    return Reading(DATE, forms[0]) if forms else known
