"""Chat: rows of questions and answers as tokens, of which only the answers are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import ConfigError, DataError
from pipeline.sources.files import reading
from pipeline.sources.frame import package
from pipeline.sources.jsonlines import objects
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors
from pipeline.sources.text import BYTES, CHARACTERS, library
from pipeline.sources.turns import FORMS, Turns, turns

IGNORED = -100
"""The target of a token that is not learned."""
PARQUET, WRONG = (".parquet", ".pq"), "can't be read as rows of JSON or Parquet"


def chat(
    path: str | Path, *, context: int = 512, tokenizer: str | None = None, template: str | None = None,
    parts: Split | None = None,
) -> Prepared:  # fmt: skip
    """Rows of JSON lines or Parquet with `messages`, `prompt` and `completion`, or `text`; or with the columns that a
    `template` names, the last of which is the answer: "Q: {question} A: {answer}".

    A row is a sample: `inputs` and `targets` (N, T) int64; targets are the next tokens, and -100 where these belong to
    a prompt or to padding. Messages go by the chat template beside the tokenizer's file, or else as `user: ...` lines.
    Rows of more than `context` tokens are cut at the end, and left out without an answer; `notes` count both.
    """
    path, tokenizer = Path(path), str(tokenizer or BYTES)
    fitted: dict[str, Any] = {"tokenizer": tokenizer, "template": template, "vocabulary": 256, "context": context}
    if tokenizer == CHARACTERS:
        raise ConfigError("questions and answers take tokenizer bytes, or a tokenizers' JSON file, not characters")
    if tokenizer != BYTES:
        fitted["vocabulary"] = library(tokenizer, lambda t: max(t.get_vocab().values()) + 1)
    form = _form(fitted)
    rows = [(ids, learned) for _, ids, learned in _rows(path, fitted, form)]
    lengths = [len(ids) - 1 for ids, _ in rows]
    fitted["context"] = min(context, max(lengths, default=0))
    tensors, left_out = _padded(path, rows, fitted["context"])
    train, held_out = (parts or Split(0.1)).rows(len(tensors["inputs"]))
    learned = float((tensors["targets"] != IGNORED).sum()) / max(sum(min(n, fitted["context"]) for n in lengths), 1)
    notes = [f"{len(rows):,} rows of {min(lengths):,} to {max(lengths):,} tokens, padded to {fitted['context']:,}; "
             f"{100 * learned:.0f} % of the tokens are learned", *left_out]  # fmt: skip
    if not form.own and template is None and "messages" in _columns(path):
        notes.append(f"without a chat template, messages are lines of 'role: ...', and {form.end!r} ends the text")
    sizes = {name: fitted[name] for name in ("vocabulary", "context")}
    sides = [Tensors({name: t[side] for name, t in tensors.items()}) for side in (train, held_out)]
    return Prepared(sides[0], sides[1], "language modelling", (), sizes, tuple(notes), fitted)


def is_chat(path: Path) -> bool:
    """Whether a file has the columns of a chat without a template. Raises DataError if it can't be read."""
    return any(form <= _columns(path) for form in FORMS)


def samples(path: Path, fitted: Mapping[str, Any]) -> tuple[Tensors, list[str]]:
    """Other rows, as those of a run, and notes of cut ones."""
    rows = [(ids, learned) for _, ids, learned in _rows(path, fitted, _form(fitted))]
    tensors, notes = _padded(path, rows, fitted["context"], ", the most that the run was trained on")
    return Tensors(tensors), notes


def end_of_answer(fitted: Mapping[str, Any]) -> int | None:
    """The token that ends an answer, if the data are a chat and the tokenizer has one."""
    if "template" not in fitted or fitted["tokenizer"] == BYTES:
        return None
    end = _form(fitted).end
    found: int | None = library(fitted["tokenizer"], lambda t: t.token_to_id(end))
    return found


def _form(fitted: Mapping[str, Any]) -> Turns:
    tokenizer = fitted["tokenizer"]
    return turns(None if tokenizer == BYTES else Path(tokenizer), fitted["template"])


def _rows(path: Path, fitted: Mapping[str, Any], form: Turns) -> Iterator[tuple[int, list[int], list[bool]]]:
    """The number of each row, its tokens, and which of them are learned."""
    chats = form.own and form.template is None
    for number, row in _objects(path):
        try:
            text, spans = form.told({name: value for name, value in row.items() if value is not None})
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path}, row {number} has a lone surrogate, half of a character; write it whole") from None
        except ValueError as e:
            raise DataError(f"{path}, row {number} {e}") from None
        special = not (chats and ("messages" in row or isinstance(row.get("prompt"), list)))
        ids, places = _encoded(fitted["tokenizer"], text, special)
        yield number, ids, [any(max(b, begin) < min(e, end) for begin, end in spans) for b, e in places]


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with reading(path, WRONG):
        if path.suffix.lower() in PARQUET:
            rows = package().read_parquet(escape(str(files.plain(path))))
            yield from zip(count(1), rows.iter_rows(named=True), strict=False)
        else:
            yield from objects(path)


def _columns(path: Path) -> set[str]:
    """The columns of the first row; none if there is none."""
    if path.suffix.lower() not in PARQUET:
        return {*next(_objects(path), (0, {}))[1]}
    with reading(path, WRONG):
        return {*package().read_parquet_schema(escape(str(files.plain(path))))}


def _encoded(tokenizer: str, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens, and where the characters of each begin and end."""
    if tokenizer == BYTES:
        return list(text.encode()), [(at, at + 1) for at, letter in enumerate(text) for _ in letter.encode()]
    found = library(tokenizer, lambda t: t.encode(text, add_special_tokens=special))
    # trim_offsets leaves a token of blanks empty, at their end; one that the tokenizer adds is empty at 0
    return found.ids, [(min(begin, end - 1), end) for begin, end in found.offsets]


def _padded(
    path: Path, rows: list[tuple[list[int], list[bool]]], context: int, most: str = ""
) -> tuple[dict[str, Tensor], list[str]]:
    """Inputs and targets (N, context), and notes of the rows that are cut or left out."""
    memory.check(16 * len(rows) * context, f"{len(rows):,} rows of {context:,} tokens")
    inputs = torch.zeros(len(rows), context, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for i, (ids, learned) in enumerate(rows):
        now = torch.tensor(ids[: context + 1])
        inputs[i, : len(now) - 1] = now[:-1]
        targets[i, : len(now) - 1] = torch.where(
            torch.tensor(learned[1 : len(now)], dtype=torch.bool), now[1:], IGNORED
        )
    kept = (targets != IGNORED).any(1)
    if not kept.any():
        raise DataError(f"{path} has no row with an answer within {context:,} tokens")
    cut = sum(len(ids) - 1 > context for ids, _ in rows)
    none = sum(not any(learned[1:]) for _, learned in rows)
    notes, late = list[str](), int((~kept).sum()) - none
    if cut:
        some = f"{cut:,} rows are cut to {context:,} tokens{most}"
        notes.append(f"{some}, and {late:,} left out, whose answer begins later")
    if none:
        notes.append(f"{none:,} rows without an answer are left out")
    return {"inputs": inputs[kept], "targets": targets[kept]}, notes
