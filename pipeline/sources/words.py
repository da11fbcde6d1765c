"""Words: a column of texts as positions in a vocabulary of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.sources.frame import package

WORD = r"[\p{L}\p{M}\p{N}]+(?:['\u2019]\p{L}+)?"
PLAIN, SEVERAL, HALF = r"\p{L}{2,}", 3, 0.5
"""A text has at least so many words of letters; of a column of texts more than half are different, and at least half
are texts."""
SAMPLE = 10_000
"""Different texts that are looked at."""
AGAIN, VOCABULARY = 2, 20_000
"""Training rows that have a word of the vocabulary, at least, and its size, at most."""
LENGTH, SHORTER = 128, 0.99
"""Words of a text that are read, at most, and the share of training rows that are not cut, if they have fewer."""


def are_texts(texts: Any, total: int) -> bool:
    """Whether the different values of a column of `total` rows are texts of several words."""
    if len(texts) <= HALF * total:
        return False
    return float((texts.head(SAMPLE).str.count_matches(PLAIN) >= SEVERAL).mean()) >= HALF


def fit(column: Any) -> dict[str, Any] | str:
    """The vocabulary of training rows, frequent words first, and the number of words read; or the reason why the column
    is left out."""
    words = _split(column)
    rows = words.list.unique().explode().drop_nulls().value_counts(name="rows")
    rows = rows.filter(rows["rows"] >= AGAIN).sort(["rows", rows.columns[0]], descending=[True, False]).head(VOCABULARY)
    if not len(rows):
        return "no word is in two rows"
    most = words.list.len().quantile(SHORTER, interpolation="higher")
    return {"words": rows.to_series(0).to_list(), "length": int(min(max(most, 1), LENGTH))}


def codes(column: Any, fitted: Mapping[str, Any]) -> np.ndarray:
    """Texts as int64 (N, length) positions in the vocabulary, from 1, and then 0. Other words are left out."""
    pl = package()
    vocabulary = pl.Enum(fitted["words"])
    frame = pl.DataFrame({"row": np.arange(len(column)), "word": _split(column)}).explode("word")
    frame = frame.with_columns(pl.col("word").cast(vocabulary, strict=False).to_physical()).drop_nulls()
    frame = frame.with_columns(pl.int_range(pl.len()).over("row").alias("at")).filter(pl.col("at") < fitted["length"])
    found = np.zeros((len(column), fitted["length"]), np.int64)
    found[frame["row"].to_numpy(), frame["at"].to_numpy()] = frame["word"].cast(pl.Int64).to_numpy() + 1
    return found


def _split(column: Any) -> Any:
    return column.str.to_lowercase().str.extract_all(WORD)
