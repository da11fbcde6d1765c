"""A whole pipeline of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.setting import refusal, setting

if TYPE_CHECKING:
    from pipeline import Pipeline

IN_PIPELINE = (
    "batch_size", "accumulate", "clip", "ema", "device", "precision", "on_nonfinite", "folds", "fold", "telemetry",
    "sample",
)  # fmt: skip
"""Settings of a run that belong to its pipeline, and so do not apply to the user's own."""


@frozen
class OwnPipeline:
    """A function of the user's that makes a Pipeline, or a Pipeline and the held-out data."""

    name: str | None = setting(None, "FILE.py:FUNCTION that makes a Pipeline, in place of data and model", fixed=True)
    options: Mapping[str, Any] = field(factory=dict, metadata={"fixed": True})

    def make(self, known: Mapping[str, Any]) -> tuple[Pipeline, Any]:
        """The pipeline and the held-out data."""
        from pipeline import Pipeline

        assert self.name is not None
        result = code.called(self.name, code.load(self.name), self.options, known, "pipeline")
        pipe, held_out = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not isinstance(pipe, Pipeline):
            raise refusal(f"{self.name} made {type(pipe).__name__}, not a Pipeline, nor a Pipeline and held-out data")
        if pipe.load is None:
            raise refusal(f"{self.name} made a Pipeline without data; put load.batches(...) first in it")
        return pipe, held_out
