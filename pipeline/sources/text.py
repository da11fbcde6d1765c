"""Texts and tokens: windows of a sequence, whose next token is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.sources.files import reading, whole
from pipeline.sources.prefetch import ahead
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors
from pipeline.state import Batch

BYTES, CHARACTERS = "bytes", "characters"
MOST = 1 << 25
"""Up to so many tokens are held in memory as windows."""
TIMES = 4
"""So often a text is there while it becomes tokens."""


@frozen(eq=False)
class Windows:
    """A Source of windows of a sequence of tokens: sample i begins at token (first + i) * context.

    Shapes: `inputs` and `targets` (B, context) int64, the targets being the tokens that follow.
    """

    tokens: np.ndarray
    context: int
    first: int
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        return ("inputs", "targets")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Tensor) -> Batch:
        begin = (indices.numpy() + self.first) * self.context
        found = np.asarray(self.tokens[begin[:, None] + np.arange(self.context + 1)])
        window = torch.from_numpy(found.astype(np.int64))
        return {"inputs": window[:, :-1], "targets": window[:, 1:]}

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The windows at some indices, read ahead."""
        return ahead(self[indices] for indices in batches)

    def in_memory(self) -> Tensors:
        """All of them as tensors."""
        return Tensors({name: t.contiguous() for name, t in self[torch.arange(self.count)].items()})


def text(path: str | Path, *, context: int = 128, tokenizer: str | None = None, parts: Split | None = None) -> Prepared:
    """A text as tokens: its bytes, its `characters`, or by the JSON file of the tokenizers library.

    The last windows are held out. `fitted` has what `encode` and `decode` need, and how many bytes a token has.
    """
    path = Path(path)
    raw, tokenizer = whole(path, TIMES), tokenizer or BYTES
    if tokenizer == BYTES:
        fitted: dict[str, Any] = {"tokenizer": BYTES, "vocabulary": 256}
    elif tokenizer == CHARACTERS:
        alphabet = "".join(sorted(set(_words(path, raw))))
        fitted = {"tokenizer": CHARACTERS, "alphabet": alphabet, "vocabulary": len(alphabet)}
    else:
        fitted = {"tokenizer": str(tokenizer), "vocabulary": _library(tokenizer, lambda t: t.get_vocab_size())}
    ids = _ids(path, raw, fitted)
    fitted = {**fitted, "bytes_per_token": len(raw) / max(len(ids), 1)}
    return _windows(path, ids, context, int(fitted["vocabulary"]), parts, fitted)


def ids_of(path: Path, fitted: Mapping[str, Any]) -> np.ndarray:
    """Another text as token ids. Raises DataError for what has none."""
    return _ids(path, whole(path, TIMES), fitted)


def _ids(path: Path, raw: bytes, fitted: Mapping[str, Any]) -> np.ndarray:
    if fitted["tokenizer"] == BYTES:
        return np.frombuffer(raw, np.uint8)
    return np.array(encode(fitted, _words(path, raw)), np.int32)


def _words(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8: byte {e.start} is {raw[e.start]:#04x}; use bytes as tokens") from None


def tokens(
    path: str | Path, *, dtype: str = "uint16", context: int = 128, vocabulary: int | None = None,
    parts: Split | None = None,
) -> Prepared:  # fmt: skip
    """A file of token ids, `dtype` uint16 or uint32, one after the other; only what a batch needs is read of a large
    one."""
    path = Path(path)
    ids = ids_in(path, dtype, vocabulary)
    return _windows(path, ids, context, vocabulary or _most(ids) + 1, parts, {"tokenizer": None})


def ids_in(path: Path, dtype: str, vocabulary: int | None = None) -> np.ndarray:
    """The token ids in a file, which stay there. Raises DataError for one that is not below `vocabulary`."""
    kind = np.dtype({"uint16": "<u2", "uint32": "<u4"}[dtype])
    with reading(path):
        size = files.plain(path).stat().st_size
        if size % kind.itemsize or not size:
            raise DataError(f"{path} has {size:,} bytes, which are no tokens of {kind.itemsize} bytes each ({dtype})")
        ids = np.memmap(path, kind, mode="r")
    if vocabulary is not None and _most(ids) >= vocabulary:
        at = next(i for i in range(len(ids)) if ids[i] >= vocabulary)
        raise DataError(f"{path}: token {at:,} is {ids[at]}, but there are {vocabulary} tokens")
    return ids


def _most(ids: np.ndarray) -> int:
    return max(int(ids[i : i + MOST].max()) for i in range(0, len(ids), MOST))


def _windows(
    path: Path, ids: np.ndarray, context: int, vocabulary: int, parts: Split | None, fitted: Mapping[str, Any]
) -> Prepared:
    parts = parts or Split(0.1)
    count = (len(ids) - 1) // context
    share = parts.share if parts.folds is None else 1 / parts.folds
    held = max(math.ceil(share * count), 1)
    if count - held < 1:
        raise DataError(f"{path} has {len(ids):,} tokens, fewer than two windows of {context}; give a smaller context")
    begin = count - held if parts.folds is None else min(parts.fold * held, count - held)
    large = len(ids) > MOST
    apart = Windows(ids, context, begin, held)
    sides = [Windows(ids, context, i, n) for i, n in ((0, begin), (begin + held, count - begin - held)) if n]
    train, held_out = (sides[0], apart) if large else (sides[0].in_memory(), apart.in_memory())
    if len(sides) > 1:
        both = [side.in_memory().tensors for side in sides]
        train = Tensors({name: torch.cat([side[name] for side in both]) for name in apart.names})
    notes = (f"{len(ids):,} tokens of {vocabulary:,} kinds, the last {held * context:,} of them held out",)
    unigram = _unigram(ids, begin * context, vocabulary) if not large and parts.folds is None else None
    sizes = {"vocabulary": vocabulary, "context": context}
    fitted = {**fitted, "unigram_perplexity": unigram, **sizes}
    return Prepared(train, held_out, "language modelling", (), sizes, notes, fitted)


def _unigram(ids: np.ndarray, begin: int, vocabulary: int) -> float:
    """The perplexity of the tokens from one on, by how often each comes before it, and once more."""
    memory.check(24 * vocabulary, f"a vocabulary of {vocabulary:,} tokens")
    counts = np.bincount(ids[:begin], minlength=vocabulary) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[ids[begin:]].mean()))


def encode(fitted: Mapping[str, Any], words: str) -> list[int]:
    """A text as token ids. Raises DataError for a character that the training text does not have."""
    kind = fitted["tokenizer"]
    if kind == BYTES:
        return list(words.encode())
    if kind == CHARACTERS:
        codes = {c: i for i, c in enumerate(fitted["alphabet"])}
        try:
            return [codes[c] for c in words]
        except KeyError as e:
            near = did_you_mean(e.args[0], codes)
            raise DataError(f"the training text has no character {e.args[0]!r}{near}") from None
    if kind is None:
        raise DataError("the data were token ids: there is no tokenizer to read a text by")
    found: list[int] = _library(kind, lambda t: t.encode(words).ids)
    return found


def decode(fitted: Mapping[str, Any], ids: Sequence[int]) -> str:
    """Token ids as a text.

    >>> decode({"tokenizer": "characters", "alphabet": "abc"}, [2, 0, 1])
    'cab'
    """
    kind = fitted["tokenizer"]
    if kind == BYTES:
        return bytes(ids).decode("utf-8", "replace")
    if kind == CHARACTERS:
        return "".join(fitted["alphabet"][i] for i in ids)
    if kind is None:
        return " ".join(map(str, ids))
    found: str = _library(kind, lambda t: t.decode(list(ids)))
    return found


def _library(path: str, use: Callable[[Any], Any]) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ConfigError(
            f"tokenizer {path!r} is neither bytes nor characters, and a file needs the tokenizers library: "
            "pip install tokenizers"
        ) from None
    try:
        return use(tokenizers.Tokenizer.from_file(str(files.plain(Path(path)))))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # of a library in another language, whose panics are no Exception
        why = f"neither bytes, characters, nor a tokenizers' JSON file ({e})"
        raise DataError(f"{path} is no tokenizer: {why}") from None
