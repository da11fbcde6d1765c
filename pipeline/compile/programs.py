"""Programs: each traced once, looked for on disk, else given to one backend after another, and checked before it is used."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch
from attrs import define, field
from torch import Tensor

from pipeline.compile import functions, key, storage
from pipeline.compile.backends import torch as generic
from pipeline.compile.backends.library import Output
from pipeline.compile.check import check
from pipeline.compile.feeds import Feed, Signature
from pipeline.compile.functions import Kind
from pipeline.compile.report import CompileReport, Graph
from pipeline.compile.tracing import Traced, trace, watched
from pipeline.compose import Composition
from pipeline.errors import CaptureError, ConfigError, StageError

Backend: TypeAlias = str | Callable[..., Any]
Fallback: TypeAlias = Literal["error", "eager"]

STATIC_SHAPES = 2
"""From one more shape on, a program's batches get symbolic sizes."""


class Run(Protocol):
    """A program bound to the tensors that stay in place."""

    outputs: tuple[Output, ...]

    def run(self, given: Sequence[Tensor] = ..., steps: int | None = ..., results: bool = ...) -> list[Tensor]: ...


class Program(Protocol):
    """What a graph was compiled to."""

    backend: str
    note: str | None

    def bind(self, static: Sequence[Tensor], given: int = ..., constants: Sequence[Tensor] = ...) -> Run: ...


@define(eq=False)
class Build:
    """A program being made."""

    kind: Kind
    feed: Feed
    args: tuple[Tensor, ...]
    traced: Traced
    varying: Sequence[Collection[int]]
    outputs: tuple[Output, ...]
    began: float
    identity: dict[str, Any] | None = None
    pending: Any = None
    """What the native backend is at work on."""
    program: Program | None = None
    error: Exception | None = None
    loaded: bool = False
    refused: list[str] = field(factory=list)


class Programs:
    """The compiled programs of a pipeline, by the shapes of what they are called with."""

    def __init__(self, pipe: Composition, backend: Backend, fallback: Fallback) -> None:
        if fallback not in ("error", "eager"):
            raise ConfigError(f"fallback={fallback!r} is unknown; use 'error' or 'eager'")
        self.pipe, self.backend, self.fallback = pipe, backend, fallback
        self.reason: str | None = None
        """Why steps run uncompiled, if they do."""
        self._builds: dict[Signature, Build] = {}
        self._graphs: list[tuple[Build, float]] = []

    @property
    def report(self) -> CompileReport:
        return CompileReport(tuple(_described(build, seconds) for build, seconds in self._graphs), self.reason)

    def bind(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> Run | None:
        """A program bound to `kept`, State's leaves and the like, and to its feed; None where steps run uncompiled."""
        build = self.request(kind, kept, feed)
        if build is None or not self.finish(build):
            return None
        assert build.program is not None
        return build.program.bind(functions.listed((*kept, *feed.static)), len(feed.given), build.traced.constants)

    def request(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> Build | None:
        """Begin to make a program, if there is none for these shapes; None where it can't be captured."""
        signature = (kind.program, *feed.signature)
        if signature not in self._builds:
            try:
                self._builds[signature] = self._begun(kind, feed, (*kept, *feed.static, *feed.given))
            except (CaptureError, StageError) as e:  # where a stage itself is at fault, the eager step will say so
                self._fall_back(e)
                return None
        return self._builds[signature]

    def finish(self, build: Build) -> bool:
        """Wait for a program, and check it; the next backend is tried where it is none. Whether there is one."""
        if build.program is None and build.error is None:
            try:
                self._complete(build)
            except (CaptureError, StageError) as e:
                build.error = e
        if build.error is not None:
            self._fall_back(build.error)
        return build.error is None

    def _fall_back(self, error: Exception) -> None:
        if self.fallback == "error":
            raise error
        if self.reason is None:
            self.reason = str(error)
            warnings.warn(f"steps run uncompiled: {error}", stacklevel=6)

    def _begun(self, kind: Kind, feed: Feed, args: tuple[Tensor, ...]) -> Build:
        varying = self._varying(kind, feed)
        for build in self._builds.values():  # one of symbolic sizes may do
            if build.kind.program == kind.program and build.varying and build.traced.fits(functions.listed(args)):
                return build
        began, names = time.perf_counter(), list[str]()
        traced = trace(functions.function(watched(self.pipe), kind, feed, args, names), functions.listed(args), varying)
        outputs = tuple(Output(n, tuple(t.shape), t.dtype) for n, t in zip(names, traced.outputs, strict=True))
        build = Build(kind, feed, args, traced, varying, outputs, began)
        if self.backend in ("auto", "native") and args[0].device.type == "cpu" and not varying:
            self._native(build)
        return build

    def _varying(self, kind: Kind, feed: Feed) -> list[Collection[int]]:
        """Which dimensions of what is given get symbolic sizes: where two shapes were seen, those that differ and the first."""
        seen = [b.feed.given for b in self._builds.values() if b.kind.program == kind.program and b.feed.given]
        alike = [s for s in seen if [(t.ndim, t.dtype) for t in s] == [(t.ndim, t.dtype) for t in feed.given]]
        if len(alike) < STATIC_SHAPES:
            return []
        varying: list[Collection[int]] = []
        for tensors in zip(feed.given, *alike, strict=True):
            differ = {d for d in range(tensors[0].ndim) if d == 0 or len({t.shape[d] for t in tensors}) > 1}
            varying.append({d for d in differ if tensors[0].shape[d] > 1})
        return varying if any(varying) else []

    def _native(self, build: Build) -> None:
        """Have a kept program loaded, or a new one begun."""
        from pipeline.compile.backends import native  # imports nothing big until something is compiled

        build.identity = key.identity(build.traced, native.settings())
        found = storage.find(build.identity) if build.identity is not None else None
        if found is not None:
            try:
                build.program, build.loaded = found.load(), True
            except OSError:  # a folder that nothing may be run from
                build.identity = None
            else:
                self._graphs.append((build, time.perf_counter() - build.began))
                return
        try:
            args = (*functions.listed(build.args), *build.traced.constants)
            build.pending = native.begin(generic.make, build.traced.graph, args, build.outputs)
        except CaptureError as e:
            build.refused.append(f"native: {e}")

    def _complete(self, build: Build) -> None:
        if build.pending is not None:
            try:
                library = build.pending.library.result()
                self._check(build, library)
            except CaptureError as e:
                build.refused.append(f"native: {e}")
            else:
                if build.identity is not None:
                    facts = (build.kind.program, build.feed.batch, build.traced.operations)
                    storage.keep(library, build.identity, *facts)
                self._made(build, library)
                return
        for backend in self._others(build):
            name = backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)
            call = generic.make(build.traced.graph, backend, bool(build.varying))
            program = generic.Function(name, call, build.outputs)
            try:
                self._check(build, program)
            except CaptureError as e:
                build.refused.append(f"{name}: {e}")
            else:
                self._made(build, program)
                return
        raise CaptureError(f"the {build.kind.program} can't be compiled here: {'; '.join(build.refused)}")

    def _others(self, build: Build) -> list[Backend]:
        """The backends that torch.compile calls for this program, in their order."""
        if self.backend == "auto":
            return ["inductor"]
        if self.backend != "native":
            return [self.backend]
        if not build.refused:
            device = build.args[0].device.type
            build.refused.append(f"native: takes no {'symbolic sizes' if device == 'cpu' else device + ' device'}")
        return []

    def _made(self, build: Build, program: Program) -> None:
        build.program = program
        build.args = ()
        self._graphs.append((build, time.perf_counter() - build.began))

    def _check(self, build: Build, program: Program) -> None:
        """Raise CaptureError where a program fails, or does not do what the plain functions do."""
        kind, feed = build.kind, build.feed
        end = kind.kept + len(feed.static)

        def built(args: Sequence[Tensor]) -> Sequence[Tensor]:
            for t, dims in zip(reversed(args), reversed(build.varying), strict=False):
                for d in dims:
                    torch._dynamo.mark_dynamic(t, d)
            return program.bind(args[:end], len(feed.given), build.traced.constants).run(args[end:])

        try:
            plain = functions.function(self.pipe, kind, feed, build.args, [])
            check(built, plain, functions.listed(build.args), kind.written(feed), build.traced.low_precision)
        except (CaptureError, StageError):
            raise
        except Exception as e:  # whatever a compiler raises
            raise CaptureError(generic.reason(e)) from e


def _described(build: Build, seconds: float) -> Graph:
    assert build.program is not None
    notes = [*build.refused, *([build.program.note] if build.program.note else [])]
    return Graph(
        build.kind.program, build.feed.batch, build.traced.operations, build.program.backend, seconds, build.loaded,
        tuple(notes),
    )  # fmt: skip
