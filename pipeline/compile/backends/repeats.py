"""Repeats: a graph as a chain of calls of parts, so that alike parts, such as the blocks of a model, are compiled once.

Sequences of operations that follow one another with the same shapes are cut out as parts, and so is the rest between
them. Parts that are equal, to the last argument, are one function. Views cross no border: a part makes the views that it
reads again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

SHORTEST = 16
"""Operations of a repeated part: the calls of shorter ones would take more time than their compilation."""
WORTH = 64
"""Repeated operations from which on a graph is cut."""


@frozen(eq=False)
class Part:
    """A function of tensors, and empty tensors like its inputs. No tensor is 0-d; see flatten."""

    graph: GraphModule
    examples: tuple[Tensor, ...]


@frozen
class Call:
    """A call of a part: the values that it reads, those that it makes, and those that no later call reads."""

    part: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last: tuple[int, ...]


@frozen
class Chain:
    """Calls of parts. Values are numbered: first the inputs of the graph at `inputs`, then the results of calls."""

    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    values: int
    outputs: tuple[int, ...]


def chain(graph: GraphModule) -> Chain | None:
    """A graph in parts; None if too little repeats, or if it is not known which tensors share memory."""
    nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
    if not all(_known(n) for n in nodes):
        return None
    for node in nodes:
        if _writes(node):
            node.replace_all_uses_with(node.args[0])
    steps, [output] = _written_early([n for n in nodes if not _is_view(n)]), graph.graph.find_nodes(op="output")
    if not {*output.args[0]} <= {*steps}:
        return None
    edges = [0, *_edges(_tokens(steps), _reads(steps), 0, len(steps)), len(steps)]
    sequences = [_Sequence(steps[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    first: dict[Any, _Sequence] = {}
    for sequence in sequences:
        first.setdefault(sequence.words, sequence)
    if len(steps) - sum(len(s.steps) for s in first.values()) < WORTH:
        return None
    return _numbered(sequences, first, list(graph.graph.find_nodes(op="placeholder")), output.args[0])


def _numbered(
    sequences: Sequence[_Sequence], first: dict[Any, _Sequence], placeholders: Sequence[Node], outputs: Sequence[Node]
) -> Chain:
    """Calls of the first of all equal sequences, which return a result if it is needed after any of them."""
    needed = {*outputs, *(n for s in sequences for n in s.inputs)}
    made: dict[Any, dict[int, None]] = {words: {} for words in first}
    for s in sequences:
        made[s.words].update((i, None) for i, n in enumerate(s.results) if n in needed)
    parts = [first[words].part(list(places)) for words, places in made.items()]
    number = {words: i for i, words in enumerate(first)}
    given = [i for i, n in enumerate(placeholders) if n in needed]
    values = {placeholders[i]: k for k, i in enumerate(given)}
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    last: dict[int, int] = {}
    for k, s in enumerate(sequences):
        results = [s.results[i] for i in made[s.words]]
        values |= {n: len(values) + i for i, n in enumerate(results)}
        read, new = tuple(values[n] for n in s.inputs), tuple(values[n] for n in results)
        calls.append((number[s.words], read, new))
        last |= dict.fromkeys((*read, *new), k)
    returned = tuple(values[n] for n in outputs)
    for kept in (*range(len(given)), *returned):
        last.pop(kept, None)
    ended = [Call(*call, tuple(v for v, at in last.items() if at == k)) for k, call in enumerate(calls)]
    return Chain(tuple(parts), tuple(ended), tuple(given), len(values), returned)


class _Sequence:
    """Operations in a row as a graph of their own."""

    def __init__(self, steps: Sequence[Node]) -> None:
        self.steps, self.graph = steps, Graph()
        self.results = [n for n in steps if isinstance(n.meta["val"], Tensor)]
        roots = dict.fromkeys(root for n in steps for root in _roots(n))
        self.inputs = [n for n in roots if n not in {*steps}]
        self._new: dict[Node, Node] = {}
        self._names: dict[Node, str] = {}
        words: list[str] = []
        for node in self.inputs:
            self._new[node] = given = self.graph.placeholder(node.name)
            given.meta["val"] = _with_dimension(node.meta["val"])
            words.append(_facts(node.meta["val"]))
        for node in self.inputs:
            if node.meta["val"].ndim == 0:
                self._new[node] = self._view(self._new[node], [])
        self._names = {new: f"in{i}" for i, new in enumerate(self._new.values())}
        for node in steps:
            self._add(node, words)
        self.words = tuple(words)
        """The same for equal functions."""

    def _add(self, node: Node, words: list[str]) -> None:
        for read in node.all_input_nodes:
            if read not in self._new:
                self._add(read, words)  # a view
        self._new[node] = new = self.graph.node_copy(node, self._new.__getitem__)
        self._names[new] = f"{len(self._names)}"
        words.append(f"{node.target} {map_arg((new.args, new.kwargs), self._names.__getitem__)}")

    def _view(self, node: Node, shape: list[int]) -> Node:
        view = self.graph.call_function(torch.ops.aten.view.default, (node, shape))
        view.meta["val"] = node.meta["val"].view(shape)
        return view

    def part(self, results: Sequence[int]) -> Part:
        """The finished function, which returns these of its results."""
        new = [self._new[self.results[i]] for i in results]
        self.graph.output(tuple(n if n.meta["val"].ndim else self._view(n, [1]) for n in new))
        like = [_with_dimension(n.meta["val"]) for n in self.inputs]
        examples = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in like]
        return Part(GraphModule(torch.nn.Module(), self.graph), tuple(examples))


def _with_dimension(value: Tensor) -> Tensor:
    return value if value.ndim else value.view(1)


def _known(node: Node) -> bool:
    """Whether an operation of torch tells the tensors that it writes into: none, or its first argument as it is."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    value = node.meta.get("val")
    if node.target._schema.is_mutable:
        written = node.args[0].meta["val"] if node.args and isinstance(node.args[0], Node) else None
        return isinstance(value, Tensor) and isinstance(written, Tensor) and _facts(value) == _facts(written)
    values = value if isinstance(value, (tuple, list)) else (value,)
    return all(v is None or isinstance(v, Tensor) for v in values)


def _is_view(node: Node) -> bool:
    """Whether a node's values lie in the memory of its arguments."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])  # type: ignore[arg-type]  # a node
    if node.op != "call_function" or node.target._schema.is_mutable:  # type: ignore[union-attr]  # an operation
        return False
    read = {v.untyped_storage()._cdata for n in node.all_input_nodes for v in _tensors(n)}
    return any(v.untyped_storage()._cdata in read for v in _tensors(node))


def _tensors(node: Node) -> list[Tensor]:
    value = node.meta["val"]
    return [v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, Tensor)]


def _roots(node: Node) -> Iterator[Node]:
    """The nodes that an operation reads, through views."""
    for read in node.all_input_nodes:
        yield from _roots_of(read)


def _roots_of(node: Any) -> Iterator[Node]:
    if _is_view(node):
        yield from _roots(node)
    else:
        yield node


def _written_early(steps: Sequence[Node]) -> list[Node]:
    """The order in which an input is overwritten as soon as its old value is read no more, beside the computation of
    its new one: traced steps write at the end."""
    place = {n: float(i) for i, n in enumerate(steps)}
    writers: dict[Node, list[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for node in steps:
        for root in dict.fromkeys(_roots(node)):
            readers.setdefault(root, []).append(node)
        for root in _roots_of(node.args[0]) if _writes(node) else ():
            writers.setdefault(root, []).append(node)
    for root, [write, *others] in writers.items():
        # The new value may be the choice between the old one and another.
        [new] = [r for r in _roots(write) if r is not root] or [None]
        moved = [n for n in (new,) if n in place and readers[n] == [write]]
        read = [r for n in (*moved, write) for r in _roots(n)]
        if others or any(r in writers for r in read if r is not root):
            continue
        before = [r for r in read if r in place and r not in moved]
        before += [n for n in readers[root] if n not in (*moved, write)]
        for node in (*moved, write):
            place[node] = min(place[node], max((place[n] for n in before), default=-1.0) + 0.5)
    return sorted(steps, key=place.__getitem__)


def _writes(node: Node) -> bool:
    return node.target is not operator.getitem and node.target._schema.is_mutable  # type: ignore[union-attr]


def _facts(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.stride()}"
    return str([_facts(v) for v in value]) if isinstance(value, (tuple, list)) else ""


def _tokens(steps: Sequence[Node]) -> Any:
    """A number for each operation, the same for those of equal shapes."""
    known: dict[str, int] = {}

    def token(node: Node) -> int:
        args = map_arg((node.args, node.kwargs), lambda n: _facts(n.meta["val"]))
        return known.setdefault(f"{node.target} {args} {_facts(node.meta['val'])}", len(known))

    return np.array([token(n) for n in steps])


def _reads(steps: Sequence[Node]) -> list[list[int]]:
    """The earlier operations that each one reads."""
    places = {n: i for i, n in enumerate(steps)}
    return [[places[root] for root in _roots(n) if root in places] for n in steps]


def _edges(tokens: Any, reads: Sequence[Sequence[int]], low: int, high: int) -> list[int]:
    """Where to cut the operations from `low` to `high`: around the copies of what repeats most, and so on beside it."""
    best, found = WORTH - 1, None
    for period in range(SHORTEST, (high - low) // 2 + 1):
        same = np.concatenate([[False], tokens[low : high - period] == tokens[low + period : high], [False]])
        if np.count_nonzero(same) < max(period, best):
            continue
        changes = np.flatnonzero(same[1:] != same[:-1])
        starts, lengths = changes[::2], np.diff(changes)[::2]
        longest = int(np.argmax(lengths))
        saved = int(lengths[longest]) // period * period
        if saved > best:
            best, found = saved, (period, low + int(starts[longest]), int(lengths[longest]) + period)
    if found is None:
        return []
    period, start, length = found
    shift = _least_crossed(reads, start, period, length)
    copies = (length - shift) // period
    cuts = [start + shift + k * period for k in range(copies + 1)]
    return sorted({*_edges(tokens, reads, low, cuts[0]), *cuts, *_edges(tokens, reads, cuts[-1], high)} - {0, len(reads)})


def _least_crossed(reads: Sequence[Sequence[int]], start: int, period: int, length: int) -> int:
    """Where to begin, such that few values are made before a cut and read within a period after it, as the sum that a
    block adds to; the earliest if several are as good."""
    crossed = np.zeros(len(reads) + 1, int)
    for i in range(start, start + length):
        for j in reads[i]:
            if i - j < period:
                crossed[j + 1] += 1
                crossed[i + 1] -= 1
    crossed = np.cumsum(crossed)
    latest = min(period, length - 2 * period + 1)
    # The first copy may read what comes before as no other does, so the second cut counts.
    return int(np.argmin([crossed[start + shift + period] for shift in range(latest)]))
