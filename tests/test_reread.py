"""Files of other hands than the training rows: the same values, or a refusal that names the cell."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.errors import DataError
from pipeline.sources import Dialect, new_data
from pipeline.sources.encode import known
from pipeline.sources.reread import reread
from tests.test_dialects import grouped

X = [round(1000 * float(x), 1) for x in np.random.default_rng(0).normal(5, 1, 30)]
Y = [round(x / 7 % 10, 2) for x in X]


def text(cells, separator=",", names="xzy"):
    return "\n".join(separator.join(row) for row in [names, *zip(*cells, strict=True)]) + "\n"


def encoded(folder, trained, new, **options):
    """Inputs of new rows, in their units, by a run on others."""
    (folder / "t.csv").write_text(trained)
    (folder / "new.csv").write_text(new)
    fitted = sources.table(folder / "t.csv").fitted
    batches = [rows.batch["inputs"] for rows in new_data.of_table(folder / "new.csv", fitted, targets=False, **options)]
    scales = [torch.tensor([c[key] for c in fitted["columns"]]) for key in ("std", "mean")]
    return torch.cat(batches)[:, : len(scales[0])] * scales[0] + scales[1]


@pytest.mark.parametrize(
    ("trained", "new", "why"),
    [
        ("{}%", "{}", r"line 2, column 'x': '\d+\.\d' is not a number with '%'"),
        ("{}", "{}%", r"line 2, column 'x': '\d+\.\d%' is not a number"),
        ("${}", "€{}", r"line 2, column 'x': '€\d+\.\d' is not a number"),
    ],
)
def test_numbers_of_another_unit_are_refused(tmp_path, trained, new, why):
    """39 % is 39 in one file and 0.39 in the next; a currency may lack."""
    made = [text([[form.format(x) for x in X], [str(y) for y in Y], [str(y) for y in Y]]) for form in (trained, new)]
    with pytest.raises(DataError, match=why):
        encoded(tmp_path, *made)
    plain = text([[str(x) for x in X], [str(y) for y in Y], [str(y) for y in Y]])
    if "$" in trained:
        np.testing.assert_allclose(encoded(tmp_path, made[0], plain)[:, 0], X, rtol=1e-5)


def test_floats_are_no_percentages(tmp_path):
    """A spreadsheet holds 0.39 where CSV has 39%."""
    import polars as pl

    (tmp_path / "t.csv").write_text(text([[f"{x}%" for x in X], [str(y) for y in Y], [str(y) for y in Y]]))
    pl.DataFrame({"x": [x / 100 for x in X], "z": Y, "y": Y}).write_parquet(tmp_path / "new.parquet")
    fitted = sources.table(tmp_path / "t.csv").fitted
    with pytest.raises(DataError, match=r"row 1, column 'x': .* is not a number with '%'"):
        list(new_data.of_table(tmp_path / "new.parquet", fitted, targets=False))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1000, 99_999), min_size=3, max_size=9),
    st.sampled_from([(".", ""), (".", ","), (",", "."), (",", "")]),
    st.sampled_from([(".", ""), (".", ","), (",", "."), (",", "")]),
)
def test_marks_of_another_file_are_its_own(tmp_path_factory, whole, one, other):
    """The decimal mark of a file holds for all its columns, also for one that the marks of the training rows fit."""
    folder = tmp_path_factory.getbasetemp()
    fractions = [n / 8 + 0.5 for n in range(len(whole))]

    def written(marks):
        cells = [[grouped(n, *marks, 0) for n in whole], [grouped(x, *marks, 4) for x in fractions]]
        return text([*cells, [str(n) for n in range(len(whole))]], ";")

    found = encoded(folder, written(one), written(other))
    columns = sources.table(folder / "t.csv").fitted["columns"]
    wanted = {"x": whole, "z": fractions}
    for i, column in enumerate(columns):
        np.testing.assert_allclose(found[:, i], wanted[column["name"]], rtol=1e-4, atol=0.02)


def test_days_that_may_be_months(tmp_path):
    """They are in the order of the training rows, if these have one, and refused otherwise."""
    new = text([["03/04/2020", "05/06/2020"], ["1", "2"], ["1", "2"]])
    days = [f"{i % 12 + 1:02}/{i % 28 + 1:02}/2020" for i in range(30)]
    rest = [[str(y) for y in Y], [str(y) for y in Y]]
    short = new.replace("2020", "20")
    assert encoded(tmp_path, text([days, *rest]), short)[:, 0].round().tolist() == [18325, 18388]  # March and May
    iso = [f"{d[6:]}-{d[:2]}-{d[3:5]}" for d in days]
    with pytest.raises(DataError, match=r"'03/04/2020' is a day as .* write them as the training rows are, %Y-%m-%d"):
        encoded(tmp_path, text([iso, *rest]), new)


def test_a_column_of_no_known_kind_stays(tmp_path):
    """What is not in any form is refused with its line, or left out."""
    plain = text([[str(x) for x in X], [str(y) for y in Y], [str(y) for y in Y]])
    with pytest.raises(DataError, match="line 3, column 'x': 'five' is not a number"):
        encoded(tmp_path, plain, "x,z,y\n1,2,3\nfive,2,3\n")
    assert len(encoded(tmp_path, plain, "x,z,y\n1,2,3\nfive,2,3\n", dialect=Dialect(skip_bad=True))) == 1
    frame = sources.table(tmp_path / "t.csv")
    assert reread(frame.raw(), known(frame.fitted["columns"]), {}) == known(frame.fitted["columns"])
