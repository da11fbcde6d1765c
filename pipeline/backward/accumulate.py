"""In parts: the gradients of a batch taken part by part, with the memory of one; in a graph, as one loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from pipeline import random
from pipeline.backward.gradients import Gradients
from pipeline.errors import PipeError, StageError, place_of
from pipeline.joint import joined
from pipeline.stage import GIVEN, OF_A_STEP, Stage, first_line
from pipeline.state import Batch, lists_samples
from pipeline.tree import Tree, parted, tree_map

Written: TypeAlias = tuple[dict[str, Any], dict[str, Tree], dict[str, Tree]]
"""What stages wrote, the new memory of those that remember, and the sums of those that are metrics."""
Part: TypeAlias = Callable[[Any, list[Tensor], Any], tuple[Any, dict[str, Any]]]
"""From what is done, what is a part's own, and what all parts share, what is done now, and what the part wrote."""


def in_parts(
    g: Gradients, stages: Sequence[Stage], differentiated: Callable[..., Written], values: Mapping[str, Any],
    hyper: Mapping[str, Any], memory: Mapping[str, Tree], batch: Batch, size: int, wanted: Collection[str],
) -> Written:  # fmt: skip
    """What `stages` and their backward write for a batch of `size` samples, taken in `g.accumulate` parts.

    Each part goes on with what the one before remembered and kept, and draws other numbers. Of what they wrote there is
    what is `wanted`: per-sample values one after the other, weights added up, and others as they were last.
    """
    count, device = min(g.accumulate, size), values["step"].device
    leaves, spec = pytree.tree_flatten(dict(batch))
    for name, value in batch.items():
        tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
        if lists_samples(value) and any(x.shape[:1] != (size,) for x in tensors):
            instead = "stack them, or let the loader make batches of the parts' size and leave out accumulate="
            raise StageError(g.name, f"takes parts of tensors, and {name!r} is a list of samples: {instead}")
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == size]
    read = {*GIVEN} - {*OF_A_STEP} | {*g.wrt, f"{g.of}.weight", f"{g.of}.scale"}
    read |= {v for s in (*stages, g) for v in (*s.reads, *s.optional)}
    done: Any = {
        "grads": tree_map(torch.zeros_like, joined({model: values[model] for model in g.wrt})),
        "sums": {s.name: tree_map(torch.zeros_like, memory[s.name]) for s in (*stages, g) if s.finish},
        "memory": {s.name: memory[s.name] for s in stages if s.remembers and s.finish is None},
        "values": {v: values[v] for s in stages for v in s.writes if v in values and v not in batch},
    }
    others = {k: v for k, v in values.items() if k in read and k not in batch and k not in done["values"]}
    rest = [None if i in at else x for i, x in enumerate(leaves)]
    shared = others, rest, {s.name: hyper[s.name] for s in (*stages, g) if s.name in hyper}

    reached: set[str] = set()

    def part(done: Any, own: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
        others, rest, hyper = shared
        seed, mine = own[0], dict(zip(at, own[1:], strict=True))
        here = pytree.tree_unflatten([mine.get(i, x) for i, x in enumerate(rest)], spec)
        known = {**others, **done["values"], **here, "seed": seed}
        weigh = partial(torch.full, (), len(own[1]), dtype=torch.float64, device=device)
        written, remembered, sums = differentiated(g, stages, known, hyper, done["memory"], weigh)
        weight = sums[g.name]["weight"]
        counts = weight > 0  # a mean of nothing is NaN, and no part of the whole's
        sums[g.name] = {**sums[g.name], "sum": torch.where(counts, sums[g.name]["sum"], 0.0)}
        # A 0-d gradient times a weight, which is 0-d float64, is float64.
        new = written.pop(g.grads)
        reached.update(new)
        grads = {
            k: x + torch.where(counts, new[k] * weight, 0.0).to(x.dtype) if k in new else x
            for k, x in done["grads"].items()
        }
        now = {"grads": grads, "sums": tree_map(torch.add, done["sums"], sums), "memory": remembered}
        now["values"] = {v: written.pop(v) for v in done["values"]}
        return now, {k: v for k, v in written.items() if k in wanted}

    seeds = random.key(values["seed"], torch.arange(count, device=device))
    made: list[dict[str, Any]] = []
    lengths: list[int] = []
    longer = size % count
    begin = sample = 0
    for parts, length in ((longer, size // count + 1), (count - longer, size // count)):
        if parts:
            end = sample + parts * length
            own = [leaves[i][sample:end].reshape(parts, length, *leaves[i].shape[1:]) for i in at]
            done, rows = _one_by_one(g, part, done, [seeds[begin : begin + parts], *own], shared)
            made, lengths = [*made, rows], [*lengths, length]
            begin, sample = begin + parts, end
    own = done["sums"][g.name]
    if g.sums:
        own["weight"] = torch.ones_like(own["weight"])
    # Where nothing counted, sums of zeros stay zeros.
    divisor = torch.where(own["weight"] > 0, own["weight"], 1.0)
    written = {
        **{name: _joined(name, [rows[name] for rows in made], lengths) for name in made[0]},
        **({f"{g.of}.weight": own["weight"]} if f"{g.of}.weight" in made[0] else {}),
        **done["values"],
        g.of: own["sum"] / divisor,
        g.grads: {k: x / divisor for k, x in done["grads"].items() if k in reached},
    }
    return written, done["memory"], done["sums"]


def _one_by_one(g: Gradients, part: Part, done: Any, own: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
    """The parts in the rows of `own`, one after the other, and what they wrote, stacked."""
    traced = get_proxy_mode() is not None and torch._C._functorch.peek_interpreter_stack() is None
    if traced and len(own[0]) > 1:
        return _in_a_loop(g, part, done, own, shared)
    rows = []
    for mine in zip(*own, strict=True):
        done, made = part(done, list(mine), shared)
        rows.append(made)
    return done, tree_map(lambda *x: torch.stack(x) if isinstance(x[0], Tensor) else x[-1], *rows)


def _in_a_loop(g: Gradients, part: Part, done: Any, own: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
    """The same, where a graph is traced, as one operation that holds the graph of a part."""
    (first, done_of), (others, shared_of) = parted(done), parted(shared)
    n, m = len(first), len(first) + len(own)
    once = {id(t): t for t in others}
    at = [list(once).index(id(t)) for t in others]
    back: list[Any] = []
    excluded = torch._C._dispatch_tls_local_exclude_set()

    def body(*given: Tensor) -> list[Tensor]:
        # The operation is below the tape, which a backward in it may go by.
        keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set() & excluded
        with torch._C._ForceDispatchKeyGuard(*keys):
            now, made = part(done_of(given[:n]), list(given[n:m]), shared_of([given[m + i] for i in at]))
        (after, now_of), (rows, made_of) = parted(now), parted(made)
        for x, old in zip(after, first, strict=True):
            if x.shape != old.shape:
                why = f"takes a part that leaves {tuple(x.shape)} where it found {tuple(old.shape)}"
                raise StageError(g.name, f"{why}: what stages remember, and what State keeps, has one shape")
        back[:] = [now_of, made_of]
        # State has each number in the dtype that it was in; and a result may be neither a part of what was given nor
        # of another result.
        after = [x.to(old.dtype) if x.ndim == 0 else x for x, old in zip(after, first, strict=True)]
        stored = {t.untyped_storage()._cdata for t in given}
        results = []
        for x in (*after, *rows):
            results.append(x.clone() if x.untyped_storage()._cdata in stored else x)
            stored.add(results[-1].untyped_storage()._cdata)
        return results

    try:
        made = scan_op(body, first, own, list(once.values()))
    except PipeError:
        raise
    except Exception as e:
        raise StageError(g.name, f"can't take the batch in parts: {first_line(e)}{place_of(e)}") from e
    mode: Any = get_proxy_mode()
    for graph in mode.tracer.root.children():  # those of loops
        # The tracer looks for a tensor that it meets again among all buffers, also where it can't name them.
        graph.__dict__.update(graph._buffers)
        graph._buffers.clear()
    now_of, made_of = back
    return now_of(made[:n]), made_of(made[n:])


def _joined(name: str, runs: Sequence[Any], lengths: Sequence[int]) -> Tree:
    """What the parts wrote under a name, stacked in runs of parts of one length, as the whole batch would have."""

    def join(*stacked: Any) -> Any:
        if not isinstance(stacked[-1], Tensor):
            return stacked[-1]
        if name.endswith(".weight"):
            return sum(x.sum(0) for x in stacked)
        whole = all(x.ndim > 1 and x.shape[1] == length for x, length in zip(stacked, lengths, strict=True))
        return torch.cat([x.flatten(0, 1) for x in stacked]) if whole else stacked[-1][-1]

    return tree_map(join, *runs)
