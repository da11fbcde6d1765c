"""What was compiled, by which backend, and why not by the one before it."""

from __future__ import annotations

from attrs import frozen


@frozen
class Graph:
    """One compiled graph: which program, for which batch, of how many operations, and what it took."""

    program: str
    batch: str
    operations: int
    backend: str
    seconds: float
    loaded: bool = False
    """Whether it was compiled in an earlier process, and only loaded in this one."""
    refused: tuple[str, ...] = ()
    """Why each backend before this one could not be used, or what this one could not do."""

    def __str__(self) -> str:
        how = "from the cache" if self.loaded else f"by {self.backend}"
        line = f"{self.program} for {self.batch}: {self.operations} operations, {self.seconds:.1f} s, {how}"
        return "\n".join([line, *(f"  not by {reason}" for reason in self.refused)])


@frozen
class CompileReport:
    """What was compiled so far; `fallback` is the reason why steps run eagerly instead, if they do."""

    graphs: tuple[Graph, ...] = ()
    fallback: str | None = None
    by_tape: tuple[str, ...] = ()
    """Backwards whose code torch.func refuses."""
    unkept: str | None = None
    """Why programs are neither kept nor loaded, and what to do, if so."""

    @property
    def seconds(self) -> float:
        return sum(g.seconds for g in self.graphs)

    def __str__(self) -> str:
        lines = [str(g) for g in self.graphs]
        lines += [f"{name} goes by the tape" for name in self.by_tape]
        lines += [f"runs uncompiled: {self.fallback}"] if self.fallback else []
        lines += [f"programs are neither kept nor loaded: {self.unkept}"] if self.unkept else []
        return "\n".join(lines)
