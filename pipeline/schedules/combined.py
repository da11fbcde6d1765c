"""Combined schedules: products, sequences, warm-ups and piecewise values.

The base is the children's base of largest magnitude; each child is scaled to it. Numbers and memory of a child have its
index in front: "0.steps".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules.decay import constant
from pipeline.schedules.lengths import EPOCH, RUN, Length, within
from pipeline.schedules.schedule import Schedule, number

At = Callable[[str, Tensor], Tensor]
"""(child, the child's step) -> its factor."""


def product(*parts: Schedule | float) -> Schedule:
    """The product of schedules or numbers.

    >>> from pipeline import schedules
    >>> halved = product(schedules.linear(0.1, steps=4, start=0.0), schedules.step(1.0, every=4, gamma=0.5))
    >>> [round(halved.at(s), 4) for s in (0, 2, 4, 8)]
    [0.0, 0.05, 0.05, 0.025]
    """
    named = _named(parts, "product")

    def factor(step: Tensor, own: Mapping[str, Tensor], at: At) -> Any:
        return math.prod((at(name, step) for name in named), start=torch.ones_like(step, dtype=torch.float64))

    return _combined(math.prod(p.base for p in named.values()), {}, named, factor)


def sequence(parts: Sequence[Schedule | float], milestones: Sequence[float]) -> Schedule:
    """Schedules or numbers one after the other, as torch's SequentialLR: each counts its steps from its milestone.

    One milestone fewer than parts. In a part, RUN is the part's length: up to the next milestone or the end of the run.

    >>> from pipeline import schedules
    >>> two = sequence([0.1, schedules.step(0.2, every=2, gamma=0.5)], milestones=[3])
    >>> [round(two.at(s), 3) for s in range(7)]
    [0.1, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1]
    """
    named = _named(parts, "sequence")
    if len(milestones) != len(named) - 1:
        raise ConfigError(f"schedules.sequence of {len(named)} parts needs {len(named) - 1} milestones")
    _ascending("sequence", milestones)
    begins = [0.0, *(number("milestones", m) for m in milestones)]
    lasts = [end - begin for begin, end in zip(begins, [*begins[1:], RUN], strict=True)]
    base = max((p.base for p in named.values()), key=abs)
    own = {f"begin.{i}": begin for i, begin in enumerate(begins) if i}
    own |= {f"scale.{i}": p.base / base if base else 1.0 for i, p in named.items()}

    def factor(step: Tensor, own: Mapping[str, Tensor], at: At) -> Any:
        value = own["scale.0"] * at("0", step)
        for i in range(1, len(begins)):
            later = own[f"scale.{i}"] * at(str(i), _since(step, own[f"begin.{i}"]))
            value = torch.where(step >= own[f"begin.{i}"], later, value)
        return value

    return _combined(base, own, named, factor, lasts)


def warmup(
    schedule: Schedule | float, *, steps: float | None = None, epochs: float | None = None, share: float | None = None,
    start: float = 0.0,
) -> Schedule:  # fmt: skip
    """Rise linearly from `start * base` to the base, then start the schedule (or number) at its step 0.

    Give its length as `steps`, `epochs`, or a `share` of the run; in the schedule, RUN is the rest of the run. As
    torch's SequentialLR([LinearLR(start_factor=start, end_factor=1), schedule], [steps]).
    Source: Goyal et al., Accurate, Large Minibatch SGD (2017).

    >>> from pipeline import schedules
    >>> [round(warmup(schedules.cosine(1.0), steps=2).at(s, steps=6), 3) for s in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    given = {k: v for k, v in {"steps": steps, "epochs": epochs, "share": share}.items() if v is not None}
    if len(given) != 1:
        said = " and ".join(f"{k}={v}" for k, v in given.items()) or "nothing"
        raise ConfigError(f"schedules.warmup takes one of steps=, epochs= and share= of the run, and was given {said}")
    [(by, amount)] = given.items()
    if isinstance(amount, Length) and by != "steps":
        raise ConfigError(
            f"schedules.warmup: {by}= is a number; write steps={'EPOCH' if by == 'epochs' else '0.1 * RUN'}"
        )
    if not isinstance(amount, Length) and not number(by, amount) >= 0:
        raise ConfigError(f"schedules.warmup: {by}={amount} is not at least 0")
    if by == "share" and amount > 1:
        raise ConfigError(f"schedules.warmup: share={amount} of the run is more than 1")
    length = {"steps": 1, "epochs": EPOCH, "share": RUN}[by] * amount
    after = _named([schedule], "warmup")["0"]

    def factor(step: Tensor, own: Mapping[str, Tensor], at: At) -> Any:
        start, warmup = own["start"], own["warmup"]
        rising = start + (1.0 - start) * (step / warmup.clamp(min=1.0)).clamp(max=1.0)
        return torch.where(step < warmup, rising, at("after", _since(step, warmup)))

    own = {"warmup": number(by, length), "start": number("start", start)}
    return _combined(after.base, own, {"after": after}, factor, [RUN - length])


def piecewise(values: Mapping[float, float], *, interpolate: bool = False) -> Schedule:
    """Values from given steps on, constant or, with `interpolate`, linear in between; the first value also before.

    >>> [piecewise({0: 1.0, 2: 0.5}).at(s) for s in range(4)], piecewise({0: 1.0, 2: 0.5}, interpolate=True).at(1)
    ([1.0, 1.0, 0.5, 0.5], 0.75)
    """
    if not values:
        raise ConfigError("schedules.piecewise needs at least one step with its value")
    _ascending("piecewise", list(values))
    base = max((number("value", v) for v in values.values()), key=abs)
    own = {f"begin.{i}": number("step", s) for i, s in enumerate(values)}
    own |= {f"scale.{i}": v / base if base else 1.0 for i, v in enumerate(values.values())}

    def factor(step: Tensor, own: Mapping[str, Tensor], at: At) -> Any:
        value = own["scale.0"] * torch.ones_like(step, dtype=torch.float64)
        for i in range(1, len(values)):
            begin, scale = own[f"begin.{i}"], own[f"scale.{i}"]
            if interpolate:
                before, last = own[f"begin.{i - 1}"], own[f"scale.{i - 1}"]
                done = ((step - before) / (begin - before).clamp(min=1e-9)).clamp(0.0, 1.0)
                value = torch.where(step > before, last + (scale - last) * done, value)
            else:
                value = torch.where(step >= begin, scale, value)
        return value

    return _combined(base, own, {}, factor)


def _since(step: Tensor, begin: Tensor) -> Tensor:
    """Steps since `begin`; 0 before it."""
    return (step - torch.ceil(begin).long()).clamp(min=0)


def _named(parts: Sequence[Schedule | float], what: str) -> dict[str, Schedule]:
    if not parts:
        raise ConfigError(f"schedules.{what} needs at least one schedule")
    for part in parts:
        if not isinstance(part, Schedule | int | float) or isinstance(part, bool):
            raise ConfigError(f"schedules.{what}: {part!r} is neither a number nor a Schedule")
    return {str(i): p if isinstance(p, Schedule) else constant(float(p)) for i, p in enumerate(parts)}


def _ascending(what: str, steps: Sequence[float]) -> None:
    """Raise ConfigError if known steps are out of order."""
    known = [s for s in steps if not isinstance(s, Length)]
    if any(a >= b for a, b in itertools.pairwise(known)):
        raise ConfigError(f"schedules.{what}: its steps {', '.join(map(str, known))} are not in ascending order")


def _combined(
    base: float, own: Mapping[str, float], parts: Mapping[str, Schedule],
    factor: Callable[[Tensor, Mapping[str, Tensor], At], Any], lasts: Sequence[float] | None = None,
) -> Schedule:  # fmt: skip
    """A schedule of parts, with `own` numbers; `lasts` has the length of each part."""
    numbers = dict(own)
    for (name, part), length in zip(parts.items(), lasts or [RUN] * len(parts), strict=True):
        numbers |= {f"{name}.{k}": within(v, length) for k, v in part.numbers.items()}

    def combined(step: Tensor, memory: Mapping[str, Tensor] | None = None, **numbers: Tensor) -> Any:
        def at(name: str, step: Tensor) -> Any:
            return parts[name].apply(step, _of(name, numbers), _of(name, memory or {}))

        return factor(step, numbers, at)

    def observe(memory: Mapping[str, Tensor], metrics: Mapping[str, float], **numbers: Tensor) -> dict[str, Tensor]:
        after = dict(memory)
        for name, part in parts.items():
            if part.observe is not None:
                new = part.observe(_of(name, memory), metrics, **_of(name, numbers))
                after |= {f"{name}.{k}": v for k, v in new.items()}
        return after

    memory = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.memory.items()}
    watches = tuple(dict.fromkeys(w for part in parts.values() for w in part.watches))
    return Schedule(base, combined, numbers, memory=memory, observe=observe if watches else None, watches=watches)


def _of(name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A part's values, by the part's own names."""
    return {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
