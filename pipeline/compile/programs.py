"""Programs: compiled once for each shape of batch, and from the third shape on for all sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.backward import Gradients
from pipeline.compile.backends.backend import Run
from pipeline.compile.batches import BatchInputs, Signature
from pipeline.compile.build import Build, Builder
from pipeline.compile.flatten import Subject, flat_program, flat_tensors
from pipeline.compile.id_checks import Checked
from pipeline.compile.report import CompileReport
from pipeline.errors import CaptureError, ConfigError, StageError
from pipeline.programs.program import Program

Backend: TypeAlias = str | Callable[..., Any]
Fallback: TypeAlias = Literal["error", "eager"]

STATIC_SHAPES = 2
"""Shapes of batches that get a graph each; the next graph has symbolic sizes."""


class Programs:
    """The compiled programs of a pipeline, by the shapes of their batches."""

    def __init__(self, program: Program, backend: Backend, fallback: Fallback) -> None:
        if fallback not in ("error", "eager"):
            raise ConfigError(f"fallback={fallback!r} is unknown; use 'error' or 'eager'")
        self.program, self.pipe, self.fallback = program, program.pipe, fallback
        self.builder = Builder(program, backend)
        self.reason: str | None = None
        """Why steps run uncompiled, if they do."""
        self._builds: dict[Signature, Build] = {}
        self._rigid: set[str] = set()
        """Programs that can't be compiled with symbolic sizes."""
        self._checked_ids: Any = WeakTensorKeyDictionary()
        """Tensor -> its version, and the checks of ids that it passed."""

    @property
    def report(self) -> CompileReport:
        graphs = tuple(build.graph for build in self.builder.built)
        tape = tuple(s.name for s in self.pipe.graph if isinstance(s, Gradients) and s.taken == "tape")
        return CompileReport(graphs, self.reason, tape, self.builder.unkept)

    def bind(self, subject: Subject, inputs: BatchInputs) -> Run | None:
        """A program bound to its tensors; None if steps run uncompiled."""
        if not self.request(subject, inputs) or not self.finish(subject, inputs):
            return None
        build, tensors = self._builds[subject.signature(inputs)], (*subject.tensors, *inputs.static)
        assert build.program is not None
        run = build.program.bind(flat_tensors(tensors), len(inputs.given), build.traced.constants)
        if not build.traced.checks:
            return run

        def plain(*given: Tensor) -> None:
            args = [t.clone() for t in (*tensors, *given)]
            with torch.no_grad():
                flat_program(self.program, subject, inputs, args)(*flat_tensors(args))

        return Checked(run, plain)

    def check_ids(self, subject: Subject, inputs: BatchInputs) -> None:
        """Raise StageError for an id out of range in tensors that stay in place; each is checked once."""
        args = (*subject.tensors, *inputs.static)
        for check in self._builds[subject.signature(inputs)].traced.id_checks:
            tensor = args[check.place]
            version, passed = self._checked_ids.get(tensor, (None, ()))
            passed = passed if version == tensor._version else ()
            if check not in passed:
                check.run(tensor)
                self._checked_ids[tensor] = tensor._version, (*passed, check)

    def request(self, subject: Subject, inputs: BatchInputs) -> bool:
        """Start to compile a program, unless there is one for these shapes; False if steps run uncompiled."""
        if subject.signature(inputs) not in self._builds and self.reason is None:
            if self.builder.unkept is not None and not self._builds:
                warnings.warn(f"programs are neither kept nor loaded: {self.builder.unkept}", stacklevel=5)
            try:
                self._builds[subject.signature(inputs)] = self._begun(subject, inputs)
            except (CaptureError, StageError) as e:  # if a stage itself fails, the uncompiled step says so
                self.fall_back(e)
        return self.reason is None

    def finish(self, subject: Subject, inputs: BatchInputs) -> bool:
        """Wait for a requested program; False if steps run uncompiled."""
        build = self._builds[subject.signature(inputs)]
        try:
            with self.builder.working():
                self.builder.finish(build)
        except CaptureError as e:
            if build.traced.sizes is None:
                return self.fall_back(e)
            self._rigid.add(build.name)  # backends optimize more with constant sizes
            self._forget(build)
            return self.request(subject, inputs) and self.finish(subject, inputs)
        except StageError as e:  # an error of this batch; the next may succeed
            self._forget(build)
            return self.fall_back(e)
        return True

    def fall_back(self, error: Exception) -> bool:
        """Raise an error, or remember it as the reason why steps run uncompiled from now on and return False."""
        if self.fallback == "error":
            raise error
        if self.reason is None:
            self.reason = str(error)
            warnings.warn(f"steps run uncompiled: {error}", stacklevel=6)
        return False

    def _forget(self, build: Build) -> None:
        self._builds = {k: b for k, b in self._builds.items() if b is not build}

    def _begun(self, subject: Subject, inputs: BatchInputs) -> Build:
        """A build of symbolic sizes that fits, or a new one."""
        args = (*subject.tensors, *inputs.static, *inputs.given)
        for build in self._builds.values():
            sizes = build.traced.sizes
            if sizes is not None and build.name == subject.program and sizes.fit(flat_tensors(args)):
                return build
        varying = self._varying(subject.program, inputs)
        with self.builder.working():
            build = self.builder.begin(subject, inputs, args, varying)
        if varying and build.traced.sizes is None:
            self._rigid.add(build.name)
        return build

    def _varying(self, program: str, inputs: BatchInputs) -> list[Collection[int]]:
        """The dimensions of a batch to make symbolic, by tensor: the first, and all that have varied so far."""
        symbolic = any(b.symbolic for b in self.builder.backends)
        if not symbolic or program in self._rigid or self.pipe.place.mesh is not None:
            return []
        kinds = [(t.ndim, t.dtype) for t in inputs.given]
        seen = [b.inputs.given for b in self._builds.values() if b.name == program]
        similar = [given for given in seen if given and [(t.ndim, t.dtype) for t in given] == kinds]
        if len(similar) < STATIC_SHAPES:
            return []
        varying: list[Collection[int]] = []
        for tensors in zip(inputs.given, *similar, strict=True):
            differ = {d for d in range(tensors[0].ndim) if d == 0 or len({t.shape[d] for t in tensors}) > 1}
            varying.append({d for d in differ if tensors[0].shape[d] > 1})
        return varying if any(varying) else []
