"""Tracing: a pipeline's program as one flat graph of tensor operations, or the stage and the reason why it can't be."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from attrs import evolve
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.traceback import annotate, preserve_node_meta

from pipeline.compose import Pipeline
from pipeline.errors import CaptureError, StageError
from pipeline.stage import Stage, first_line

_VALUE_ERRORS = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.UnsupportedOperatorException,
    GuardOnDataDependentSymNode,
)


def trace(function: Callable[..., Any], args: tuple[Tensor, ...]) -> GraphModule:
    """A function of tensors as one flat graph of ATen operations, gradients included.

    Raises CaptureError where the result would depend on more than the arguments: on a value read into Python, or on
    torch's global generator.
    """
    try:
        with torch.no_grad(), preserve_node_meta(), _tracing():
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
    except StageError as e:
        if isinstance(e.__cause__, _VALUE_ERRORS):
            raise CaptureError(
                f"stage {e.stage!r} can't be captured as a graph: it reads a tensor's value into Python "
                f"({first_line(e.__cause__)}); use tensor operations such as torch.where, or fallback='eager'"
            ) from e
        raise
    for node in graph.graph.nodes:
        # Attention carries the tag for a dropout of its own, which is 0 here: pipeline.random has done it already.
        attention = "scaled_dot_product" in str(node.target)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not attention:
            stage = node.meta.get("custom", {}).get("stage", "?")
            raise CaptureError(
                f"stage {stage!r} draws random numbers through {node.target}, which can't be made a function of "
                "(seed, step); draw with torch.rand or nn.Dropout, or use fallback='eager'"
            )
    return graph


def watched(pipe: Pipeline) -> Pipeline:
    """The same pipeline with stages that note their names in the graph, and refuse Python's random numbers."""

    def watch(s: Stage) -> Stage:
        @functools.wraps(s.function)
        def function(*args: Any, **kwargs: Any) -> Any:
            before = _global_random()
            with annotate({"stage": s.name}):
                result = s.function(*args, **kwargs)
            if _global_random() != before:
                raise CaptureError(
                    f"stage {s.name!r} draws from Python's or NumPy's random module, which a graph would do only once; "
                    "use torch.rand, or fallback='eager'"
                )
            return result

        return evolve(s, function=function)

    return Pipeline(*map(watch, pipe.stages))


def _global_random() -> tuple[Any, ...]:
    """What changes when Python's or NumPy's generator is drawn from."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


@contextmanager
def _tracing() -> Iterator[None]:
    """torch.compiler.is_compiling() says so meanwhile: models ask it before they look at values."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
