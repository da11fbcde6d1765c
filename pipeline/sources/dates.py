"""Dates and times in texts, each column in one form, such as `%d/%m/%Y` for all its rows."""

from __future__ import annotations

from typing import Any

from pipeline.sources.frame import most_read, package

DAYS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%Y-%m", "%d.%m.%Y", "%d.%m.%y",
    "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%m/%d/%y", "%d/%m/%y", "%m-%d-%y", "%d-%m-%y",
    "%d-%B-%Y", "%d-%B-%y", "%d %B %Y", "%d. %B %Y", "%B %d, %Y", "%B %d %Y", "%d%B%Y",
    "%m/%Y", "%B %Y", "%B-%Y",
)  # fmt: skip
"""Forms of a day, in the words of strftime. Month and day first are two forms."""
COMPACT = "%Y%m%d"
COMPACTS = (19000101, 21001231), (19000101_000000, 21001231_235959)
"""Bounds of numbers that may be days in the compact form, or days with times."""
BASIC = r"^(\d{8})[T ]?(\d{2})(\d{2})(\d{2}(?:\.\d+)?)"
"""A compact time."""
FIELDS = {
    "%Y": r"\d{4}",
    "%y": r"\d{2}",
    "%m": r"\d{1,2}",
    "%d": r"\d{1,2}",
    "%b": "[A-Za-z]{3}",
    "%B": "[A-Za-z]{3,9}",
}
CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}(?:[.,]\d{1,9})?))?(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
ZONE = r"(?:(?P<utc>Z|z|UTC|GMT)|(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?)"
STAMP = rf"^(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? )?(?P<day>.*?)(?:(?:[Tt]|\s+|,\s*){CLOCK}\s*{ZONE}?)?$"
TIME = rf"^(?P<day>){CLOCK}{ZONE}?$"


def _pattern(form: str) -> str:
    if form == COMPACT:
        return r"^(?:19|20|21)\d{6}$"
    pattern = form.replace(".", r"\.").replace(" ", r"\s+")
    for field, digits in FIELDS.items():
        pattern = pattern.replace(field, digits)
    return f"^{pattern}$"


def dates(texts: Any, form: str) -> Any:
    """Texts as days since 1970 in UTC, float64, null if of another form. A time without a zone is in UTC."""
    pl = package()
    cells = texts.str.replace(BASIC, "${1}T${2}:${3}:${4}").str.extract_groups(STAMP)
    day = cells.struct.field("day").str.strip_chars()
    day = day.set(~day.str.contains(_pattern(form)).fill_null(True), None).str.replace_all(r"\s+", " ")
    if "%d" not in form:  # a month
        day, form = "1 " + day, f"%d {form}"
    whole = day.str.to_date(form, strict=False).cast(pl.Int32).cast(pl.Float64)
    seconds = _seconds(cells)
    if cells.struct.field("hour").null_count() == len(texts):
        return whole
    return (
        whole + seconds.fill_null(0.0).set(seconds.is_null() & cells.struct.field("hour").is_not_null(), None) / 86400
    )


def times(texts: Any) -> Any:
    """Times of day as seconds, float64, null for other texts."""
    return _seconds(texts.str.extract_groups(TIME))


def _seconds(cells: Any) -> Any:
    """Seconds since the day's begin, in UTC; null without a time, and for one that no clock shows."""
    pl = package()
    part = {name: cells.struct.field(name) for name in ("hour", "minute", "second", "half", "sign", "hours", "minutes")}
    number = {
        name: part[name].str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
        for name in ("hour", "minute", "second", "hours", "minutes")
    }
    hour, half = number["hour"], part["half"].str.to_lowercase()
    good = (number["minute"] < 60) & (number["second"].fill_null(0.0) < 61)
    good &= (half.is_null() & (hour < 24)) | (half.is_not_null() & (hour >= 1) & (hour <= 12)).fill_null(False)
    hour = (hour % 12 + 12.0 * (half == "p").cast(pl.Float64)).zip_with(half.is_not_null(), hour)
    offset = number["hours"].fill_null(0.0) * 3600 + number["minutes"].fill_null(0.0) * 60
    offset = (-offset).zip_with((part["sign"] == "-").fill_null(False), offset)
    seconds = hour * 3600 + number["minute"] * 60 + number["second"].fill_null(0.0) - offset
    return seconds.set(~good.fill_null(False), None)


def forms(texts: Any, counts: Any, share: float, first: bool | None = None) -> list[str]:
    """Forms that read the most of some different texts, each occurring so many times, and at least a `share` of all;
    several if these read different days. `first` is whether days are before months, if it is known."""
    sample = texts.head(1)[0]
    if not any(c.isdigit() for c in sample):
        return []
    read = {form: dates(texts, form) for form in DAYS if first is None or day_first(form) in (None, first)}
    if COMPACT in read and read[COMPACT].null_count():  # a number is a day only among days
        del read[COMPACT]
    return most_read(read, counts, share)


def day_first(form: str) -> bool | None:
    """Whether the day is before the month; None for a form that could not be read in the other order."""
    if "%B" in form or form.lower().startswith("%y") or "." in form:
        return None
    return form.startswith("%d")
