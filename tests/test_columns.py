"""Columns: what cells hold as people write them, and what is refused because it can be read in two ways."""

import csv as csv_module

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.errors import ConfigError, DataError
from pipeline.sources import Dialect, Readings, csv, grid, new_data
from pipeline.sources.columns import Reading, readings, values
from pipeline.sources.formats import read_table
from pipeline.sources.frame import Frame
from pipeline.sources.grid import PLAIN, THOUSANDS


def frame(cells, **options):
    """A table with one column, as read from CSV."""
    text = pl.DataFrame({"x": cells, "count": cells, "text": cells})  # names that polars gives too
    return Frame("t.csv", text, np.arange(len(text)) + 2, "line", (), Dialect().words, **options)


def read(cells, wanted=None, **options):
    table = frame(cells, **options)
    reading = readings(table, wanted)["x"]
    return reading.kind, reading.form, values(table, "x", reading).tolist()


@pytest.mark.parametrize(
    ("cells", "kind", "form", "wanted"),
    [
        (["4,500", "950", "1,000,000"], "number", ".,", [4500, 950, 1e6]),
        (["4,500", "0,5"], "number", ",", [4.5, 0.5]),
        (["1.234.567,8", "5,1"], "number", ",.", [1234567.8, 5.1]),
        (["1 234,5", "-3,1"], "number", ", ", [1234.5, -3.1]),
        (["1'234", "12"], "number", ".'", [1234, 12]),
        (["$1.20", "-$3"], "number", ".", [1.2, -3]),
        (["5,00 €", "1.000,00 €"], "number", ",.", [5, 1000]),
        (["39%", "4.5 %"], "number", ".", [39, 4.5]),
        (["(12)", "5", "\u22127", "3-"], "number", ".", [-12, 5, -7, -3]),
        (["1e-3", "+2", ".5", "7."], "number", ".", [1e-3, 2, 0.5, 7]),
        (["1", "-", "n.a."], "number", ".", [1, np.nan, np.nan]),
        (["yes", "NO", ""], "truth", "", [1, 0, np.nan]),
        (["2020-01-25", "2020-01-26"], "date", "%Y-%m-%d", [18286, 18287]),
        (["01/25/2020", "1/2/2020"], "date", "%m/%d/%Y", [18286, 18263]),
        (["25/01/2020 12:00", "02/01/2020 6:00 pm"], "date", "%d/%m/%Y", [18286.5, 18263.75]),
        (["25.1.2020", "2.1.2020"], "date", "%d.%m.%Y", [18286, 18263]),
        (["25-Jan-2020", "02-FEB-2020"], "date", "%d-%B-%Y", [18286, 18294]),
        (["Jan 25, 2020", "February 2, 2020"], "date", "%B %d, %Y", [18286, 18294]),
        (["20200125", "20200202"], "date", "%Y%m%d", [18286, 18294]),
        (["2020-01-25T00:00:00+01:00", "2020-01-25T12:00:00Z"], "date", "%Y-%m-%d", [18286 - 1 / 24, 18286.5]),
        (["2020-01-25T12:00:00.5+00:00"], "date", "%Y-%m-%d", [18286.5 + 0.5 / 86400]),
        (["2,675E+01", "1,0E2"], "number", ",", [26.75, 100]),  # no thousands with an exponent
        (["1\u2019234.5", "12"], "number", ".'", [1234.5, 12]),
        (["R$ 1.005,50", "R$ 5,5"], "number", ",.", [1005.5, 5.5]),
        (["10,50 kr", "9,00 kr"], "number", ",", [10.5, 9]),
        (["1.5", "#DIV/0!", "<NA>", "\\N", "#REF!"], "number", ".", [1.5] + 4 * [np.nan]),
        (["20200125120000", "20200202000000"], "date", "%Y%m%d", [18286.5, 18294]),
        (["20200125T120000Z", "20200202T000000Z"], "date", "%Y%m%d", [18286.5, 18294]),
        (["Jan 2020", "February 2020"], "date", "%B %Y", [18262, 18293]),
        (["01/2020", "2/2020"], "date", "%m/%Y", [18262, 18293]),
        (["13:05", "1:05 pm", "0:00:30"], "time", "", [47100, 47100, 30]),
    ],
)
def test_cells_as_people_write_them(cells, kind, form, wanted):
    """Numbers, truth values, dates as days since 1970 in UTC, and times of day as seconds."""
    found = read(cells)
    assert found[:2] == (kind, form)
    np.testing.assert_allclose(found[2], wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (["08", "8", "007"], "its numbers have leading zeros"),
        (["$1", "€2"], ""),
        (["39%", "0.4"], ""),
        (["1", "2", "3", "a"], "1 of 4 values are no numbers: 'a'"),
        (["t", "n"], ""),
        (["1.2.3", "10.0.0.1"], ""),
        (["2020-01-25", "25.1.2020"], ""),
    ],
)
def test_other_texts_are_categories(cells, note):
    """So are numbers of two units, and of leading zeros; most of a column as numbers is said."""
    reading = readings(frame(cells))["x"]
    assert reading.kind == "category"
    assert note in reading.note


def test_two_readings_are_refused_or_told():
    """A comma without evidence, and a day that may be a month; options and other columns tell."""
    with pytest.raises(DataError, match=r"line 2, column 'x': '4,500' has a comma .* decimal=',' or '.'"):
        read(["4,500", "1,250"], decimal=None)
    assert read(["4,500", "1,250"], decimal=".")[2] == [4500, 1250]
    assert read(["4,500", "1,250"], Readings(decimal=","), decimal=None)[2] == [4.5, 1.25]
    both = Frame("t", pl.DataFrame({"x": ["4,500", "1,250"], "y": ["5,1", "3,0"]}), np.arange(2), decimal=None)
    assert readings(both)["x"] == Reading("number", ",")
    with pytest.raises(DataError, match=r"'03/04/2020' is a day as %m/%d/%Y or %d/%m/%Y.*day_first="):
        read(["03/04/2020", "05/06/2020"])
    first, second = (read(["03/04/2020", "05/06/2020"], Readings(day_first=d))[2] for d in (True, False))
    assert first[0] - second[0] == 30  # 3 April and 4 March
    assert read(["03/03/2020", "05/05/2020"])[0] == "date"  # the same in both
    with pytest.raises(ConfigError, match="decimal=';' is neither"):
        Readings(decimal=";")


def test_most_of_a_column_decides_and_the_rest_is_refused():
    """With the first other cell and the number of them."""
    with pytest.raises(DataError, match=r"line 12, column 'x': 'ten' is not a number, and neither are 1 others"):
        read([*map(str, range(10)), "ten", "eleven", *map(str, range(20))])
    assert readings(frame(["1", "2"]), Readings(categorical="x"))["x"].kind == "category"


def test_missing_words_are_of_a_format(tmp_path):
    """In CSV they are a list, which may be empty; in Parquet a missing value is null and NA a word."""
    rows = [{"x": float(i), "y": ["NA", "None", "EU"][i % 3]} for i in range(30)]
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    pl.DataFrame(rows).write_csv(tmp_path / "t.csv")
    assert sources.table(tmp_path / "t.parquet").classes == ("EU", "NA", "None")
    with pytest.raises(DataError, match="'y', which is to be learned, is 'EU' in each row"):
        sources.table(tmp_path / "t.csv")
    words = sources.table(tmp_path / "t.csv", dialect=Dialect(missing=()))
    assert words.classes == ("EU", "NA", "None")


def test_columns_are_named_with_commas_and_patterns(tmp_path):
    """A whole name is that column, whatever it holds; x_* are all that fit."""
    body = "\n".join(f"{i},{i * 2},{i % 7},{i * 0.5}" for i in range(40))
    (tmp_path / "t.csv").write_text(f'x_1,x_2,z,"price, USD"\n{body}\n')
    table = read_table(tmp_path / "t.csv")
    assert table.named("price, USD") == ["price, USD"]
    assert table.named("z, price, USD,x_1") == ["z", "price, USD", "x_1"]
    assert table.named("x_*") == ["x_1", "x_2"]
    with pytest.raises(DataError, match="no column 'zz'"):
        table.named("zz")
    data = sources.table(tmp_path / "t.csv", target="price, USD", ignore="x_*")
    assert [c["name"] for c in data.fitted["columns"]] == ["z"]


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        (b"5,1;3,5;red\n4,9;3,0;blue\n", 3, 2),
        (b"1.0 2.0   3.5\n4 5 6\n", 3, 2),
        (b"a\tb\r1\t2\r3\t4\r", 2, 2),
        (b'a,b\n"1","2"\n\n3,4\n', 2, 2),
        (b"sep=;\na;b\n1;2\n", 2, 1),
        ("a;b\n1;ü\n".encode("utf-16"), 2, 1),
        (b'size,name\n2",pipe\n3",rod\n', 2, 2),
        (b"a,b\n'1','it, too'\n'2','x'\n", 2, 2),
        (b'a,b\n"say \\"so\\"",1\n"x, y",2\n', 2, 2),
        ("a;b\n1;\u00fc\n".encode("utf-16-le"), 2, 1),
        ("a;b\n1;\u00fc\n".encode("utf-16-be"), 2, 1),
        ("a;b\n1;\u00fc\n".encode("utf-32"), 2, 1),
        (b"a\tb\n\t\n1\t2\n", 2, 2),
        (b"a,b,\n1,2,\n3,4,\n", 2, 2),
        (b"|a|b|\n|1|2|\n|3|4|\n", 3, 2),
        (b"Sales of 2020,,\n,,\nregion,a,b\nx,1,2\ny,3,4\n", 3, 2),
        (b"0,1,2\n0.5,1.5,1\n2.5,0.1,0\n", 3, 2),
        (b",0,1,2\n0,5,6,1\n1,8,9,0\n", 3, 2),
        (b"land,2018,2019,2020\nFR,5,6,7\nCH,2019,2,3\n", 4, 2),
        (b"0,1,2\n3,4,5\n6,7,8\n", 3, 3),
        (b"x,1,2\ny,3,4\nz,5,6\n", 3, 3),
    ],
)
def test_files_as_programs_write_them(tmp_path, content, columns, rows):
    """Separators, quotes, line ends and encodings of several programs."""
    (tmp_path / "t.csv").write_bytes(content)
    found = read_table(tmp_path / "t.csv")
    assert found.data.shape == (rows, columns)


def test_a_first_row_of_another_width(tmp_path):
    """It is named, and left out if it has one cell; if it may be the header, it is not."""
    rows = "".join(f"{i},{i % 3},{i * 0.5}\n" for i in range(20))
    (tmp_path / "title.csv").write_text(f"Sales of 2020\n\na,b,c\n{rows}")
    with pytest.raises(DataError, match=r"line 1: 1 columns, but most have 3 \(1 such row\); skip_bad=True"):
        read_table(tmp_path / "title.csv")
    found = read_table(tmp_path / "title.csv", Dialect(skip_bad=True))
    assert (found.data.columns, found.lines[0], found.skipped) == (["a", "b", "c"], 4, (1,))
    (tmp_path / "names.csv").write_text(f"a,b\n{rows}")
    for skip in (False, True):
        with pytest.raises(DataError, match="line 1: 2 columns, but most have 3; if it has the names"):
            read_table(tmp_path / "names.csv", Dialect(skip_bad=skip))
    (tmp_path / "blanks.txt").write_text("a::b\n1::2\n")
    with pytest.raises(DataError, match=r"has one column.*if another mark separates them, name it by separator="):
        read_table(tmp_path / "blanks.txt")


def test_a_cell_that_is_filled_or_not_says_something(tmp_path):
    """A column of one value and of nothing, as of boxes that are ticked, is an input."""
    rows = "".join(f"{'x' * (i % 3 > 0)},{'1' * (i % 2)},5,{i}\n" for i in range(40))
    (tmp_path / "t.csv").write_text(f"box,one,same,y\n{rows}")
    data = sources.table(tmp_path / "t.csv", task="regression")
    assert {c["name"]: c["kind"] for c in data.fitted["columns"]} == {"box": "category", "one": "number"}
    tensors = data.train.tensors
    assert tensors["inputs"].isfinite().all()
    assert sorted(tensors["categories"].unique().tolist()) == [0, 1]
    assert sorted(tensors["inputs"][:, 1].unique().tolist()) == [0, 1]


def test_long_whole_numbers_are_classes_of_their_own(tmp_path):
    """Ids of 64 bits are more than float64 tells apart, in CSV of any size as in Parquet."""
    ids = [1234567890123456789 + i % 3 for i in range(60)]
    rows = pl.DataFrame({"x": [float(i) for i in range(60)], "y": ids})
    rows.write_csv(tmp_path / "t.csv")
    rows.write_parquet(tmp_path / "t.parquet")
    wanted = tuple(map(str, ids[:3]))
    csv_data, parquet = sources.table(tmp_path / "t.csv"), sources.table(tmp_path / "t.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv, "BLOCK", 200)
        blocks = sources.table(tmp_path / "t.csv")
    assert wanted == csv_data.classes == parquet.classes == blocks.classes
    for data in (parquet, blocks):
        assert torch.equal(data.train.tensors["targets"], csv_data.train.tensors["targets"])


def test_a_last_row_of_sums_and_years_to_come_are_said(tmp_path):
    """A sum among samples is one that nobody measured; 12/31/65 is a birthday of 1965."""
    rows = [[f"n{i % 3}", i, 2.5 * i, f"12/31/{i + 50}"] for i in range(1, 31)]
    total = ["Total", sum(r[1] for r in rows), sum(r[2] for r in rows), ""]

    def notes(table):
        (tmp_path / "t.csv").write_text("\n".join(",".join(map(str, r)) for r in [["place", "a", "y", "day"], *table]))
        return " ".join(sources.table(tmp_path / "t.csv", target="y").lines)

    assert "line 32 is the sum of the others" in notes([*rows, total])
    assert "is the sum" not in notes(rows)
    assert "is the sum" not in notes([*rows, ["n1", 465, 3.5, ""]])
    assert "'day' years of two digits are read as 1969 to 2068" in notes(rows)


def test_new_rows_of_another_dialect_are_the_same(tmp_path):
    """A run of decimal points reads decimal commas; one form holds from block to block."""
    r = np.random.default_rng(0)
    data = pl.DataFrame({"x": r.normal(size=50).round(2), "day": pl.Series(range(18000, 18050)).cast(pl.Date),
                         "ok": r.integers(0, 2, 50) > 0, "y": r.integers(0, 2, 50)})  # fmt: skip
    data.write_csv(tmp_path / "en.csv")
    data.with_columns(pl.col("day").dt.strftime("%d.%m.%Y")).write_csv(
        tmp_path / "eu.csv", separator=";", decimal_comma=True
    )
    data.write_parquet(tmp_path / "t.parquet")
    known = sources.table(tmp_path / "en.csv", test=tmp_path / "en.csv")
    for name in ("eu.csv", "t.parquet"):
        batches = [rows.batch for rows in new_data.of_table(tmp_path / name, known.fitted, targets=True)]
        for key, t in known.held_out.tensors.items():
            assert torch.equal(torch.cat([b[key] for b in batches]), t), (name, key)


def test_a_number_is_no_truth_value(tmp_path):
    """But 0 and 1, whatever the format; pipe predict would answer for what was never learned."""
    rows = {"ok": [i % 3 == 0 for i in range(20)], "y": [i % 2 for i in range(20)]}
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    fitted = sources.table(tmp_path / "t.parquet").fitted
    for value, good in ((1, True), (0.0, True), (None, True), (5, False), (0.5, False)):
        pl.DataFrame({"ok": [1, value]}, strict=False).write_parquet(tmp_path / "new.parquet")
        if good:
            assert len([*new_data.of_table(tmp_path / "new.parquet", fitted, targets=False)]) == 1
        else:
            with pytest.raises(DataError, match=r"column 'ok': [\d.]+ is not a truth value"):
                list(new_data.of_table(tmp_path / "new.parquet", fitted, targets=False))


def test_a_file_without_rows(tmp_path):
    """It gives one empty block to predict, and no rows to measure."""
    (tmp_path / "t.csv").write_text("x,y\n" + "\n".join(f"{i},{i % 2}" for i in range(20)))
    (tmp_path / "none.csv").write_text("x,y\n")
    fitted = sources.table(tmp_path / "t.csv").fitted
    [rows] = new_data.of_table(tmp_path / "none.csv", fitted, targets=False)
    assert (len(rows.batch["inputs"]), [*rows.beside]) == (0, ["x", "y"])
    with pytest.raises(DataError, match=r"none\.csv has no rows with y"):
        list(new_data.of_table(tmp_path / "none.csv", fitted, targets=True))


CELLS = [
    "5", "-0.5e3", "+7", "0", "-0", "1.", "1.234", "12.345", "0.1", ".5", "007", "-01", "", " 5", "5 ", "NA", "nan",
    "inf", "1e400", "9007199254740993", "-", "+", "5-", "1_0", "5%", "x", "1e", "2020-01-02", "4,5",
]  # fmt: skip


@settings(max_examples=100)
@given(st.data())
def test_blocks_of_numbers_are_parsed_as_their_texts_are(tmp_path_factory, data):
    """Columns that are parsed as numbers at once hold what their texts hold, in the same blocks, and no other text
    becomes a number."""
    quote = data.draw(st.sampled_from(["", '"', '"all']))
    kinds = data.draw(st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3), min_size=2, max_size=3))
    rows = data.draw(st.lists(st.tuples(*map(st.sampled_from, kinds)), min_size=20, max_size=60))
    separator = data.draw(st.sampled_from("|;\t"))
    path = tmp_path_factory.mktemp("grid") / "t.csv"
    with path.open("w", newline="") as file:
        how = csv_module.QUOTE_ALL if quote == '"all' else csv_module.QUOTE_MINIMAL if quote else csv_module.QUOTE_NONE
        writer = csv_module.writer(file, delimiter=separator, quoting=how, lineterminator="\n", escapechar="\\")
        writer.writerows([[f"c{i}" for i in range(len(kinds))], *rows])
    dialect = Dialect(separator=separator, header=True, missing=data.draw(st.sampled_from([None, ("",), ("", "5")])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv, "BLOCK", data.draw(st.integers(20, 200)))
        patch.setattr(grid, "SAMPLE", 1)
        typed = [*csv.blocks(path, dialect, numbers=True)]
        patch.setattr(csv.Grid, "of", classmethod(lambda *_: None))
        texts = [*csv.blocks(path, dialect)]
    assert [f.lines.tolist() for f in typed] == [f.lines.tolist() for f in texts]
    for one, other in zip(typed, texts, strict=True):
        for name in other.data.columns:
            column = other.column(name)
            if one.data[name].dtype == pl.String:
                assert one.data[name].str.strip_chars().to_list() == other.data[name].str.strip_chars().to_list()
            else:
                known = column.drop_nulls()
                assert known.str.contains(PLAIN).all()
                assert not len(known) or not known.str.contains(THOUSANDS).all()
                assert one.data[name].to_list() == column.cast(pl.Float64).to_list()
