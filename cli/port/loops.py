"""What the loops of a training script say: epochs, accumulation, and learning rates that are set by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from cli.port.part import Part
from cli.port.script import Script, source


def rates(script: Script) -> Iterator[Part]:
    """Learning rates that are set by hand: `group["lr"] = f(step)`."""
    for node in [n for n in script.above if isinstance(n, ast.Assign)]:
        for target in node.targets:
            if isinstance(target, ast.Subscript) and script.value(target.slice) == "lr":
                there = source(node)
                yield Part(node.lineno, "scheduler", there, "", missing=[f"{there}; a schedule is in the place of lr"])


def steps(script: Script, rules: Sequence[Part]) -> list[ast.Call]:
    """The calls that step an optimizer, and the backwards."""
    names = {script.assigned(r.call) for r in rules if r.call}
    own = [c for on, c in script.methods("step") if on in names or (c.args and source(c.args[0]) in names)]
    return [*own, *(c for _, c in script.methods("backward"))]


def epochs(script: Script) -> Iterator[Part]:
    batches = [script.loop(c) for _, c in script.methods("backward")]
    for node in [n for n in script.above if isinstance(n, ast.For)]:
        inside = {n for n in ast.walk(node) if n is not node}
        if "epoch" not in source(node.target).lower() and inside.isdisjoint(b for b in batches if b is not None):
            continue
        for call in [c for c in ast.walk(node.iter) if isinstance(c, ast.Call)]:
            if isinstance(call.func, ast.Name) and call.func.id in ("range", "trange"):
                ends = [script.value(a) for a in call.args]
                there = f"for {source(node.target)} in {source(node.iter)}"
                part = Part(node.lineno, "epochs", there, "fit")
                if 0 < len(ends) < 3 and all(isinstance(e, int) for e in ends) and (count := len(range(*ends))):
                    part.arguments, part.option = {"epochs": count}, f"--epochs {count}"
                else:
                    part.missing.append(f"the epochs of {source(node.iter)}")
                yield part
                break


def accumulation(script: Script) -> Iterator[Part]:
    """Several backwards before an update: a step if i % N, or an inner loop over range(N)."""
    rules = [Part(c.lineno, "", "", "", call=c) for c in script.calls if script.known(c).startswith("torch.optim.")]
    backwards = {script.loop(c) for _, c in script.methods("backward")}
    for call in steps(script, rules):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "backward":
            continue
        counts = [n.right for i in script.inside(call, ast.If) for n in ast.walk(i.test)
                  if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mod)]  # fmt: skip
        around = script.loop(call)
        within = [b for b in backwards if isinstance(b, ast.For) and around not in (None, b)]
        inner = [b.iter for b in within if script.loop(b) is around]
        counts += [
            i.args[0] for i in inner if isinstance(i, ast.Call) and source(i.func) == "range" and len(i.args) == 1
        ]
        for of in counts[:1]:
            count = script.value(of)
            known = isinstance(count, int) and not isinstance(count, bool) and count > 0
            part = Part(of.lineno, "accumulation", f"{source(call)} after {source(of)} backwards", "backward.gradients")
            part.arguments, part.option = ({"accumulate": count}, f"--accumulate {count}") if known else ({}, "")
            part.missing = [] if known else [f"accumulation over {source(of)} batches"]
            ratios = [n for n in script.above if isinstance(getattr(n, "op", None), ast.Div)]
            if source(of) not in [source(n.right if isinstance(n, ast.BinOp) else n.value) for n in ratios]:  # type: ignore[attr-defined]
                part.missing.append(f"a loss that is not divided by {source(of)}: gradients are sums there")
            part.notes.append("a batch here is the whole of them, so its size is multiplied")
            yield part
            return
