"""Turns: rows of questions and answers as texts, and the parts of them that are learned."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from pipeline import files
from pipeline.errors import ConfigError, DataError, did_you_mean, first_line, needs
from pipeline.text import some

Told: TypeAlias = tuple[str, list[tuple[int, int]]]
"""A text, and the stretches of its characters that are learned."""
Render: TypeAlias = Callable[[Sequence[Mapping[str, Any]], bool], str]
"""Messages, and whether an answer follows -> text."""


FORMS = ({"messages"}, {"prompt", "completion"}, {"text"})
"""The columns of rows without a template."""


@frozen
class Turns:
    """How a row becomes a text."""

    template: str | None
    end: str
    """What ends an answer."""
    render: Render
    own: bool
    """Whether messages go by a chat template."""

    def told(self, row: Mapping[str, Any]) -> Told:
        """The text of a row. Raises ValueError for one of another form.

        >>> Turns("Q: {q} A: {a}", ".", plain, False).told({"q": "1 + 1", "a": 2})
        ('Q: 1 + 1 A: 2.', [(12, 14)])
        """
        if self.template is not None:
            return self._filled(self.template, row)
        if "messages" in row:
            return self._chat(row["messages"], 0)
        if "completion" in row and "prompt" in row:
            prompt, answer = row["prompt"], row["completion"]
            if isinstance(prompt, list) and isinstance(answer, list):
                return self._chat([*prompt, *answer], len(prompt))
            return self._answered(_text("prompt", prompt), _text("completion", answer))
        if "text" in row:
            return self._answered("", _text("text", row["text"]))
        raise ValueError(f"has {some(row)}, but no messages, no prompt and completion, and no text; write a template")

    def _answered(self, prompt: str, answer: str) -> Told:
        whole = prompt + answer + ("" if answer.endswith(self.end) else self.end)
        return whole, [(len(prompt), len(whole))]

    def _filled(self, template: str, row: Mapping[str, Any]) -> Told:
        whole, begin = "", 0
        for literal, name, _, _ in string.Formatter().parse(template):
            whole += literal
            if name is not None:
                if row.get(name) is None:
                    raise ValueError(f"has no {name!r}{did_you_mean(name, row)}")
                begin, whole = len(whole), whole + str(row[name])
        return self._answered(whole[:begin], whole[begin:])

    def _chat(self, messages: Any, first: int) -> Told:
        """Answers from message `first` on are learned: what the chat template writes after the beginning of one."""
        good = isinstance(messages, list) and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages
        )
        if not good or not messages:
            raise ValueError("has messages that are no list of a role and a content each")
        for m in messages:
            _text("content", m.get("content"))
        try:
            whole = self.render(messages, False)
            spans = []
            for i, m in enumerate(messages):
                if m["role"] == "assistant" and i >= first:
                    head, upto = self.render(messages[:i], True) if i else "", self.render(messages[: i + 1], False)
                    if not upto.startswith(head) or not whole.startswith(upto):
                        raise ValueError("is written otherwise by the chat template if turns follow; give a row a turn")
                    spans.append((len(head), len(upto)))
        except ValueError:
            raise
        except Exception as e:  # the template's own
            raise ValueError(f"does not fit the chat template: {first_line(e)}") from None
        if self.own or whole.endswith(self.end):
            return whole, spans
        ended = whole + self.end
        return ended, [(begin, len(ended) if end == len(whole) else end) for begin, end in spans]


def _check_template(template: str) -> None:
    try:
        parts = [(name, more) for _, name, *more in string.Formatter().parse(template) if name is not None]
        if not parts or any(not name or set(name) & set(".[") or more != ["", None] for name, more in parts):
            raise ValueError("its fields are the names of columns")
    except ValueError as e:
        raise ConfigError(
            f"template {template!r} is none: {e}; write such as 'Q: {{question}} A: {{answer}}'"
        ) from None


def plain(messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
    r"""Messages as text, without a chat template.

    >>> plain([{"role": "user", "content": "Hi"}], True)
    'user: Hi\nassistant: '
    """
    return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant: " * answer


def turns(tokenizer: Path | None, template: str | None) -> Turns:
    """By the files beside a tokenizer's: its end of a text, and its chat template, which runs in a sandbox."""
    if template is not None:
        _check_template(template)
    beside = {} if tokenizer is None else _config(tokenizer.with_name("tokenizer_config.json"))
    end = beside.get("eos_token") or "\n"
    end = str(end["content"] if isinstance(end, Mapping) else end)
    if tokenizer is None or not (beside.get("chat_template") or tokenizer.with_name("chat_template.jinja").is_file()):
        return Turns(template, end, plain, own=False)
    with needs("a chat template needs the transformers library", "transformers"):
        from transformers import AutoTokenizer
    try:
        library = AutoTokenizer.from_pretrained(tokenizer.parent, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # the library raises many types of errors
        raise DataError(f"{tokenizer.parent} has no tokenizer that transformers reads: {first_line(e)}") from None

    def render(messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        return str(
            library.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=answer)
        )

    return Turns(template, end, render, own=True)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = files.parsed(path) if path.is_file() else {}
    except (OSError, ValueError) as e:
        raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
    return found if isinstance(found, dict) else {}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has a {name} that is no text")
    return value
