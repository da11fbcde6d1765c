"""Data in files: tables, arrays, images, texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.data.base import Data
from cli.recipes.data.bundled import SMALL
from cli.recipes.setting import at_least, one_of, refusal, setting
from cli.recipes.task import TASKS

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


@frozen
class Tested(Data):
    """Data that may have their own test set."""

    test: str | None = setting(None, "file or folder of samples to hold out, instead of a share", fixed=True)
    task: str | None = setting(None, f"{', '.join(TASKS)}  [default: by the targets]", one_of(TASKS), fixed=True)


@frozen
class Table(Tested):
    """A table: CSV, TSV or Parquet."""

    prefers: ClassVar[Mapping[str, Any]] = SMALL
    ends: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")

    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)
    ignore: str | None = setting(None, "columns to leave out, a,b", fixed=True)
    groups: str | None = setting(None, "column: rows of equal value are held out together, or not", fixed=True)
    time: str | None = setting(None, "column of time: the last samples are held out", fixed=True)
    header: bool | None = setting(None, "whether the first row has the names  [default: by its look]", fixed=True)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.table(
            self.path, target=self.target, test=self.test, parts=split, task=TASKS[self.task] if self.task else None,
            header=self.header, groups=self.groups, time=self.time,
            ignore=tuple(self.ignore.split(",")) if self.ignore else (),
        )  # fmt: skip

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        _need("columns", about, f"{self.source} is a table")
        return new_data.of_table(self.path, about.fitted, targets=targets, header=self.header)


@frozen
class Arrays(Tested):
    """Arrays `inputs` and `targets`: .npz, .npy in a folder, safetensors."""

    ends: ClassVar[tuple[str, ...]] = (".npz", ".npy", ".safetensors")

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return any(n.startswith(("inputs.", "train.")) and n.endswith(cls.ends) for n in names)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.arrays(self.path, test=self.test, parts=split, task=TASKS[self.task] if self.task else None)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        return new_data.of_arrays(
            self.path, about.fixed.inputs, targets=targets, task=about.fixed.task, classes=about.classes,
            vocabulary=about.fixed.sizes.get("vocabulary"),
        )  # fmt: skip


@frozen
class Idx(Data):
    """Images and labels in the format of MNIST: a file of images, or a folder of the usual four."""

    ends: ClassVar[tuple[str, ...]] = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return any("idx3" in n or "idx1" in n for n in names)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.images_idx(self.path, parts=split)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        return new_data.of_idx(self.path, about.fixed.inputs, targets=targets, classes=about.classes)


@frozen
class Images(Data):
    """A folder of images by class."""

    test: str | None = setting(None, "file or folder of samples to hold out, instead of a share", fixed=True)
    size: int | None = setting(
        None, "height and width of images  [default: as they are]", at_least(1, most=1 << 14), fixed=True
    )
    augment: str = setting("auto", "auto, none, flip, crop, or flip+crop", fixed=True)
    workers: int = setting(0, "processes that prepare samples", at_least(0, most=1024))

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.images(
            self.path, size=self.size, test=self.test, parts=split, augment=self.augment, workers=self.workers
        )

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        _need("mode", about, f"{self.source} is a folder of images")
        return new_data.of_images(self.path, about.fitted, targets=targets, classes=about.classes)


@frozen
class Text(Data):
    """A text, whose next token is learned."""

    ends: ClassVar[tuple[str, ...]] = (".txt",)

    held_out: float = setting(0.1, "share of the samples that is held out", fixed=True)
    context: int = setting(128, "tokens that a model sees at once", at_least(1), fixed=True)
    tokenizer: str | None = setting(None, "bytes, characters, or a tokenizers' JSON file  [default: bytes]", fixed=True)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.text(self.path, context=self.context, tokenizer=self.tokenizer, parts=split)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        _need("context", about, f"{self.source} is a text")
        return new_data.of_text(self.path, about.fitted)


@frozen
class Tokens(Data):
    """A file of token ids."""

    ends: ClassVar[tuple[str, ...]] = (".bin",)

    held_out: float = setting(0.1, "share of the samples that is held out", fixed=True)
    context: int = setting(128, "tokens that a model sees at once", at_least(1), fixed=True)
    dtype: str = setting("uint16", "of token ids: uint16 or uint32", one_of(("uint16", "uint32")), fixed=True)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.tokens(self.path, dtype=self.dtype, context=self.context, parts=split)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline.sources import new_data

        _need("context", about, f"{self.source} holds tokens")
        return new_data.of_text(self.path, about.fitted, dtype=self.dtype)


@frozen
class HuggingFace(Data):
    """A data set of the datasets library on this disk."""

    inputs: str | None = setting(None, "column of the inputs  [default: by its look]", fixed=True)
    target: str | None = setting(None, "column, or columns a,b, to learn  [default: the last]", fixed=True)

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        return not {"dataset_info.json", "dataset_dict.json"}.isdisjoint(names)

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.huggingface(self.path, inputs=self.inputs, targets=self.target, parts=split)

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        from pipeline import sources
        from pipeline.sources import new_data

        if not targets:
            raise refusal(f"{self.source}: predictions are for tables, arrays and images; write it as Parquet or .npz")
        data = sources.huggingface(self.path, inputs=self.inputs, targets=self.target)
        if data.classes != about.classes:
            raise refusal(f"{self.source} has the classes {', '.join(data.classes)}, but others were learned")
        inputs, task = about.fixed.inputs, about.fixed.task
        return chain.from_iterable(
            new_data.of_source(self.source, split, inputs, targets=True, task=task, classes=about.classes)
            for split in (data.train, data.held_out)
        )


def _need(fitted: str, about: About, what: str) -> None:
    """Raise ConfigError if the run's data were of another kind."""
    if fitted not in about.fitted:
        raise refusal(f"{what}, but the run was trained on {about.fixed.source}, which is of another kind")
