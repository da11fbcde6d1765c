"""A pipeline as a plain torch loop: nn.Modules, torch.optim and the stages' functions.

It shares data and order, first weights and memories, and `keyed` draws with the library, but no code of a step.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pipeline.backward import Gradients, SharpnessAware
from pipeline.draws import keyed
from pipeline.errors import ByHandError, first_line
from pipeline.forward import Model
from pipeline.joint import joined
from pipeline.means import Calls, weighed
from pipeline.names import LASTS
from pipeline.pipe import Pipeline
from pipeline.programs.data import source
from pipeline.schedules import Schedule
from pipeline.stage import Stage
from pipeline.state import Batch, State, samples
from pipeline.testing.counterparts import CLIPS, home, options, rules, scheduler
from pipeline.tree import tree_map
from pipeline.update import Finite

_tensor = partial(torch.as_tensor, dtype=torch.float64)


class PlainLoop:
    """One plain loop over the epochs of a run."""

    def __init__(self, pipe: Pipeline, seed: int, epochs: int) -> None:
        assert pipe.load is not None
        self.pipe, batches = pipe, pipe.load.batches
        self.lengths = None if batches is None else batches * epochs, batches
        self.first = pipe.init(seed, steps=self.lengths[0])
        self.counters: dict[str, Any] = {"seed": self.first["seed"], "step": self.first.step.clone()}
        self.forwards = {s.params: s for s in pipe.graph if isinstance(s, Model)}
        self.modules = {name: _module(s, self.first, seed) for name, s in self.forwards.items()}
        for name in self.forwards.keys() - {m.params for m in pipe.models}:
            self.modules[name].requires_grad_(False)
        skipped = {*LASTS, *self.forwards, *(s.buffers for s in self.forwards.values())}
        self.others = tree_map(torch.clone, {k: x for k, x in self.first.tree.items() if k not in skipped})
        self.memory = tree_map(torch.clone, self.first.memory)
        self.models_of: dict[str, list[str]] = {}
        self.rules: dict[str, list[Any]] = {}
        self.schedules: dict[str, Any] = {}
        self.sums: dict[str, Any] = {}
        self.has_drawn = False
        self.batches = ((k, b) for e in range(epochs) for k, b in enumerate(pipe.load.epoch(seed, e)))

    def step(self) -> None:
        k, batch = next(self.batches)
        if not k:
            self.sums = {}
            self.reset_carried()
        self.run_batch(batch, True)
        self.counters["step"] += 1

    def reset_carried(self) -> None:
        """Zero the buffers that are carried within an epoch only."""
        for s in self.forwards.values():
            for k in (k for k, (how, _) in s.module.carried.items() if how == "epoch"):
                self.state()[s.buffers][k].zero_()

    def state(self) -> dict[str, Any]:
        """State as the tensors themselves, which change in place."""
        tensors = dict(self.others)
        for name, s in self.forwards.items():
            named = {**dict(self.modules[name].named_parameters()), **dict(self.modules[name].named_buffers())}
            tensors |= {k: {n: named[n] for n in self.first[k]} for k in (name, s.buffers)}
        return tensors

    def with_joined(self, s: Stage, state: dict[str, Any]) -> dict[str, Any]:
        """State as a stage reads it: "params" has all models of the gradients that it reads."""
        read = [self.models_of[v] for v in s.reads if v in self.models_of]
        if not read and "params" in s.writes:  # as lookahead
            read = [of for of in self.models_of.values() if "params" in of or "params" not in state]
        if not read or "params" not in s.reads:
            return state
        return {**state, "params": joined({name: state[name] for name in read[-1]})}

    def hyper_value(self, full: str, number: Any) -> float:
        """The value of a hyperparameter at this step."""
        if not isinstance(number, Schedule):
            return float(number)
        if full not in self.schedules:
            self.schedules[full] = scheduler(full, number, *self.lengths), number.watches
        schedule, watches = self.schedules[full]
        if schedule is None:
            return number.at(int(self.counters["step"]), *self.lengths)
        while not watches and schedule.last_epoch < self.counters["step"]:
            schedule.optimizer.step()
            schedule.step()
        return float(schedule.optimizer.param_groups[0]["lr"])

    def observe(self, metrics: Mapping[str, Any]) -> None:
        for schedule, watches in self.schedules.values():
            if watches:
                schedule.step(metrics[watches[0]])

    def validate(self, data: Any) -> dict[str, Any]:
        """Metrics on held-out data, of the weights and of each average of them."""
        before, sums, metrics = tree_map(torch.clone, self.state()), self.sums, dict[str, Any]()
        modes = [(part, part.training) for m in self.modules.values() for part in m.modules()]
        for m in self.modules.values():
            m.eval()
        for name, s in {"": None, **self.pipe.averages}.items():
            average = None if s is None else s.average
            if average and average.refresh and any(isinstance(part, _NormBase) for part, _ in modes):
                raise ByHandError(f"can't be done by hand: BatchNorm statistics for the average {name!r}")
            _write(self.state(), s.averaged({**before, "memory": self.memory}, {}) if s is not None else {})
            self.sums = {}
            self.reset_carried()
            for batch in source(self.pipe, data).epoch(0, 0):
                first = tree_map(torch.clone, self.state())
                self.run_batch(batch, False)
                for call in self.forwards.values():
                    for k in self.first[call.buffers].keys() - call.module.carried.keys():
                        self.state()[call.buffers][k].detach().copy_(first[call.buffers][k])
            metrics |= {f"{name}.{k}" if name else k: x for k, x in self.results().items()}
        _write(self.state(), before)
        self.sums = sums
        for part, mode in modes:
            part.training = mode
        return metrics

    def results(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for s in self.pipe.graph:
            if (total := self.sums.get(s.name)) is not None and s.finish is not None:
                new = {s.of: total["sum"] / total["weight"]} if isinstance(s, Gradients) else s.finish(total)
                metrics |= {f"{s.name}.{k}" if k in metrics else k: x.tolist() for k, x in new.items()}
        return metrics

    def run_batch(self, batch: Batch, training: bool) -> None:
        """Run the stages on a batch: by function, module, optimizer, or loss.backward()."""
        values = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, dict(batch))
        for s in (s for s in self.pipe.host if s.runs(training)):
            values |= s._written(s.function(**s.arguments({**values, "training": training})))[0]
        values = {**(batch := self.pipe.place.batch(values)), **self.counters, "training": training}
        names = {s.name for s in (self.pipe.graph if training else self.pipe.evaluation)}
        stages = [s for s in self.pipe.given if isinstance(s, Stage) and s.name in names and s.runs(training)]
        self.hyper = {s.name: {h: self.hyper_value(f"{s.name}.{h}", n) for h, n in s.hyper.items()} for s in stages}
        if training:
            numbers = {f"{name}.{h}": _tensor(x) for name, of in self.hyper.items() for h, x in of.items()}
            values |= {"hyper": numbers, "before": tree_map(lambda x: x.detach().clone(), self.state())}
        for i, s in enumerate(stages):
            ahead = not training or any(isinstance(t, Gradients) for t in stages[i:])
            state = self.with_joined(s, self.state())
            values = {**values, **(state if ahead else tree_map(_detached, state))}
            try:
                with self.pipe.place.autocast() if ahead and not isinstance(s, Gradients) else nullcontext():
                    written = weighed(self.run_stage(s, values, state, batch))
            except ByHandError:
                raise
            except Exception as e:
                raise ByHandError(f"can't be done by hand: stage {s.name!r} fails: {first_line(e)}") from e
            _write(state, written)
            values |= written
            values = values if ahead and training and not isinstance(s, Gradients) else tree_map(_detached, values)

    def run_stage(self, s: Stage, values: dict[str, Any], state: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """The values that a stage writes."""
        names = dict(s.parameters)
        if isinstance(s, Model):
            return self.forward(s, values)
        if isinstance(s, Gradients):
            return self.backward(s, values, batch)
        if (clip := CLIPS.get(home(s.function))) is not None:
            params = joined({model: state[model] for model in self.models_of[names["grads"]]})
            _give(params, values[names["grads"]])
            clip(params.values(), self.hyper[s.name]["limit"], **options(clip, {}, s.function))
            return {s.writes[0]: {k: p.grad for k, p in params.items() if p.grad is not None}}
        if not ({"params", "grads"} <= names.keys() and s.writes == (names["params"],)):
            written = self.call_function(s, values, self.hyper[s.name], self.memory, s.name)
            if isinstance(s, Finite) and not written[s.writes[0]]:
                raise ByHandError("can't be done by hand: a step that is not finite")
            return written
        params, grads = state[names["params"]], values[names["grads"]]
        if s.name not in self.rules:
            self.rules[s.name] = list(
                rules(s, params, lambda k, x: self.hyper_value(f"{s.name}.{k}", x), self.memory, s.name)
            )
        for rule, at, own, optimizer, memory, key in self.rules[s.name]:
            hyper = {h: self.hyper[s.name][f"{at}{h}"] for h in rule.hyper}
            if optimizer is not None:
                _give({k: params[k] for k in own}, grads)
                optimizer.param_groups[0].update(options(type(optimizer), hyper))
                optimizer.step()
                continue
            wired = {**rule.names, "params": names["params"], "grads": names["grads"]}
            wanted = {v: {k: values[v][k] for k in own if k in values[v]} for v in (names["params"], names["grads"])}
            [new] = self.call_function(evolve(rule, names=wired), {**values, **wanted}, hyper, memory, key).values()
            _write(params, new)
        return {}

    def call_function(self, s: Stage, values: Mapping[str, Any], hyper: Mapping[str, float], memory: Any,
             key: str) -> dict[str, Any]:  # fmt: skip
        """Call a stage's function; update its memory, or add up its sums."""
        given = s.arguments(values) | {h: _tensor(x) for h, x in hyper.items()}
        if s.remembers and s.finish is None:
            given["memory"] = memory[key]
        written, after = s._written(self.with_draws(s, s.function, **given))
        if s.finish is not None:
            self.add_sums(s, after)
        elif s.remembers:
            memory[key] = tree_map(_detached, after)
        return written

    def add_sums(self, s: Stage, sums: Any) -> None:
        sums = tree_map(_detached, sums)
        self.sums[s.name] = tree_map(torch.add, self.sums[s.name], sums) if s.name in self.sums else sums

    def with_draws(self, s: Stage, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call with the stage's draws in a pipeline."""
        with (key := keyed(self.counters["seed"], self.counters["step"], zlib.crc32(s.name.encode()))), Calls():
            result = function(*args, **kwargs)
        self.has_drawn = self.has_drawn or key._draws > 0
        return result

    def forward(self, s: Model, values: Mapping[str, Any]) -> dict[str, Any]:
        words = s.inputs if isinstance(s.inputs, Mapping) else {}
        names = [s.inputs] if isinstance(s.inputs, str) else [] if words else s.inputs
        kwargs = {k: values[v] for k, v in words.items()}
        result = self.with_draws(s, self.modules[s.params], *[values[v] for v in names], **kwargs)
        if isinstance(s.outputs, str):
            return {s.outputs: result}
        if isinstance(s.outputs, Mapping):
            parts = result if isinstance(result, Mapping) else vars(result)
            return {name: parts[k] for k, name in s.outputs.items()}
        return dict(zip(s.outputs, result, strict=False))

    def backward(self, g: Gradients, values: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """Gradients of the models named by `wrt`, or else of all trained models that the loss reaches."""
        loss, weight = values[g.of], _tensor(values.get(f"{g.of}.weight", samples(batch, self.pipe.samples)))
        self.add_sums(g, {"sum": loss.double() * weight, "weight": weight})
        if not values["training"]:
            return {}
        if g.per_example or isinstance(g, SharpnessAware):
            raise ByHandError(f"can't be done by hand: {g.name!r}, which takes several gradients")
        parts = [part for m in self.modules.values() for part in m.modules()]
        if g.accumulate > 1 and (self.has_drawn or any(isinstance(p, _NormBase) and p.training for p in parts)):
            raise ByHandError(f"can't be done by hand: {g.name!r} of parts that draw, or have BatchNorm's statistics")
        for m in self.modules.values():
            m.zero_grad(set_to_none=True)
        loss.backward()
        reached = {name for name, m in self.modules.items() if any(p.grad is not None for p in m.parameters())}
        wired = next(x.wrt for x in self.pipe.backwards if x.name == g.name)
        trained = [m.params for m in self.pipe.models if not m.module.frozen]
        self.models_of[g.grads] = [*g.wrt] or [name for name in trained if name in {*wired, *reached}]
        params = joined({name: self.state()[name] for name in self.models_of[g.grads]})
        return {g.grads: {k: p.grad for k, p in params.items() if p.grad is not None}}


def _module(s: Model, state: State, seed: int) -> nn.Module:
    """The user's module, with the weights of a State."""
    build = s.module.build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build if isinstance(build, nn.Module) else build()
        if isinstance(build, nn.Module) or module is build():
            module = copy.deepcopy(module)
    module = getattr(module, "_orig_mod", module)
    module.load_state_dict(s.state_dict(state), strict=False)
    module.to(state.step.device)
    if s.module.frozen:
        return module.requires_grad_(False).eval()
    frozen = [part for part in module.modules() if not part.training]
    train = s.module.train if s.module.train is not None else not module.training
    module.train()
    for part in () if train else frozen:
        part.training = False
    return module


def _write(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Copy new values into old tensors of the same names, in place."""
    with torch.no_grad():
        for k in old.keys() & new.keys():
            tree_map(lambda x, y: x.copy_(y), old[k], new[k])


def _give(params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
    for k, p in params.items():
        p.grad = grads.get(k)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x
