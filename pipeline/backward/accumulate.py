"""Accumulation: gradients of a batch, chunk by chunk, with the memory of one chunk; in a graph, as one loop."""

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
from pipeline.element import GIVEN, OF_A_STEP
from pipeline.errors import PipeError, StageError, first_line, place_of
from pipeline.joint import joined
from pipeline.stage import Stage
from pipeline.state import Batch, lists_samples
from pipeline.tree import Tree, parted, tree_map

_WEIGHT = ".weight"
"""Name of the weight of a chunk among its values."""
Written: TypeAlias = tuple[dict[str, Any], dict[str, Tree], dict[str, Tree]]
"""(values that stages wrote, new memories, sums of metrics)."""
Chunk: TypeAlias = Callable[[Any, list[Tensor], Any], tuple[Any, dict[str, Any]]]
"""(carry, the chunk's tensors, shared values) -> (carry, written)."""


def in_parts(
    g: Gradients, stages: Sequence[Stage], differentiated: Callable[..., Written], values: Mapping[str, Any],
    hyper: Mapping[str, Any], memory: Mapping[str, Tree], batch: Batch, size: int, wanted: Collection[str],
) -> Written:  # fmt: skip
    """Run `stages` and their backward on a batch of `size` samples, in `g.accumulate` chunks.

    Each chunk continues from the memory and the State of the one before, and draws other numbers. Of the values that
    are `wanted`, per-sample ones are concatenated, weights summed, 0-d floats averaged with weights `<name>.weight`,
    and those that no sample changes taken from the last chunk. Raises StageError for others.
    """
    _refuse_lists(g, batch, size)
    count, device = min(g.accumulate, size), values["step"].device
    leaves, spec = pytree.tree_flatten(dict(batch))
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == size]
    carry = _first_carry(g, stages, values, memory, batch)
    read = {*GIVEN} - {*OF_A_STEP} | {*g.wrt, f"{g.of}.weight", f"{g.of}.scale"}
    read |= {v for s in (*stages, g) for v in (*s.reads, *s.optional)}
    others = {k: v for k, v in values.items() if k in read and k not in batch and k not in carry["values"]}
    rest = [None if i in at else x for i, x in enumerate(leaves)]
    shared = others, rest, {s.name: hyper[s.name] for s in (*stages, g) if s.name in hyper}
    reached: set[str] = set()
    of_samples = {*batch}
    for s in stages:
        of_samples |= {*s.writes} if of_samples & {*s.reads, *s.optional} else set()
    needed = {*wanted} | {f"{name}.weight" for name in wanted}

    def chunk(carry: Any, tensors: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
        others, rest, hyper = shared
        seed, rows = tensors[0], dict(zip(at, tensors[1:], strict=True))
        inputs = pytree.tree_unflatten([rows.get(i, x) for i, x in enumerate(rest)], spec)
        known = {**others, **carry["values"], **inputs, "seed": seed}
        weigh = partial(torch.full, (), len(tensors[1]), dtype=torch.float64, device=device)
        result = differentiated(g, stages, known, hyper, carry["memory"], weigh)
        reached.update(result[0][g.grads])
        weight = result[2][g.name]["weight"]
        carry, written = _added(g, carry, result)
        return carry, {**{k: v for k, v in written.items() if k in needed}, _WEIGHT: weight}

    seeds = random.key(values["seed"], torch.arange(count, device=device))
    runs: list[dict[str, Any]] = []
    lengths: list[int] = []
    longer = size % count
    begin = sample = 0
    for chunks, length in ((longer, size // count + 1), (count - longer, size // count)):
        if chunks:
            end = sample + chunks * length
            rows = [leaves[i][sample:end].reshape(chunks, length, *leaves[i].shape[1:]) for i in at]
            carry, written = _one_by_one(g, chunk, carry, [seeds[begin : begin + chunks], *rows], shared)
            runs, lengths = [*runs, written], [*lengths, length]
            begin, sample = begin + chunks, end
    weights = {name: torch.cat([run[name] for run in runs]) for name in runs[0] if name.endswith(_WEIGHT)}
    joined_runs = {}
    for name in runs[0]:
        weight = weights.get(f"{name}.weight", weights[_WEIGHT])
        whole = name in of_samples and name != g.of
        joined_runs[name] = _joined(name, [run[name] for run in runs], lengths, weight, stages if whole else ())
    del joined_runs[_WEIGHT]
    return {**joined_runs, **_means(g, carry, joined_runs, reached)}, carry["memory"], carry["sums"]


def _refuse_lists(g: Gradients, batch: Batch, size: int) -> None:
    """Raise StageError for a list of samples, which can't be cut into chunks."""
    for name, value in batch.items():
        tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
        if lists_samples(value) and any(x.shape[:1] != (size,) for x in tensors):
            instead = "stack them, or let the loader make batches of the parts' size and leave out accumulate="
            raise StageError(g.name, f"takes parts of tensors, and {name!r} is a list of samples: {instead}")


def _first_carry(
    g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], memory: Mapping[str, Tree], batch: Batch
) -> Any:
    """Zero gradients and sums, and the memories and values that go from chunk to chunk."""
    return {
        "grads": tree_map(torch.zeros_like, joined({model: values[model] for model in g.wrt})),
        "sums": {s.name: tree_map(torch.zeros_like, memory[s.name]) for s in (*stages, g) if s.finish},
        "memory": {s.name: memory[s.name] for s in stages if s.remembers and s.finish is None},
        "values": {v: values[v] for s in stages for v in s.writes if v in values and v not in batch},
    }


def _added(g: Gradients, carry: Any, result: Written) -> tuple[Any, dict[str, Any]]:
    """The carry after a chunk with this result, and the other values that it wrote."""
    written, memory, sums = result
    weight = sums[g.name]["weight"]
    counts = weight > 0  # a mean with weight 0 is NaN, and must not enter the sums
    sums[g.name] = {**sums[g.name], "sum": torch.where(counts, sums[g.name]["sum"], 0.0)}
    # A 0-d gradient times the weight, 0-d float64, is float64.
    new = written.pop(g.grads)
    grads = {
        k: x + torch.where(counts, new[k] * weight, 0.0).to(x.dtype) if k in new else x
        for k, x in carry["grads"].items()
    }
    after = {"grads": grads, "sums": tree_map(torch.add, carry["sums"], sums), "memory": memory}
    after["values"] = {v: written.pop(v) for v in carry["values"]}
    return after, written


def _means(g: Gradients, carry: Any, written: Mapping[str, Any], reached: Collection[str]) -> dict[str, Any]:
    """Loss and gradients as means over all chunks, and the values of the last one."""
    total = carry["sums"][g.name]
    if g.sums:
        total["weight"] = torch.ones_like(total["weight"])
    divisor = torch.where(total["weight"] > 0, total["weight"], 1.0)  # sums of zeros stay zeros
    return {
        **({f"{g.of}.weight": total["weight"]} if f"{g.of}.weight" in written else {}),
        **carry["values"],
        g.of: total["sum"] / divisor,
        g.grads: {k: x / divisor for k, x in carry["grads"].items() if k in reached},
    }


def _one_by_one(g: Gradients, chunk: Chunk, carry: Any, xs: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
    """Run the chunks along dimension 0 of `xs`, one by one: (carry, written values, stacked)."""
    if get_proxy_mode() is not None and not random.transformed() and len(xs[0]) > 1:
        return _in_a_loop(g, chunk, carry, xs, shared)
    results = []
    for tensors in zip(*xs, strict=True):
        carry, written = chunk(carry, list(tensors), shared)
        results.append(written)
    return carry, tree_map(lambda *x: torch.stack(x) if isinstance(x[0], Tensor) else x[-1], *results)


def _in_a_loop(g: Gradients, chunk: Chunk, carry: Any, xs: list[Tensor], shared: Any) -> tuple[Any, dict[str, Any]]:
    """The same in a traced graph: a scan, which holds the graph of one chunk."""
    (first, to_carry), (others, to_shared) = parted(carry), parted(shared)
    n, m = len(first), len(first) + len(xs)
    unique = {id(t): t for t in others}
    at = [list(unique).index(id(t)) for t in others]
    back: list[Any] = []
    excluded = torch._C._dispatch_tls_local_exclude_set()

    def body(*given: Tensor) -> list[Tensor]:
        # scan excludes autograd keys; a backward by the tape inside it needs them.
        keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set() & excluded
        with torch._C._ForceDispatchKeyGuard(*keys):
            new, written = chunk(to_carry(given[:n]), list(given[n:m]), to_shared([given[m + i] for i in at]))
        (after, to_new), (outputs, to_written) = parted(new), parted(written)
        for x, old in zip(after, first, strict=True):
            if x.shape != old.shape:
                why = f"takes a part that leaves {tuple(x.shape)} where it found {tuple(old.shape)}"
                raise StageError(g.name, f"{why}: what stages remember, and what State keeps, has one shape")
        back[:] = [to_new, to_written]
        # Numbers of State keep their dtype; and no result may alias an input or another result.
        after = [x.to(old.dtype) if x.ndim == 0 else x for x, old in zip(after, first, strict=True)]
        stored = {t.untyped_storage()._cdata for t in given}
        results = []
        for x in (*after, *outputs):
            results.append(x.clone() if x.untyped_storage()._cdata in stored else x)
            stored.add(results[-1].untyped_storage()._cdata)
        return results

    try:
        results = scan_op(body, first, xs, list(unique.values()))
    except PipeError:
        raise
    except Exception as e:
        raise StageError(g.name, f"can't take the batch in parts: {first_line(e)}{place_of(e)}") from e
    mode: Any = get_proxy_mode()
    for graph in mode.tracer.root.children():  # graphs of loops
        # The tracer looks for known tensors in all buffers, including unnamed ones.
        graph.__dict__.update(graph._buffers)
        graph._buffers.clear()
    to_new, to_written = back
    return to_new(results[:n]), to_written(results[n:])


def _joined(name: str, runs: Sequence[Any], lengths: Sequence[int], weight: Tensor, by: Sequence[Stage]) -> Tree:
    """A value of the whole batch, from runs of stacked chunks of one length. `weight`: of each chunk, (chunks,)
    float64. Without stages `by`, one of which wrote it, it is the same in all chunks."""

    def join(*stacked: Any) -> Any:
        if not isinstance(stacked[-1], Tensor):
            return stacked[-1]
        if name.endswith(".weight"):
            return sum(x.sum(0) for x in stacked)
        whole = all(x.ndim > 1 and x.shape[1] == length for x, length in zip(stacked, lengths, strict=True))
        if whole or not by:
            return torch.cat([x.flatten(0, 1) for x in stacked]) if whole else stacked[-1][-1]
        x = torch.cat(stacked)
        if x.ndim > 1 or not x.is_floating_point():
            [writer] = [s.name for s in by if name in s.writes][-1:]
            why = f"writes {name!r} {tuple(x.shape[1:])} of each part of a batch, which a later stage reads"
            raise StageError(
                writer, f"{why}: write it for each sample, or its mean as a 0-d float; or leave out accumulate="
            )
        total = weight.sum()  # if nothing counts, a mean of zeros stays zero
        mean = torch.where(weight > 0, x * weight, 0.0).sum() / torch.where(total > 0, total, 1.0)
        return mean.to(x.dtype)

    return tree_map(join, *runs)
