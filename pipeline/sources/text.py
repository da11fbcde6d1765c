"""Texts and token files: windows of a sequence, for next-token prediction."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import DataError, did_you_mean, needs
from pipeline.sources.files import reading, whole
from pipeline.sources.prefetch import prefetch
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split
from pipeline.sources.tensors import Source, Tensors
from pipeline.state import Batch

BYTES, CHARACTERS = "bytes", "characters"
IN_MEMORY = 1 << 25
"""Tokens up to which the windows are held in memory."""
COPIES = 4
"""Copies of a text in memory while it becomes tokens."""


@frozen(eq=False)
class Windows:
    """A Source of windows of a sequence of tokens: sample i begins at token (first + i) * context.

    Shapes: `inputs` and `targets` (B, context) int64; targets are the tokens that follow.
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
        window = torch.from_numpy(self.tokens[begin[:, None] + np.arange(self.context + 1)].astype(np.int64))
        return {"inputs": window[:, :-1], "targets": window[:, 1:]}

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The windows at these indices, prefetched."""
        return prefetch(self[indices] for indices in batches)


def text(path: str | Path, *, context: int = 128, tokenizer: str | None = None, parts: Split | None = None) -> Prepared:
    """A text as tokens: "bytes" (the default), "characters", or by a JSON file of the tokenizers library.

    The last windows are held out. `fitted` has the arguments of `encode` and `decode`, and the bytes per token.
    """
    path = Path(path)
    raw, tokenizer = whole(path, COPIES), tokenizer or BYTES
    fitted: dict[str, Any] = {"tokenizer": str(tokenizer), "vocabulary": 256}
    if tokenizer == CHARACTERS:
        alphabet = "".join(sorted(set(_decoded(path, raw))))
        fitted |= {"alphabet": alphabet, "vocabulary": len(alphabet)}
    elif tokenizer != BYTES:
        fitted["vocabulary"] = library(tokenizer, lambda t: max(t.get_vocab().values()) + 1)
    ids = _ids(path, raw, fitted)
    fitted["bytes_per_token"] = len(raw) / max(len(ids), 1)
    return _prepared(path, ids, context, int(fitted["vocabulary"]), parts, fitted)


def ids_of(path: Path, fitted: Mapping[str, Any]) -> np.ndarray:
    """Another text as token ids. Raises DataError for a character without one."""
    return _ids(path, whole(path, COPIES), fitted)


def _ids(path: Path, raw: bytes, fitted: Mapping[str, Any]) -> np.ndarray:
    if fitted["tokenizer"] == BYTES:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # UTF-32 begins alike
            raise DataError(f"{path} is UTF-16 or UTF-32; save it as UTF-8")
        return np.frombuffer(raw, np.uint8)
    return np.array(encode(fitted, _decoded(path, raw)), np.int32)


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8: byte {e.start} is {raw[e.start]:#04x}; use bytes as tokens") from None


def tokens(
    path: str | Path, *, dtype: str = "uint16", context: int = 128, vocabulary: int | None = None,
    parts: Split | None = None,
) -> Prepared:  # fmt: skip
    """A file of token ids in sequence, `dtype` uint16 or uint32; of a large one, only the tokens of a batch are
    read."""
    path = Path(path)
    ids = ids_in(path, dtype, vocabulary)
    return _prepared(path, ids, context, vocabulary or _largest(ids) + 1, parts, {"tokenizer": None})


def ids_in(path: Path, dtype: str, vocabulary: int | None = None) -> np.ndarray:
    """The token ids in a file, as a memory map. Raises DataError for an id that is not below `vocabulary`."""
    kind = np.dtype({"uint16": "<u2", "uint32": "<u4"}[dtype])
    with reading(path):
        size = files.plain(path).stat().st_size
        if size % kind.itemsize or not size:
            raise DataError(f"{path} has {size:,} bytes, which are no tokens of {kind.itemsize} bytes each ({dtype})")
        ids = np.memmap(path, kind, mode="r")
    lower, upper = ids[:IN_MEMORY:2], ids[1:IN_MEMORY:2]  # of tokens of 32 bits
    if dtype == "uint16" and len(ids) % 2 == 0 and lower.max() > 255 and upper.max() < 4 and np.median(upper) == 0:
        raise DataError(f"{path}: each second token is below 4, as in a file of uint32; say dtype=uint32")
    if vocabulary is not None and _largest(ids) >= vocabulary:
        at = next(i for i in range(len(ids)) if ids[i] >= vocabulary)
        raise DataError(f"{path}: token {at:,} is {ids[at]}, but there are {vocabulary} tokens")
    return ids


def _largest(ids: np.ndarray) -> int:
    return max(int(ids[i : i + IN_MEMORY].max()) for i in range(0, len(ids), IN_MEMORY))


def _prepared(
    path: Path, ids: np.ndarray, context: int, vocabulary: int, parts: Split | None, fitted: Mapping[str, Any]
) -> Prepared:
    """Training windows: before the held-out ones and, for a fold in the middle, after them."""
    parts = parts or Split(0.1)
    count = (len(ids) - 1) // context
    if count < 2:
        raise DataError(f"{path} has {len(ids):,} tokens, fewer than two windows of {context}; give a smaller context")
    begin, end = parts.stretch(count)
    held = end - begin
    large = len(ids) > IN_MEMORY
    held_out = Windows(ids, context, begin, held)
    before, after = Windows(ids, context, 0, begin), Windows(ids, context, end, count - end)
    train: Source = before or after
    if not large or (before and after):
        batches = [side[torch.arange(len(side))] for side in (before, after) if side]
        train = Tensors({name: torch.cat([batch[name] for batch in batches]) for name in held_out.names})
    which = f"the last {held * context:,}" if end == count else f"number {begin * context + 1:,} to {end * context:,}"
    notes = (f"{len(ids):,} tokens of {vocabulary:,} kinds, {which} of them held out",)
    unigram = _unigram(ids, begin * context, vocabulary) if not large and parts.folds is None else None
    sizes = {"vocabulary": vocabulary, "context": context}
    fitted = {**fitted, "unigram_perplexity": unigram, **sizes}
    held_source = held_out if large else Tensors(dict(held_out[torch.arange(held)]))
    return Prepared(train, held_source, "language modelling", (), sizes, notes, fitted)


def _unigram(ids: np.ndarray, begin: int, vocabulary: int) -> float:
    """The perplexity of the tokens from `begin` on, by the smoothed frequencies of the tokens before."""
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
    ids: list[int] = library(kind, lambda t: t.encode(words).ids)
    return ids


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
    words: str = library(kind, lambda t: t.decode(list(ids), skip_special_tokens=False))
    return words


def library(path: str, use: Callable[[Any], Any]) -> Any:
    """What a tokenizer of a file of the tokenizers library gives."""
    why = f"tokenizer {path!r} is neither bytes nor characters, and a file needs the tokenizers library"
    with needs(why, "tokenizers"):
        import tokenizers
    try:
        found = tokenizers.Tokenizer.from_file(str(files.plain(Path(path))))
        found.no_truncation()  # a file keeps those of the last call before it was saved
        found.no_padding()
        return use(found)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # a panic of the library, which is written in Rust, is no Exception
        why = f"neither bytes, characters, nor a tokenizers' JSON file ({e})"
        raise DataError(f"{path} is no tokenizer: {why}") from None
