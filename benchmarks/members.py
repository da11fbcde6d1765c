"""How long does a step of one of many small classifiers take if they are trained together?

The digits job of digits_step, by 32 and by 256 members with seeds and learning rates of their own, on one thread and on
two. Times are of one member's step. Members see the same batches ("shared"), or each its own order. JAX maps the same
step by vmap, in jit a step or in a scan over an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from benchmarks import charts, digits_step, jax_digits, job, ours
from benchmarks.harness import Contender, Done, Race, Target, Work
from pipeline import fit, sweep

SINGLE = "ours, one after the other, fused"
SLICE = 32
"""Members at once: 256 are trained in groups, as `pipe sweep` does."""


def _name(who: str, members: int, order: str) -> str:
    return f"{who}, {members} members, {order} order"


def alone(count: int) -> Any:
    """One run after the other, each with an epoch a call."""
    one = ours.fused(digits_step.pipeline(), job.EPOCHS)

    def start() -> Work:
        works = [one() for _ in range(count)]

        def work() -> Done:
            ends = [each() for each in works]
            return Done(sum(e.steps for e in ends), ends[0].loss, ends[0].accuracy)

        return work

    return start


def members(count: int, order: Any, at_once: int) -> Any:
    """All in one State, or one group after the other."""
    pipe = digits_step.pipeline()
    runs = [sweep(pipe, seeds=range(k, k + at_once), order=order) for k in range(0, count, at_once)]
    parts = [r.compile() for r in runs]

    def start() -> Work:
        reports = [
            fit(r, epochs=job.EPOCHS, compile=c, steps_per_call="epoch") for r, c in zip(runs, parts, strict=True)
        ]

        def work() -> Done:
            ends = [[*each][-1] for each in reports]
            return Done(sum(e.step * at_once for e in ends), ends[0].train["loss"][0], ends[0].train["accuracy"][0])

        return work

    return start


def jax_members(count: int, order: str, scan: bool) -> Any:
    """By vmap over the parameters, the optimizer's state and, with own orders, the batches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    inputs, targets = (jnp.array(t.numpy()) for t in job.data())
    initial, one = jax_digits.functions()
    full, own = len(inputs) // job.SIZE, order == "own"
    mapped = jax.vmap(one, in_axes=(0, 0 if own else None, 0 if own else None))
    random = np.random.default_rng(0)

    def step(state: Any, rows: Any, inputs: Any, targets: Any) -> Any:
        return mapped(state, inputs[rows], targets[rows])

    def epoch(state: Any, order: Any, inputs: Any, targets: Any) -> Any:
        state = (*state[:2], jnp.zeros(count), jnp.zeros(count, jnp.int32))
        parts = order[..., : full * job.SIZE].reshape(*order.shape[:-1], full, job.SIZE)

        def body(state: Any, rows: Any) -> Any:
            return step(state, rows, inputs, targets), None

        state, _ = jax.lax.scan(body, state, jnp.moveaxis(parts, -2, 0))
        return body(state, order[..., full * job.SIZE :])[0]

    compiled = jax.jit(epoch if scan else step, donate_argnums=0)

    def shuffled() -> Any:
        rows = [random.permutation(len(inputs)) for _ in range(count if own else 1)]
        return np.stack(rows).astype(np.int32) if own else rows[0].astype(np.int32)

    def start() -> Work:
        # Copies of the same first weights: the timing does not depend on them.
        first = jax.block_until_ready(jax.tree.map(lambda x: jnp.stack([x] * count), initial()))

        def work() -> Done:
            state = first
            for _ in range(job.EPOCHS):
                order = shuffled()
                if scan:
                    state = compiled(state, order, inputs, targets)
                    continue
                state = (*state[:2], jnp.zeros(count), jnp.zeros(count, jnp.int32))
                for k in range(0, len(inputs), job.SIZE):
                    state = compiled(state, order[..., k : k + job.SIZE], inputs, targets)
            total, right = (float(x[0]) for x in jax.block_until_ready(state)[2:])
            return Done(job.STEPS * count, total / len(inputs), right / len(inputs))

        return work

    return start


CONTENDERS: dict[str, Contender] = {}
RACES: list[Race] = []
for _count in (32, 256):
    _single = f"{SINGLE}, {_count} runs"
    CONTENDERS[_single] = functools.partial(alone, _count)
    _names = [_single]
    _targets: list[Target] = []
    for _order in ("shared", "own"):
        _mine, _scan, _jit = (_name(who, _count, _order) for who in ("ours", "JAX vmap in scan", "JAX jit of vmap"))
        CONTENDERS[_mine] = functools.partial(members, _count, _order, min(_count, SLICE))
        CONTENDERS[_scan] = functools.partial(jax_members, _count, _order, True)
        CONTENDERS[_jit] = functools.partial(jax_members, _count, _order, False)
        _names += [_mine, _scan, _jit]
        _targets += [Target(_mine, _scan, 1), Target(_mine, _jit, 1), Target(_mine, _single, 2)]
    if _count > SLICE:
        _whole = _name("ours, all at once", _count, "shared")
        CONTENDERS[_whole] = functools.partial(members, _count, "shared", _count)
        _names.append(_whole)
    RACES += [
        Race(
            title=f"{_count} members, {threads} thread{'s' * (threads > 1)}", contenders=_names, baseline=_single,
            targets=_targets, threads=threads, rounds=3, seconds=0.2, tolerance=0.2,
        )
        for threads in (1, 2)
    ]  # fmt: skip


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Time of one member's step: ours, JAX, and one run after the other."""
    ways = {
        "ours": charts.Point((0, 0, 0), colour=charts.OURS),
        "JAX vmap in scan": charts.Point((0, 0, 0), colour=charts.COLOURS[0], mark=charts.MARKS[1]),
        "JAX jit of vmap": charts.Point((0, 0, 0), colour=charts.COLOURS[1], mark=charts.MARKS[2]),
        SINGLE: charts.Point((0, 0, 0), colour=charts.GREY, mark=charts.MARKS[3]),
    }
    points: dict[str, list[charts.Point]] = {}
    for race, results in races:
        by_name = charts.ran((race, results))
        for order in ("shared", "own"):
            count = int(race.title.split()[0])
            names = {way: _name(way, count, order) for way in ways} | {SINGLE: f"{SINGLE}, {count} runs"}
            points[f"{race.title}, {order} order"] = [
                evolve(ways[way], spread=charts.times(by_name[name])) for way, name in names.items()
            ]
    mine, *jax = ([row[k].spread[1] for row in points.values()] for k in range(3))
    theirs = [min(pair) for pair in zip(*jax, strict=True)]
    return charts.rows(
        f"A sweep's member: {min(mine):.0f} to {max(mine):.0f} µs a step; by JAX's faster way, {min(theirs):.0f} to "
        f"{max(theirs):.0f} µs",
        "µs a step of one member", points, legend=ways,
    )  # fmt: skip
