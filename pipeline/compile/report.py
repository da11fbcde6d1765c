"""The report of compiled graphs: their backends, and why earlier backends refused them."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, field, frozen


@frozen
class Graph:
    """One compiled graph."""

    program: str
    batch: str
    operations: int
    backend: str
    seconds: float
    loaded: bool = False
    """Whether an earlier process compiled it, and this one loaded it from disk."""
    refused: tuple[str, ...] = ()
    """Why each earlier backend refused, or the limits of this one."""
    story: Callable[[], str] = field(default=str, eq=False, repr=False)
    """Its operations by stage, and the work of the compiler, in words."""

    def __str__(self) -> str:
        how = "from the cache" if self.loaded else f"by {self.backend}"
        line = f"{self.program} for {self.batch}: {self.operations} operations, {self.seconds:.1f} s, {how}"
        return "\n".join([line, *(f"  not by {reason}" for reason in self.refused)])


@frozen
class CompileReport:
    """The graphs compiled so far."""

    graphs: tuple[Graph, ...] = ()
    fallback: str | None = None
    """Why steps run uncompiled, if they do."""
    by_tape: tuple[str, ...] = ()
    """Backward stages that torch.func refuses."""
    unkept: str | None = None
    """The reason if programs are neither kept on disk nor loaded, with a remedy."""

    def explain(self) -> str:
        """The story of each graph, and why anything runs uncompiled.

        Operations of a backward are in one line, as they have no stage of their own.
        """
        stories = [f"{g}\n{g.story()}\n" for g in self.graphs]
        return "\n".join([*stories, str(evolve(self, graphs=()))]).rstrip()

    def __str__(self) -> str:
        lines = [str(g) for g in self.graphs]
        lines += [f"{name} goes by the tape" for name in self.by_tape]
        lines += [f"runs uncompiled: {self.fallback}"] if self.fallback else []
        lines += [f"programs are neither kept nor loaded: {self.unkept}"] if self.unkept else []
        return "\n".join(lines)
