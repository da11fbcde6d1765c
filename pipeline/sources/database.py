"""Tables and queries of SQLite and DuckDB, whose files are opened to read alone."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import files
from pipeline.errors import DataError, did_you_mean, needs
from pipeline.sources.cells import Row, typed
from pipeline.sources.dialect import Dialect
from pipeline.sources.files import reading
from pipeline.sources.frame import Frame

ROWS = 1000
"""Rows that are fetched at a time."""
QUERY = re.compile(r"\s*(select|with|values|from)\s", re.IGNORECASE)
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""What a query of SQLite may do."""


def sqlite(path: Path, dialect: Dialect, part: str = "") -> Iterator[Frame]:
    """A table by its name, or a query; without either, the only table of the file.

    Raises DataError for a file that has several, for an unknown one, and for a query with an error.
    """

    def connect() -> sqlite3.Connection:
        with files.opened(path) as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                raise DataError(f"{path} is no SQLite database")
        made = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        made.set_authorizer(lambda what, *_: sqlite3.SQLITE_OK if what in ALLOWED else sqlite3.SQLITE_DENY)
        return made

    yield from _blocks(path, part, connect, "select name, type from sqlite_master where name not like 'sqlite_%'")


def duckdb(path: Path, dialect: Dialect, part: str = "") -> Iterator[Frame]:
    """As `sqlite`, of a file of DuckDB."""
    with needs("DuckDB's files are read by duckdb, which is missing", "duckdb"):
        import duckdb

    def connect() -> Any:
        with files.opened(path) as file:
            if file.read(12)[8:] != b"DUCK":
                raise DataError(f"{path} is no DuckDB database")
        safe: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true"}
        return duckdb.connect(str(path), read_only=True, config=safe)

    yield from _blocks(path, part, connect, "select table_name, 'table' from duckdb_tables() union all "
                       "select view_name, 'view' from duckdb_views() where not internal")  # fmt: skip


def _blocks(path: Path, part: str, connect: Callable[[], Any], listed: str) -> Iterator[Frame]:
    with reading(path, "can't be read"), closing(connect()) as made:
        found = sorted(made.execute(listed).fetchall())
        query = _query(path, part, *([n for n, kind in found if kind == wanted] for wanted in ("table", "view")))
        cursor = made.execute(query)
        names = [column[0] for column in cursor.description]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: the query gives two columns {twice!r}; name one of them otherwise by `as`")

        def rows() -> Iterator[Row]:
            cursor = made.execute(query)
            fetched = chain.from_iterable(iter(lambda: cursor.fetchmany(ROWS), []))
            return ((place, dict(zip(names, row, strict=True))) for place, row in enumerate(fetched, 1))

        yield from typed(path, rows, names)


def _query(path: Path, part: str, tables: list[str], views: list[str]) -> str:
    known = [*tables, *views]
    if not part and len(tables) != 1:
        several = f"has {len(tables)} tables: {', '.join(tables)}; name one, as in {path}?{tables[0]}" if tables else ""
        raise DataError(f"{path} {several or 'has no tables'}")
    if QUERY.match(part) and part not in known:
        return part
    name = part or tables[0]
    if name not in known:
        near = did_you_mean(name, known)
        raise DataError(f"{path} has no table {name!r}{near}")
    return 'select * from "{}"'.format(name.replace('"', '""'))
