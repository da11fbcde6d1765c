"""The story of a graph: what was captured, in parts, fused, written, checked and kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import Node

from pipeline import files
from pipeline.compile.backends import repeats
from pipeline.compile.backends.library import Library
from pipeline.compile.passes import nodes, stage_of, written

if TYPE_CHECKING:
    from pipeline.compile.build import Build

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product")
_KERNEL = re.compile(rb"cpp_fused_\w+")


def story(build: Build) -> str:
    """A finished program in words: its operations by stage, then a line for each fact.

    Operations of a backward have no stage of their own: they are in the line of gradients.
    """
    traced, program = build.traced, build.program
    unchecked = "unchecked" in ((program.note if program is not None else None) or "")  # the graph's line says why
    operations = [n for n in nodes(traced.graph) if n.op == "call_function"]
    places = _places(operations, "(sums)" if build.name == "evaluation" else "(gradients)")
    stages, products = Counter(places), Counter(p for p, n in zip(places, operations, strict=True) if _is_product(n))
    lines = [f"  {'stage':<32}{'operations':>11}{'products':>10}"]
    lines += [f"  {stage:<32}{n:>11,}{products[stage] or '':>10}" for stage, n in stages.items()]
    held = f", and {len(traced.constants)} held by stages are inputs" if traced.constants else ""
    memory = len({n.args[0] for n in operations if written(n)})
    when = ", when it was compiled" if build.loaded else ""
    facts = {
        "memory": f"{memory} tensors are written in place{held}",
        "ids": "checked in each step" if traced.checks else "checked once" if traced.id_checks else "",
        "parts": _parts(build) if isinstance(program, Library) else "",
        "fused": _fused(program) if isinstance(program, Library) else "",
        "check": "" if unchecked else "its results are those of the uncompiled stages" + when,
        "cache": "" if build.identity is None else "kept for runs of the same graph; pipe cache lists all",
    }
    return "\n".join([*lines, *(f"  {name}: {words}" for name, words in facts.items() if words)])


def _places(operations: Sequence[Node], between: str) -> list[str]:
    """The stage of each operation, or its role; `between` is that of operations between stages."""
    places: list[str] = []
    for node in operations:
        if (stage := stage_of(node)) != "?":
            places.append(stage)
        elif "copy_" in str(node.target):
            places.append("(writing State)")
        else:
            places.append(between if any(p[0] != "(" for p in places) else "(batch)")
    return places


def _is_product(node: Node) -> bool:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "").startswith(_PRODUCTS)


def _parts(build: Build) -> str:
    chain = repeats.chain(build.traced.graph)
    if chain is None:
        return "one, as little in it repeats"
    return f"{len(chain.calls)} calls of {len(chain.parts)} parts: what repeats is compiled once"


def _fused(library: Library) -> str:
    names = set(_KERNEL.findall(files.read(Path(library.path))))
    return f"the programs that were compiled with it have {len(names)} loops of C++ beside their products"
