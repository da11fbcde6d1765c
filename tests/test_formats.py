"""Formats of tables: the same rows give the same tensors, bad files are refused by name, and blocks are read as one."""

import bz2
import gzip
import json
import lzma
import sqlite3
import sys
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.recipes.data import kind_of
from pipeline import memory, sources
from pipeline.errors import ConfigError, DataError
from pipeline.sources import Dialect, arrow, cells, csv, formats, jsonlines, new_data, parquet
from pipeline.sources.cells import series

zstd = pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
duckdb = pytest.importorskip("duckdb")
pytest.importorskip("python_calamine")
pytest.importorskip("xlsxwriter")

PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def written(folder, frame):
    """The sources of some rows, which are written in each format; the first is CSV."""
    for old in folder.glob("*"):
        if old.is_file():
            old.unlink()
    frame.write_csv(folder / "t.csv")
    raw = (folder / "t.csv").read_bytes()
    for end, pack in PACKED.items():
        (folder / f"t.csv{end}").write_bytes(pack(raw))
    (folder / "GZIP.CSV").write_bytes(gzip.compress(raw))
    with zipfile.ZipFile(folder / "t.zip", "w") as zipped:
        zipped.writestr("__MACOSX/._t.csv", "x")
        zipped.writestr("in/t.csv", raw)
        zipped.writestr("readme.md", "about")
    frame.write_parquet(folder / "t.parquet")
    frame.write_ipc(folder / "t.arrow")
    frame.write_ipc_stream(folder / "t.feather")
    frame.write_excel(folder / "t.xlsx", worksheet="rows")
    frame.write_ndjson(folder / "t.jsonl")
    (folder / "t.json").write_text(json.dumps(json.loads(frame.write_json()), indent=2))
    texts = frame.with_columns(frame["day"].cast(pl.String))
    with sqlite3.connect(folder / "t.sqlite") as made:
        made.execute("create table t (x real, whole integer, truth boolean, word text, day text, y text)")
        made.executemany("insert into t values (?, ?, ?, ?, ?, ?)", texts.rows())
        made.execute("create view other as select y, x, whole, truth, word, day from t")
    made.close()
    with duckdb.connect(str(folder / "t.duckdb")) as made:
        made.register("frame", frame.to_arrow())
        made.execute("create table t as select * from frame")
    half = len(frame) // 2
    frame[:half].write_csv(folder / "part-1.csv")
    frame[half:].select(frame.columns[::-1]).write_csv(folder / "part-2.csv", separator=";")
    names = ["t.csv", *(f"t.csv{end}" for end in PACKED), "GZIP.CSV", "t.zip", "t.zip/in/t.csv", "t.parquet", "t.arrow",
             "t.feather", "t.xlsx", "t.jsonl", "t.json", "t.sqlite", "t.duckdb", "part-*.csv"]  # fmt: skip
    return [
        *(str(folder / name) for name in names),
        f"excel:{folder}/t.xlsx?rows", f"sqlite:{folder}/t.sqlite?other", f"duckdb:{folder}/t.duckdb?from t",
        f"sqlite:{folder}/t.sqlite?select * from t order by rowid", f"{folder}/part-1.csv,{folder}/part-2.csv",
    ]  # fmt: skip


words = st.sampled_from(["red", "a, b", 'said "so"', "Ü", None])
numbers = st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-1000, 1000).map(float))
rows = st.lists(
    st.tuples(numbers, st.integers(-(2**53), 2**53), st.booleans(), words,
              st.dates(min_value=date(1900, 3, 1)), st.sampled_from(["no", "yes"])),
    min_size=12, max_size=30,
)  # fmt: skip
SCHEMA = {"x": pl.Float64, "whole": pl.Int64, "truth": pl.Boolean, "word": pl.String, "day": pl.Date, "y": pl.String}


def frame_of(body):
    return pl.DataFrame(body, SCHEMA, orient="row")


def tensors(data):
    return {f"{i}.{name}": t for i, part in enumerate((data.train, data.held_out)) for name, t in part.tensors.items()}


@settings(max_examples=3)
@given(rows, st.integers(7, 12))
def test_the_same_rows_give_the_same_tensors(folder, body, block):
    """Bit for bit, whatever the format, the compression, the number of files, and the size of the blocks."""
    wanted = None
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((cells, "ROWS", block), (parquet, "ROWS", block), (arrow, "ROWS", block),
                                    (csv, "BLOCK", 64 * block), (jsonlines, "BLOCK", 64 * block)):  # fmt: skip
            patch.setattr(module, name, value)
        for source in written(folder, frame_of(body)):
            try:
                data = sources.table(source, target="y")
                again = [*new_data.of_table(source, json.loads(json.dumps(data.fitted)), targets=True)]
            except DataError as e:
                made, again = {"refused": str(e).partition("column")[2]}, []
            else:
                made = tensors(data)
                assert "csv" in source.lower() or source.endswith("zip") or len(again) == -(-len(body) // block), source
                assert sum(len(rows.batch["inputs"]) for rows in again) == len(body)
            if wanted is None:
                wanted, whole = made, again
            assert wanted.keys() == made.keys(), source
            for name, t in wanted.items():
                assert t == made[name] if isinstance(t, str) else torch.equal(t, made[name]), source
            if again:
                for name in again[0].batch:
                    one, other = (torch.cat([rows.batch[name] for rows in blocks]) for blocks in (whole, again))
                    assert torch.equal(one, other), source


def test_words_for_a_missing_value_are_of_any_format(folder):
    """Given by missing=, they are missing in each: as texts, and as the numbers and days that they name."""
    marks = {"x": -999.0, "whole": -999, "word": "Unknown", "day": date(1999, 9, 9), "y": "unknown"}
    body = [(i / 3, i * i, i % 2 == 0, ["red", "a, b"][i % 2], date(2020, 1, 1 + i), ["no", "yes"][i % 2])
            for i in range(28)]  # fmt: skip
    index = pl.int_range(pl.len())
    nulls = frame_of(body).with_columns(pl.when(index % 9 != i).then(name).alias(name) for i, name in enumerate(marks))
    wanted = tensors(sources.table(written(folder, nulls)[0], target="y"))
    dialect = Dialect(missing=("", "unknown", "-999", "1999-09-09"))
    for source in written(folder, nulls.with_columns(pl.col(name).fill_null(m) for name, m in marks.items())):
        made = tensors(sources.table(source, target="y", dialect=dialect))
        assert all(torch.equal(t, made[name]) for name, t in wanted.items()), source
        if "csv" not in source.lower() and ".zip" not in source:
            with pytest.raises(ConfigError, match=r"is of a format that has no separator: leave out separator="):
                sources.table(source, target="y", dialect=Dialect(separator=";"))


@settings(max_examples=10)
@given(st.data())
def test_damaged_files_are_read_or_refused(folder, data):
    """Arbitrary bytes, and files that were cut or changed, raise a DataError or nothing."""
    (folder / "damaged").mkdir(exist_ok=True)
    frame = frame_of([(0.5 * i, i, i % 2 == 0, "w", date(2020, 1, 1 + i), "ny"[i % 2]) for i in range(30)])
    for source in written(folder, frame)[:17]:
        path = Path(source)
        if "*" in source or not path.is_file():
            continue
        raw = bytearray(path.read_bytes())
        how = data.draw(st.sampled_from(["cut", "change", "arbitrary"]))
        if how == "cut":
            raw = raw[: data.draw(st.integers(0, len(raw)))]
        elif how == "arbitrary":
            raw = data.draw(st.binary(max_size=100))
        else:
            for _ in range(data.draw(st.integers(1, 8))):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        damaged = folder / "damaged" / path.name
        damaged.write_bytes(raw)
        try:
            sources.table(damaged, target="y")
        except DataError:
            continue


LINES = '{"x": 1, "y": "a"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LINES}x,y\n", "line 2 begins with 'x', and is no object"),
        (f"{LINES}\n[1, 2]\n", r"line 3 begins with '\[', and is no object"),
        (f'{LINES}{{"x": 1, "y": \n{LINES}', "line 2 is no JSON"),
        (f'{LINES}{{"x": 1, "x": 2}}\n', "line 2 is no JSON: a key occurs twice"),
        (f'{LINES}{{"x": {"[" * 100_000}', "line 2 is nested too deep"),
        (f"[{LINES}", "line 2 ends within an array"),
        (f"[{LINES}] 3", "line 2 has more after the end of the array"),
        ("[]", "is empty"),
        ("", "is empty"),
    ],
)
def test_what_is_no_json_is_refused_by_its_line(folder, text, message):
    (folder / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        sources.table(folder / "bad.jsonl")


def test_bytes_of_another_encoding_in_json(folder):
    (folder / "latin.jsonl").write_bytes(LINES.encode() + b'{"x": 1, "y": "\xe9"}\n')
    with pytest.raises(DataError, match="near line 2, is not UTF-8"):
        sources.table(folder / "latin.jsonl")


def test_a_cell_in_json_is_refused_by_its_line(folder):
    lines = [f'{{"x": "{i}", "y": {i}.5}}' for i in range(40)]
    (folder / "cell.jsonl").write_text("\n".join([*lines[:20], "", '{"x": "two", "y": 1.5}', *lines[20:]]))
    with pytest.raises(DataError, match=r"cell.jsonl, line 22, column 'x': 'two' is not a number"):
        sources.table(folder / "cell.jsonl")


values = st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text("ab1", max_size=3),
                   st.lists(st.integers(), max_size=2), st.dictionaries(st.text("ab"), st.integers(), max_size=2),
                   st.binary(max_size=3), st.dates(), st.datetimes(), st.times())  # fmt: skip


@given(st.lists(values, max_size=6), st.lists(values, max_size=6))
def test_a_column_has_one_type_in_all_blocks(one, other):
    """Numbers stay as they are, and texts among them; what is missing is null in each type."""
    kinds = cells.kinds_of([*one, *other])
    first, second, both = (series("c", part, kinds) for part in (one, other, [*one, *other]))
    assert first.dtype == second.dtype == both.dtype
    assert pl.concat([first, second]).equals(both)
    assert [v is None for v in both.to_list()] == [v is None for v in [*one, *other]]
    if kinds <= {int, float, type(None)}:
        known = [v for v in [*one, *other] if v is not None and v == v]
        assert both.drop_nulls().drop_nans().to_list() == [float(v) if float in kinds else v for v in known]
    if str in kinds:
        assert set(both.drop_nulls()) >= {v for v in [*one, *other] if isinstance(v, str)}


def test_missing_keys_and_mixed_and_nested_values(folder):
    """A missing key is null, numbers and texts are text, and nested values are left out with a note."""
    body = [{"x": i, "mixed": i if i % 2 else "a", "nested": {"x": [i]}, "y": ["no", "yes"][i % 2]} for i in range(20)]
    del body[3]["x"]
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, body)))
    frame = formats.read_table(folder / "mixed.jsonl")
    assert frame.data["x"].to_list() == [None if i == 3 else i for i in range(20)]
    assert frame.data["mixed"].to_list() == [str(i) if i % 2 else "a" for i in range(20)]
    assert any("'nested' is left out" in note for note in sources.table(folder / "mixed.jsonl").lines)


def test_keys_keep_their_order_if_the_first_object_lacks_some(folder):
    """The target is the last column by default."""
    body = [{"a": i, "b": i * 0.5, "y": i % 2} for i in range(20)]
    del body[0]["a"], body[0]["b"], body[1]["y"]
    (folder / "keys.jsonl").write_text("\n".join(map(json.dumps, body)))
    assert formats.read_table(folder / "keys.jsonl").data.columns == ["a", "b", "y"]


def test_an_index_of_pandas_is_the_first_column(folder):
    """Parquet has it last, where it would be the target."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    index = pd.date_range("2020-01-01", periods=40, name="day")
    frame = pd.DataFrame({"a": [i % 7 for i in range(40)], "y": [i % 2 for i in range(40)]}, index=index)
    frame.to_parquet(folder / "day.parquet")
    frame.to_csv(folder / "day.csv")
    one, other = sources.table(folder / "day.parquet"), sources.table(folder / "day.csv")
    assert one.fitted["targets"]["names"] == ("y",)
    assert torch.equal(one.train.tensors["inputs"], other.train.tensors["inputs"])


def test_a_spreadsheet_as_people_make_it(folder):
    """A title above the table, cells merged over rows, and several sheets, of which the first is read and named."""
    import xlsxwriter

    with xlsxwriter.Workbook(folder / "people.xlsx") as book:
        sheet = book.add_worksheet("north")
        book.add_worksheet("south")
        sheet.merge_range(1, 1, 1, 3, "Sales of 2020")
        for row, cells in enumerate([["region", "a", "y"], *([None, i, i * 0.5] for i in range(30))], 3):
            sheet.write_row(row, 1, cells)
        for first in range(0, 30, 3):
            sheet.merge_range(4 + first, 1, 6 + first, 1, "NESW"[first // 3 % 4])
    frame = formats.read_table(folder / "people.xlsx")
    assert frame.data.columns == ["region", "a", "y"]
    assert frame.data["region"].to_list() == ["NESW"[i // 3 % 4] for i in range(30)]
    assert frame.lines.tolist() == [*range(5, 35)]
    assert frame.notes[0].startswith("'Sales of 2020' is left out")
    assert "sheet 'north' is read; others are south, as excel:" in frame.notes[1]


def test_a_file_of_several_tables_is_refused_with_their_names(folder):
    import xlsxwriter

    with sqlite3.connect(folder / "two.db") as made:
        made.execute("create table dogs (x, y)")
        made.execute("create table cats (x, y)")
        made.executemany("insert into cats values (?, ?)", [(i, "ab"[i % 2]) for i in range(20)])
    made.close()
    with pytest.raises(DataError, match=r"has 2 tables: cats, dogs; name one, as in .*two.db\?cats"):
        sources.table(folder / "two.db")
    with pytest.raises(DataError, match="no table 'cat'; did you mean 'cats'"):
        sources.table(f"sqlite:{folder}/two.db?cat")
    with pytest.raises(DataError, match="no such column: z"):
        sources.table(f"sqlite:{folder}/two.db?select z from cats")
    assert len(sources.table(f"sqlite:{folder}/two.db?cats").train) == 16
    with zipfile.ZipFile(folder / "two.zip", "w") as zipped:
        for name in ("a.csv", "b.csv"):
            zipped.writestr(name, "x,y\n" + "\n".join(f"{i},{i % 2}" for i in range(20)))
    with pytest.raises(DataError, match=r"two.zip has 2 tables: a.csv, b.csv; name one, as in .*two.zip/a.csv"):
        sources.table(folder / "two.zip")
    with pytest.raises(DataError, match=r"There is no item named 'c.csv'"):
        sources.table(folder / "two.zip" / "c.csv")
    with xlsxwriter.Workbook(folder / "two.xlsx") as book:
        book.add_worksheet("one")
        book.add_worksheet("two")
    with pytest.raises(DataError, match="has no sheet 'tow'; did you mean 'two'"):
        sources.table(f"excel:{folder}/two.xlsx?tow")


@pytest.mark.parametrize("query", ["delete from t", "select load_extension('x')", "select 1; drop table t",
                                   "with x as (select 1) insert into t select 1, 2 from x"])  # fmt: skip
def test_a_query_reads_alone(tmp_path, query):
    """The file of a database is as it was, whatever the query."""
    with sqlite3.connect(tmp_path / "t.db") as made:
        made.execute("create table t (x, y)")
    made.close()
    before = (tmp_path / "t.db").read_bytes()
    with pytest.raises(DataError):
        sources.table(f"sqlite:{tmp_path}/t.db?{query}")
    assert (tmp_path / "t.db").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["t.db"]


def test_parts_must_have_the_same_columns(tmp_path):
    """Files of one table are refused with both names, and a cell with the line of its own file."""
    body = "\n".join(f"{i},{i * 0.5}" for i in range(30))
    (tmp_path / "a.csv").write_text(f"x,y\n{body}")
    (tmp_path / "b.csv").write_text(f"x,z\n{body}")
    with pytest.raises(DataError, match=r"b.csv has the column 'z', but .*a.csv does not"):
        sources.table(tmp_path)
    (tmp_path / "b.csv").write_text("y,x\n0.5,1\n0.5,two\n")
    for source in (tmp_path, f"{tmp_path}/*.csv", f"{tmp_path}/a.csv, {tmp_path}/b.csv"):
        with pytest.raises(DataError, match=r"b.csv, line 3, column 'x': 'two' is not a number"):
            sources.table(source, target="y")
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.csv and .*c.parquet are of different formats"):
        sources.table(tmp_path)
    with pytest.raises(DataError, match="no file has a name like"):
        sources.table(f"{tmp_path}/x*.csv")


def test_the_parts_of_a_split_are_no_table(tmp_path):
    """A folder of train.csv and test.csv is refused, because its rows would be mixed; a pattern takes both."""
    for name in ("Train.csv", "shop_test.csv"):
        (tmp_path / name).write_text("x,y\n" + "\n".join(f"{i},{i * 0.5}" for i in range(30)))
    with pytest.raises(DataError, match=r"parts of a split, Train.csv and shop_test.csv: give .*Train.csv as data"):
        sources.table(tmp_path)
    assert len(sources.table(f"{tmp_path}/*.csv").train) == 48


def test_types_of_parts_are_joined(tmp_path):
    """Whole numbers and floats are floats; numbers beside texts are texts without a decimal point."""
    pl.DataFrame({"x": [1, 2], "m": [1.0, 2.5], "y": ["a", "b"]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"x": [0.5, 2], "m": ["u", "v"], "y": ["a", "b"]}).write_parquet(tmp_path / "2.parquet")
    frame = formats.read_table(tmp_path)
    assert frame.data["x"].to_list() == [1.0, 2.0, 0.5, 2.0]
    assert frame.data["m"].to_list() == ["1", "2.5", "u", "v"]
    pl.DataFrame({"x": [[1]], "m": ["u"], "y": ["a"]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match="has columns of different types"):
        formats.read_table(tmp_path)


def test_no_more_is_unpacked_than_fits(tmp_path, monkeypatch):
    """A row without end, and cells far apart, are refused before they fill the memory; declared sizes are not used."""
    import xlsxwriter

    monkeypatch.setattr(csv, "LONGEST", 1 << 20)
    (tmp_path / "long.csv.gz").write_bytes(gzip.compress(b"0" * (8 << 20)))
    with pytest.raises(DataError, match="has a row of more than"):
        sources.table(tmp_path / "long.csv.gz")
    with xlsxwriter.Workbook(tmp_path / "far.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, 1)
        sheet.write(1_048_575, 16_383, 1)
    with pytest.raises(DataError, match=r"needs 1.1 TB of memory"):
        sources.table(tmp_path / "far.xlsx")
    monkeypatch.setattr(memory, "free", lambda: 1 << 10)
    (tmp_path / "big.feather").write_bytes(b"0" * 5000)
    with pytest.raises(DataError, match=r"needs .* of memory"):
        sources.table(tmp_path / "big.feather")


def test_a_suffix_of_another_compression(tmp_path):
    (tmp_path / "t.csv.gz").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"its name ends in .gz, but its first bytes are of no such file"):
        sources.table(tmp_path / "t.csv.gz")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="is not read compressed: unpack it first"):
        sources.table(tmp_path / "t.parquet.gz")


@pytest.mark.parametrize("end", formats.table_ends())
def test_a_table_is_known_by_its_ending(end):
    """In any case, and so are patterns and lists of such names."""
    assert kind_of(f"data{end}") == kind_of(f"DATA{end.upper()}") == kind_of(f"x-*{end}") == "table"


@pytest.mark.parametrize("end", [".npz", *formats.ARRAYS])
def test_arrays_are_known_by_their_ending(end):
    assert kind_of(f"data{end}") == kind_of(f"DATA{end.upper()}") == "arrays"


def test_a_name_without_a_known_ending(tmp_path):
    """The message says how to name the kind; a folder of parts is a table, and others are not."""
    from cli import config

    (tmp_path / "d.data").write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match=r"write table:.*d.data, or arrays:"):
        config.make({"data": str(tmp_path / "d.data")})
    with pytest.raises(ConfigError, match=r"unknown data 'none.data': there is no such file$"):
        config.make({"data": "none.data"})
    assert kind_of(str(tmp_path)) == "images"
    (tmp_path / "d.data").rename(tmp_path / "d.csv")
    (tmp_path / ".hidden").write_text("")
    assert kind_of(str(tmp_path)) == "table"
    (tmp_path / "d.parquet").write_text("")
    assert kind_of(str(tmp_path)) == "images"


def test_a_format_is_one_line(folder, monkeypatch):
    """A reader in TABLES is known by its ending, and reads as others do."""

    def fixed(path, dialect):
        from pipeline.sources.cells import typed

        words = [line.split("~") for line in Path(path).read_text().splitlines()]
        yield from typed(path, lambda: ((i, {"x": int(x), "y": y}) for i, (x, y) in enumerate(words, 1)))

    monkeypatch.setitem(formats.TABLES, ".tilde", fixed)
    (folder / "t.tilde").write_text("\n".join(f"{i}~{'ab'[i % 2]}" for i in range(20)))
    assert kind_of("T.TILDE") == "table"
    assert sources.table(folder / "t.tilde").classes == ("a", "b")


def test_a_test_file_is_named_as_data_are(tmp_path):
    """With its kind before it, or without."""
    from cli import config

    for name, n in (("a", 20), ("b", 6)):
        (tmp_path / f"{name}.data").write_text("x,y\n" + "\n".join(f"{i},{i % 2}" for i in range(n)))
        np.savez(tmp_path / f"{name}.npz", inputs=np.arange(2.0 * n).reshape(n, 2), targets=np.arange(n) % 2)
    for kind, end in (("table", "data"), ("arrays", "npz")):
        for before in ("", f"{kind}:"):
            files = {"data": f"{kind}:{tmp_path}/a.{end}", "test": f"{before}{tmp_path}/b.{end}"}
            made = config.make(files).data.prepare(sources.Split())
            assert (len(made.train), len(made.held_out)) == (20, 6)


@pytest.mark.parametrize("end", ["parquet", "arrow", "feather", "csv", "jsonl"])
def test_the_name_of_a_file_is_no_pattern(tmp_path, end):
    """`t[1].parquet` is itself, also beside a `t1.parquet`."""
    write = {"parquet": "write_parquet", "arrow": "write_ipc", "feather": "write_ipc_stream", "jsonl": "write_ndjson"}
    for name, column in (("t[1]", "mine"), ("t1", "other")):
        frame = pl.DataFrame({column: range(20), "y": ["a", "b"] * 10})
        getattr(frame, write.get(end, "write_csv"))(tmp_path / f"{name}.{end}")
    [column] = sources.table(tmp_path / f"t[1].{end}").fitted["columns"]
    assert column["name"] == "mine"
