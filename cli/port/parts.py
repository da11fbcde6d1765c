"""The parts of a training script, and what each is here. What can't be told is listed, and never dropped."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from cli.port.loops import Loops, Place, listed
from cli.port.names import METHODS, NAMES, SPEED, Name
from cli.port.objective import Objective, model, unwrapped
from cli.port.options import options
from cli.port.part import Part, Text, written
from cli.port.script import UNKNOWN, Script, source

_GIVEN = ("params", "parameters", "optimizer", "input", "target", "dataset")
"""Arguments of torch that a pipeline wires itself."""
OTHERS = {
    "torch.optim.lr_scheduler.": ("scheduler", "schedules.schedule() makes one of a function"),
    "torch.optim.swa_utils.": ("average", "update.ema() and update.swa() average weights"),
    "torch.optim.": ("optimizer", "update.rule makes one of a function"),
    "torch.nn.utils.clip_": ("clipping", "update.rule makes one of a function"),
    "torch.autograd.grad": ("backward", "backward.gradients() has them"),
    "torch.set_default_dtype": ("dtype", "give model and data that dtype"),
    "torch.nn.DataParallel": ("processes", "place.mesh() is for several processes"),
    "torch.utils.data.distributed.": ("data", "place.mesh() gives each process its samples"),
}
"""Beginnings of names that are not in NAMES, what they are, and what to write."""
_SMOOTH = ("cosine", "linear", "polynomial", "exponential", "cosine_restarts")
"""Schedules that move at every step."""


def parts(script: Script) -> list[Part]:
    """The parts of a script, by line."""
    found = [part for call in script.calls if (part := _of_call(script, call)) is not None]
    rules = [p for p in found if p.what == "optimizer"]
    loops = Loops.read(script, rules)
    objective = Objective.read(script, loops, found)
    by_loops = [*objective.missing, *loops.parts(objective.divided)]
    for part in [p for p in found if p.what == "clipping"]:
        _clipping(script, part, loops)
    for part in [p for p in found if p.what == "amp" and p.here == "place.on" and not objective.autocast(p)]:
        part.missing.append(f"{part.there}: it is not around the model and the loss of the training")
        part.here = part.option = ""
    for part in [p for p in found if p.what in ("optimizer", "scheduler") and p.call]:
        if part.call and loops.around(part.call):
            part.missing.append(f"{part.there}: a new one in each turn of a loop")
    options(script, [*found, *by_loops])
    for part in [p for p in found if p.what == "scheduler" and p.call]:
        _schedule(script, part, loops, [r for r in rules if r.call])
    changed = [listed(n, "the default of that option is taken") for n in script.changes()]
    return sorted([*found, *by_loops, *changed], key=lambda part: part.line)


def _clipping(script: Script, part: Part, loops: Loops) -> None:
    """Clipping is between the backward and the step, or listed."""
    call: Any = part.call
    scaled = any(script.known(c).endswith("GradScaler") for c in script.calls)
    if not loops.step or not loops.backward or not Place.of(script, call).same(loops.at):
        part.missing.append(f"{part.there}: it is not beside the step of the optimizer")
    elif not (loops.before(loops.backward, call) and loops.before(call, loops.step)):
        part.missing.append(f"{part.there}: it is not between backward() and step()")
    elif scaled and not any(True for _ in script.methods("unscale_")):
        part.missing.append(f"{part.there}: of gradients that are scaled: no unscale_()")
    elif len({unwrapped(script, model(script, c)) for c in (call, loops.rule and loops.rule.call) if c}) > 1:
        part.missing.append(f"{part.there}: of other parameters than the optimizer has")
    if part.missing:
        part.here, part.option, part.arguments, part.notes = "", "", {}, []


def _of_call(script: Script, call: ast.Call) -> Part | None:
    full = script.known(call)
    method = METHODS.get(call.func.attr) if isinstance(call.func, ast.Attribute) and not full else None
    name = NAMES.get(full) or method
    short = full.rpartition(".")[2]
    if name is None and full.startswith("torch.nn.") and short.lower().endswith("loss") and _exists(full):
        name = Name("loss", "loss.function")
    there = source(call)
    if name is None:
        kind = next((words for start, words in OTHERS.items() if full.startswith(start)), None)
        return kind and Part(call.lineno, kind[0], there, "", missing=[f"{there}; {kind[1]}"])
    notes = [name.note] if name.note else []
    part = Part(call.lineno, name.what, there, name.here, name.option, notes=notes, call=call)
    if full and name.what in ("optimizer", "scheduler", "loss", "data", "clipping", "amp", "seed"):
        _bind(script, part, full, name)
        if name.what in _MORE:
            _MORE[name.what](part, full, script)
    return part


def _exists(full: str) -> bool:
    try:
        return callable(resolve_name(full))
    except (ImportError, AttributeError):
        return False


def _bind(script: Script, part: Part, full: str, name: Name) -> None:
    """Translate the arguments of a call."""
    call: Any = part.call
    part.missing += [source(a) for a in call.args if isinstance(a, ast.Starred)]
    part.missing += [f"**{source(k.value)}" for k in call.keywords if k.arg is None]
    torchs = inspect.signature(resolve_name(full)).parameters
    ours: Any = inspect.signature(resolve_name(f"pipeline:{name.here}")).parameters
    given = dict(zip(torchs, [a for a in call.args if not isinstance(a, ast.Starred)], strict=False))
    given |= {k.arg: k.value for k in call.keywords if k.arg is not None}
    for key, node in given.items():
        if key in SPEED:
            part.notes.append(f"{key}={source(node)} is not needed")
        elif key not in torchs:
            part.missing.append(f"{key}={source(node)}")
        elif script.flag(node) is not None:
            part.notes.append(f"{key}={source(node)} is the default of that option")
        elif key in ("params", "parameters") and not re.fullmatch(r"(self\.)?\w+", model(script, call)):
            part.missing.append(f"the parameters of {source(node)}: update.groups() and update.frozen() choose some")
    for key, p in torchs.items():
        if key in (*SPEED, *_GIVEN):
            continue
        default = None if p.default is p.empty else p.default
        value = script.value(given[key]) if key in given else default
        target = name.names.get(key, key)
        if key in given and (value is UNKNOWN or (target not in ours and value != default)):
            part.missing.append(f"{key}={source(given[key])}")
        elif target in ours and (key in given or default is not None) and value != ours[target].default:
            part.arguments[target] = value


def _loss(part: Part, full: str, script: Script) -> None:
    """A loss with arguments that ours has not is torch's own."""
    call: Any = part.call
    torchs = [*inspect.signature(resolve_name(full)).parameters]
    functional = full.startswith("torch.nn.functional.")
    given = dict(zip(torchs, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
    literal = {k: v for k, n in given.items() if k not in _GIVEN and (v := script.value(n)) is not UNKNOWN}
    plain = [m for m in part.missing if m.partition("=")[0] not in literal]
    if literal.get("reduction") == "none":
        part.missing = [*plain, "reduction='none': write its mean as a function for loss.function()"]
    elif part.here == "loss.function" or len(plain) < len(part.missing):
        kept = ", ".join(f"{k}={v!r}" for k, v in literal.items())
        short = full.rpartition(".")[2]
        text = f"partial(F.{short}, {kept})" if kept else f"F.{short}"
        part.missing, part.arguments, part.option = plain, {}, ""
        part.here = f"loss.function({text if functional else f'nn.{short}({kept})'})"
        return
    part.here = written(part.here, part.arguments)


def _data(part: Part, full: str, script: Script) -> None:
    call: Any = part.call
    given = {k.arg: k.value for k in call.keywords} | ({"shuffle": call.args[2]} if len(call.args) > 2 else {})
    part.arguments["shuffle"] = script.value(given.get("shuffle")) is True
    size = part.arguments.setdefault("size", 64 if any(m.startswith("batch_size=") for m in part.missing) else 1)
    if not isinstance(size, int):
        part.arguments["size"] = 64
        part.missing.append(f"batch_size={size}")
    part.notes += ["load.loader(loader) takes a loader as it is"] * bool(part.missing)


def _amp(part: Part, full: str, script: Script) -> None:
    call: Any = part.call
    if part.here == "update.finite":
        part.arguments = {"otherwise": "scale"}
        return
    given = {k.arg: k.value for k in call.keywords}
    kind = script.value(call.args[0]) if call.args else script.value(given.get("device_type"))
    node = given.get("dtype") or (call.args[1] if len(call.args) > 1 else None)
    dtype = script.dotted(node) if node is not None else {"cpu": "bfloat16"}.get(str(kind), "float16")
    precision = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}.get(dtype.rpartition(".")[2])
    part.missing = [m for m in part.missing if not m.startswith("dtype=")]
    if precision is None:
        part.missing.append(f"dtype={source(node)}" if node is not None else "its dtype")
    part.arguments = {"precision": precision or "bf16"}
    part.option = f"--precision {precision or 'bf16'}"


def _seed(part: Part, full: str, script: Script) -> None:
    call: Any = part.call
    value = script.value(call.args[0]) if call.args else UNKNOWN
    value = value if type(value) is int else UNKNOWN
    part.arguments = {} if value is UNKNOWN else {"seed": value}
    part.missing = [f"the seed {source(call)}"] if value is UNKNOWN else []
    part.option = f"--seed {value}" if value is not UNKNOWN else ""


_MORE: dict[str, Callable[[Part, str, Script], None]] = {"loss": _loss, "data": _data, "amp": _amp, "seed": _seed}


def _of_epochs(count: Any) -> Text:
    return Text(f"{count!r} * schedules.EPOCH")


def _schedule(script: Script, part: Part, loops: Loops, rules: list[Part]) -> None:
    """A schedule in the place of its rule's learning rate: lengths in steps, and values as shares of that rate."""
    call: Any = part.call
    full = script.known(call)
    name, short = NAMES[full], part.here.rpartition(".")[2]
    of = source(next(iter([*call.args, *(k.value for k in call.keywords if k.arg == "optimizer")]), ast.Name("")))
    rule = next((r for r in rules if r.call and script.assigned(r.call) == of), None)
    base = rate(rule) if rule is not None else UNKNOWN
    for key in [k for k in name.shares if k in part.arguments]:
        if isinstance(value := part.arguments.pop(key), int | float) and isinstance(base, int | float) and base:
            part.arguments[key] = value / base
        else:
            part.missing.append(f"{key} as a share of the learning rate")
    steps = [c for on, c in script.methods("step") if on and on == script.assigned(call)]
    per, at = loops.at, Place.of(script, steps[0]) if steps else None
    plateau = short == "reduce_on_plateau"
    if at is None or len(steps) != 1 or not loops.step or (steps[0].args and not plateau):
        why = "its step() with an argument" if steps and steps[0].args else "no one step() of it is found"
        part.missing.append(f"{part.there}: {why}")
    elif at.same(Place(per.loops[1:], [])) and len(at.loops) == 1 and loops.before(loops.step, steps[0]):
        for key in name.lengths:
            if (length := part.arguments.get(key, 1 if key == "every" else None)) is not None:
                many = isinstance(length, list | tuple)
                part.arguments[key] = [*map(_of_epochs, length)] if many else _of_epochs(length)
        if short == "one_cycle":
            part.missing.append("its step() once an epoch: here it moves at every step, to slightly other values")
        elif short in _SMOOTH:
            part.notes.append("stepped once an epoch there; here it moves each step, and agrees as an epoch begins")
    elif plateau or not (at.same(per) and loops.before(loops.step, steps[0])):
        part.missing.append(f"{source(steps[0])} is neither after each update nor once after each epoch")
    cycles = next((script.value(k.value) for k in call.keywords if k.arg == "cycle_momentum"), True)
    whole = [m for m in part.missing if m.startswith(("epochs=", "steps_per_epoch="))]
    part.notes += [f"{', '.join(whole)}: the cycle here is the whole run"] * bool(whole)
    part.missing = [m for m in part.missing if m not in whole and not m.startswith("cycle_momentum=")]
    if short == "one_cycle" and cycles:
        part.missing.append("cycle_momentum, on by default: schedules.one_cycle_momentum() in the place of momentum")
    part.notes.append(f"{part.option} of the command has lengths of its own")
    part.option = ""
    given = {} if short == "one_cycle" or base is UNKNOWN else {"base": base}
    part.here = written(part.here, {**given, **part.arguments})
    if [m for m in part.missing if "step()" in m and "once an epoch" not in m]:
        return
    if rule is not None and isinstance(rule.arguments.get("lr"), Text):
        part.missing.append("a second scheduler: schedules.sequence() or product() joins them")
    elif rule is not None and (short == "one_cycle" or base is not UNKNOWN):
        rule.arguments = {"lr": Text(part.here), **{k: v for k, v in rule.arguments.items() if k != "lr"}}
    else:
        part.missing.append("its learning rate")


def rate(rule: Part) -> Any:
    """The learning rate of an optimizer, given or by default."""
    if any(m.startswith("lr=") for m in rule.missing):
        return UNKNOWN
    return rule.arguments.get("lr", inspect.signature(resolve_name(f"pipeline:{rule.here}")).parameters["lr"].default)
