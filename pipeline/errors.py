"""All errors for users; messages have the cause, the place and a remedy. Each class has the command's exit code."""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class PipeError(Exception):
    """Base of all errors; the message is one or two lines."""

    exit_code = 2


class WiringError(PipeError):
    """The stages do not fit together. Raised when a Pipeline is built."""


class StageError(PipeError):
    """A stage failed, or its outputs differ from its declaration."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(stage, message)
        self.stage, self.message = stage, message

    def __str__(self) -> str:
        return f"stage {self.stage!r} {self.message}"


class ImpureError(PipeError):
    """A function is not pure: it writes into an argument, or draws from its own generator."""


class CaptureError(PipeError):
    """The step can't be captured as one graph, or not compiled on this machine."""


class StateError(PipeError):
    """A State does not fit the pipeline, or was donated and used again."""


class CheckpointError(PipeError):
    """A checkpoint can't be written, or is damaged."""


class NonFiniteError(PipeError):
    """A step's loss or gradients are not finite. `state` is from before the step at batch `batch` of epoch `epoch`."""

    def __init__(self, message: str, state: Any = None, epoch: int = 0, batch: int = 0) -> None:
        super().__init__(message)
        self.state, self.epoch, self.batch = state, epoch, batch


class ByHandError(PipeError):
    """The pipeline has no equivalent plain torch loop to compare with."""


class DataError(PipeError):
    """A data set is missing, empty, or unusable."""


class DeviceError(PipeError):
    """The requested device is unknown or not on this machine."""


class ConfigError(PipeError):
    """A setting is unknown or out of range."""


def place_of(error: BaseException) -> str:
    """The innermost line of user code in a traceback, for a message; empty if there is none.

    >>> try:
    ...     eval(compile("1 / 0", "net.py", "eval"))
    ... except ZeroDivisionError as e:
    ...     place_of(e)
    ' (net.py:1)'
    """
    return user_line((f.filename, f.lineno or 0) for f in reversed(traceback.extract_tb(error.__traceback__)))


def user_line(lines: Iterable[tuple[str, int]]) -> str:
    """The first of some lines, each a file and a number, that is user code, for a message; empty if none is."""
    packages = [Path(__file__).parent, Path(getattr(sys.modules.get("torch"), "__file__", "?")).parent]
    skipped = (*[f"{folder}{os.sep}" for folder in packages], "<")
    stdlib = sysconfig.get_path("stdlib")
    for path, number in lines:
        if not path.startswith(skipped) and (not path.startswith(stdlib) or "site-packages" in path):
            return f" ({Path(path).name}:{number})"
    return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or else all of them.

    >>> did_you_mean("input", ["inputs", "targets"])
    "; did you mean 'inputs'?"
    >>> did_you_mean("xyz", ["inputs", "targets"])
    '; known: inputs, targets'
    """
    known = sorted(known)
    if near := difflib.get_close_matches(word, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type; a KeyError's message is a key alone."""
    said = str(error).strip() or type(error).__name__
    return (f"no key {said}" if type(error) is KeyError else said).splitlines()[0]
