"""A Pipeline, written as Python, from the parts of a training script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cli.port.part import Part, Text, written

HEAD = '''"""From {name} by pipe port. Each line that could not be translated is named below as "not translated"."""

{imports}
{todo}

def pipeline(model, data):
    """`model`: the nn.Module, or a function that makes it; `data`: of the training, such as a Dataset or (x, y)."""
    return Pipeline(
{stages}
    )


def train(model, data, held_out=None):
    for report in {fit}:
        print(report)
    return report.state


# from {module} import ...  # your model and your data, then: train(model, data, held_out)
'''


def skeleton(name: str, parts: Sequence[Part]) -> str:
    """A module with a pipeline and its loop. Of several parts that have one place, the first is taken."""
    loaded, loss, rule = _trained(parts, "data"), _trained(parts, "loss"), _first(parts, "optimizer")
    accumulate, seed, epochs = (_first(parts, what) for what in ("accumulation", "seed", "epochs"))
    size = (loaded.arguments["size"] if loaded else 64) * (
        accumulate.arguments.get("accumulate", 1) if accumulate else 1
    )
    batches = {"data": Text("data"), **(loaded.arguments if loaded else {}), "size": size}
    stages = [
        _line("load.batches", loaded, batches, "DataLoader"),
        _line("place.on", _first(parts, "amp", "place.on"), {}),
        "        forward.model(model),",
        _line(loss.here if loss else "", loss, {}, "loss"),
        _line("backward.gradients", accumulate, {}),
        *(_line("update.finite", p, {}) for p in [_first(parts, "amp", "update.finite")] if p),
        *(_line(p.here, p, {}) for p in parts if p.what == "clipping" and p.here),
        _line(rule.here if rule else "", rule, {}, "optimizer"),
    ]
    text = "\n".join(stages)
    todo = [f"# not translated: line {p.line}: {m}" for p in parts for m in p.missing]
    own = [n for n in ("backward", "forward", "load", "loss", "place", "schedules", "update") if f"{n}." in text]
    imports = ["from functools import partial\n"] * ("partial(" in text) + ["from torch import nn"] * ("(nn." in text)
    imports += ["from torch.nn import functional as F"] * ("F." in text)
    imports += [""] * (len(imports) > 0) + [f"from pipeline import Pipeline, {', '.join(sorted([*own, 'fit']))}"]
    options = {"epochs": 1} | {k: v for p in (epochs, seed) if p for k, v in p.arguments.items()}
    loop = written("fit", {"pipe": Text("pipeline(model, data)"), **options, "validate": Text("held_out")})
    name = re.sub(r"[^\w.-]", "_", name)
    return HEAD.format(name=name, module=name.removesuffix(".py"), imports="\n".join(imports), stages=text,
                       todo="\n".join(["", *todo, ""]) if todo else "", fit=loop)  # fmt: skip


def _line(here: str, part: Part | None, arguments: Mapping[str, Any], needed: str = "") -> str:
    """A line of the pipeline."""
    if part is None and needed:
        todo = f"not translated: no {needed} is found"
        return f"        # {todo}" if not here else f"        {written(here, arguments)},  # {todo}"
    call = here if "(" in here else written(here, arguments or (part.arguments if part else {}))
    partly = part is not None and (part.missing or (part.what in ("loss", "data") and not part.trained))
    return f"        {call}," + (f"  # line {part.line}{', in part' * bool(partly)}" if part else "")


def _first(parts: Sequence[Part], what: str, here: str = "") -> Part | None:
    return next((p for p in parts if p.what == what and p.here and here in p.here), None)


def _trained(parts: Sequence[Part], what: str) -> Part | None:
    """The loss or loader of the training, or the only one."""
    found = [p for p in parts if p.what == what and p.here]
    return next((p for p in found if p.trained), found[0] if len(found) == 1 else None)
