"""`pipe data`: the decisions on some data, without a training."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import click

from cli import arguments, as_json, completion, config
from cli.flags import settings
from cli.help import SettingsCommand
from cli.recipes.setting import refusal


@click.command("data", cls=SettingsCommand)
@click.argument("data", required=False, shell_complete=completion.data)
@partial(settings, section="Data")
def command(data: str | None, **options: Any) -> as_json.Found:
    """Show the target, the task and the kind of each column of DATA, a value of --data, or of pipe.toml here."""
    if data is None and not os.path.isfile(arguments.HERE):
        raise refusal("name the data to show, such as: pipe data houses.csv")
    return show(arguments.train_config(None, {"data": data, **options}))


def show(chosen: config.TrainConfig) -> dict[str, Any]:
    from attrs import asdict

    from cli import columns
    from cli.prepared import prepared
    from cli.progress import plain

    data, say = prepared(chosen), plain(False)
    sizes = f"{len(data.train):,} training and {len(data.held_out):,} held-out samples"
    say.print(f"data    {chosen.data.source}: {sizes}, {data.task}")
    if data.columns:
        say.print(columns.table(data.columns))
    for note in data.notes:
        say.print(f"        {note}")
    return {"data": chosen.data.source, "task": data.task, "training_samples": len(data.train),
            "held_out_samples": len(data.held_out), "classes": data.classes, "notes": data.notes,
            "columns": [asdict(column) for column in data.columns]}  # fmt: skip
