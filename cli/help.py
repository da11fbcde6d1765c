"""The help of a command with many settings: a screen of the most used, and all by --help-all. Imports no torch."""

from __future__ import annotations

from typing import Any

import click

from cli.recipes.setting import SET_ONLY

SECTIONS = {
    "data": "Data", "model": "Model", "finetune": "Model", "loss": "Loss and metrics", "evaluate": "Loss and metrics",
    "optimizer": "Optimizer and schedule", "schedule": "Optimizer and schedule", "run": "Run", "folds": "Data",
    "best": "Loss and metrics", "accumulate": "Optimizer and schedule", "clip": "Optimizer and schedule",
    "ema": "Optimizer and schedule", "shard": "Processes",
}  # fmt: skip
"""Section of the help by setting, or else by its table."""
SHORT = {
    "data": "digits, sklearn:NAME, a file or folder  [default: digits]",
    "target": "column, or columns a,b, to learn  [default: the last]",
    "held_out": "held-out share  [default: 0.2; 0.1 for text, tokens]",
    "folds": "",
    "model": "mlp, table, resnet, ...  [default: mlp; table for tables]",
    "hidden": "widths inside, such as 128,64  [default: by the model]",
    "loss": "such as mse, huber or quantile  [default: by the task]",
    "metric": "also measure, such as f1-score, roc-auc or rmse",
    "optimizer": "sgd, adamw, muon and others  [default: by the model]",
    "lr": "learning rate  [default: by model and optimizer]",
    "weight_decay": "[default: by model and optimizer]",
    "schedule": "of lr: cosine, wsd and others  [default: by the model]",
    "epochs": "passes over the data  [default: 20; by the rows for tables]",
    "batch_size": "samples a step  [default: 64; by the rows for tables]",
    "seed": "of the split, weights, order and dropout  [default: 0]",
    "device": "cpu, cuda, cuda:N, or auto  [default: auto]",
    "out": "folder of the run  [default: the next runs/DATA-MODEL-N]",
}
"""Settings on the first screen, with a short text if theirs is long."""
SWEPT = ("data", "target", "model", "optimizer", "lr", "weight_decay", "schedule", "epochs", "batch_size", "out")
"""The ones of a command that has many options of its own."""
_ALL = "cli.help.all"
_HYPHEN = "\ue000"
"""In place of a hyphen, at which lines would be broken."""


class Option(click.Option):
    """An option with a section of the help. `short` is its text on the first screen, where None leaves it out."""

    def __init__(self, *args: Any, section: str, short: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.section, self.short = section, short


class SettingsCommand(click.Command):
    """A command whose options are settings: its help has sections, and names the settings without a flag."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = ", ".join(sorted(SET_ONLY))
        self.epilog = f"Settings without a flag, for --set: {names}. pipe init DATA writes a file that explains all."
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_all,
                help="show all options, and more of each",
            )
        )  # fmt: skip

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text, self.help = self.help, self.help if _ALL in ctx.meta else (self.help or "").partition("\n\n")[0]
        super().format_help_text(ctx, formatter)
        self.help = text

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if _ALL in ctx.meta:
            super().format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            short = getattr(param, "short", "")
            if not isinstance(param, click.Option) or (short is None and _ALL not in ctx.meta):
                continue
            if (record := param.get_help_record(ctx)) is not None:
                text = (_ALL not in ctx.meta and short) or param.help or ""
                sections.setdefault(getattr(param, "section", "Options"), []).append((record[0], text))
        for name in sorted(sections, key=[*dict.fromkeys(SECTIONS.values()), *sections].index):
            with formatter.section(name):
                formatter.write_dl([(option, text.replace("-", _HYPHEN)) for option, text in sections[name]])
        formatter.buffer = [text.replace(_HYPHEN, "-") for text in formatter.buffer]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            name = e.option_name.removeprefix("--").removeprefix("no-").replace("-", "_")
            if name not in SET_ONLY:
                raise
            raise click.NoSuchOption(
                e.option_name, f"no such option {e.option_name!r}; write --set {name}=VALUE", ctx=ctx
            ) from None


def _all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print the whole help, and end."""
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
