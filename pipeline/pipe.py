"""Pipeline: what a user builds: stages in order, and their step compiled."""

from __future__ import annotations

from typing import Any

from pipeline.compile import Compiled
from pipeline.compose import Composition


class Pipeline(Composition):
    __doc__ = Composition.__doc__

    def compile(self, **options: Any) -> Compiled:
        """The same step as one compiled graph: see pipeline.compile.Compiled."""
        return Compiled(self, **options)
