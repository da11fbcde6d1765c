"""JSON: an object on each line, or an array of objects."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import DataError
from pipeline.sources.cells import Row, typed
from pipeline.sources.dialect import Dialect, encoding_of
from pipeline.sources.files import unpacked
from pipeline.sources.frame import Frame

BLOCK = 1 << 20
"""Bytes that are read at a time."""
LONGEST = 64 << 20
"""Characters of one object."""


def blocks(path: Path, dialect: Dialect) -> Iterator[Frame]:
    """The objects of a file, one a row: keys are columns, typed by all their values.

    Raises DataError, with the line, for anything else than an object.
    """
    yield from typed(path, lambda: objects(path, dialect.encoding), unit="line")


def objects(path: Path, encoding: str | None = None) -> Iterator[Row]:
    """The objects, with the lines on which they begin."""
    decode = json.JSONDecoder(object_pairs_hook=_once).raw_decode
    with unpacked(path) as file:
        text = Text(path, file, encoding)
        end = ""
        if text.next() == "[":
            text.at, end = text.at + 1, "]"
        while (first := text.next()) != end:
            if first != "{":
                raise text.error(
                    f"begins with {first!r}, and is no object {{...}}" if first else "ends within an array"
                )
            line = text.line
            yield line, text.value(decode)
            if end and text.next() == ",":
                text.at += 1
        text.at += len(end)
        if text.next():
            raise text.error("has more after the end of the array")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


class Text:
    """A text that is read in blocks, and a position in it."""

    def __init__(self, path: Path, file: IO[bytes], encoding: str | None) -> None:
        self.path, self.file, self.encoding = path, file, encoding
        self.decoder: Any = None
        self.text, self.at = "", 0
        self.line, self.counted = 1, 0
        """The line of the position when it was last asked for."""

    def more(self) -> bool:
        """Read a block; False at the end."""
        self._count()
        raw = self.file.read(max(BLOCK, len(self.text) - self.at))  # twice as much, if an object is long
        if self.decoder is None:
            self.encoding = self.encoding or encoding_of(raw)
            raw = raw.removeprefix(codecs.BOM_UTF8)
            self.decoder = codecs.getincrementaldecoder(self.encoding)()
        try:
            new = self.decoder.decode(raw, final=not raw)
        except UnicodeError as e:
            line = self.line + self.text.count("\n", self.at) + raw.count(b"\n", 0, getattr(e, "start", 0))
            raise DataError(f"{self.path}, near line {line}, is not {str(self.encoding).upper()}: {e}") from None
        self.text, self.at, self.counted = self.text[self.at :] + new, 0, 0
        return bool(raw)

    def next(self) -> str:
        """The next character that is not blank, at the position; "" at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    self._count()
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def value(self, decode: Callable[[str, int], tuple[Any, int]]) -> Any:
        """The value at the position, which is put after it."""
        while True:
            try:
                value, self.at = decode(self.text, self.at)
                return value
            except (ValueError, RecursionError) as e:
                if isinstance(e, RecursionError):
                    raise self.error("is nested too deep") from None
                if len(self.text) - self.at > LONGEST or not self.more():
                    raise self.error(f"is no JSON: {getattr(e, 'msg', e)}") from None

    def error(self, why: str) -> DataError:
        return DataError(f"{self.path}, line {self.line} {why}")

    def _count(self) -> None:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
