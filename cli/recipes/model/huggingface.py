"""Models of the transformers library, from a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, refusal, setting


@frozen
class HuggingFace(Model):
    """A model of the transformers library by its config, with random weights."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    config: str | None = setting(None, "JSON file with a config of the transformers library", fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import files, models

        if self.config is None:
            raise refusal("model 'huggingface' needs --config FILE.json, a config of the transformers library")
        try:
            config = files.parsed(Path(self.config))
            if not isinstance(config, dict):
                raise ValueError("it is no config, a JSON object with model_type")
            deep = [k for k, v in config.items() if isinstance(v, int) and ("layers" in k or "depth" in k) and v > DEEP]
            if deep:
                raise ValueError(f"{deep[0]} is {config[deep[0]]}, but at most {DEEP:,}")
        except (OSError, ValueError) as e:
            raise refusal(f"can't read {self.config}: {getattr(e, 'strerror', None) or e}") from None
        sizes: dict[str, Any] = {"classes": fixed.outputs, "vocabulary": fixed.sizes.get("vocabulary")}
        words = f"transformers' {config.get('model_type', '?')}"
        return lambda: models.from_config(config, fixed.task, **sizes), words, "inputs"
