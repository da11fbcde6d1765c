"""Stage: one pure function of named values.

The function's parameter names are the wiring:

- a parameter without a default reads the value of that name;
- a default of None makes that reading optional;
- a default that is a number (or a Schedule) makes a hyperparameter: it lives in State as a 0-d tensor, so
  changing it is data, not a new graph;
- any other default is a constant of the function.

The pipeline gives some names itself: `step` (0-d int64, steps done so far), `seed` (0-d int64) and `training` (bool,
constant within a program); and in a train step, for telemetry, `hyper`, every hyperparameter at this step by its name
in State, and `before`, the values of State before the step, such as before["params"].

A stage with a memory has an `init` for the first memory; its function reads `memory`, and returns the new memory after
its outputs.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from pipeline.direction import Better, direction
from pipeline.draws import Watched, keyed
from pipeline.element import GIVEN, Element, Number, is_number
from pipeline.errors import ImpureError, PipeError, StageError, WiringError, did_you_mean, first_line, place_of
from pipeline.means import Calls, weighed
from pipeline.tree import Tree, describe


@frozen(eq=False)
class Average:
    """Makes a stage an average: weights to evaluate and to save in the place of the trained ones."""

    view: Callable[..., dict[str, Tree]]
    """Returns the weights, `{"params": ...}` and, if they differ too, "buffers". It reads State, memory and
    hyperparameters."""
    refresh: bool = False
    """Whether BatchNorm statistics have to be recomputed for them."""


@frozen(eq=False, repr=False)
class Stage(Element):
    """A pure function with its wiring. Build one with `@stage`, or with the functions of the step modules."""

    function: Callable[..., Any]
    check: Callable[..., None] | None = field(default=None, kw_only=True)
    """Checks data before training, when values may be read on the host. Raises DataError."""
    draws: bool = field(default=False, kw_only=True)
    """Whether its function may draw random numbers."""
    when: str | None = field(default=None, kw_only=True)
    """Program that runs it, "train" or "evaluation"; both by default, or by "always"."""
    names: Mapping[str, str] = field(factory=dict, kw_only=True)
    """Parameter -> value that it reads, if the names differ. Names of no parameter go to the function's **kwargs."""
    average: Average | None = field(default=None, kw_only=True)
    sharded: bool = field(default=False, kw_only=True)
    """Whether it may run on shards on a mesh: the result of a row does not depend on other rows."""
    better: Better = field(default=None, kw_only=True)
    """Direction of a metric: of all its results, or by their names."""
    sums: bool = field(default=False, kw_only=True)
    """Whether its loss is a sum over samples, and not a mean."""
    overwrites: bool = field(default=False, kw_only=True)
    """Whether it makes the weights from its own memory, so that what another stage changes in them is lost."""
    freezes: bool = field(default=False, kw_only=True)
    """Whether it leaves some weights as they are."""
    parameters: tuple[tuple[str, str], ...] = field(default=(), init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for said in self.better.values() if isinstance(self.better, Mapping) else (self.better,):
            direction(self.name, {}, said or "low")  # raises for another word
        if self.when not in (None, "always", "train", "evaluation"):
            raise WiringError(f'stage {self.name!r}: when={self.when!r} is none of "train", "evaluation" and "always"')
        required: dict[str, str] = {}
        optional: dict[str, str] = {}
        for p in inspect.signature(self.function).parameters.values():
            value = self.names.get(p.name, p.name)
            if p.name == "memory" and not self.remembers:
                raise WiringError(f"stage {self.name!r} reads 'memory', but has no init= that makes the first one")
            if p.name == "memory" or p.name in self.hyper:
                continue
            if p.kind is p.VAR_KEYWORD and self.names:
                required |= {k: v for k, v in self.names.items() if k not in required and k not in optional}
            elif p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise WiringError(f"stage {self.name!r} takes *{p.name}: parameter names are the wiring, write them")
            elif p.default is p.empty:
                required[p.name] = value
            elif p.default is None:
                optional[p.name] = value
        object.__setattr__(self, "reads", tuple(required.values()))
        object.__setattr__(self, "optional", tuple(optional.values()))
        object.__setattr__(self, "parameters", (*required.items(), *optional.items()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function, for trying a stage by hand."""
        return self.function(*args, **kwargs)

    def rename(self, **names: str) -> Stage:
        """The same stage on other values: `update.sgd(lr=0.1).rename(params="critic", grads="critic_grads")`."""
        if self.keeps:
            raise WiringError(f"stage {self.name!r} is renamed where it is made: {self.name}(of=..., writes=...)")
        known = {*self.reads, *self.optional, *self.writes}
        for old in names:
            if old not in known:
                raise WiringError(f"stage {self.name!r} neither reads nor writes {old!r}{did_you_mean(old, known)}")
        weights = {f"{old}.weight": f"{new}.weight" for old, new in names.items() if f"{old}.weight" in self.writes}
        names = {**weights, **names}  # a loss's weight follows its name
        new = {p: names.get(value, value) for p, value in self.parameters}
        return evolve(self, names={**self.names, **new}, writes=tuple(names.get(w, w) for w in self.writes))

    def only(self, when: str) -> Self:
        """The same stage in one program alone: `loss.mse().only("evaluation")`."""
        return evolve(self, when=when)

    def runs(self, training: bool) -> bool:
        """Whether the train step, or else the evaluation, runs it."""
        return self.when in (None, "always", "train" if training else "evaluation")

    def with_hyper(self, **hyper: Number) -> Stage:
        """The same stage with other initial values for its hyperparameters."""
        for key in hyper:
            if key not in self.hyper:
                raise WiringError(f"stage {self.name!r} has no hyperparameter {key!r}{did_you_mean(key, self.hyper)}")
        return evolve(self, hyper={**self.hyper, **hyper})

    @property
    def average_of(self) -> str:
        """Name of the averaged parameters."""
        return next((self.names[p] for p in ("params", "model_0") if p in self.names), "params")

    def averaged(self, tree: Mapping[str, Tree], hyper: Mapping[str, Tensor]) -> dict[str, Tree]:
        """Averaged weights, under their names in State. `hyper` are the stage's hyperparameters at this step."""
        assert self.average is not None
        own = {"memory": tree["memory"].get(self.name), **hyper}
        read = inspect.signature(self.average.view).parameters
        seen = self.average.view(**{p: own[p] if p in own else tree[self.names.get(p, p)] for p in read})
        return {self.names.get(name, name): value for name, value in seen.items()}

    def run(self, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Tree) -> tuple[dict[str, Any], Tree]:
        """Call the function on named values; returns its outputs and its new memory (or its sums)."""
        try:
            return self._run(values, hyper, memory)
        except StageError:
            if not self.draws and "seed" in values:  # the mode that finds draws also names an id out of range
                evolve(self, draws=True)._run(values, hyper, memory)
            raise

    def _run(self, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Tree) -> tuple[dict[str, Any], Tree]:
        kwargs = {**self.arguments(values), **hyper}
        if self.remembers and self.finish is None:
            kwargs["memory"] = memory
        with self.blamed(kwargs), self._keyed(values, kwargs) as key, Calls() if self.draws else nullcontext():
            result = self.function(**kwargs)
        said = self.when is not None or self.finish is not None or "training" in kwargs
        if key is not None and key.drew and not said and values.get("training") is False:
            raise StageError(
                self.name,
                'draws random numbers in evaluation too: write @stage(..., when="train") for training alone, as '
                'augmentation is, or when="always" (of a stage of ours, .only(...))',
            )
        written, memory = self._written(result)
        return weighed(written), memory

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of its function among named values. Raises StageError if one is missing."""
        for name in self.reads:
            if name not in values:
                hint = did_you_mean(name, [k for k in values if k not in GIVEN])
                hint += " (strings and other objects stay on the host: read them in a stage before place)"
                raise StageError(self.name, f"reads {name!r}, which the batch does not have{hint}")
        return {p: values[v] for p, v in self.parameters if v in values}

    def _failed(self, error: Exception, given: Mapping[str, Any]) -> StageError:
        """An error of its function, with its line, and with a hint if a value was no tensor."""
        shown = {k: v for k, v in given.items() if k not in ("params", "buffers", "grads")}
        said = f"failed on {describe(shown)}: {first_line(error)}{place_of(error)}"
        values = dict(self.parameters)
        for parameter, value in given.items():
            if values.get(parameter) == "outputs" and not isinstance(value, Tensor):
                said += f"; 'outputs' is {parts_of(value)}: name what it takes in forward.model(..., outputs=...)"
        return StageError(self.name, said)

    def look(self, **given: Any) -> None:
        """Run its check; errors name the stage."""
        with self.blamed(given):
            if self.check is not None:
                self.check(**given)

    @contextmanager
    def blamed(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Context in which errors name the stage."""
        try:
            yield
        except ImpureError as e:
            raise StageError(self.name, str(e)) from e
        except (PipeError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            raise self._failed(e, given) from e

    def _keyed(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Context in which draws are a function of (seed, step), and writes into inputs are errors, if the function may
        draw. Stages on the host have neither seed nor step."""
        if not self.draws or "seed" not in values:
            return Watched() if self.draws and values.get("training") is False else nullcontext()
        return keyed(values["seed"], values["step"], zlib.crc32(self.name.encode()), given)

    def _written(self, result: Any) -> tuple[dict[str, Any], Tree]:
        returns = (*self.writes, "memory") if self.remembers else self.writes
        if len(returns) == 1:
            result = (result,)
        elif not returns:
            result = () if result is None else (result,)
        got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        if isinstance(result, dict):
            got = ", ".join(map(str, result))
            result = tuple(result[name] for name in returns) if {*result} == {*returns} else result
        if isinstance(result, tuple) and len(result) == len(returns):
            written = dict(zip(returns, result, strict=True))
            none = [name for name, value in written.items() if value is None]
            if not none:
                return written, written.pop("memory", None)
            got = f"None for {none[0]!r}"
        raise StageError(self.name, f"returned {got}, but it declares {', '.join(returns) or 'nothing'}")


def stage(
    function: Callable[..., Any] | None = None, *, writes: str | tuple[str, ...] = (), name: str | None = None,
    init: Callable[..., Tree] | None = None, when: str | None = None,
) -> Any:  # fmt: skip
    """Make a Stage from a plain function; with `when`, "train" or "evaluation", for one program alone. A stage that
    draws random numbers in both has to say so by "always".

    >>> @stage(writes="loss")
    ... def squared(outputs, targets, scale=1.0):
    ...     return scale * ((outputs - targets) ** 2).mean()
    >>> squared.reads, squared.writes, squared.hyper
    (('outputs', 'targets'), ('loss',), {'scale': 1.0})
    """

    def make(f: Callable[..., Any]) -> Stage:
        defaults = {p.name: p.default for p in inspect.signature(f).parameters.values()}
        return Stage(
            name=name or str(getattr(f, "__name__", type(f).__name__)),
            function=f,
            writes=(writes,) if isinstance(writes, str) else tuple(writes),
            init=init,
            when=when,
            draws=True,
            hyper={k: v for k, v in defaults.items() if is_number(v)},
        )

    return make if function is None else make(function)


def buffers_of(params: str) -> str:
    """Name of a model's buffers in State, from the name of its parameters."""
    return "buffers" if params == "params" else f"{params}.buffers"


def parts_of(value: Any) -> str:
    """A value that is no tensor, in words: `a tuple of 2`, `a dict of logits, loss`."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
