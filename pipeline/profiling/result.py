"""Result: the profile of a step, as a table, a trace and advice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

SHOWN = 0.005
"""Submodules with a smaller share are shown together."""


@frozen
class Row:
    """A stage, or a submodule of a model; numbers are means of a step."""

    stage: str
    module: str
    """Its name in the model; empty for the stage itself, without its submodules."""
    forward: float
    backward: float
    """Seconds."""
    kept: int
    """Bytes that its forward leaves allocated, such as for the backward."""

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


@frozen
class Profile:
    """Where the time of an uncompiled step goes. The rows add up to `total`."""

    rows: tuple[Row, ...]
    operations: Mapping[str, float]
    """Seconds of each torch operation, the longest first."""
    total: float
    """Seconds of a step while it is looked at."""
    alone: float
    """Seconds of a step otherwise."""
    compiled: float | None
    """Seconds of a compiled step, if it was asked for."""
    products: float
    """Seconds of matrix products, convolutions and attention."""
    rate: float
    """Floating-point operations of these in a second, and those of a large product on this machine."""
    peak: float
    events: Any
    """The profiler of torch."""
    low: bool
    """Whether products are in float32, and the device has faster ones in bf16."""

    @property
    def python(self) -> float:
        """Seconds outside all operations of torch."""
        return self.total - sum(self.operations.values())

    def trace(self, file: str | Path) -> None:
        """Write a trace, which https://ui.perfetto.dev opens."""
        self.events.export_chrome_trace(str(file))

    def advice(self) -> list[str]:
        """What to try, the most promising first, at most three."""
        ideas: list[tuple[float, str]] = []
        if self.compiled is not None and self.compiled < self.alone:
            faster = f"compile: steps are {self.alone / self.compiled:.1f} x as fast"
            ideas.append((1 - self.compiled / self.alone, faster))
        elif self.compiled is None and self.python > 0.3 * self.total:
            ideas.append((self.python / self.total, "compile, or larger batches: Python takes longer than it has to"))
        spent: dict[str, float] = defaultdict(float)
        for row in self.rows:
            spent[row.stage.partition(".")[0]] += row.seconds
        if spent["update"] > 0.3 * self.total:
            ideas.append((spent["update"] / self.total, "larger batches: the update takes its time in each of them"))
        if spent["load"] > 0.2 * self.total:
            ideas.append((spent["load"] / self.total, "data in memory, or more workers: batches are waited for"))
        if self.low and self.products > 0.4 * self.total:
            ideas.append(
                (self.products / self.total, 'place.on(precision="bf16"): most of the time is matrix products')
            )
        if self.products > 0.1 * self.total and self.rate < 0.3 * self.peak:
            ideas.append((0.1, f"larger batches: products reach {self.rate / self.peak:.0%} of the machine's rate"))
        return [text for _, text in sorted(ideas, reverse=True)[:3]]

    def __str__(self) -> str:
        long = [r for r in self.rows if not r.module or r.seconds > SHOWN * self.total]
        names = [f"  {r.module}" if r.module else r.stage for r in long]
        width = max(map(len, [*names, "others"]))
        lines = [f"{'':{width}}  {'ms':>9}  {'share':>6}  {'forward':>9}  {'backward':>9}  {'kept':>10}"]
        for name, r in zip(names, long, strict=True):
            kept = f"{r.kept / 1024:7,.0f} KB" if r.kept > 0 else ""
            numbers = f"{r.forward * 1e3:9.3f}  {r.backward * 1e3:9.3f}  {kept:>10}"
            lines.append(f"{name:{width}}  {r.seconds * 1e3:9.3f}  {r.seconds / self.total:6.1%}  {numbers}")
        others = sum(r.seconds for r in self.rows) - sum(r.seconds for r in long)
        lines.append(f"{'others':{width}}  {others * 1e3:9.3f}  {others / self.total:6.1%}")
        slower = f"{self.alone * 1e3:.3f} ms a step; {self.total / self.alone:.2f} x as long while it is looked at"
        lines += ["", slower if self.compiled is None else f"{slower}; {self.compiled * 1e3:.3f} ms compiled"]
        rate = f", {self.rate / 1e9:,.1f} of {self.peak / 1e9:,.0f} GFLOP/s" if self.rate else ""
        python = f"{self.python / self.total:.0%} in Python"
        lines.append(f"{self.products / self.total:.0%} in matrix products{rate}; {python}")
        lines += [f"try {idea}" for idea in self.advice()]
        return "\n".join(lines)
