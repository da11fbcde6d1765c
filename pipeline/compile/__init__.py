"""The compile layer: a pipeline's train step and evaluation as compiled programs."""

from pipeline.compile.compiled import Compiled, Steps
from pipeline.compile.programs import Backend, Fallback
from pipeline.compile.report import CompileReport, Graph

__all__ = ["Backend", "CompileReport", "Compiled", "Fallback", "Graph", "Steps"]
