"""Cross-validation: a run for each fold."""

from __future__ import annotations

import torch
from attrs import evolve

from cli import config as settings
from cli import folder as folders
from cli.config import TrainConfig
from cli.progress import plain
from cli.settled import settled
from cli.training import train
from pipeline.errors import ConfigError
from pipeline.state import format_metric


def train_folds(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> None:
    """Train a run for each fold, in folders of one, and print mean and standard deviation of their last metrics.

    `pipe predict` answers with the mean of all.
    """
    count = config.run.folds
    assert count is not None
    if config.pipeline.name is not None:
        raise ConfigError("--folds splits the command's own data; a pipeline of your own splits its data itself")
    say, config = plain(False), settled(config)[0]
    ends: list[dict[str, float]] = []
    with folders.new(config) as seal:
        for fold in range(count):
            say.print(f"fold    {fold} of {count}")
            run = evolve(config.run, out=str(seal.folder / settings.FOLD.format(fold)), fold=fold)
            report = train(evolve(config, run=run), quiet=quiet, verbose=verbose)
            if report is not None:
                ends.append({k: v for k, v in report.validate.items() if isinstance(v, int | float)})
        ended = {settings.FOLDS: {"count": count, "ends": ends}}
        folders.write(seal, {settings.CONFIG: folders.config_text(config, ended, seal)})
    for name in (n for n in ends[0] if "/" not in n):
        values = torch.tensor([end[name] for end in ends], dtype=torch.float64)
        mean, deviation = (format_metric(name, float(x)) for x in (values.mean(), values.std()))
        say.print(f"folds   {mean} +- {deviation.removeprefix(name + ' ')} over {count} folds")
