"""The user's own code: functions in files and packages, named on the command line or in a config."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import Attribute

from cli.recipes.setting import knowing, refusal


def is_code(name: str) -> bool:
    """Whether a name is FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."""
    module, colon, function = name.rpartition(":")
    dotted = "." in module and all(word.isidentifier() for word in module.split("."))
    return bool(colon) and function.isidentifier() and (module.endswith(".py") or dotted)


def code_in(values: Any) -> list[str]:
    """The user's functions named in a config, a layer of settings or the rows of a sweep, at any depth: every text in
    the form of a function's name.

    >>> code_in({"model": {"name": "net.py:make"}, "rows": [{"data": "own.data:digits"}]})
    ['net.py:make', 'own.data:digits']
    """
    names, stack = dict[str, None](), [values]
    while stack:
        value = stack.pop()
        if isinstance(value, str) and is_code(value):
            names[value] = None
        elif isinstance(value, Mapping):
            stack += reversed([*value.values()])
        elif isinstance(value, list | tuple):
            stack += reversed(value)
    return list(names)


def each_in(table: Mapping[str, Any], base: Callable[[str], str] = str, forms: Any = ()) -> Any:
    """A check of a tuple: the `base` of each is a name in the table, or code. `forms`: JSON schemas of other names."""

    def check(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
        for name in map(base, value):
            if name not in table and not is_code(name):
                raise refusal(f"unknown {attribute.name} {name!r}", name, table)
        if len({*map(base, value)}) < len(value):
            raise refusal(f"--{attribute.name} names one twice: {', '.join(value)}")

    check.forms = forms  # type: ignore[attr-defined]  # read by the schema
    return knowing(check, table)


def load(name: str) -> Callable[..., Any]:
    """The function. Raises ConfigError if there is none."""
    if not is_code(name):  # only names that `code_in` finds are loaded: the user was asked to trust them
        raise refusal(f"{name!r} is no code: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    home, _, function = name.rpartition(":")
    module = _from_file(Path(home)) if home.endswith(".py") else _from_package(home)
    found = getattr(module, function, None)
    if not callable(found):
        raise refusal(f"{home} has no function {function!r}", function, vars(module))
    return found  # type: ignore[no-any-return]  # it is callable


def wanted(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The known values named like a function's parameters.

    >>> wanted(lambda dim, classes=2: ..., {"dim": 1, "task": "regression"})
    {'dim': 1}
    """
    try:
        return {name: known[name] for name in inspect.signature(function).parameters if name in known}
    except (TypeError, ValueError):  # one of C's
        return {}


def called(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], known: Mapping[str, Any], table: str
) -> Any:
    """The result of a call with the options of a table, and the known values that the function asks for by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return function(**options)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise refusal(f"{name} takes no {option!r}", option, parameters)
    arguments = wanted(function, known) | dict(options)
    for n, p in parameters.items():
        if n not in arguments and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise refusal(
                f"{name} asks for {n!r}, which neither the data nor you gave: these data have {', '.join(known)}; "
                f"give it a default, or --set {table}.{n}=..."
            )
    try:
        return function(**arguments)
    except Exception as e:
        from pipeline.errors import PipeError, place_of

        if isinstance(e, PipeError):  # its message is meant for the user
            raise
        raise refusal(f"{name} failed: {type(e).__name__}: {e}{place_of(e)}") from e


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise refusal(f"can't read {path}: No such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # so that a file can import its neighbours, as in `python FILE.py`
        sys.path.insert(0, folder)
    _imported(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]  # asserted above
    return module


def _from_package(name: str) -> ModuleType:
    if "" not in sys.path:  # as with `python -m`
        sys.path.insert(0, "")
    module: ModuleType = _imported(name, lambda: importlib.import_module(name))
    return module


def _imported(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as e:
        line = e.lineno if isinstance(e, SyntaxError) else _last_line(e, name)
        place = f", line {line}" if line else ""
        raise refusal(f"{name}{place} can't be imported: {type(e).__name__}: {e}") from e


def _last_line(error: Exception, name: str) -> int | None:
    """The file's innermost line in an error's traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(Path(name).name):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
