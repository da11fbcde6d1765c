"""All errors for users; messages have the cause, the place and a remedy. Each class has the command's exit code."""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
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


@contextmanager
def needs(why: str, package: str) -> Iterator[None]:
    """Raise ConfigError if a module imported within is not installed, with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError:
        raise ConfigError(f"{why}: pip install {package}") from None


def place_of(error: BaseException) -> str:
    """The innermost submodule and line of user code in a traceback, for a message; empty if there is none.

    >>> try:
    ...     eval(compile("1 / 0", "net.py", "eval"))
    ... except ZeroDivisionError as e:
    ...     place_of(e)
    ' (net.py:1)'
    """
    return running(reversed(list(traceback.walk_tb(error.__traceback__))))


def running(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The submodule and the line of user code in frames, with their lines, innermost first: ` in 'head' (net.py:3)`."""
    frames = list(frames)
    return _submodule([f.f_locals.get("self") for f, _ in frames]) + _user_line(frames)


def _submodule(objects: list[Any]) -> str:
    """The innermost module, by its name in the outermost."""
    kind = getattr(sys.modules.get("torch.nn"), "Module", ())
    modules = [x for x in objects if isinstance(x, kind)]
    if not modules:
        return ""
    inner, outer = modules[0], modules[-1]
    name = next((n for n, m in outer.named_modules() if m is inner), "")
    return f" in {name!r}" if name else f" in {type(inner).__name__}"


def _user_line(frames: list[tuple[FrameType, int]]) -> str:
    packages = [Path(__file__).parent, Path(getattr(sys.modules.get("torch"), "__file__", "?")).parent]
    skipped = (*[f"{folder}{os.sep}" for folder in packages], "<")
    stdlib = sysconfig.get_path("stdlib")
    for frame, number in frames:
        path = frame.f_code.co_filename
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
    return (f"no key {said}" if type(error) is KeyError else said).splitlines()[0].rstrip(".")
