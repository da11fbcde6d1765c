"""Builds: a program is traced once, loaded from disk or compiled by the first backend that can, and checked."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor
from torch.fx.traceback import annotate

from pipeline.compile import cache, key
from pipeline.compile.backends import candidates
from pipeline.compile.backends.backend import Backend, Output, Program
from pipeline.compile.backends.library import Library
from pipeline.compile.backends.torch import reason
from pipeline.compile.batches import BatchInputs
from pipeline.compile.flatten import Subject, flat_program, flat_tensors
from pipeline.compile.report import Graph
from pipeline.compile.story import story
from pipeline.compile.tracing import Traced, trace, watched
from pipeline.compile.verify import check
from pipeline.description import Description
from pipeline.errors import CaptureError, StageError
from pipeline.programs.program import Program as Functions


@define(eq=False)
class Build:
    """A program, and the progress of its compilation."""

    name: str
    inputs: BatchInputs
    subject: Subject | None
    """None once it is compiled, as are `args`."""
    args: tuple[Tensor, ...]
    """Examples of all its tensors."""
    traced: Traced
    outputs: tuple[Output, ...]
    began: float
    untried: list[Backend]
    backend: Backend | None = None
    """The backend at work."""
    identity: dict[str, Any] | None = None
    """Its key in the cache; None if it is not kept."""
    wait: Callable[[], Program] | None = None
    """Waits for the backend at work."""
    refused: list[str] = field(factory=list)
    """Earlier backends, and their reasons for refusal."""
    program: Program | None = None
    loaded: bool = False
    seconds: float = 0.0

    @property
    def graph(self) -> Graph:
        """A line of the report."""
        assert self.program is not None
        notes = (*self.refused, *([self.program.note] if self.program.note else []))
        batch = self.inputs.words + (" and other sizes" if self.traced.sizes else "")
        facts = self.name, batch, self.traced.operations, self.program.backend
        return Graph(*facts, self.seconds, self.loaded, notes, partial(story, self))


class Builder:
    """Compiles the programs of a pipeline, several at a time."""

    def __init__(self, program: Functions, backend: str | Callable[..., Any]) -> None:
        self.program, self.pipe = program, program.pipe
        self.backends = candidates(backend, self.pipe.place.device.type)
        cache.keep_compiler_caches()
        cached = any(b.cached for b in self.backends)
        self.unkept = cache.refusal() if cached else None
        """The reason if programs are neither kept nor loaded."""
        place = self.pipe.place
        self.keeps = cached and self.unkept is None and place.mesh is None and place.device.type == "cpu"
        """Whether another process can compile for this one."""
        self.seconds = 0.0
        self.built: list[Build] = []
        """Compiled and loaded programs, in order."""
        self.doing = ""
        """The current work, in words."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the seconds, and pause the collector: compilers make millions of objects that stay, and scanning them
        takes 10 % of the time."""
        began, restore = time.perf_counter(), gc.enable if gc.isenabled() else gc.disable
        gc.disable()
        try:
            yield
        finally:
            restore()
            self.doing = ""
            self.seconds += time.perf_counter() - began

    def begin(
        self, subject: Subject, inputs: BatchInputs, args: tuple[Tensor, ...], varying: Sequence[Collection[int]]
    ) -> Build:
        """Trace a program, then load it or start to compile it. `varying` dimensions of the batch are symbolic, if none
        of them is specialized to a number. Raises CaptureError or StageError."""
        self.doing = f"tracing the {subject.program}"
        began, names = time.perf_counter(), list[str]()
        noting = watched(self.program, lambda name: annotate({"stage": name}))
        function = flat_program(noting, subject, inputs, args, names)
        kept = len(subject.tensors)
        fixed = range(kept, kept + len(inputs.static) - inputs.moved)
        traced = trace(function, flat_tensors(args), varying, fixed)
        if traced.sizes is not None and not traced.sizes.free:
            traced = trace(function, flat_tensors(args), fixed=fixed)
        # Tracing has refused tensors on the host, except numbers.
        traced = evolve(traced, constants=tuple(self.pipe.place.tree(list(traced.constants))))
        names += ["ids"] * traced.checks
        outputs = tuple(Output(n, tuple(t.shape), t.dtype) for n, t in zip(names, traced.outputs, strict=True))
        build = Build(subject.program, inputs, subject, args, traced, outputs, began, list(self.backends))
        self._start(build)
        waiting = [g for g in self.pipe.backwards if g.accumulate > 1 and self.program.single.untried(g)]
        if build.loaded and waiting and self.program.members == 1:
            # The check of a new program tries the chunks of a batch; a loaded one is not checked.
            flat_program(self.program, subject, inputs, args)(*(t.clone() for t in flat_tensors(args)))
        return build

    def finish(self, build: Build) -> None:
        """Wait for a program, and check it; if that fails, try the other backends. Raises CaptureError if none can."""
        while build.program is None:
            if build.wait is not None:
                self._wait(build, build.wait)
            elif not self._start(build):
                raise CaptureError(f"the {build.name} can't be compiled here: {'; '.join(build.refused)}")

    def _start(self, build: Build) -> bool:
        """Load a program, or start to compile it by the next backend that can; False if there is none."""
        while build.untried:
            backend = build.backend = build.untried.pop(0)
            why = backend.refusal(build.traced, build.args[0].device.type)
            settings = None if why else backend.settings()
            build.identity = None if settings is None else key.identity(build.traced, settings)
            try:
                if why:
                    raise CaptureError(why)
                if self._load(build):
                    return True
                self.doing = f"{build.traced.operations:,} operations of the {build.name} by {backend.name}"
                args = (*flat_tensors(build.args), *build.traced.constants)
                build.wait = backend.begin(build.traced, args, build.outputs, self.pipe.place.computing)
            except CaptureError as e:
                build.refused.append(f"{backend.name}: {e}")
            else:
                return True
        return False

    def _load(self, build: Build) -> bool:
        package = None if build.identity is None else cache.find(build.identity)
        if package is None:
            return False
        try:
            self._done(build, package.load(), loaded=True)
        except OSError:  # nothing may be run from this folder
            build.identity = None
        return build.loaded

    def _wait(self, build: Build, wait: Callable[[], Program]) -> None:
        """Wait for the backend at work; refuse its program if compilation or the check fails."""
        assert build.backend is not None
        self.doing, build.wait = f"the {build.name} by {build.backend.name}", None
        try:
            program = wait()
            self._check(build, program)
        except StageError:
            raise
        except Exception as e:  # any error of a compiler
            build.refused.append(f"{build.backend.name}: {reason(e)}")
            return
        if isinstance(program, Library) and build.identity is not None:
            facts = build.name, build.inputs.words, build.traced.operations, _models(self.pipe)
            cache.keep(program, build.identity, *facts)
        self._done(build, program)

    def _done(self, build: Build, program: Program, loaded: bool = False) -> None:
        build.program, build.loaded, build.subject, build.args = program, loaded, None, ()
        build.seconds = time.perf_counter() - build.began
        self.built.append(build)

    def _check(self, build: Build, program: Program) -> None:
        """Raise CaptureError unless a program agrees with the plain functions."""
        subject, inputs, traced = build.subject, build.inputs, build.traced
        assert subject is not None
        end = len(subject.tensors) + len(inputs.static)

        def compiled(args: Sequence[Tensor]) -> Sequence[Tensor]:
            if traced.sizes is not None:
                traced.sizes.mark(args)
            results = program.bind(args[:end], len(inputs.given), traced.constants).run(args[end:])
            return results[: len(results) - traced.checks]

        plain = flat_program(self.program, subject, inputs, build.args)
        mesh = self.pipe.place.mesh
        agree = (lambda fine: all(mesh.everyone(fine))) if mesh is not None and traced.talks else bool
        try:
            check(compiled, plain, flat_tensors(build.args), subject.written(inputs), traced.low_precision, agree)
        except torch.OutOfMemoryError:
            program.note = "unchecked: the plain functions need more memory than the device has"


def _models(pipe: Description) -> str:
    """The models of a pipeline in words."""
    modules = [m.module.skeleton().module for m in pipe.models]
    return ", ".join(f"{type(m).__name__} of {sum(p.numel() for p in m.parameters()):,} parameters" for m in modules)
