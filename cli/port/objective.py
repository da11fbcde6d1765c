"""What a script minimizes: a loss of its model's bare outputs for batches of a loader, or a line that lists it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from cli.port.loops import Loops, iterated, listed, numbers
from cli.port.part import Part
from cli.port.script import Script, source

_WRAPS = ("torch.nn.parallel.DistributedDataParallel", "torch.nn.DataParallel", "torch.compile",
          "torch.distributed.fsdp.FullyShardedDataParallel")  # fmt: skip
_PLAIN = ("train", "eval", "zero_grad", "step", "state_dict", "tqdm", "enumerate")
"""Methods of a model and an optimizer that are read elsewhere, or change nothing."""


@define(eq=False)
class Objective:
    """The loss of a script's backward."""

    script: Script
    loops: Loops
    found: Sequence[Part]
    divided: bool = False
    """Whether it is divided by the number of backwards before a step."""
    missing: list[Part] = field(factory=list)
    calls: list[ast.Call] = field(factory=list)
    """The calls of the loss and the model."""
    names: list[ast.Name] = field(factory=list)
    """The names on the way from the batch to the backward."""

    @classmethod
    def read(cls, script: Script, loops: Loops, found: Sequence[Part]) -> Objective:
        own = cls(script, loops, found)
        if (call := loops.backward) is not None:
            own._loss(call)
            if loops.batches is not None:
                own._loader(loops.batches)
            own._changed()
            own._touched()
        return own

    def _changed(self) -> None:
        """List what changes elements of the outputs or the batch."""
        known = {(n.id, self.script.scope(n)) for n in self.names}
        for node in self.script.above:
            of = node.value if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) else None
            if isinstance(of, ast.Name) and (of.id, self.script.scope(of)) in known:
                self.missing.append(listed(self.script.above[node], "a change in place"))

    def _touched(self) -> None:
        """List what else the loops do with the model, its optimizer and gradients, and what is around the outputs."""
        script = self.script
        rules = [p.call for p in self.found if p.what == "optimizer" and p.call]
        names = {n for c in rules for n in (script.assigned(c), model(script, c))} - {""}
        names |= {script.assigned(p.call) for p in self.found if p.what == "data" and p.trained and p.call} - {""}
        clips = [p.call for p in self.found if p.what == "clipping"]
        for node in script.above:
            if not isinstance(node, ast.Attribute) or script.of_module(node):
                continue
            of, outer = script.told(node.value), script.above[node]
            if not any(of == n or of.startswith((f"{n}.", f"{n}[")) for n in names):
                continue
            given = isinstance(outer, ast.Call) and node is outer.func
            plain = node.attr in (_PLAIN if of in names else ()) and (not given or not _told(outer))
            plain = plain or node.attr == "set_epoch" or (node.attr == "parameters" and script.above[outer] in clips)
            if (isinstance(node.ctx, ast.Store) or (given and not plain)) and self.loops.around(node):
                self.missing.append(listed(outer, "it may change what is trained"))
        self._handed(names)
        casts = {
            name for p in self.found if p.what == "amp" and p.call for name in (source(p.call), script.assigned(p.call))
        }
        for call in [*self.calls[:1], *self.calls[-1:], *(c for _, c in script.methods("step"))]:
            for w in [n for n in script.path(call) if isinstance(n, ast.With) and self.loops.around(n)]:
                around = [i.context_expr for i in w.items if source(i.context_expr) not in casts]
                self.missing += [listed(e, "it is around the outputs or the loss") for e in around]

    def _handed(self, names: set[str]) -> None:
        """List calls, of what is not in the script, that are handed the model, its optimizer or the batch."""
        script = self.script
        known = {p.call for p in self.found if p.call}
        own = {n.name for n in script.above if isinstance(n, ast.FunctionDef)} | {"print", "len", "next", "iter"}
        batch = {n.id for n in self.names}
        for call in script.calls:
            short = source(call.func).rpartition(".")[2]
            if call in known or call in self.calls or short in own or short in (*_PLAIN, "unscale_"):
                continue
            given = [*call.args, *(k.value for k in call.keywords)]
            of = script.values.get(script.told(call.func.value)) if isinstance(call.func, ast.Attribute) else None
            holds = isinstance(of, ast.Call) and of not in known and not names.isdisjoint(map(source, of.args))
            mixes = isinstance(call.func, ast.Name) and isinstance(script.above[call], ast.Expr) and any(
                isinstance(a, ast.Name) and a.id in batch for a in given)  # fmt: skip
            changes = holds or mixes or any(script.told(a) in names for a in given)
            if changes and self.loops.around(call) and not script.of_module(call):
                self.missing.append(listed(call, "it may change what is trained"))

    def _loader(self, loop: Any) -> None:
        """Mark the loader that the loop iterates."""
        loader = iterated(loop) if isinstance(loop, ast.For) else None
        of = self.script.told(loader) if loader is not None else ""
        for part in self.found:
            if (
                part.what == "data"
                and part.call
                and of
                and (part.call is loader or self.script.assigned(part.call) == of)
            ):
                part.trained = True
                return
        if isinstance(loop, ast.For) and numbers(loop) is None:
            self.missing.append(listed(loop, "its batches: no DataLoader is found for them", source(loop.iter)))

    def _loss(self, backward: ast.Call) -> None:
        """Mark the loss that is minimized, and list what is around it."""
        assert isinstance(backward.func, ast.Attribute)
        node: ast.expr | None = backward.func.value
        if backward.args or backward.keywords:
            self.missing.append(listed(backward, "a backward() with arguments"))
        for _ in range(9):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "scale":
                node = node.args[0] if len(node.args) == 1 else None
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and self._count(node.right):
                self.divided, node = True, node.left
            elif isinstance(node, ast.Name):
                node = self._value(node)
        call = node
        part = self._criterion(call) if isinstance(call, ast.Call) else None
        if part is None or not isinstance(call, ast.Call):
            there = source(call) if call is not None else source(backward)
            self.missing.append(listed(call or backward, "the loss is no bare call of a loss of torch", there))
            return
        part.trained = True
        self.calls.append(call)
        named = {k.arg: k.value for k in call.keywords if k.arg}
        names = ("input", "target")
        both = dict(zip(names, call.args, strict=False)) | {k: v for k, v in named.items() if k in names}
        if call is not part.call and len(call.args) + len(call.keywords) != 2:
            self.missing.append(listed(call, "a loss of more than outputs and targets"))
        outputs, targets = both.get("input"), both.get("target")
        if not self._is_outputs(outputs):
            self.missing.append(listed(outputs or call, "what the loss is of is not the bare output of the model"))
        if targets is None or self._sample(targets) != 1:
            self.missing.append(listed(targets or call, "the targets are not the loader's as they are"))

    def _count(self, node: ast.expr) -> bool:
        of = self.loops.accumulate
        return of is not None and source(of) == source(node)

    def _criterion(self, call: ast.Call) -> Part | None:
        told = self.script.told(call.func)
        for part in [p for p in self.found if p.what == "loss"]:
            if part.call and (part.call in (call, call.func) or (told and self.script.assigned(part.call) == told)):
                return part
        return None

    def autocast(self, part: Part) -> bool:
        """Whether autocast is around the loss and the outputs."""
        own: Any = part.call
        names = {source(own), self.script.assigned(own)}
        around = [[source(i.context_expr) for w in self.script.path(c) if isinstance(w, ast.With) for i in w.items]
                  for c in self.calls]  # fmt: skip
        return all(not names.isdisjoint(a) for a in around)

    def _value(self, name: ast.Name) -> ast.expr | None:
        """The expression that a name was surely assigned before."""
        self.names.append(name)
        store = self.script.last(name)
        statement = self.script.above.get(store) if store is not None else None
        if isinstance(statement, ast.AugAssign) and isinstance(store, ast.Name):
            before = ast.copy_location(ast.Name(name.id, ast.Load()), store)
            self.script.above[before] = statement
            return ast.copy_location(ast.BinOp(before, statement.op, statement.value), statement)
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            return statement.value
        if store is None and (given := self.script.given(name)) is not name:
            return given
        if isinstance(statement, ast.Tuple) and isinstance(assign := self.script.above[statement], ast.Assign):
            value = assign.value
            if isinstance(value, ast.Tuple) and len(value.elts) == len(statement.elts):
                return value.elts[[*map(id, statement.elts)].index(id(store))]
        return None

    def _is_outputs(self, node: ast.expr | None) -> bool:
        for _ in range(9):
            node = self._value(node) if isinstance(node, ast.Name) else node
        if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
            return False
        self.calls.append(node)
        told, script = self.script.told(node.func), self.script
        models = {m for p in self.found if p.what == "optimizer" and p.call and (m := model(script, p.call))}
        told = told if told in models else unwrapped(script, told)
        if told in models and self._sample(node.args[0]) != 0:
            self.missing.append(listed(node.args[0], "the inputs are not the loader's as they are"))
        return told in models

    def _sample(self, node: ast.expr, depth: int = 9) -> int | None:
        """Which part of a batch an expression is, on whatever device."""
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cuda"):
            if any(self.script.dotted(a).startswith("torch.") for a in node.args) or {
                k.arg for k in node.keywords} - {"non_blocking", "device"}:  # fmt: skip
                return None
            node = node.func.value
        at = self.script.value(node.slice) if isinstance(node, ast.Subscript) else None
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and type(at) is int:
            return at if self._whole(node.value) else None
        if not isinstance(node, ast.Name) or not depth:
            return None
        self.names.append(node)
        store = self.script.last(node)
        pair = self.script.above.get(store) if store is not None else None
        if isinstance(pair, ast.Tuple | ast.List) and store in pair.elts and len(pair.elts) == 2:
            assign = self.script.above[pair]
            batch = assign.value if isinstance(assign, ast.Assign) else None
            if pair is drawn(self.loops.batches) or (isinstance(batch, ast.Name) and self._whole(batch)):
                return pair.elts.index(store)
        value = self._value(node)
        return self._sample(value, depth - 1) if value is not None else None

    def _whole(self, name: ast.Name) -> bool:
        """Whether a name is the batch of the loader."""
        store = self.script.last(name)
        return store is not None and store is drawn(self.loops.batches)


def _told(call: ast.AST) -> bool:
    """Whether a call of train or eval has an argument."""
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("train", "eval")
    return named and isinstance(call, ast.Call) and bool(call.args or call.keywords)


def drawn(loop: Any) -> ast.expr | None:
    """The target of a loop that is a batch."""
    if not isinstance(loop, ast.For):
        return None
    target = loop.target
    if "enumerate(" in source(loop.iter) and isinstance(target, ast.Tuple) and len(target.elts) == 2:
        return target.elts[-1]
    return target


def unwrapped(script: Script, name: str) -> str:
    """The model in a wrap of several processes or of torch.compile."""
    wrap = script.values.get(name)
    wraps = isinstance(wrap, ast.Call) and wrap.args and script.known(wrap) in _WRAPS
    return source(wrap.args[0]) if wraps and isinstance(wrap, ast.Call) else name


def model(script: Script, call: ast.Call) -> str:
    """The model all of whose parameters an optimizer has, those without a gradient perhaps left out; or ""."""
    node = next(iter([*call.args, *(k.value for k in call.keywords if k.arg in ("params", "parameters"))]), None)
    if isinstance(node, ast.Name) and isinstance(value := script.values.get(node.id), ast.expr):
        node = value
    if isinstance(node, ast.ListComp | ast.GeneratorExp) and len(node.generators) == 1:
        [of], name = node.generators, source(node.elt)
        trained = source(of.target) == name and [source(i) for i in of.ifs] in ([], [f"{name}.requires_grad"])
        node = of.iter if trained else None
    elif isinstance(node, ast.Call) and source(node.func) == "filter" and len(node.args) == 2:
        by = node.args[0]
        trained = isinstance(by, ast.Lambda) and source(by.body) == f"{source(by.args)}.requires_grad"
        node = node.args[1] if trained else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "parameters":
        return script.told(node.func.value) if not (node.args or node.keywords) else ""
    return ""
