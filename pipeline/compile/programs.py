"""Programs: each traced once, looked for on disk, else given to one backend after another, and checked before use."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from attrs import define, evolve, field
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.backward import Gradients
from pipeline.compile import cache as storage
from pipeline.compile import flatten as functions
from pipeline.compile import key
from pipeline.compile.backends import torch as generic
from pipeline.compile.backends.library import Library
from pipeline.compile.backends.program import Output, Program, Run
from pipeline.compile.batches import Feed, Signature
from pipeline.compile.flatten import Kind
from pipeline.compile.id_checks import Checked, Look
from pipeline.compile.report import CompileReport, Graph
from pipeline.compile.tracing import Traced, trace, watched
from pipeline.compile.verify import check
from pipeline.description import Description
from pipeline.errors import CaptureError, ConfigError, StageError, did_you_mean
from pipeline.programs.program import Program as Functions

Backend: TypeAlias = str | Callable[..., Any]
Fallback: TypeAlias = Literal["error", "eager"]

OWN = ("auto", "native")
"""Names of backends that torch does not know."""

STATIC_SHAPES = 2
"""From one more shape on, a program's batches get symbolic sizes."""


@define(eq=False)
class Build:
    """A program being made."""

    kind: Kind
    feed: Feed
    args: tuple[Tensor, ...]
    traced: Traced
    outputs: tuple[Output, ...]
    began: float
    identity: dict[str, Any] | None = None
    pending: Any = None
    """What the native backend is at work on."""
    program: Program | None = None
    loaded: bool = False
    refused: list[str] = field(factory=list)


class Programs:
    """The compiled programs of a pipeline, by the shapes of what they are called with."""

    def __init__(self, program: Functions, backend: Backend, fallback: Fallback) -> None:
        if fallback not in ("error", "eager"):
            raise ConfigError(f"fallback={fallback!r} is unknown; use 'error' or 'eager'")
        if isinstance(backend, str) and backend not in OWN and backend not in generic.known():
            raise ConfigError(f"backend={backend!r} is unknown{did_you_mean(backend, {*OWN, *generic.known()})}")
        self.program, self.backend, self.fallback = program, backend, fallback
        self.pipe = program.pipe
        storage.keep_compiler_caches()
        self.unkept = storage.refusal() if backend in (*OWN, "inductor") else None
        self.reason: str | None = None
        """Why steps run uncompiled, if they do."""
        self.doing = ""
        """What is being done, in words."""
        self._builds: dict[Signature, Build] = {}
        self._rigid: set[str] = set()
        """Programs for which symbolic sizes did not do."""
        self._waiting: list[Any] = []
        """What the native backend compiles with the next program that is waited for."""
        self._graphs: list[tuple[Build, float]] = []
        self._looked: Any = WeakTensorKeyDictionary()
        """The ids that were found to be in range, by tensor, and its version then."""

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._graphs)

    @property
    def report(self) -> CompileReport:
        graphs = tuple(_described(build, seconds) for build, seconds in self._graphs)
        tape = tuple(s.name for s in self.pipe.graph if isinstance(s, Gradients) and s.taken == "tape")
        return CompileReport(graphs, self.reason, tape, self.unkept)

    def bind(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> Run | None:
        """A program bound to `kept`, State's leaves and the like, and to its feed; None where steps run uncompiled."""
        if not self.request(kind, kept, feed) or not self.finish(kind, kept, feed):
            return None
        build = self._builds[kind.program, *feed.signature]
        assert build.program is not None
        run = build.program.bind(functions.listed((*kept, *feed.static)), len(feed.given), build.traced.constants)
        if not build.traced.checks:
            return run

        def again(*given: Tensor) -> None:
            args = [t.clone() for t in (*kept, *feed.static, *given)]
            with torch.no_grad():
                functions.function(self.program, kind, feed, args, [])(*functions.listed(args))

        return Checked(run, again)

    def look(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> None:
        """Raise StageError where an id in the data of a program is out of range, if that was not seen before."""
        args = (*kept, *feed.static)
        for look in self._builds[kind.program, *feed.signature].traced.looks:
            tensor = args[look.place]
            version, fine = self._looked.get(tensor, (None, set[Look]()))
            if version != tensor._version or look not in fine:
                look.at(args)
                self._looked[tensor] = tensor._version, {*(fine if version == tensor._version else ()), look}

    def request(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> bool:
        """Begin to make a program, if there is none for these shapes; False where steps run uncompiled."""
        signature = (kind.program, *feed.signature)
        if signature not in self._builds and self.reason is None:
            try:
                with _uncollected():
                    self._builds[signature] = self._begun(kind, feed, (*kept, *feed.static, *feed.given))
            except (CaptureError, StageError) as e:  # where a stage itself is at fault, the eager step will say so
                self.fall_back(e)
        return self.reason is None

    def finish(self, kind: Kind, kept: Sequence[Tensor], feed: Feed) -> bool:
        """Wait for a program that was requested, and check it; the next backend is tried where it is none."""
        build = self._builds[kind.program, *feed.signature]
        if build.program is not None:
            return True
        try:
            with _uncollected():
                self._complete(build)
        except CaptureError as e:
            if build.traced.sizes is None:
                return self.fall_back(e)
            # With sizes that are numbers, backends can do more.
            self._rigid.add(kind.program)
            self._builds = {k: b for k, b in self._builds.items() if b is not build}
            return self.request(kind, kept, feed) and self.finish(kind, kept, feed)
        except StageError as e:  # of this batch: the next one may do
            self._builds = {k: b for k, b in self._builds.items() if b is not build}
            return self.fall_back(e)
        return True

    def fall_back(self, error: Exception) -> bool:
        """Raise an error, or remember it as the reason why steps run uncompiled from now on: then False."""
        if self.fallback == "error":
            raise error
        if self.reason is None:
            self.reason = str(error)
            warnings.warn(f"steps run uncompiled: {error}", stacklevel=6)
        return False

    def _begun(self, kind: Kind, feed: Feed, args: tuple[Tensor, ...]) -> Build:
        for build in self._builds.values():
            sizes = build.traced.sizes
            if sizes is not None and build.kind.program == kind.program and sizes.fit(functions.listed(args)):
                return build
        if self.unkept is not None and not self._builds:
            warnings.warn(f"programs are neither kept nor loaded: {self.unkept}", stacklevel=6)
        self.doing = f"tracing the {kind.program}"
        began, names = time.perf_counter(), list[str]()
        function = functions.function(watched(self.program), kind, feed, args, names)
        end = kind.kept + len(feed.static)
        fixed = range(kind.kept, end - feed.moved)
        traced = trace(function, functions.listed(args), self._varying(kind, feed), fixed)
        if traced.sizes is not None and not traced.sizes.free:  # something in it needs a size as a number
            self._rigid.add(kind.program)
            traced = trace(function, functions.listed(args), fixed=fixed)
        # Numbers that code made on the host; larger tensors from there would have been refused.
        traced = evolve(traced, constants=tuple(self.pipe.place.tree(list(traced.constants))))
        names += ["ids"] * traced.checks
        outputs = tuple(Output(n, tuple(t.shape), t.dtype) for n, t in zip(names, traced.outputs, strict=True))
        build = Build(kind, feed, args, traced, outputs, began)
        if self.backend in OWN and args[0].device.type == "cpu" and traced.sizes is None and not traced.talks:
            self._native(build)
        waiting = [g for g in self.pipe.backwards if g.accumulate > 1 and self.program.single.untried(g)]
        if build.loaded and waiting and self.program.members == 1:
            # A kept program is not checked beside the plain functions, which would have tried the parts.
            functions.function(self.program, kind, feed, args, [])(*(t.clone() for t in functions.listed(args)))
        return build

    def _varying(self, kind: Kind, feed: Feed) -> list[Collection[int]]:
        """Which dimensions of what is given get symbolic sizes: where two shapes were seen, those that differ and the
        first."""
        if self.backend == "native" or kind.program in self._rigid or self.pipe.place.mesh is not None:
            return []
        seen = [b.feed.given for b in self._builds.values() if b.kind.program == kind.program]
        alike = [s for s in seen if s and [(t.ndim, t.dtype) for t in s] == [(t.ndim, t.dtype) for t in feed.given]]
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
                program = found.load()
            except OSError:  # a folder that nothing may be run from
                build.identity = None
            else:
                build.loaded = True
                self._made(build, program)
                return
        self.doing = f"{build.traced.operations:,} operations of the {build.kind.program} to C++"
        try:
            args = (*functions.listed(build.args), *build.traced.constants)
            build.pending = native.begin(generic.make, build.traced.graph, args, build.outputs, self._waiting)
        except CaptureError as e:
            build.refused.append(f"native: {e}")

    def _complete(self, build: Build) -> None:
        for name, make in self._ways(build):
            self.doing = f"the {build.kind.program} by {name}"
            try:
                program = make()
                self._check(build, program)
            except StageError:
                raise
            except torch.OutOfMemoryError:
                program.note = "unchecked: the plain functions need more memory than the device has"
            except Exception as e:  # whatever a compiler raises
                build.refused.append(f"{name}: {generic.reason(e)}")
                continue
            if isinstance(program, Library) and build.identity is not None:
                about = build.kind.program, build.feed.batch, build.traced.operations, _models(self.pipe)
                storage.keep(program, build.identity, *about)
            self._made(build, program)
            return
        raise CaptureError(f"the {build.kind.program} can't be compiled here: {'; '.join(build.refused)}")

    def _ways(self, build: Build) -> Iterator[tuple[str, Callable[[], Program]]]:
        """The backends that are tried for this program, in their order, and what makes it by each."""
        if build.pending is not None:
            yield "native", build.pending.library
        elif self.backend in OWN and build.traced.talks:
            build.refused.append("native: takes no collectives")
        elif self.backend in OWN and not build.refused and (device := build.args[0].device.type) == "cpu":
            build.refused.append("native: takes no symbolic sizes")
        elif self.backend == "native" and not build.refused:
            build.refused.append(f"native: takes no {device} device")
        if self.backend != "native":
            backend = "inductor" if self.backend == "auto" else self.backend
            name = backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)
            graph, dynamic = build.traced.graph, build.traced.sizes is not None
            more = build.outputs, None if dynamic else build.traced.operations, self.pipe.place.computing
            yield name, lambda: generic.Function(name, generic.make(graph, backend, dynamic), *more)

    def _made(self, build: Build, program: Program) -> None:
        build.program = program
        build.args = ()
        self._graphs.append((build, time.perf_counter() - build.began))

    def _check(self, build: Build, program: Program) -> None:
        """Raise CaptureError where a program does not do what the plain functions do."""
        kind, feed = build.kind, build.feed

        def built(args: Sequence[Tensor]) -> Sequence[Tensor]:
            end = kind.kept + len(feed.static)
            if build.traced.sizes is not None:
                build.traced.sizes.mark(args)
            made = program.bind(args[:end], len(feed.given), build.traced.constants).run(args[end:])
            return made[: len(made) - build.traced.checks]

        plain = functions.function(self.program, kind, feed, build.args, [])
        on = self.pipe.place.mesh
        agree = (lambda fine: all(on.everyone(fine))) if on is not None and build.traced.talks else bool
        check(built, plain, functions.listed(build.args), kind.written(feed), build.traced.low_precision, agree)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Compilers make millions of objects that stay: to look for dead ones among them took a tenth of the time."""
    collect = gc.enable if gc.isenabled() else gc.disable
    gc.disable()
    try:
        yield
    finally:
        collect()


def _described(build: Build, seconds: float) -> Graph:
    assert build.program is not None
    notes = (*build.refused, *([build.program.note] if build.program.note else []))
    batch = build.feed.batch + (" and other sizes" if build.traced.sizes else "")
    facts = build.kind.program, batch, build.traced.operations, build.program.backend
    return Graph(*facts, seconds, build.loaded, notes)


def _models(pipe: Description) -> str:
    """The models of a pipeline in words."""
    modules = [m.module.skeleton().module for m in pipe.models]
    return ", ".join(f"{type(m).__name__} of {sum(p.numel() for p in m.parameters()):,} parameters" for m in modules)
