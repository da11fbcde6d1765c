"""The command, called in this process, with what it said."""

import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple
from unittest import mock

from cli.main import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*args, cwd="."):
    """`pipe` with these arguments, in a folder. A traceback is a test's own."""
    out, err = StringIO(), StringIO()
    argv = mock.patch.object(sys, "argv", ["pipe", *map(str, args)])
    with chdir(cwd), argv, mock.patch.dict(os.environ), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
    return Ended(code, out.getvalue(), err.getvalue())
