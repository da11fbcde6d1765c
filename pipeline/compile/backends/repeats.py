"""Repeats: a graph as a chain of calls of parts, so that alike parts, such as a model's blocks, are compiled once.

Sequences of operations that follow one another with the same shapes are cut out as parts, and so is the rest between
them. Parts that are equal, to the last argument, become one function. Views cross no border: a part makes the views
that it reads again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

_ATEN = torch.ops.aten

SHORTEST = 32
"""Operations of a repeated part: for shorter ones, calls and lost fusions would cost more than compilation."""
FEWEST = 64
"""Operations saved by a cut for copies; fewer are not worth a border."""
WORTH = 200
"""Operations saved in all, about two seconds of compilation; for fewer a graph stays whole, and its step is fastest."""


@frozen(eq=False)
class Part:
    """A function of tensors, and empty tensors like its inputs. No input or output is 0-d; see flatten."""

    graph: GraphModule
    examples: tuple[Tensor, ...]
    words: tuple[str, ...] = ()
    """The same for equal functions, of any graph; empty if it is not known."""


@frozen
class Call:
    """A call of a part: the values that it reads, those that it makes, and those that no later call reads."""

    part: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last: tuple[int, ...]


@frozen
class Chain:
    """Calls of parts. Values are numbered: first the inputs of the graph at `inputs`, then the results of the calls."""

    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    values: int
    outputs: tuple[int, ...]


def chain(graph: GraphModule) -> Chain | None:
    """A graph in parts; None if little repeats, or if it is not known which tensors share memory."""
    nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
    if not all(_known(n) for n in nodes):
        return None
    for node in nodes:
        if _writes(node):
            node.replace_all_uses_with(node.args[0])
    flow = _Flow([*_free_draws(graph, nodes), *nodes])
    [output] = graph.graph.find_nodes(op="output")
    if not {*output.args[0]} <= {*flow.steps}:
        return None
    steps = _written_early(flow)
    edges = [0, *_edges(_tokens(steps), flow.sources(steps), 0, len(steps)), len(steps)]
    sequences = [_Sequence(flow, steps[a:b]) for a, b in itertools.pairwise(edges)]
    first: dict[Any, _Sequence] = {}
    for sequence in sequences:
        first.setdefault(sequence.words, sequence)
    if len(steps) - sum(len(s.steps) for s in first.values()) < WORTH:
        return None
    return _numbered(sequences, first, list(graph.graph.find_nodes(op="placeholder")), output.args[0])


def _numbered(
    sequences: Sequence[_Sequence], first: dict[Any, _Sequence], placeholders: Sequence[Node], outputs: Sequence[Node]
) -> Chain:
    """Each sequence as a call of the first that is equal; it returns what is needed after any of its calls."""
    needed = {*outputs, *(n for s in sequences for n in s.inputs)}
    made: dict[Any, dict[int, None]] = {words: {} for words in first}
    for s in sequences:
        made[s.words].update((i, None) for i, n in enumerate(s.results) if n in needed)
    part = {words: i for i, words in enumerate(first)}
    inputs = tuple(i for i, n in enumerate(placeholders) if n in needed)
    values = {placeholders[i]: k for k, i in enumerate(inputs)}
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    last: dict[int, int] = {}
    for k, s in enumerate(sequences):
        results = [s.results[i] for i in made[s.words]]
        values |= {n: len(values) + i for i, n in enumerate(results)}
        read, new = tuple(values[n] for n in s.inputs), tuple(values[n] for n in results)
        calls.append((part[s.words], read, new))
        last |= dict.fromkeys((*read, *new), k)
    returned = tuple(values[n] for n in outputs)
    for kept in (*range(len(inputs)), *returned):
        last.pop(kept, None)
    ended = tuple(Call(*call, tuple(v for v, at in last.items() if at == k)) for k, call in enumerate(calls))
    parts = tuple(first[words].part(list(places)) for words, places in made.items())
    return Chain(parts, ended, inputs, len(values), returned)


class _Flow:
    """The operations of a graph by the memory that they read: `steps` make new tensors or write, others are views."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._views: set[Node] = set()
        for node in nodes:
            if self._is_view(node):
                self._views.add(node)
        self.steps = [n for n in nodes if n not in self._views]

    def _is_view(self, node: Node) -> bool:
        if node.target is operator.getitem:
            return node.args[0] in self._views
        if _writes(node):
            return False
        read = {v.untyped_storage()._cdata for n in node.all_input_nodes for v in _tensors(n)}
        return any(v.untyped_storage()._cdata in read for v in _tensors(node))

    def base(self, node: Node) -> Node:
        """The node that made the memory of a value."""
        while node in self._views:
            node = node.all_input_nodes[0]
        return node

    def read(self, step: Node) -> list[Node]:
        """The bases that an operation reads or writes."""
        return [self.base(n) for n in step.all_input_nodes]

    def sources(self, steps: Sequence[Node]) -> list[list[int]]:
        """The places of the operations that each one reads."""
        places = {n: i for i, n in enumerate(steps)}
        return [[places[n] for n in self.read(step) if n in places] for step in steps]


class _Sequence:
    """Operations in a row as a graph of their own."""

    def __init__(self, flow: _Flow, steps: Sequence[Node]) -> None:
        self.steps, self._graph, inside = steps, Graph(), {*steps}
        self.inputs = list(dict.fromkeys(n for step in steps for n in flow.read(step) if n not in inside))
        self.results = [n for n in steps if isinstance(n.meta.get("val"), Tensor)]
        self._new: dict[Node, Node] = {}
        for node in self.inputs:
            self._new[node] = self._graph.placeholder(node.name)
        for node in self.inputs:
            if node.meta["val"].ndim == 0:
                self._view(node, [])
        words = [_facts(n) for n in self.inputs]
        self._names = {new: f"input {i}" for i, new in enumerate(self._new.values())}
        for node in steps:
            self._add(node, words)
        self.words = tuple(words)
        """The same for equal functions."""

    def _add(self, node: Node, words: list[str]) -> None:
        for read in node.all_input_nodes:
            if read not in self._new:
                self._add(read, words)  # a view
        self._new[node] = new = self._graph.node_copy(node, self._new.__getitem__)
        self._names[new] = str(len(self._names))
        words.append(f"{node.target} {map_arg((new.args, new.kwargs), self._names.__getitem__)}")

    def _view(self, node: Node, shape: list[int]) -> Node:
        """A number as a tensor of one dimension, or the reverse."""
        self._new[node] = view = self._graph.call_function(_ATEN.view.default, (self._new[node], shape))
        view.meta["val"] = node.meta["val"].view(shape)
        return view

    def part(self, results: Sequence[int]) -> Part:
        """The finished function, which returns these of its results."""
        nodes = [self.results[i] for i in results]
        self._graph.output(tuple(self._new[n] if n.meta["val"].ndim else self._view(n, [1]) for n in nodes))
        shapes = [n.meta["val"] for n in self.inputs]
        examples = tuple(torch.empty_strided(t.shape or (1,), t.stride() or (1,), dtype=t.dtype) for t in shapes)
        return Part(GraphModule(torch.nn.Module(), self._graph), examples, (*self.words, str(results)))


def _known(node: Node) -> bool:
    """Whether it is known which memory an operation of torch writes: none, or that of its first argument, which it
    returns."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not node.target._schema.is_mutable:
        return True
    written = [a.is_write for a in node.target._schema.arguments]
    return (
        written[0] and not any(written[1:]) and isinstance(node.args[0], Node) and _facts(node) == _facts(node.args[0])
    )


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _tensors(node: Node) -> Iterator[Tensor]:
    value = node.meta.get("val")
    return (v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, Tensor))


def _facts(node: Node) -> str:
    return "".join(f"{v.dtype}{tuple(v.shape)}{v.stride()}" for v in _tensors(node))


def _free_draws(graph: GraphModule, nodes: Sequence[Node]) -> list[Node]:
    """Compute the numbers by which draws differ first, and return them: blocks with dropout are alike but for these.
    The k-th draw of a stage adds a multiple of k to the key; see draws.modes."""
    numbers: list[Node] = []
    for node in nodes:
        if node.target is not _ATEN.add.Tensor or node.meta["val"].ndim or not isinstance(node.args[1], int):
            continue
        if abs(node.args[1]) >= 2**16:  # no step of a counter
            with graph.graph.inserting_before(nodes[0]):
                dtype = {"dtype": node.meta["val"].dtype}
                number = graph.graph.call_function(_ATEN.scalar_tensor.default, (node.args[1],), dtype)
            number.meta["val"] = node.meta["val"].new_empty(())
            node.args = (node.args[0], number)
            numbers.append(number)
    return numbers


def _written_early(flow: _Flow) -> list[Node]:
    """The order in which a tensor is overwritten as soon as its old value is read no more, beside the computation of
    the new one. Traced steps write at the end."""
    place = {n: float(i) for i, n in enumerate(flow.steps)}
    writers: dict[Node, list[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for node in flow.steps:
        for base in dict.fromkeys(flow.read(node)):
            readers.setdefault(base, []).append(node)
        if _writes(node):
            writers.setdefault(flow.base(node.args[0]), []).append(node)  # type: ignore[arg-type]  # a node, see _known
    for old, [write, *more] in writers.items():
        # The new value may be a choice between a result and the old value: if an id is out of range, nothing changes.
        moved = [*(n for n in flow.read(write) if readers[n] == [write] and n in place), write]
        read = {n for step in moved for n in flow.read(step)} - {old}
        if more or any(n in writers for n in read):
            continue
        before = [n for n in (*read, *readers[old]) if n in place and n not in moved]
        earliest = max((place[n] for n in before), default=-1.0) + 0.5
        for node in moved:
            place[node] = min(place[node], earliest)
    return sorted(flow.steps, key=place.__getitem__)


def _tokens(steps: Sequence[Node]) -> Any:
    """A number for each operation, the same for those of equal shapes."""
    known: dict[str, int] = {}
    words = (f"{n.target} {map_arg((n.args, n.kwargs), _facts)} {_facts(n)}" for n in steps)
    return np.array([known.setdefault(word, len(known)) for word in words])


def _edges(tokens: Any, sources: Sequence[Sequence[int]], low: int, high: int) -> list[int]:
    """Places to cut the operations from `low` to `high`: around the copies of what repeats most, and so on in what is
    left on both sides."""
    best, found = FEWEST - 1, None
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
    first = start + _least_crossed(sources, start, period, length)
    cuts = list(range(first, start + length + 1, period))
    inner = {*_edges(tokens, sources, low, first), *cuts, *_edges(tokens, sources, cuts[-1], high)}
    return sorted(inner - {0, len(sources)})


def _least_crossed(sources: Sequence[Sequence[int]], start: int, period: int, length: int) -> int:
    """The shift at which fewest values are read within a period across a cut, as only the sum is that each block adds
    to; the earliest if several are as good."""
    crossed = np.zeros(len(sources) + 1, int)
    for reader in range(start, start + length):
        for source in sources[reader]:
            if reader - source < period:
                crossed[source + 1] += 1
                crossed[reader + 1] -= 1
    crossed = np.cumsum(crossed)
    latest = min(period, length - 2 * period + 1)
    # The first copy may also read what comes before all, so the second cut is the one to look at.
    return int(np.argmin(crossed[start + period : start + period + latest]))
