"""The compile layer: what torch.compile makes of a pipeline's programs, and what their calls go through."""

from pipeline.compile.compiled import Compiled, Steps
from pipeline.compile.programs import Backend, Fallback
from pipeline.compile.report import CompileReport, Graph

__all__ = ["Backend", "CompileReport", "Compiled", "Fallback", "Graph", "Steps"]
