"""Every error a user can meet: what failed, where, and what to do next.

Each class knows the exit code the command line ends with, so that no caller has to.
"""

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
    """The base of all errors here; its message is one or two lines for a person."""

    exit_code = 2


class WiringError(PipeError):
    """The stages do not fit together; raised when a Pipeline is built."""


class StageError(PipeError):
    """A stage failed while it ran, or returned what it did not declare."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(stage, message)
        self.stage, self.message = stage, message

    def __str__(self) -> str:
        return f"stage {self.stage!r} {self.message}"


class ImpureError(PipeError):
    """Code does what no function of its arguments does: it writes into one, or draws from a generator of its own."""


class CaptureError(PipeError):
    """The step can't be captured as one graph, or can't be compiled here."""


class StateError(PipeError):
    """A State does not fit the pipeline, or was donated and used again."""


class CheckpointError(PipeError):
    """A checkpoint can't be written, or what is on disk is not what was written."""


class NonFiniteError(PipeError):
    """A step's loss or gradients are not finite. `state` is the one before that step, at batch `batch` of epoch
    `epoch`."""

    def __init__(self, message: str, state: Any = None, epoch: int = 0, batch: int = 0) -> None:
        super().__init__(message)
        self.state, self.epoch, self.batch = state, epoch, batch


class ByHandError(PipeError):
    """A plain loop in torch can't do what the pipeline does, so that the two can't be compared."""


class DataError(PipeError):
    """A data set is missing, empty, or holds what can't be trained on."""


class DeviceError(PipeError):
    """The device asked for is unknown or not on this machine."""


class ConfigError(PipeError):
    """A setting is unknown or out of range."""


def place_of(error: BaseException) -> str:
    """The line of the user's own code that an error came through last, for a message; empty where there is none.

    >>> try:
    ...     eval(compile("1 / 0", "net.py", "eval"))
    ... except ZeroDivisionError as e:
    ...     place_of(e)
    ' (net.py:1)'
    """
    homes = [Path(__file__).parent, Path(getattr(sys.modules.get("torch"), "__file__", "?")).parent]
    ours = (*[f"{home}{os.sep}" for home in homes], "<")
    python = sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = frame.filename
        if not path.startswith(ours) and (not path.startswith(python) or "site-packages" in path):
            return f" ({Path(path).name}:{frame.lineno})"
    return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them.

    >>> did_you_mean("input", ["inputs", "targets"])
    "; did you mean 'inputs'?"
    >>> did_you_mean("xyz", ["inputs", "targets"])
    '; known: inputs, targets'
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
