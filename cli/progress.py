"""Output of a run during training, and the signals that stop it."""

from __future__ import annotations

import errno
import re
import signal
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import processes
from pipeline.text import shown


def plain(quiet: bool) -> Plain:
    """A console for stdout. It prints only on the first process, and nothing if quiet."""
    quiet = quiet or not processes.first()
    return Plain(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


def tell(text: str) -> None:
    """Print a text with its control characters escaped."""
    print(shown(text))


def warn(message: str) -> None:
    """Print a message to stderr, once for all processes."""
    if processes.first():
        say = Plain(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        with suppress(BrokenPipeError):
            say.print(f"pipe: {message}")


class Plain(Console):
    """A rich Console that escapes control characters, and raises BrokenPipeError if the terminal or reader is gone."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console's; on a terminal, texts are broken between words."""
        if self.is_terminal:
            objects = tuple(folded(shown(o), self.width) if isinstance(o, str) else o for o in objects)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        processes.drop_closed_outputs()
        raise BrokenPipeError


def folded(text: str, width: int) -> str:
    """A text with lines of at most a width, broken between words. What goes on stands below the text after a label.

    >>> folded("run     runs/digits-mlp-1 (best weights)", 30).splitlines()
    ['run     runs/digits-mlp-1', '        (best weights)']
    """
    lines = []
    for line in text.split("\n"):
        label = re.match(r" *(\S+ {2,})?", line)
        indent = len(label[0]) if label and len(label[0]) < width // 2 else 0
        wrap = textwrap.TextWrapper(
            width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if len(line) <= width else wrap.wrap(line)
    return "\n".join(lines)


def narrowed(table: str, say: Console) -> Table | str:
    """A table in text, whose lines stand below the words of its head; with broken cells if a terminal is too narrow."""
    head, *lines = table.splitlines()
    if not say.is_terminal or max(map(len, table.splitlines())) <= say.width:
        return table
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    narrow = Table(*head.split(), box=None, pad_edge=False)
    narrow.columns[0].width = max(len(word) for line in lines for word in line[: starts[1]].split())
    for line in lines:
        narrow.add_row(*(line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)))
    return narrow


class Interrupted(BaseException):
    """A signal came during a compilation, which may take long."""


@contextmanager
def interrupts(caught: list[int], doing: Callable[[], str] = str) -> Iterator[None]:
    """Catch the first SIGINT, SIGTERM or SIGHUP, so that the loop ends between two steps; a second one kills. Raises
    Interrupted if the loop is `doing` something else."""

    def note(number: int, _: Any) -> None:
        caught.append(number)
        processes.drop_closed_outputs()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if doing():
            raise Interrupted

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *processes.stopping())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
