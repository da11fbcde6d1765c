"""Code of the user's: functions in files and packages, named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cli.recipes.setting import refusal


def is_code(name: str) -> bool:
    """Whether a name is FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."""
    module, colon, function = name.rpartition(":")
    return bool(colon) and function.isidentifier() and (module.endswith(".py") or _dotted(module))


def load(name: str) -> Callable[..., Any]:
    """The function. Raises ConfigError where there is none."""
    if not is_code(name):  # whatever is loaded is what somebody was asked about
        raise refusal(f"{name!r} is no code: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    where, _, function = name.rpartition(":")
    module = _file(Path(where)) if where.endswith(".py") else _package(where)
    found = getattr(module, function, None)
    if not callable(found):
        raise refusal(f"{where} has no function {function!r}", function, vars(module))
    return found  # type: ignore[no-any-return]  # it is callable


def called(name: str, function: Callable[..., Any], options: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """A call with the user's options, and with what is known and asked for by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return function(**options)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise refusal(f"{name} takes no {option!r}", option, parameters)
    given = {n: known[n] for n in parameters if n in known} | dict(options)
    for n, p in parameters.items():
        if n not in given and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise refusal(
                f"{name} asks for {n!r}, which neither the data nor you gave: these data have {', '.join(known)}; "
                f"give it a default, or --set model.{n}=..."
            )
    try:
        return function(**given)
    except Exception as e:
        from pipeline.errors import PipeError, place_of

        if isinstance(e, PipeError):  # its message is meant for the user
            raise
        raise refusal(f"{name} failed: {type(e).__name__}: {e}{place_of(e)}") from e


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise refusal(f"can't read {path}: No such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # so that a file finds those beside it, as when Python runs it
        sys.path.insert(0, folder)
    _run(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]  # asserted above
    return module


def _package(name: str) -> ModuleType:
    if "" not in sys.path:  # as `python -m` has it
        sys.path.insert(0, "")
    found: ModuleType = _run(name, lambda: importlib.import_module(name))
    return found


def _run(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as e:
        line = e.lineno if isinstance(e, SyntaxError) else _line(e, name)
        where = f", line {line}" if line else ""
        raise refusal(f"{name}{where} can't be imported: {type(e).__name__}: {e}") from e


def _line(error: Exception, name: str) -> int | None:
    """The last line of the file that an error passed through."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(Path(name).name):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _dotted(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))
