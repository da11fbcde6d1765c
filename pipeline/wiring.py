"""Wiring: check that the stages of a pipeline fit together, by their names alone. Errors name both ends."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from attrs import evolve
from torch import Tensor, nn

from pipeline.backward import Gradients
from pipeline.backward.per_example import check
from pipeline.element import GIVEN, OF_A_STEP, Element
from pipeline.errors import StageError, WiringError, did_you_mean
from pipeline.evaluate import HostMetric
from pipeline.forward import Model
from pipeline.joint import jointly
from pipeline.load import Load
from pipeline.module.leftovers import read_by
from pipeline.module.skeleton import overlapping, trainable
from pipeline.place import Place
from pipeline.stage import Stage
from pipeline.update import Finite
from pipeline.update.weight_decay import Decay

HINTS = {
    "grads": "backward.gradients()",
    "outputs": "forward.model(...)",
    "loss": "a loss such as loss.cross_entropy()",
    "params": "forward.model(...)",
}


def resolved(stages: Sequence[Element]) -> tuple[Element, ...]:
    """The stages, with the models of each backward filled in, and its updates on the parameters of all of them."""
    models = {s.params: s for s in stages if isinstance(s, Model) and s.create is not None}
    trained = [name for name, s in models.items() if not s.module.frozen]
    made: list[Element] = []
    begun: list[Stage] = []
    of: dict[str, Gradients] = {}
    for s in stages:
        if isinstance(s, Gradients):
            sums = any(t.sums for t in begun if f"{s.of}.weight" in t.writes)
            if not s.wrt or sums != s.sums:
                wrt = s.wrt or tuple(name for name in trained if name in _behind(s.of, begun))
                s = evolve(s, wrt=wrt, sums=sums)
            of[s.grads], begun = s, []
        elif isinstance(s, Stage):
            g = next((of[name] for name in s.reads if name in of), None)
            if g is None and "params" in s.writes and of:  # as lookahead
                last = [*of.values()][-1]
                g = last if "params" in last.wrt or (len(of) == 1 and "params" not in models) else None
            done = g is not None and {*g.wrt} <= {*s.reads}
            if g is not None and not done and {*g.wrt} <= {*models} and "params" in s.reads:
                if "params" in models and "params" not in g.wrt:
                    why = f"reads {g.grads!r}, which are of {', '.join(g.wrt)}"
                    raise WiringError(f"stage {s.name!r} {why}; write .rename(params={g.wrt[0]!r})")
                s = jointly(s, g.wrt)
            elif g is not None and not done and {*g.wrt} & {*s.reads}:
                own = next(name for name in g.wrt if name in s.reads)
                raise WiringError(
                    f"stage {s.name!r} is of {own!r}, but {g.grads!r} are of {', '.join(g.wrt)}; leave out "
                    f"rename(params=...), and for rules of their own write update.groups({{'{own}.*': ...}}, "
                    f"otherwise=...), or take gradients of it alone by backward.gradients(wrt={own!r})"
                )
            begun.append(s)
        made.append(s)
    return tuple(made)


def _behind(name: str, stages: Sequence[Stage]) -> set[str]:
    """Names that a value depends on."""
    needed, found = {name}, {name}
    for s in reversed(stages):
        if needed & {*s.writes}:
            needed = (needed - {*s.writes}) | {*s.reads, *s.optional}
            found |= needed
    return found


def _check_wrt(g: Gradients, reached: Collection[str], models: Collection[str]) -> None:
    """Raise WiringError if a loss does not depend on a model that it is differentiated with respect to."""
    for name in g.wrt or ("any model that trains",):
        if name not in reached:
            hint = did_you_mean(name, models) if g.wrt and name not in models else ""
            why = f"differentiates {g.of!r}, which does not depend on {repr(name) if g.wrt else name}{hint}"
            instead = "compute it from outputs, since the backward before (a model is called anew by .again())"
            raise WiringError(f"stage {g.name!r} {why}: {instead}")


def _check_once(name: str, stages: Sequence[Stage]) -> None:
    """Raise WiringError if a loss is overwritten before a stage reads it."""
    unread = ""
    for s in stages:
        unread = "" if name in (*s.reads, *s.optional) else unread
        if name in s.writes and unread:
            raise WiringError(
                f"stages {unread!r} and {s.name!r} both write {name!r}, and nothing reads the first: give one another "
                "name, and add them up in a stage"
            )
        unread = s.name if name in s.writes else unread


def _check_alone(stages: Sequence[Stage]) -> None:
    """Raise WiringError for stages that write the same weights, if the change of one is lost, or of frozen ones."""
    for s in [s for s in stages if s.overwrites or s.freezes]:
        for t in [t for t in stages if t is not s and {*t.writes} & {*s.writes} and t.runs(True)]:
            what = f"stage {t.name!r} changes weights"
            if s.overwrites:
                why = f"{what} that {s.name!r} makes anew in each step from its own memory, so that the change is lost"
                raise WiringError(f"{why}: leave one of the two out")
            if isinstance(t, Decay) and t.which == "*":
                instead = "leave those out by update.weight_decay(..., only='!...')"
                raise WiringError(f"{what} of which {s.name!r} leaves some as they are, or makes them anew: {instead}")


def check_trained(stages: Sequence[Element], parameters: Callable[[Model], bool]) -> None:
    """Raise WiringError for a model with `parameters` that is neither trained nor frozen, if anything trains."""
    backwards = [s for s in stages if isinstance(s, Gradients)]
    changed = {name for s in stages if not isinstance(s, Model) for name in s.writes}
    for s in stages:
        if not isinstance(s, Model) or s.create is None or s.module.frozen or not backwards or s.params in changed:
            continue
        by = [g.name for g in backwards if s.params in g.wrt]
        updated = any(name in changed for g in backwards for name in g.wrt)
        if (updated or not by) and parameters(s):
            why = f"no update changes it after {by[0]!r}" if by else "no loss with a backward depends on it"
            never = f"the model of stage {s.name!r} is never trained: {why}"
            raise WiringError(f"{never}; train it, or write forward.model(..., frozen=True)")


def warn_of_twins(models: Sequence[Model], tree: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Warn of trained models that begin with equal weights, as those of equal factories do: they may stay equal."""
    trained = [m for m in models if not m.module.frozen and not isinstance(m.module.build, nn.Module)]
    for a, b in itertools.combinations(trained, 2):
        one, other = tree[a.params], tree[b.params]
        if one and one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items()):
            why = f"{a.params!r} and {b.params!r} begin with equal weights, as equal factories give them"
            instead = "if that is not meant, give modules: forward.model(make())"
            warnings.warn(f"models {why}; {instead}", stacklevel=5)


def check_apart(models: Sequence[Model]) -> None:
    """Raise WiringError for trained models whose modules share a parameter, of which each would train a copy."""
    own = [(m, m.module.build) for m in models if isinstance(m.module.build, nn.Module) and not m.module.frozen]
    for (a, one), (b, other) in itertools.combinations(own, 2):
        if shared := next(overlapping(trainable(one), trainable(other)), None):
            instead = f"make one module of both, call {a.name!r} by .again(...), or give {b.name!r} a copy.deepcopy()"
            raise WiringError(
                f"models {a.params!r} and {b.params!r} share {shared[0]!r}, and each has a copy: {instead}"
            )


def check_read(stages: Sequence[Stage]) -> None:
    """Raise StageError for a stage that reads what a forward leaves on its module, which is called as a copy."""
    for model in [s for s in stages if isinstance(s, Model) and s.module.left]:
        names = {name for name in model.module.left if not hasattr(Tensor, name)}  # `mean` may be that of a tensor
        own = model.module.build
        if not isinstance(own, nn.Module):
            continue
        for s in stages:
            read = [] if isinstance(s, Model) else read_by(s.function, own) or []
            if name := next((name for name in read if name in names), None):
                why = f"reads the module's {name!r}, which the forward of {model.name!r} sets on a copy alone"
                raise StageError(s.name, f"{why}: return it, by forward.model(..., outputs=('outputs', {name!r}))")


def check_changed(stages: Sequence[Element], parameters: Callable[[Model], bool]) -> None:
    """Raise WiringError if no stage changes the `parameters` of any model in a step."""
    changed = {
        name for s in stages if isinstance(s, Stage) and not isinstance(s, Model) and s.runs(True) for name in s.writes
    }
    models = [
        s for s in stages if isinstance(s, Model) and s.create is not None and not s.module.frozen and parameters(s)
    ]
    if models and not any(m.params in changed for m in models):
        raise WiringError(
            f"nothing trains the model of stage {models[0].name!r}: put backward.gradients() after the loss, and an "
            "update such as update.sgd(lr=0.1) after that; pipe.evaluate(state, data) is what needs none"
        )


def check_wiring(stages: Sequence[Element], source: Load | None, host: Sequence[Stage], graph: Sequence[Stage]) -> None:
    first = next((s for s in stages if not isinstance(s, Place)), None)
    if source is not None and first is not None and first is not source:
        raise WiringError(f"stage {first.name!r} stands before {source.name!r}, where batches begin; put that first")
    if source is not None and stages[0] is not source and not source.in_memory:
        why = "stands after place, so its data set is placed as a whole, and must be tensors in memory"
        raise WiringError(f"stage {source.name!r} {why}; put it before place")
    known = source.writes if source is not None and source.known else None
    for name in {*(known or ())} & {*GIVEN}:
        raise WiringError(f"the data have a value {name!r}, a name that a pipeline gives itself; give it another")
    models = [s.params for s in stages if isinstance(s, Model)]
    scaled = {s.scaled for s in graph if isinstance(s, Finite) and s.scales}
    small = any(isinstance(s, Place) and s.precision == "fp16" for s in stages)
    available: set[str] = {*GIVEN, *(known or ()), *(k for s in stages for k in s.keeps)}
    before, given, begun = {*available}, set[str](), list[Stage]()
    for s in (*host, *graph):
        if s in host and (s.remembers or s.hyper or s.create or {"step", "seed"} & {*s.reads, *s.optional}):
            raise WiringError(f"stage {s.name!r} needs State, so it can't stand before place; put it after")
        if not s.runs(True):
            continue
        for name in sorted({*s.values_read} - ({*s.wrt} if isinstance(s, Gradients) else set()) - available):
            _explain_apart(s, name, (*host, *graph), True)
            _explain_unread(s, name, stages, available, known)
            given.add(name)
        if isinstance(s, Gradients):
            what = f"stage {s.name!r} differentiates {s.of!r}"
            if not any(s.of in t.values_written for t in begun):
                if any(isinstance(t, Gradients) and t.of == s.of for t in graph[: graph.index(s)]):
                    raise WiringError(
                        f"{what} again; one backward gives the gradients of several models: leave this one out, and "
                        "name them there, wrt=(...)"
                    )
                instead = "put the stages that compute it between the two"
                raise WiringError(f"{what}, which no stage since the backward before it writes; {instead}")
            if small and f"{s.of}.scale" not in scaled:
                instead = 'put update.finite("scale") after it, or place with precision="bf16"'
                raise WiringError(f"{what} in float16, where small gradients are 0: {instead}")
            own = [t for t in begun if t in graph]
            _check_wrt(s, _behind(s.of, own), models)
            _check_once(s.of, own)
            check(s, own)
            begun = []
        else:
            begun.append(s)
        available.update(s.values_written)
    _check_alone(graph)
    available = before | given
    measured = needed_to_measure(graph)
    for s in (*host, *graph):
        if not s.runs(False) or (s in graph and s not in measured and not isinstance(s, HostMetric)):
            continue
        for name in sorted({*s.values_read} - available):
            _explain_apart(s, name, (*host, *graph), False)
        available.update(s.values_written)


def _explain_apart(s: Stage, name: str, stages: Sequence[Stage], training: bool) -> None:
    """Raise WiringError for a value that is read in one program and written in the other alone."""
    when = "train" if training else "evaluation"
    for t in stages:
        if name in t.values_written and not t.runs(training):
            why = f'reads {name!r} in {when}, which {t.name!r} does not write there, as it has when="{t.when}"'
            instead = f'let that write to a name that it reads, or add a stage with when="{when}" that writes {name!r}'
            raise WiringError(f"stage {s.name!r} {why}: {instead}")


def _explain_unread(
    s: Stage, name: str, stages: Sequence[Element], available: set[str], known: Sequence[str] | None
) -> None:
    reads = f"stage {s.name!r} reads {name!r}, which"
    later = [f"{t.name!r}, which does," for t in stages if t is not s and name in t.values_written]
    if later or name in HINTS:
        raise WiringError(f"{reads} no earlier stage writes; put {[*later, HINTS.get(name)][0]} before it")
    if known is not None:
        near = did_you_mean(name, available - {*GIVEN, *(k for t in stages for k in t.keeps)})
        way = f"forward.model(..., inputs={known[0]!r})" if isinstance(s, Model) else f".rename({name}={known[-1]!r})"
        raise WiringError(f"{reads} neither the data nor an earlier stage has{near}; to read another value write {way}")
    # Without a data set of known names, values that no stage writes must come with the batch.
    available.add(name)


def without_gradients(graph: Sequence[Stage], training: bool = False) -> list[Stage]:
    """Stages of the train step, or of the evaluation, that need no gradients."""
    kept = {k for s in graph for k in s.keeps}
    possible: list[Stage] = []
    absent: set[str] = {*OF_A_STEP}
    for s in graph:
        if isinstance(s, Gradients):
            absent.add(s.grads)
        if s.runs(training) and absent & {*s.reads}:
            absent |= {*s.writes} - kept
        elif s.runs(training):
            possible.append(s)
    return possible


def needed_to_measure(graph: Sequence[Stage]) -> tuple[Stage, ...]:
    """Stages that metrics need without gradients, in order."""
    needed: set[str] = set()
    chosen: list[Stage] = []
    for s in reversed(without_gradients(graph)):
        if isinstance(s, HostMetric):
            needed |= set(s.reads)
        elif s.finish is not None or needed & set(s.writes):
            chosen.append(s)
            needed |= {*s.reads, *s.optional}
    return tuple(reversed(chosen))
