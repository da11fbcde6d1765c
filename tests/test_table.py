"""Tables: what is found in their columns, what is fitted to the training rows alone, and where a wrong cell stands."""

import csv
import gzip
import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.errors import ConfigError, DataError
from pipeline.sources import formats, new_data
from pipeline.sources.formats import read_table
from pipeline.sources.frame import Frame
from pipeline.sources.table import apply
from tests.strategies import seeds

words = st.sampled_from(["red", "green", "blue", "a, b", 'said "so"', ""])
numbers = st.floats(-1e6, 1e6).map(lambda x: float(np.float32(x)))
rows = st.lists(st.tuples(numbers, words, st.booleans(), numbers), min_size=12, max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def write(path, header, body, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *body])
    return path


def table(folder, text, name="t.csv", **options):
    (folder / name).write_text(text)
    return sources.table(folder / name, **options)


def tensors(data):
    return {name: t for part in (data.train, data.held_out) for name, t in part.tensors.items()}


@given(rows, st.sampled_from(",;\t"), seeds)
def test_numbers_come_back_by_what_was_fitted(folder, body, delimiter, seed):
    """Inputs are (x - mean) / deviation over the training rows, targets as they were written."""
    body = [(x, w, b, i + 0.5) for i, (x, w, b, _) in enumerate(body)]
    path = write(folder / "n.csv", ["x", "word", "truth", "y"], body, delimiter)
    try:
        data = sources.table(path, parts=sources.Split(seed=seed))
    except DataError:  # where no column says anything
        return
    columns = {c["name"]: c for c in data.fitted["columns"]}
    y = data.train.tensors["targets"]
    assert sorted([*y.tolist(), *data.held_out.tensors["targets"].tolist()]) == [row[3] for row in body]
    if "x" in columns:
        at = [n for n in columns if columns[n]["kind"] != "category"].index("x")
        back = data.train.tensors["inputs"][:, at].double() * columns["x"]["std"] + columns["x"]["mean"]
        wanted = torch.tensor([body[int(t)][0] for t in y])
        assert ((back - wanted).abs() <= 1e-5 * wanted.abs().max() + 1e-5 * columns["x"]["std"]).all()


@given(rows, st.data())
def test_held_out_rows_decide_nothing(folder, body, data):
    """Whatever the held-out rows hold, all that is fitted stays, and the training rows with it."""
    parts = sources.Split(0.25, data.draw(seeds))
    _, held = parts.rows(len(body))
    other = list(body)
    for i in held.tolist():
        x, w, b, y = data.draw(st.tuples(numbers, words, st.booleans(), numbers))
        other[i] = (x, w, b, y)
    made = []
    for version in (body, other):
        version = [(x, w, b, y + i) for i, (x, w, b, y) in enumerate(version)]
        path = write(folder / "h.csv", ["x", "word", "truth", "y"], version)
        try:
            made.append(sources.table(path, parts=parts, task="regression"))
        except DataError:
            made.append(None)
    if None in made:
        return
    assert made[0].fitted == made[1].fitted
    for name, t in made[0].train.tensors.items():
        assert torch.equal(t, made[1].train.tensors[name])


@given(rows)
def test_what_was_fitted_prepares_the_same_rows_alike(folder, body):
    """By way of JSON, the same file gives the tensors that it was learned from."""
    path = write(folder / "a.csv", ["x", "word", "truth", "y"], body)
    try:
        data = sources.table(path, test=path, task="regression")
    except DataError:
        return
    again = apply(json.loads(json.dumps(data.fitted)), read_table(path))
    for name, t in data.train.tensors.items():
        assert torch.equal(t, again[name])
        assert torch.equal(t, data.held_out.tensors[name])


@given(st.integers(2, 300), st.floats(0.01, 0.99), seeds, st.integers(2, 7), st.data())
def test_a_split_is_a_partition(n, share, seed, folds, data):
    """Each sample is in one part; over the folds, each is held out once; groups stay together; the last come last."""
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    if 0 < np.ceil(share * n) < n:
        train, held = sources.Split(share, seed).rows(n, labels=labels)
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(n))
        assert len(held) == np.ceil(share * n)
        train, held = (r.numpy() for r in sources.Split(share, seed).rows(n, time=-labels))
        assert max(-labels[train]) <= min(-labels[held])
    if n >= folds:
        every = [sources.Split(seed=seed, folds=folds, fold=k).rows(n, labels=labels)[1] for k in range(folds)]
        assert sorted(torch.cat(every).tolist()) == list(range(n))
    if len(set(labels.tolist())) > 1:
        train, held = (r.numpy() for r in sources.Split(0.4, seed).rows(n, groups=labels))
        assert not set(labels[train].tolist()) & set(labels[held].tolist())
    with pytest.raises(ConfigError, match="fold 2 of 2 is none"):
        sources.Split(folds=2, fold=2).rows(n)


def test_files_of_other_writers(folder):
    """What pandas and polars wrote is read as they have it: types, missing values, and an index that is no column."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({
        "age": [float(i) if i % 5 else None for i in range(40)], "when": pandas.date_range("2024-01-30", periods=40),
        "city": pandas.Categorical([["Bonn", "Ulm"][i % 2] for i in range(40)]), "ok": [i % 3 == 0 for i in range(40)],
    })  # fmt: skip
    frame.to_csv(folder / "pandas.csv")
    frame.to_parquet(folder / "pandas.parquet")
    pl.from_pandas(frame).write_csv(folder / "polars.csv", separator=";")
    made = [sources.table(folder / name) for name in ("pandas.csv", "pandas.parquet", "polars.csv")]
    assert "column '' is left out: it numbers the rows" in made[0].notes
    for data in made:
        assert (data.task, data.sizes["categories"]) == ("classification", (13, 8, 3))
        for name, t in made[0].train.tensors.items():
            torch.testing.assert_close(data.train.tensors[name], t)
    # The first day is a Tuesday in January: the first weekday is Monday.
    whole = sources.table(folder / "pandas.csv", test=folder / "pandas.csv").train.tensors
    assert whole["categories"][0].tolist() == [1, 2, 1]
    assert whole["inputs"].shape == (40, 5)  # the age, whether it is missing, the date, and its place in the year
    assert whole["inputs"][:, 1].tolist() == [float(i % 5 == 0) for i in range(40)]


ROWS = [f"{i % 7},{i % 3}" for i in range(40)]
MANY = "\n".join(f"{i % 7},{i * 3}" for i in range(40))


def body(header, line, n):
    return "\n".join([header, *(line(i) for i in range(n))])


@pytest.mark.parametrize(
    ("text", "options", "task", "said"),
    [
        ("\n".join(ROWS), {}, "classification", "no header: columns are called column_1 to column_2"),
        (f"x,y\n{MANY}", {}, "regression", "values from 0 to 117"),
        ("x,y\n" + "\n".join(ROWS), {"task": "regression"}, "regression", "values from 0 to 2"),
        ("x,y\n" + "\n".join(ROWS), {}, "classification", "target 'y': 3 classes (0, 1, 2)"),
        (body("y,x", lambda i: f"{['no', 'yes'][i % 2]},{i}", 9), {"target": "y"}, "classification", "(no, yes)"),
        (body("a,b,c", lambda i: f"{i % 2},{i},{i // 2 % 2}", 9), {"target": "a,c"}, "several labels", "2 labels"),
        (
            body("x,y", lambda i: f"{i},{i * 0.5 if i % 4 else ''}", 40),
            {},
            "regression",
            "10 rows without 'y' are left",
        ),
        (body("i,x,y", lambda i: f"name {i},{i},{i * 0.5}", 300), {}, "regression", "240 different texts in 240 rows"),
        (body("i,x,y", lambda i: f"same,{i},{i * 0.5}", 30), {}, "regression", "all its values are 'same'"),
        (body("i,x,y", lambda i: f",{i},{i * 0.5}", 30), {}, "regression", "'i' is left out: it has no values"),
    ],
)
def test_what_a_column_is(folder, text, options, task, said):
    """A table tells whether it has a header, what its columns are, and what is to be learned; all of it is said."""
    data = table(folder, text, **options)
    assert data.task == task
    assert said in "\n".join(data.lines)
    if not options:
        lines = [line for line in text.splitlines() if line and not line.endswith(",")]
        assert len(data.train) + len(data.held_out) == len(lines) - ("no header" not in said)


def test_what_is_new_in_other_rows(folder):
    """A category that training did not have is as one that is missing; a class that it did not have is an error."""
    known = "c,x,y\n" + "\n".join(f"{'ab'[i % 2]},{i},{'no' if i % 2 else 'yes'}" for i in range(20))
    table(folder, known, "known.csv")
    (folder / "new.csv").write_text("y,x,c\nyes,3,a\nno,,z\nno,5,\n")
    data = sources.table(folder / "known.csv", test=folder / "new.csv")
    assert data.held_out.tensors["categories"].flatten().tolist() == [1, 0, 0]
    assert data.held_out.tensors["inputs"][1] == 0
    assert data.held_out.tensors["targets"].tolist() == [1, 0, 0]
    (folder / "new.csv").write_text("y,x,c\nyes,3,a\nyess,2,b\n")
    with pytest.raises(DataError, match=r"line 3, column 'y': 'yess' is no class .*; did you mean 'yes'"):
        sources.table(folder / "known.csv", test=folder / "new.csv")
    (folder / "new.csv").write_text("y,xx,c\nyes,3,a\n")
    with pytest.raises(DataError, match="has no column 'x'; did you mean 'xx'"):
        sources.table(folder / "known.csv", test=folder / "new.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: a table needs a header"),
        ("x,y\n", "is empty: a table needs a header"),
        ("y\n1\n", "one column"),
        ("x,y\n1,0\n1,2,3\n", "line 3: 3 columns, but the first row has 2"),
        ("x,y\n1,0\n\n1\n", "line 4: 1 columns, but the first row has 2"),
        ('x,y\n"a\nb",0\n1,2,3\n', "line 4: 3 columns"),
        (f"x,y\n{MANY}\n1,two\n", "line 42, column 'y': 'two' is not a number"),
        (f"x,y\n{MANY}\ntwo,1\n", "line 42, column 'x': 'two' is not a number"),
        (f"x,y\n{MANY}\ninf,1\n", "line 42, column 'x': 'inf' is infinite"),
        ("x,x\n1,2\n", "two columns 'x'"),
        ("x,y\n1,\n2,NA\n", "column 'y', which is to be learned, has no values"),
        ("x,y\n1,a\n2,a\n3,a\n", "is 'a' in each row"),
        ("x,y\n" + "\n".join(f"{i},name {i}" for i in range(20)), "has 20 different values in 20 rows"),
        ("x,y\n" + "\n".join(f"1,{i % 2}" for i in range(20)), "no column that says anything"),
    ],
)
def test_a_bad_table_is_refused_where_it_is_bad(folder, text, message):
    """A table that can't be learned from raises a DataError with the line, the column and what stands there."""
    with pytest.raises(DataError, match=message):
        table(folder, text)


def test_a_damaged_file_says_where(folder):
    """Bytes that are no text, and files that were cut short, are named with their place."""
    (folder / "latin.csv").write_bytes(b"x,y\n1,2\n\xe9,3\n")
    with pytest.raises(DataError, match="is not UTF-8: byte 8, in line 3, is 0xe9"):
        sources.table(folder / "latin.csv")
    packed = gzip.compress(("x,y\n" + "\n".join(ROWS)).encode())
    (folder / "cut.csv.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="can't read"):
        sources.table(folder / "cut.csv.gz")
    pl.DataFrame({"x": [1.0, 2.0], "y": [0.5, 1.5]}).write_parquet(folder / "cut.parquet")
    raw = (folder / "cut.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="is no Parquet file, or cut short"):
        sources.table(folder / "cut.parquet")
    with pytest.raises(DataError, match="no column 'prize'; did you mean 'price'"):
        table(folder, "size,price\n1,2\n", target="prize")


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("cell", ["1", '"1"'])
def test_the_last_row_is_named_by_its_own_line(tmp_path, cell, end):
    """With quotes and without, whether its line ends or not."""
    (tmp_path / "t.csv").write_text(f"a,b\n{cell},2\n3,4\n5{end}")
    with pytest.raises(DataError, match=r"line 4\b"):
        sources.table(tmp_path / "t.csv")


def test_a_format_is_a_reader_and_a_line(folder, monkeypatch):
    """A reader in TABLES is read by `table` and, block by block, by `new_data`, as a CSV of the same rows is."""

    def ndjson(path, _dialect):
        data = pl.read_ndjson(path)
        for begin in range(0, len(data), 7):
            part = data[begin : begin + 7]
            yield Frame(str(path), part, np.arange(begin, begin + len(part)) + 1, "line")

    monkeypatch.setitem(formats.TABLES, ".jsonl", ndjson)
    frame = pl.DataFrame({"x": [i * 0.5 for i in range(40)], "y": ["no", "yes"] * 20})
    frame.write_csv(folder / "same.csv")
    frame.write_ndjson(folder / "same.jsonl")
    made = [sources.table(folder / name) for name in ("same.csv", "same.jsonl")]
    for data in made:
        for name, t in tensors(made[0]).items():
            assert torch.equal(t, tensors(data)[name])
    blocks = [*new_data.of_table(folder / "same.jsonl", made[1].fitted, targets=True)]
    assert [len(rows.batch["inputs"]) for rows in blocks] == [7, 7, 7, 7, 7, 5]
    assert [c for rows in blocks for c in rows.batch["targets"].tolist()] == [0, 1] * 20


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_table_or_an_error(folder, raw):
    """Nothing else is raised, whatever a file holds."""
    for name in ("bytes.csv", "bytes.parquet", "bytes.csv.gz"):
        (folder / name).write_bytes(raw)
        try:
            sources.table(folder / name)
        except DataError:
            continue


@pytest.mark.parametrize(("name", "task", "shape"), [("wine", "classification", 13), ("diabetes", "regression", 10)])
def test_scikit_learns_tables(name, task, shape):
    """They are prepared as files are, and unknown ones named."""
    data = sources.sklearn(name)
    assert (data.task, data.train.tensors["inputs"].shape[1]) == (task, shape)
    assert data.train.tensors["inputs"].mean(0).abs().max() < 1e-5
    with pytest.raises(DataError, match="did you mean 'wine'"):
        sources.sklearn("wnie")


def test_rows_that_can_not_be_read_may_be_left_out(folder):
    """With skip_bad, rows of another width and cells of another kind are left out and counted, by their lines."""
    text = f"x,y\n{MANY}\n1,two\n3,4,5\n6,18\n"
    with pytest.raises(DataError, match="line 43: 3 columns"):
        table(folder, text)
    data = table(folder, text, dialect=sources.Dialect(skip_bad=True))
    assert len(data.train) + len(data.held_out) == 41
    assert "2 rows that can't be read are left out: line 42, 43" in data.notes
    assert len(data.raw()) == len(data.held_out)


def test_a_column_that_gives_the_target_away_is_named(folder):
    """So is one that numbers the rows; both stay inputs."""
    body = "\n".join(f"{i},{i % 5},{'ab'[i % 2]},{'yes' if i % 2 else 'no'}" for i in range(100))
    columns = {c.name: c for c in table(folder, f"n,x,copy,y\n{body}").columns}
    assert [name for name, c in columns.items() if c.alarm] == ["n", "copy"] == [*columns][:2]
    assert "numbers the rows" in columns["n"].note
    assert "alone gives the target away" in columns["copy"].note


def test_rows_are_split_by_one_rule(folder):
    """Of groups, time and a file, two are refused. A row without a time is refused; one without a group is its own."""
    rows = [f"{'' if i % 3 else 'a'},{i if i != 7 else ''},{i * 0.5},{i % 2}" for i in range(42)]
    text = "g,t,x,y\n" + "\n".join(rows)
    with pytest.raises(ConfigError, match="groups= and time= both say what is held out; give one"):
        table(folder, text, groups="g", time="t")
    with pytest.raises(ConfigError, match="time= and test= both say what is held out; give one"):
        table(folder, text, time="t", test=folder / "t.csv")
    with pytest.raises(DataError, match="line 9, column 't': None is no time"):
        table(folder, text, time="t")
    with pytest.raises(ConfigError, match="column 'g' splits the rows, and ignore= leaves it out"):
        table(folder, text, groups="g", ignore="g")
    with pytest.raises(DataError, match="column 'g' has no dates, times or numbers"):
        table(folder, text, time="g")
    held = table(folder, text, groups="g").raw().data["g"].to_list()
    assert held.count("a") in (0, 14)
    assert 0 < held.count("") < 28


def test_what_a_test_file_lacks_is_counted(folder):
    """As in the training file: rows without a target, rows that can't be read, and values that are new."""
    known = "c,x,y\n" + "\n".join(["a,1,no", "b,2,yes"] * 10)
    new = folder / "new.csv"
    new.write_text("c,x,y\na,1,no\nz,2,yes\na,3,\na,four,no\na,5\n")
    data = table(folder, known, test=new, dialect=sources.Dialect(skip_bad=True))
    assert data.notes[-3:] == (
        f"{new}: 1 row without 'y' is left out", f"{new}: 2 rows that can't be read are left out: line 5, 6",
        f"{new}: 1 of 2 rows have values of c that the run never saw, such as z; they count as missing",
    )  # fmt: skip
    assert len(data.held_out) == len(data.raw()) == 2


def test_labels_are_0_and_1(folder):
    """Several labels of other values are refused, in the training file and in others."""
    text = "a,b,c\n" + "\n".join(f"{i % 2},{i},{i // 2 % 2}" for i in range(20))
    data = table(folder, text, target="a,c")
    (folder / "new.csv").write_text("a,b,c\n1,2,0\n0,1,2\n")
    with pytest.raises(DataError, match=r"line 3, column 'c': '2' is no label, 0 or 1; of values, task='regression'"):
        apply(data.fitted, read_table(folder / "new.csv"))
    with pytest.raises(DataError, match=r"line 22, column 'a': .* is no label"):
        table(folder, f"{text}\n3,1,0\n", target="a,c", task="several labels")
