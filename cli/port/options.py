"""The options of `pipe train` for what a script says."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pkgutil import resolve_name

from cli.port.part import Part
from cli.port.script import Script
from cli.recipes.rule import BETA2, OPTIMIZERS
from cli.recipes.setting import given as option


def options(script: Script, found: Sequence[Part]) -> None:
    """What `pipe train` is to be told, in full: its defaults are others. None for what it can't be told."""
    states = {script.assigned(p.call) for p in found if p.call and p.what in ("optimizer", "scheduler")} - {""}
    resumes = any(on in states for on, _ in script.methods("load_state_dict"))
    whole = next((p.arguments.get("accumulate", 1) for p in found if p.what == "accumulation"), 1)
    trained = {p.what for p in found if p.trained}
    for part in found:
        if part.what in trained and not part.trained:
            part.option = ""
        elif part.what == "data" and part.option:
            plain = not part.missing and part.arguments.keys() == {"size", "shuffle"} and part.arguments["shuffle"]
            part.option = f"--data DATA {option('batch_size', part.arguments['size'] * whole)}" if plain else ""
        elif part.what == "loss" and part.option:
            others = part.arguments.keys() - {"smoothing"}
            smooth = [option("smoothing", part.arguments.get("smoothing", 0))]
            smooth *= part.here.startswith("loss.cross_entropy(")
            part.option = "" if part.missing or others else " ".join([part.option, *smooth])
        elif part.what == "clipping" and part.option:
            part.option = option("clip", part.arguments["limit"]) if part.arguments.keys() == {"limit"} else ""
        elif part.what == "checkpoint" and resumes and part.option:
            part.here, part.option = "checkpoint.Saver", "--resume RUN"
            part.notes = ["State has weights, optimizer and step: a run of pipe train goes on from its checkpoints"]
    for part in [p for p in found if p.what == "optimizer" and p.call]:
        clip = [] if any(p.what == "clipping" and p.option for p in found) else ["--clip 0"]
        constant = [] if any(p.what == "scheduler" for p in found) else ["--schedule constant"]
        constant.append(option("regularization", "constant"))
        part.option = " ".join([rule, *clip, *constant]) if (rule := _rule(part)) else ""


def _rule(part: Part) -> str:
    """The options for an optimizer, or "" if the command has not all of its arguments."""
    name, values = part.here.rpartition(".")[2], part.arguments
    known, own = OPTIMIZERS.get(name), inspect.signature(resolve_name(f"pipeline:{part.here}")).parameters
    keys = ["lr", *["momentum"] * (known is not None and known.momentum is not None)]
    keys += ["weight_decay"] * (known is not None and known.decays)
    others = values.keys() - {*keys, "nesterov", *["betas"] * (known is not None and known.betas)}
    betas = values.get("betas", (0.9, BETA2))
    if known is None or part.missing or others or not isinstance(betas, tuple) or len(betas) != 2 or betas[0] != 0.9:
        return ""
    told = [f"--optimizer {name}", *(option(k, values.get(k, own[k].default)) for k in keys)]
    told += [option("nesterov", True)] if values.get("nesterov") else []
    return " ".join([*told, *[option("beta2", betas[1])] * (betas[1] != BETA2)])
