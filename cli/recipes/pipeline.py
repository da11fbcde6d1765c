"""A whole pipeline of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.setting import refusal, setting

if TYPE_CHECKING:
    from pipeline import Pipeline

PARTS = ("batch_size", "accumulate", "clip", "ema", "device", "precision", "on_nonfinite", "folds", "fold", "telemetry")
"""Settings of a run that are parts of a pipeline, and so of one's own."""


@frozen
class Whole:
    """What a function of the user's makes: a Pipeline, or a Pipeline and the data to hold out."""

    name: str | None = setting(None, "FILE.py:FUNCTION that makes a Pipeline, in place of data and model", fixed=True)
    options: Mapping[str, Any] = field(factory=dict, metadata={"fixed": True})

    def make(self, known: Mapping[str, Any]) -> tuple[Pipeline, Any]:
        """The pipeline, and what is held out."""
        from pipeline import Pipeline

        assert self.name is not None
        made = code.called(self.name, code.load(self.name), self.options, known)
        pipe, held_out = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(pipe, Pipeline):
            raise refusal(f"{self.name} made {type(pipe).__name__}, not a Pipeline, nor a Pipeline and held-out data")
        if pipe.load is None:
            raise refusal(f"{self.name} made a Pipeline without data; put load.batches(...) first in it")
        return pipe, held_out
