"""Models of the transformers library, from a config or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from attrs import frozen

from cli.recipes.data.files import Chat, Table, Text
from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, refusal, setting


@frozen
class HuggingFace(Model):
    """A model of the transformers library by its config, with random weights."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    config: str | None = setting(None, "JSON file with a config of the transformers library", fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        if self.config is None:
            raise refusal("model 'huggingface' needs --config FILE.json, a config of the transformers library")
        config = _read(Path(self.config))
        sizes: dict[str, Any] = {"classes": fixed.outputs, "vocabulary": fixed.sizes.get("vocabulary")}
        words = f"transformers' {config.get('model_type', '?')}"
        return lambda: models.from_config(config, fixed.task, **sizes), words, "inputs"


@frozen
class Pretrained(Model):
    """A model of token ids in a folder of the transformers library, with its weights."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw", "lr": 1e-4}

    @property
    def title(self) -> str:
        return Path(self.name).name

    @staticmethod
    def imply(values: dict[str, dict[str, Any]], data: type) -> None:
        name, given = values["model"]["name"], values["data"]
        values["finetune"].setdefault("init", name)
        if data is Table and given["source"].endswith(CHATS) and _is_chat(given):
            given["source"], data = f"chat:{given['source']}", Chat
        if data in (Text, Chat):
            given.setdefault("tokenizer", str(Path(name, TOKENIZER)))

    @staticmethod
    def forget(values: dict[str, dict[str, Any]], name: str) -> None:
        """Drop what a folder has implied, as another model is chosen."""
        if values["finetune"].get("init") == name:
            values["finetune"] = {k: v for k, v in values["finetune"].items() if k not in ("init", "init_sha256")}
        if values["data"].get("tokenizer") == str(Path(name, TOKENIZER)):
            del values["data"]["tokenizer"]

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        config = _read(Path(self.name, CONFIG))
        if fixed.floats:
            raise refusal(
                f"{self.name} takes token ids, but {fixed.source} has inputs of floats; give it a text, or the columns "
                'of a question and its answer: --template "{question} {answer}"'
            )
        tokens = config.get("vocab_size")
        if tokens is not None and (own := fixed.sizes.get("vocabulary", 0)) > tokens:
            raise refusal(
                f"{fixed.source} has {own:,} kinds of tokens, but the model in {self.name} only {tokens:,}; give the "
                "tokenizer that it was trained with by --tokenizer"
            )
        most = next((config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), None)
        if most is not None and fixed.inputs[0] > most:
            raise refusal(
                f"{fixed.source} has {fixed.inputs[0]} tokens in a row, but {self.name} has {most} positions; write "
                f"--context {most}"
            )
        words = f"{self.name}: transformers' {config.get('model_type', '?')}"
        sizes: dict[str, Any] = {"classes": fixed.outputs, "vocabulary": tokens}
        return lambda: models.from_config(config, fixed.task, **sizes), words, "inputs"


CONFIG, TOKENIZER = "config.json", "tokenizer.json"
CHATS = (".jsonl", ".ndjson", ".parquet", ".jsonl.gz")
"""Endings of tables that are read as texts."""


def _is_chat(given: Mapping[str, Any]) -> bool:
    from pipeline.errors import DataError
    from pipeline.sources.chat import is_chat

    path = Path(given["source"])
    try:
        return "template" in given or is_chat(path)
    except DataError:  # which says more when it is read; a pattern of files is a table
        return path.is_file()


def _read(path: Path) -> dict[str, Any]:
    from pipeline import files

    try:
        config = files.parsed(path)
        if not isinstance(config, dict):
            raise ValueError("it is no config, a JSON object with model_type")
        deep = [k for k, v in config.items() if isinstance(v, int) and ("layers" in k or "depth" in k) and v > DEEP]
        if deep:
            raise ValueError(f"{deep[0]} is {config[deep[0]]}, but at most {DEEP:,}")
        return config
    except (OSError, ValueError) as e:
        raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
