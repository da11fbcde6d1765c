"""The loops of a training script, and the step inside. What isn't the step of a pipeline is listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, field

from cli.port.part import Part
from cli.port.script import LOOPS, Script, source

_JUMPS = (ast.If, ast.IfExp, ast.Try, ast.Match)
_NUMBERS = ("lr", "initial_lr", "momentum", "weight_decay", "betas", "eps")
"""Numbers of an optimizer's groups, which a script may set by hand."""


def listed(node: Any, why: str, there: str = "") -> Part:
    there = there or source(node)
    return Part(node.lineno, "step", there, "", missing=[f"{there}: {why}"])


_CHANGES = ("add_param_group", "half", "double", "bfloat16")
"""Methods that change what is trained."""


@define(eq=False)
class Place:
    """Where a call is: the loops around it, the innermost first, and what else decides whether it is reached."""

    loops: Sequence[Any]
    guards: Sequence[Any]

    @classmethod
    def of(cls, script: Script, node: ast.AST) -> Place:
        path = script.path(node)
        loops = [n for n in path if isinstance(n, LOOPS)]
        inside = path[: path.index(loops[-1])] if loops else []
        return cls(loops, [n for n in inside if isinstance(n, _JUMPS)])

    def same(self, other: Place) -> bool:
        return self.loops == other.loops and self.guards == other.guards


@define(eq=False)
class Loops:
    """The one backward of a script, the step of its optimizer, and their loops."""

    script: Script
    rule: Part | None
    backward: ast.Call | None = None
    step: ast.Call | None = None
    accumulate: ast.expr | None = None
    """How many backwards are before an update, if several are."""
    others: list[Part] = field(factory=list)
    """What is listed."""

    @classmethod
    def read(cls, script: Script, rules: Sequence[Part]) -> Loops:
        own = cls(script, rules[0] if rules else None)
        for rule in rules[1:]:
            rule.missing.append(f"a second optimizer: {rule.there}; a Pipeline of its own, or update.groups()")
        backwards = [c for _, c in script.methods("backward")]
        names = {script.assigned(r.call) for r in rules if r.call} - {""}
        steps = [c for on, c in script.methods("step") if on in names or (c.args and script.told(c.args[0]) in names)]
        closures = [c for on, c in script.methods("step") if on in names and c.args]
        own.others += [listed(c, "a step with a closure") for c in closures]
        for what, calls in (("backward()", backwards), ("step() of an optimizer", steps)):
            own.others += [listed(c, f"a second {what}") for c in calls[1:]]
            if not calls and own.rule is not None:
                own.rule.missing.append(f"its training step: no {what} is found")
        own.backward, own.step = next(iter(backwards), None), next(iter(steps), None)
        if own.backward and own.step:
            own._accumulation()
        return own

    @property
    def at(self) -> Place:
        """Where the optimizer's step is."""
        return Place.of(self.script, self.step) if self.step else Place([], [])

    @property
    def batches(self) -> Any:
        """The loop over batches."""
        return next(iter(self.at.loops), None)

    def around(self, node: ast.AST) -> bool:
        """Whether a node is in a loop of the optimizer's step."""
        return not {*self.at.loops}.isdisjoint(Place.of(self.script, node).loops)

    def before(self, first: ast.AST, second: ast.AST) -> bool:
        """Whether a call is before another in the innermost loop around both."""
        a, b = [first, *self.script.path(first)], [second, *self.script.path(second)]
        loop = next((n for n in a if isinstance(n, LOOPS) and n in b), None)
        if loop is None:
            return False
        i, j = (next((k for k, s in enumerate(loop.body) if s in path), len(loop.body)) for path in (a, b))
        places = [(k, getattr(n, "lineno", 0), getattr(n, "col_offset", 0)) for k, n in ((i, first), (j, second))]
        return places[0] < places[1]

    def _accumulation(self) -> None:
        """A step if (i + 1) % N == 0."""
        assert self.backward is not None
        assert self.step is not None
        there, here = Place.of(self.script, self.backward), self.at
        guards = [*here.guards]
        if there.loops == here.loops:
            counted = self.script.targets(here.loops[0])[0] if here.loops else ""
            again = [n for n in ast.walk(here.loops[0]) if isinstance(n, ast.Name) and n.id == counted
                     and isinstance(n.ctx, ast.Store)] if counted else []  # fmt: skip
            if len(guards) == len(again) == 1 and (of := _every(guards[0], counted)) is not None:
                self.accumulate, guards = of, []
        else:
            self.others.append(listed(self.step, "it is in other loops than backward()"))
        found = {g: listed(g, "the step depends on it", _head(g)) for g in [*there.guards, *guards]}
        self.others += found.values()
        clears = [c for _, c in self.script.methods("zero_grad")]
        fitting = [c for c in clears if Place.of(self.script, c).same(here)]
        others = [c for c in clears if not {*there.loops}.isdisjoint(Place.of(self.script, c).loops)]
        if (
            not fitting
            or len(others) > len(fitting)
            or any(self.before(self.backward, c) and self.before(c, self.step) for c in fitting)
        ):
            why = "gradients that are not cleared once a step: no zero_grad() beside step()"
            self.others.append(listed(self.backward, why))

    def parts(self, divided: bool) -> Iterator[Part]:
        """Epochs, accumulation, and what is listed."""
        yield from self.others
        yield from _by_hand(self.script)
        if self.backward is None or self.step is None:
            return
        if self.accumulate is not None:
            yield self._accumulated(self.accumulate, divided)
        around = self.at.loops
        every = {*around, *Place.of(self.script, self.backward).loops}
        yield from self._left(every)
        yield from self._modes(self.backward)
        end = [n for n in self.script.path(self.step) if isinstance(n, ast.FunctionDef)][-1:]
        if any(len(self.script.calls_of(f)) > 1 for f in end):
            yield listed(self.step, "its function is called more than once")
        if not around:
            yield listed(self.step, "no loop is found around it")
        elif numbers(around[0]) is not None:
            yield listed(around[0], "these are steps, and no epochs: fit(max_steps=...)", _head(around[0]))
        elif not isinstance(around[0], ast.For):
            yield listed(around[0], "no loop over a loader", _head(around[0]))
        for loop in around[2:]:
            yield listed(loop, "a loop around the epochs", _head(loop))
        for loop in around[1:2]:
            yield self._epochs(loop, len(around) == 2 and numbers(around[0]) is None)
        if len(around) == 1 and numbers(around[0]) is None:
            yield listed(around[0], "no loop over epochs is found around it", _head(around[0]))

    def _left(self, every: set[Any]) -> Iterator[Part]:
        """What leaves a loop, or a function inside it, before its end."""
        script, ways = self.script, (ast.If, ast.Try, ast.Match, *LOOPS)
        functions = [n for c in (self.backward, self.step) if c for n in script.path(c)]
        for node in script.above:
            if isinstance(node, ast.Break | ast.Continue):
                left = next(script.inside(node, *LOOPS), None) in every
            elif isinstance(node, ast.Call) and source(node.func) in ("exit", "quit", "sys.exit", "os._exit"):
                left = not every.isdisjoint(Place.of(script, node).loops)
            else:
                left = isinstance(node, ast.Return) and script.scope(node) in functions
                left = left and not every.isdisjoint(Place.of(script, node).loops) and any(script.inside(node, *ways))
            if left:
                yield listed(node, "it leaves a loop of the training early")

    def _modes(self, backward: ast.Call) -> Iterator[Part]:
        """Modules that are trained in eval mode."""
        script, first = self.script, next(iter(self.at.loops[-1:]), None)
        for on, call in script.methods("eval"):
            ahead = first is not None and script.scope(call) is script.scope(first) and call.lineno < first.lineno
            back = [c for to, c in script.methods("train") if to == on and not self.before(c, call)]
            if (ahead or self.before(call, backward)) and not any(self.before(c, backward) for c in back):
                yield listed(call, "it is trained in eval mode")

    def _accumulated(self, of: ast.expr, divided: bool) -> Part:
        count = self.script.value(of)
        known = isinstance(count, int) and not isinstance(count, bool) and count > 0
        part = Part(of.lineno, "accumulation", f"{source(of)} backwards before a step", "backward.gradients")
        part.arguments, part.option = ({"accumulate": count}, f"--accumulate {count}") if known else ({}, "")
        part.missing = [] if known else [f"accumulation over {source(of)} batches"]
        if not divided:
            part.missing.append(f"a loss that is not divided by {source(of)}: gradients are sums there")
        part.notes.append("a batch here is the whole of them, so its size is multiplied, and lengths count updates")
        return part

    def _epochs(self, loop: Any, surely: bool) -> Part:
        part = Part(loop.lineno, "epochs", _head(loop), "fit")
        ends = [self.script.value(a) for a in numbers(loop) or []]
        if surely and 0 < len(ends) < 3 and all(type(e) is int for e in ends) and (count := len(range(*ends))):
            part.arguments, part.option = {"epochs": count}, f"--epochs {count}"
        else:
            part.missing.append(f"the epochs of {_head(loop)}")
        return part


def _head(node: Any) -> str:
    """The first line of a statement."""
    return source(node).partition(": ")[0] if not isinstance(node, ast.For) else (
        f"for {source(node.target)} in {source(node.iter)}")  # fmt: skip


def iterated(loop: Any) -> Any:
    """What a loop is over, without enumerate() and a bar."""
    node = getattr(loop, "iter", None)
    while isinstance(node, ast.Call) and source(node.func).rpartition(".")[2] in ("enumerate", "tqdm") and node.args:
        node = node.args[0]
    return node


def numbers(loop: Any) -> Sequence[ast.expr] | None:
    """The arguments of a loop over range()."""
    call = iterated(loop)
    return call.args if isinstance(call, ast.Call) and source(call.func) in ("range", "trange") else None


def _every(guard: Any, counted: str) -> ast.expr | None:
    """N of `if (i + 1) % N == 0`, where i counts batches."""
    test = guard.test if isinstance(guard, ast.If) and not guard.orelse else None
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) and source(test.comparators[0]) == "0":
        test = test.left
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    else:
        return None
    if isinstance(test, ast.BinOp) and isinstance(test.op, ast.Mod) and counted:
        return test.right if source(test.left) == f"{counted} + 1" else None
    return None


def _by_hand(script: Script) -> Iterator[Part]:
    """Weights, gradients and an optimizer's numbers that a script changes itself. Modules do what they do here too."""
    for node in script.above:
        if script.of_module(node):
            continue
        if isinstance(node, ast.For) and "parameters()" in source(node.iter):
            yield listed(node, "weights or gradients by hand", _head(node))
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            key = script.value(node.slice) if isinstance(node, ast.Subscript) else None
            of = [a.attr for a in ast.walk(node) if isinstance(a, ast.Attribute)]
            if key in _NUMBERS:
                there = source(script.above[node])
                why = f"{there}; a schedule is in the place of {key}"
                yield Part(node.lineno, "scheduler", there, "", missing=[why])
            elif {"grad", "data", "requires_grad"} & {*of}:
                yield listed(script.above[node], "weights or gradients by hand")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            own = name in ("unscale_", "manual_seed_all") or script.dotted(node.func)
            dtype = name == "to" and any(script.dotted(a).startswith("torch.") for a in node.args)
            if dtype:
                yield listed(node, "give model and data that dtype")
            elif name.startswith("register_") and name.endswith("hook"):
                yield listed(node, "it may change gradients")
            elif not own and (name in _CHANGES or (name.endswith("_") and not name.endswith("__"))):
                yield listed(node, "a change in place" if name not in _CHANGES else "it changes what is trained")
