"""Settings that others leave without an effect, each refused in one line."""

from __future__ import annotations

from cli import processes
from cli.config import TrainConfig
from cli.recipes import settings
from cli.recipes.model import Fixed
from cli.recipes.setting import given, refusal


def check(config: TrainConfig, fixed: Fixed | None) -> None:
    """Raise ConfigError for a setting that somebody wrote and that changes nothing; `fixed` by the data."""
    run, uncompiled = config.run, "" if config.run.compile else "no step is compiled"
    texts = fixed is not None and any(not isinstance(size, int) for size in fixed.sizes.get("categories", ()))
    why = {
        "model.text_depth": "" if texts else "no column is a text",
        "finetune.thaw": f"there are {run.epochs} epochs" if (config.finetune.thaw or 0) >= run.epochs else "",
        "run.shard": "" if processes.count() > 1 else "one process holds all weights",
        "run.backend": uncompiled,
        "run.eager_steps": uncompiled if run.eager_steps else "",
    }
    for name, reason in why.items():
        table, _, key = name.partition(".")
        recipe = getattr(config, table)
        f = settings(type(recipe)).get(key)
        if reason and f is not None and config.wrote(name) and (value := getattr(recipe, key)) != f.default:
            raise refusal(f"{given(key, value)} has no effect, as {reason}; leave it out")
