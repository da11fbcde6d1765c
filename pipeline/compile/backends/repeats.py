"""Repeats: a graph as a chain of calls of parts, so that alike parts, such as a model's blocks, are compiled once.

Sequences of operations that follow one another with the same shapes are cut out as parts, and so is the rest between
them. Parts that are equal, to the last argument, become one function. Views cross no border: a part makes the views
that it reads again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from pipeline.compile.backends.flow import Flow, facts, free_draws, known, ordered
from pipeline.compile.passes import written

_ATEN = torch.ops.aten

SHORTEST = 16
"""Operations of a repeated part: for shorter ones, calls and lost fusions would cost more than compilation."""
FEWEST = 48
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
    """A call of a part, with the numbers of its inputs, of its outputs, and of the values to free after it."""

    part: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    freed: tuple[int, ...]


@frozen
class Chain:
    """Calls of parts. Values are numbered: first the inputs of the graph at `inputs`, then the results of the calls."""

    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    values: int
    outputs: tuple[int, ...]


def chain(graph: GraphModule) -> Chain | None:
    """A graph in parts; None if little repeats, or if it is not known which tensors share memory. The graph itself is
    changed, to an equal one."""
    nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
    if not all(known(n) for n in nodes):
        return None
    for node in nodes:
        if written(node):
            node.replace_all_uses_with(node.args[0])
    flow = Flow([*free_draws(graph, nodes), *nodes])
    [output] = graph.graph.find_nodes(op="output")
    if not flow.clear or not {*output.args[0]} <= {*flow.steps}:
        return None
    steps = ordered(flow)
    sources = flow.sources(steps)
    assert all(j < i for i, read in enumerate(sources) for j in read), "a value is read before it is made"
    edges = _whole(steps, _edges(_tokens(steps), sources, 0, len(steps)))
    sequences = [_Sequence(flow, steps[a:b]) for a, b in itertools.pairwise([0, *edges, len(steps)])]
    first: dict[Any, _Sequence] = {}
    for sequence in sequences:
        first.setdefault(sequence.words, sequence)
    if len(steps) - sum(len(s.steps) for s in first.values()) < WORTH:
        return None
    return _numbered(sequences, first, list(graph.graph.find_nodes(op="placeholder")), output.args[0])


def _numbered(
    sequences: Sequence[_Sequence], first: dict[Any, _Sequence], placeholders: Sequence[Node], outputs: Sequence[Node]
) -> Chain:
    """Number all values. Equal sequences are calls of one part, which returns each result that any of them needs."""
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


class _Sequence:
    """Operations in a row as a graph of their own."""

    def __init__(self, flow: Flow, steps: Sequence[Node]) -> None:
        self.steps, self._graph, inside = steps, Graph(), {*steps}
        self._made = inside
        self._whole: Any = steps[0].graph.owning_module  # holds the bodies of loops
        self.inputs = list(dict.fromkeys(n for step in steps for n in flow.read(step) if n not in inside))
        self.results = [n for n in steps if isinstance(n.meta.get("val"), Tensor)]
        self._new: dict[Node, Node] = {}
        for node in self.inputs:
            self._new[node] = self._graph.placeholder(node.name)
        for node in self.inputs:
            if node.meta["val"].ndim == 0:
                self._view(node, [])
        words = [facts(n) for n in self.inputs]
        self._names = {new: f"input {i}" for i, new in enumerate(self._new.values())}
        for node in steps:
            self._add(node, words)
        self.words = tuple(words)
        """The same for equal functions."""

    def _add(self, node: Node, words: list[str]) -> None:
        for read in node.all_input_nodes:
            if read not in self._new:
                assert read not in self._made, "a value is read before it is made"
                self._add(read, words)  # a view, or the body of a loop
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
        return Part(GraphModule(self._whole, self._graph), examples, (*self.words, str(results)))


def _tokens(steps: Sequence[Node]) -> Any:
    """Number the operations: equal ones, on tensors of equal shapes, get the same number."""
    known: dict[str, int] = {}
    words = (f"{n.target} {map_arg((n.args, n.kwargs), facts)} {facts(n)}" for n in steps)
    return np.array([known.setdefault(word, len(known)) for word in words])


def _edges(tokens: Any, sources: Sequence[Sequence[int]], low: int, high: int) -> list[int]:
    """Cut the operations from `low` to `high` around the copies of the longest repeat, then again on both sides of
    it."""
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


def _whole(steps: Sequence[Node], edges: Sequence[int]) -> list[int]:
    """Edges, each moved behind the results of an operation that has several: they pass borders one by one."""
    place = {n: i for i, n in enumerate(steps)}
    ends = [0] * (len(steps) + 1)
    for i, node in enumerate(steps):
        if node.target is operator.getitem:
            made = place[node.all_input_nodes[0]] + 1
            ends[made] = max(ends[made], i + 1)
    ends = list(itertools.accumulate(ends, max))

    def moved(edge: int) -> int:
        return edge if ends[edge] <= edge else moved(ends[edge])

    return sorted({moved(edge) for edge in edges} - {len(steps)})


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
    # The first copy may also read what comes before all, so the second cut is looked at. Of two copies hardly more than
    # one fits: then there is no choice.
    return int(np.argmin(crossed[start + period : start + period + latest]))
