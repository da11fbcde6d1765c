"""A training script of torch as its syntax tree: names, values and loops. It is neither imported nor run."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import define, field

from cli.port.names import NAMES
from cli.recipes.setting import refusal
from pipeline import files

UNKNOWN: Any = object()
"""A value that only running the script would tell."""
LOOPS = (ast.For, ast.AsyncFor, ast.While)
MAYBE = (*LOOPS, ast.If, ast.IfExp, ast.Try, ast.Match, ast.comprehension)
"""What is inside may not be run."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_PREFIXES = sorted({name.rpartition(".")[0] + "." for name in NAMES} - {"torch."}, key=len, reverse=True)
_PLAIN = (bool, int, float, str, type(None))
_PARSED = ("args", "opt", "opts", "options", "cfg", "config", "hparams")
"""Names of what argparse has parsed."""
_LARGEST = 10**18
_OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises ConfigError, in one line, for a file that is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(files.read(path), str(path))
    except SyntaxError as e:
        raise refusal(f"{path}:{e.lineno or 1}: {e.msg}") from None
    except OSError as e:
        raise refusal(f"can't read {path}: {e.strerror or e}") from None
    except (ValueError, RecursionError, MemoryError) as e:
        raise refusal(f"{path}:1: it can't be parsed: {e or 'it is nested too deep'}") from None


@define(eq=False, slots=False)
class Script:
    """The nodes of a script, and what its names stand for."""

    above: dict[ast.AST, ast.AST]
    """Node -> the one that it is in."""
    imports: dict[str, str] = field(factory=dict)
    """Name -> module, or module.name."""
    values: dict[str, ast.expr | None] = field(factory=dict)
    """Name, such as `lr` or `self.lr` -> the one value that it is assigned; None if there are several."""
    flags: dict[str, ast.expr | None] = field(factory=dict)
    """Option of argparse -> its default; None if there are several."""
    used: set[str] = field(factory=set)
    """Options whose defaults were taken."""

    @classmethod
    def read(cls, path: Path) -> Script:
        tree = parsed(path)
        script = cls({child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)})
        for node in script.above:
            script._note(node)
        return script

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not isinstance(self.above[node], ast.ClassDef):
            self._assign(ast.Name(node.name), None)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for a in node.names:
                self._assign(ast.Name(a.asname or a.name.partition(".")[0]), None)
        if isinstance(node, ast.Import):
            for a in node.names:
                self.imports[a.asname or a.name.partition(".")[0]] = a.name if a.asname else a.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self.imports |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                value = node.value
                elements = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(parts) else None
                for i, part in enumerate(parts):
                    several = elements[i] if elements is not None else None
                    self._assign(part, several if len(parts) > 1 else value)
        elif isinstance(node, ast.AugAssign | ast.For | ast.AsyncFor | ast.comprehension):
            self._assign(node.target, None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            given = {k.arg: k.value for k in node.keywords}
            long = next((n for n in names if n.startswith("--")), names[0] if names else "")
            if "default" in given:
                option = long.lstrip("-").replace("-", "_")
                self.flags[option] = given["default"] if option not in self.flags else None

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        name = source(target)
        self.values[name] = value if name not in self.values else None

    def dotted(self, node: ast.expr, depth: int = 9) -> str:
        """The full name of an expression, such as torch.optim.SGD; "" if it is no name."""
        if isinstance(node, ast.Name):
            if node.id in self.imports:
                return self.imports[node.id]
            value = self.values.get(node.id)
            return self.dotted(value, depth - 1) if isinstance(value, ast.Name | ast.Attribute) and depth else ""
        before = self.dotted(node.value, depth) if isinstance(node, ast.Attribute) else ""
        return f"{before}.{node.attr}" if before and isinstance(node, ast.Attribute) else ""

    def known(self, call: ast.Call) -> str:
        """The name of what is called, as NAMES has it if it does."""
        name = self.dotted(call.func)
        short = [p + name.rpartition(".")[2] for p in _PREFIXES if name.startswith(p)]
        return next((n for n in (name, *short) if n in NAMES), name)

    def value(self, node: ast.expr | None, depth: int = 50) -> Any:
        """The value of an expression as far as numbers, text, names and argparse's defaults tell it, or UNKNOWN."""
        if node is None or not depth:
            return UNKNOWN
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, _PLAIN) and _small(node.value) else UNKNOWN
        if isinstance(node, ast.Tuple | ast.List):
            each = [self.value(e, depth - 1) for e in node.elts]
            return UNKNOWN if UNKNOWN in each else tuple(each) if isinstance(node, ast.Tuple) else each
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self.value(node.operand, depth - 1)
            return -number if isinstance(number, int | float) else UNKNOWN
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            sides = self.value(node.left, depth - 1), self.value(node.right, depth - 1)
            if not all(isinstance(s, int | float) for s in sides):
                return UNKNOWN
            try:
                number = _OPERATIONS[type(node.op)](*sides)
            except ArithmeticError:
                return UNKNOWN
            return number if _small(number) else UNKNOWN
        if not isinstance(node, ast.Name | ast.Attribute):
            return UNKNOWN
        if (default := self.flag(node)) is not None:
            self.used.add(source(node).rpartition(".")[2])
            return self.value(default, depth - 1)
        found = self.values.get(source(node))
        if isinstance(node, ast.Name):
            unsure = self._is_parameter(node)
        else:
            unsure = found is not None and not {*self.inside(found, *MAYBE)} <= {*self.inside(node, *MAYBE)}
        return UNKNOWN if unsure else self.value(found, depth - 1)

    def flag(self, node: ast.AST) -> ast.expr | None:
        """The default of an option of argparse, such as args.lr."""
        named = isinstance(node, ast.Attribute) and source(node.value).rpartition(".")[2] in _PARSED
        return self.flags.get(node.attr) if named and isinstance(node, ast.Attribute) else None

    def changes(self) -> Iterator[ast.AST]:
        """What gives an option of argparse another value than the default that was taken."""
        for node in self.above:
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in self.used
            if stored and self.flag(node) is not None:
                yield self.above[node]
        yield from (c for _, c in self.methods("set_defaults") if {k.arg for k in c.keywords} & {None, *self.used})

    def _is_parameter(self, name: ast.Name) -> bool:
        node: ast.AST | None = name
        while node is not None:
            if isinstance(node, _FUNCTIONS) and any(
                isinstance(a, ast.arg) and a.arg == name.id for a in ast.walk(node.args)
            ):
                return True
            node = self.above.get(node)
        return False

    @cached_property
    def calls(self) -> list[ast.Call]:
        """All calls, by line."""
        found = [node for node in self.above if isinstance(node, ast.Call)]
        return sorted(found, key=lambda call: (call.lineno, call.col_offset))

    def methods(self, name: str) -> Iterator[tuple[str, ast.Call]]:
        """The calls of a method, with what it is called on."""
        for call in self.calls:
            if isinstance(call.func, ast.Attribute) and call.func.attr == name:
                yield self.told(call.func.value), call

    def inside(self, node: ast.AST, *kinds: type[ast.AST]) -> Iterator[Any]:
        """The nodes of some kinds around a node in its function, the innermost first."""
        while (outer := self.above.get(node)) is not None and not isinstance(outer, _FUNCTIONS):
            if isinstance(outer, kinds):
                yield outer
            node = outer

    def scope(self, node: ast.AST) -> ast.AST | None:
        """The function around a node."""
        while (outer := self.above.get(node)) is not None and not isinstance(outer, _FUNCTIONS):
            node = outer
        return outer

    def path(self, node: ast.AST) -> list[ast.AST]:
        """The statements that a node is inside, the innermost first, and on from a function's one call."""
        found: list[ast.AST] = []
        outer = self.above.get(node)
        while outer is not None and outer not in found:
            head = getattr(outer, "iter", None), getattr(outer, "test", None)
            found += [outer] if node not in head else []
            node, outer = outer, self.above.get(outer)
            if isinstance(node, _FUNCTIONS):
                outer = self.called(node)
        return found

    def called(self, function: ast.AST) -> ast.Call | None:
        """The one call of a function of the script, if it has one."""
        name, calls = getattr(function, "name", None), self.calls_of(function)
        defined = [n for n in self.above if isinstance(n, _FUNCTIONS) and getattr(n, "name", "") == name]
        return calls[0] if len(calls) == len(defined) == 1 else None

    def calls_of(self, function: ast.AST) -> list[ast.Call]:
        name = getattr(function, "name", "")
        if isinstance(self.above.get(function), ast.ClassDef):
            return [c for _, c in self.methods(name)]
        return [c for c in self.calls if isinstance(c.func, ast.Name) and c.func.id == name]

    def given(self, node: ast.expr) -> ast.expr:
        """What a parameter of a function stands for: the argument of the function's one call."""
        for _ in range(9):
            function = self.scope(node)
            if not isinstance(node, ast.Name) or not isinstance(function, ast.FunctionDef):
                break
            own = isinstance(self.above[function], ast.ClassDef)
            names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)][own:]
            call = self.called(function) if node.id in names else None
            if call is None or any(isinstance(a, ast.Starred) for a in call.args):
                break
            named = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
            if node.id not in named:
                break
            node = named[node.id]
        return node

    def told(self, node: ast.expr) -> str:
        """An expression as text, of what parameters stand for."""
        return source(self.given(node))

    def targets(self, loop: Any) -> list[str]:
        """The names that a loop assigns, in order; an index of enumerate() from 0 is the first."""
        counts = isinstance(loop, ast.For) and any(
            isinstance(c, ast.Call) and source(c.func) == "enumerate" and len(c.args) == 1 and not c.keywords
            for c in ast.walk(loop.iter)
        )
        found = loop.target.elts if counts and isinstance(loop.target, ast.Tuple) else []
        return [source(n) for n in found] or [""]

    def last(self, name: ast.Name) -> ast.Name | None:
        """Where a name is assigned before it is read, if it is; a Name of nothing if only some runs get there."""
        around, scope, end = [*self.inside(name, ast.AST)], self.scope(name), (name.lineno, name.col_offset)
        stores = []
        for n in self.above:
            if not (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id == name.id):
                continue
            inside = [o for o in self.inside(n, ast.AST) if not isinstance(o, ast.Tuple | ast.List | ast.Starred)]
            reads = inside[0] in around and not isinstance(inside[0], (*LOOPS, *_FUNCTIONS, ast.Module))
            if self.scope(n) is scope and (n.lineno, n.col_offset) < end and not reads:
                stores.append((n.lineno, n.col_offset, n, inside))
        if not stores:
            return None
        _, _, store, inside = max(stores, key=lambda s: s[:2])
        sure = all(o in around for o in inside if isinstance(o, MAYBE))
        return store if sure else ast.Name("", ast.Store())

    def of_module(self, node: ast.AST | None) -> bool:
        """Whether a node is in the class of a module."""
        while (node := self.above.get(node)) is not None:  # type: ignore[arg-type]  # None ends it
            if isinstance(node, ast.ClassDef) and any(getattr(n, "name", "") == "forward" for n in node.body):
                return True
        return False

    def assigned(self, call: ast.Call) -> str:
        """The name that a call's result gets."""
        node: ast.AST = call
        while isinstance(outer := self.above.get(node), ast.Attribute) and isinstance(self.above[outer], ast.Call):
            node = self.above[outer]  # such as .cuda()
        return next((name for name, value in self.values.items() if value is node), "")


def source(node: ast.AST) -> str:
    """An expression as text, in one line."""
    return " ".join(ast.unparse(node).split())


def _small(value: Any) -> bool:
    return not isinstance(value, int | float) or (abs(value) < _LARGEST and math.isfinite(value))
