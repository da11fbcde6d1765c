"""Data in files: tables, arrays, images, texts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import asdict, frozen

from cli.recipes.code import wanted
from cli.recipes.data.base import Data, kind_prefix, share, without_kind
from cli.recipes.data.bundled import SMALL
from cli.recipes.setting import at_least, one_of, refusal, setting
from cli.recipes.task import TASKS

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


@frozen
class File(Data):
    """A file or folder, read by functions of `pipeline.sources`, which get its path and the settings named like their
    parameters."""

    reader: ClassVar[str]
    """The function of `sources` that gives a Prepared."""
    others_reader: ClassVar[str]
    """The function of `sources.new_data` that gives Rows."""
    fits: ClassVar[str] = ""
    """The key of `fitted` that identifies this kind of data."""

    def arguments(self) -> dict[str, Any]:
        return asdict(self, recurse=False)

    def located(self, source: str) -> str | Path:
        """What the reader gets for a source."""
        return without_kind(source)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        read = getattr(sources, self.reader)
        given = {**self.arguments(), "parts": split}
        if given.get("test") is not None:
            given["test"] = self.located(given["test"])
        data: Prepared = read(self.located(self.source), **wanted(read, given))
        return data

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        if self.fits and self.fits not in about.fitted:
            raise refusal(f"the run was trained on {about.fixed.source}, which is of another kind than {self.source}")
        read = getattr(new_data, self.others_reader)
        learned = {
            "fitted": about.fitted, "shape": about.fixed.inputs, "task": about.fixed.task, "classes": about.classes,
            "vocabulary": about.fixed.sizes.get("vocabulary"), "targets": targets,
        }  # fmt: skip
        rows: Iterator[Rows] = read(self.located(self.source), **wanted(read, {**self.arguments(), **learned}))
        return rows


@frozen
class Tested(File):
    """Data that may have their own test set."""

    test: str | None = setting(None, "file or folder of samples to hold out, instead of a share", fixed=True)
    task: str | None = setting(None, f"{', '.join(TASKS)}  [default: by the targets]", one_of(TASKS), fixed=True)

    def arguments(self) -> dict[str, Any]:
        return {**asdict(self, recurse=False), "task": TASKS[self.task] if self.task else None}


@frozen
class Table(Tested):
    """A table in a file, or in several: CSV and other texts, JSON, Parquet, Arrow, Excel, SQLite, DuckDB."""

    prefers: ClassVar[Mapping[str, Any]] = SMALL
    model: ClassVar[str | None] = "table"
    reader, others_reader, fits = "table", "of_table", "columns"

    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)
    ignore: str | None = setting(None, "columns to leave out: a,b, or patterns such as x_*", fixed=True)
    categorical: str | None = setting(None, "columns of categories, though they look like numbers", fixed=True)
    numeric: str | None = setting(None, "columns of numbers, though they look like texts", fixed=True)
    missing: str | None = setting(
        None, 'texts for a missing value, a,b; "" for none  [default: NA, N/A, NaN, null, None, ?, #N/A]', fixed=True
    )
    decimal: str | None = setting(
        None, "decimal mark, . or ,  [default: by the columns]", one_of((".", ",")), fixed=True
    )
    day_first: bool | None = setting(None, "whether 03/04/2020 is 3 April  [default: by the rows]", fixed=True)
    groups: str | None = setting(None, "column: rows with equal values stay on one side of the split", fixed=True)
    time: str | None = setting(None, "column of time: the last samples are held out", fixed=True)
    header: bool | None = setting(None, "whether the first row has the names  [default: by its look]", fixed=True)
    separator: str | None = setting(None, "character between cells  [default: by the first rows]", fixed=True)
    encoding: str | None = setting(
        None, "of texts, such as cp1252  [default: UTF-8, or by the first bytes]", fixed=True
    )
    skip_bad: bool = setting(False, "leave out rows that can't be read", fixed=True)

    @classmethod
    def is_file(cls, source: str) -> bool:
        from pipeline.sources import formats

        return kind_prefix(source) in formats.IN_PARTS or source.lower().endswith(formats.table_ends())

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        from pipeline.sources import formats

        parts = {formats.TABLES.get(formats.suffix(n)) for n in names if not n.startswith((".", "_"))}
        return len(parts) == 1 and None not in parts

    def located(self, source: str) -> str | Path:
        return source.removeprefix("table:")

    @property
    def title(self) -> str:
        file = str(self.path).partition("?")[0].partition(",")[0]
        return re.sub(r"[*?\[\]]+", "", Path(file).stem).strip("-_. ") or "table"

    def arguments(self) -> dict[str, Any]:
        from pipeline.sources import Dialect, Readings

        words = None if self.missing is None else ("", *(w.strip().lower() for w in self.missing.split(",")))
        separator = {"\\t": "\t", "tab": "\t"}.get(self.separator or "", self.separator)
        dialect = Dialect(self.header, separator, self.encoding, words, self.skip_bad)
        columns = Readings(self.categorical, self.numeric, self.decimal, self.day_first)
        return {**Tested.arguments(self), "dialect": dialect, "columns": columns}


@frozen
class Arrays(Tested):
    """Arrays of inputs and targets: .npz, .npy in a folder, safetensors."""

    model: ClassVar[str | None] = "table"
    reader, others_reader = "arrays", "of_arrays"

    inputs: str | None = setting(None, "name of the inputs  [default: inputs, X, x_train, and the like]", fixed=True)
    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)

    def arguments(self) -> dict[str, Any]:
        return {**Tested.arguments(self), "targets": self.target, "names": (self.inputs, self.target)}

    @classmethod
    def is_file(cls, source: str) -> bool:
        from pipeline.sources import formats

        return source.lower().endswith((".npz", *formats.ARRAYS))

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return any(n.startswith(("inputs.", "train.", "X.", "x_train.")) and cls.is_file(n) for n in names)


@frozen
class Idx(File):
    """Images and labels in the format of MNIST: a file of images, or a folder of the usual four."""

    ends: ClassVar[tuple[str, ...]] = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")
    reader, others_reader = "images_idx", "of_idx"

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return any("idx3" in n or "idx1" in n for n in names)


@frozen
class Images(File):
    """A folder of images by class, a tar archive of WebDataset, or, by `images:FILE`, a table of their paths."""

    ends: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.zst")
    reader, others_reader, fits = "images", "of_images", "mode"

    test: str | None = setting(None, "file or folder of samples to hold out, instead of a share", fixed=True)
    size: int | None = setting(
        None, "height and width of images  [default: as they are]", at_least(1, most=1 << 14), fixed=True
    )
    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)
    augment: str = setting("auto", "auto, none, flip, crop, flip+crop, alternate, or alternate+crop", fixed=True)
    workers: int = setting(0, "processes that prepare samples", at_least(0, most=1024))


@frozen
class Windows(File):
    """Tokens in sequence, in windows whose next tokens are learned."""

    others_reader, fits = "of_text", "context"

    held_out: float = setting(0.1, "held-out share of the samples", share, fixed=True)
    context: int = setting(128, "context length in tokens", at_least(1), fixed=True)


@frozen
class Text(Windows):
    """A text."""

    ends: ClassVar[tuple[str, ...]] = (".txt", ".txt.gz", ".txt.bz2", ".txt.xz", ".txt.zst")
    reader = "text"

    tokenizer: str | None = setting(None, "bytes, characters, or a tokenizers' JSON file  [default: bytes]", fixed=True)


@frozen
class Chat(File):
    """Questions and answers in JSON lines or Parquet, of which the answers are learned."""

    reader, others_reader, fits = "chat", "of_chat", "template"

    held_out: float = setting(0.1, "held-out share of the samples", share, fixed=True)
    context: int = setting(512, "most tokens of a row", at_least(1), fixed=True)
    tokenizer: str | None = setting(None, "bytes, or a tokenizers' JSON file  [default: bytes]", fixed=True)
    template: str | None = setting(
        None, 'text of a row, the last column of which is learned: "Q: {question} A: {answer}"  [default: by the '
        "columns messages, prompt and completion, or text]", fixed=True,
    )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        template = self.template and self.template.replace("\\n", "\n").replace("\\t", "\t")
        return {**File.arguments(self), "template": template}


@frozen
class Tokens(Windows):
    """A file of token ids."""

    ends: ClassVar[tuple[str, ...]] = (".bin",)
    reader = "tokens"

    dtype: str = setting("uint16", "of token ids: uint16 or uint32", one_of(("uint16", "uint32")), fixed=True)


@frozen
class HuggingFace(File):
    """A data set of the datasets library on this disk."""

    reader = "huggingface"

    inputs: str | None = setting(None, "column of the inputs  [default: by its look]", fixed=True)
    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)

    def arguments(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "targets": self.target}

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return not {"dataset_info.json", "dataset_dict.json"}.isdisjoint(names)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline import sources
        from pipeline.sources import new_data
        from pipeline.sources.huggingface import rows, single

        if not targets:
            raise refusal(f"{self.source}: predictions are for tables, arrays and images; write it as Parquet or .npz")
        if "columns" in about.fitted:
            return new_data.of_frame(rows(self.path, about.fitted), about.fitted, targets=True)
        data = sources.huggingface(single(self.path), **self.arguments())
        if data.classes != about.classes:
            raise refusal(f"{self.source} has the classes {', '.join(data.classes)}, but others were learned")
        inputs, task = about.fixed.inputs, about.fixed.task
        return chain.from_iterable(
            new_data.of_source(self.source, split, inputs, targets=True, task=task, classes=about.classes)
            for split in (data.train, data.held_out)
        )
