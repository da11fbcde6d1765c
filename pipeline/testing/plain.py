"""The loop in torch that a pipeline stands for: nn.Modules, torch.optim and the stages' plain functions.

The data in their order, first weights and memories, and `keyed` for draws are the library's; nothing that runs a step.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pipeline.backward import Gradients, SharpnessAware
from pipeline.draws import keyed
from pipeline.errors import ByHandError
from pipeline.forward import Model
from pipeline.joint import joined
from pipeline.means import Calls, weighed
from pipeline.names import LASTS
from pipeline.pipe import Pipeline
from pipeline.programs import data as batches_of
from pipeline.schedules import Schedule
from pipeline.stage import Stage, first_line
from pipeline.state import Batch, State, samples
from pipeline.testing.counterparts import CLIPS, home, options, rules, scheduler
from pipeline.tree import tree_map
from pipeline.update import Finite


class PlainLoop:
    def __init__(self, pipe: Pipeline, seed: int, epochs: int) -> None:
        assert pipe.load is not None
        self.pipe, batches = pipe, pipe.load.batches
        self.lengths = None if batches is None else batches * epochs, batches
        self.first = pipe.init(seed, steps=self.lengths[0])
        self.given: dict[str, Any] = {"seed": self.first["seed"], "step": self.first.step.clone()}
        self.calls = {s.params: s for s in pipe.graph if isinstance(s, Model)}
        self.modules = {name: _module(s, self.first, seed) for name, s in self.calls.items()}
        for name in self.calls.keys() - {m.params for m in pipe.models}:
            self.modules[name].requires_grad_(False)
        mine = {*LASTS, *self.calls, *(s.buffers for s in self.calls.values())}
        self.rest = tree_map(torch.clone, {k: x for k, x in self.first.tree.items() if k not in mine})
        self.memory = tree_map(torch.clone, self.first.memory)
        self.of: dict[str, list[str]] = {}
        self.rules: dict[str, list[Any]] = {}
        self.schedules: dict[str, Any] = {}
        self.sums: dict[str, Any] = {}
        self.drew = False
        self.batches = ((k, b) for e in range(epochs) for k, b in enumerate(pipe.load.epoch(seed, e)))

    def step(self) -> None:
        k, batch = next(self.batches)
        if not k:
            self.sums = {}
            self.begin()
        self.run(batch, True)
        self.given["step"] += 1

    def begin(self) -> None:
        """Zeros where a buffer is carried through an epoch alone."""
        for s in self.calls.values():
            for k in (k for k, (how, _) in s.module.carried.items() if how == "epoch"):
                self.kept()[s.buffers][k].zero_()

    def kept(self) -> dict[str, Any]:
        """What State keeps: the tensors themselves, which are changed in place."""
        found = dict(self.rest)
        for name, s in self.calls.items():
            own = {**dict(self.modules[name].named_parameters()), **dict(self.modules[name].named_buffers())}
            found |= {k: {n: own[n] for n in self.first[k]} for k in (name, s.buffers)}
        return found

    def whole(self, s: Stage, kept: dict[str, Any]) -> dict[str, Any]:
        """What a stage gets as "params": of all models that the gradients are of which it reads."""
        read = [self.of[v] for v in s.reads if v in self.of]
        if not read and "params" in s.writes:  # as lookahead
            read = [of for of in self.of.values() if "params" in of or "params" not in kept]
        if not read or "params" not in s.reads:
            return kept
        return {**kept, "params": joined({name: kept[name] for name in read[-1]})}

    def number(self, full: str, number: Any) -> float:
        """A hyperparameter at this step."""
        if not isinstance(number, Schedule):
            return float(number)
        if full not in self.schedules:
            self.schedules[full] = scheduler(full, number, *self.lengths), number.watches
        schedule, watches = self.schedules[full]
        if schedule is None:
            return number.at(int(self.given["step"]), *self.lengths)
        while not watches and schedule.last_epoch < self.given["step"]:
            schedule.optimizer.step()
            schedule.step()
        return float(schedule.optimizer.param_groups[0]["lr"])

    def observe(self, metrics: Mapping[str, Any]) -> None:
        for schedule, watches in self.schedules.values():
            if watches:
                schedule.step(metrics[watches[0]])

    def validated(self, data: Any) -> dict[str, Any]:
        """The results of the weights, and of each average of them."""
        before, sums, found = tree_map(torch.clone, self.kept()), self.sums, dict[str, Any]()
        parts = [(part, part.training) for m in self.modules.values() for part in m.modules()]
        for m in self.modules.values():
            m.eval()
        for name, s in {"": None, **self.pipe.averages}.items():
            if s is not None and s.anew and any(isinstance(part, _NormBase) for part, _ in parts):
                raise ByHandError(f"can't be done by hand: statistics made anew for {s.name!r}")
            _write(self.kept(), s.averaged({**before, "memory": self.memory}, {}) if s is not None else {})
            self.sums = {}
            self.begin()
            for batch in batches_of.source(self.pipe, data).epoch(0, 0):
                first = tree_map(torch.clone, self.kept())
                self.run(batch, False)
                for call in self.calls.values():
                    for k in self.first[call.buffers].keys() - call.module.carried.keys():
                        self.kept()[call.buffers][k].detach().copy_(first[call.buffers][k])
            found |= {f"{name}.{k}" if name else k: x for k, x in self.results().items()}
        _write(self.kept(), before)
        self.sums = sums
        for part, mode in parts:
            part.training = mode
        return found

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for s in self.pipe.graph:
            if (total := self.sums.get(s.name)) is not None and s.finish is not None:
                made = {s.of: total["sum"] / total["weight"]} if isinstance(s, Gradients) else s.finish(total)
                found |= {f"{s.name}.{k}" if k in found else k: x.tolist() for k, x in made.items()}
        return found

    def run(self, batch: Batch, training: bool) -> None:
        """The stages on a batch, each by its plain function, its module, its optimizer, or loss.backward()."""
        values = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, dict(batch))
        for s in (s for s in self.pipe.host if s.runs(training)):
            values |= s._written(s.function(**s.arguments({**values, "training": training})))[0]
        values = {**(batch := self.pipe.place.batch(values)), **self.given, "training": training}
        names = {s.name for s in (self.pipe.graph if training else self.pipe.evaluation)}
        stages = [s for s in self.pipe.given if isinstance(s, Stage) and s.name in names and s.runs(training)]
        self.hyper = {s.name: {h: self.number(f"{s.name}.{h}", n) for h, n in s.hyper.items()} for s in stages}
        if training:
            numbers = {f"{name}.{h}": _tensor(x) for name, of in self.hyper.items() for h, x in of.items()}
            values |= {"hyper": numbers, "before": tree_map(lambda x: x.detach().clone(), self.kept())}
        for i, s in enumerate(stages):
            ahead = not training or any(isinstance(t, Gradients) for t in stages[i:])
            kept = self.whole(s, self.kept())
            values = {**values, **(kept if ahead else tree_map(_detached, kept))}
            try:
                with self.pipe.place.autocast() if ahead and not isinstance(s, Gradients) else nullcontext():
                    written = weighed(self.one(s, values, kept, batch))
            except ByHandError:
                raise
            except Exception as e:
                raise ByHandError(f"can't be done by hand: stage {s.name!r} fails: {first_line(e)}") from e
            _write(kept, written)
            values |= written
            values = values if ahead and training and not isinstance(s, Gradients) else tree_map(_detached, values)

    def one(self, s: Stage, values: dict[str, Any], kept: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """What a stage writes."""
        names = dict(s.parameters)
        if isinstance(s, Model):
            return self.forward(s, values)
        if isinstance(s, Gradients):
            return self.backward(s, values, batch)
        if (clip := CLIPS.get(home(s.function))) is not None:
            params = joined({model: kept[model] for model in self.of[names["grads"]]})
            _give(params, values[names["grads"]])
            clip(params.values(), self.hyper[s.name]["limit"], **options(clip, {}, s.function))
            return {s.writes[0]: {k: p.grad for k, p in params.items() if p.grad is not None}}
        if not ({"params", "grads"} <= names.keys() and s.writes == (names["params"],)):
            written = self.call(s, values, self.hyper[s.name], self.memory, s.name)
            if isinstance(s, Finite) and not written[s.writes[0]]:
                raise ByHandError("can't be done by hand: a step that is not finite")
            return written
        params, grads = kept[names["params"]], values[names["grads"]]
        if s.name not in self.rules:
            self.rules[s.name] = list(
                rules(s, params, lambda k, x: self.number(f"{s.name}.{k}", x), self.memory, s.name)
            )
        for rule, at, own, optimizer, memory, key in self.rules[s.name]:
            hyper = {h: self.hyper[s.name][f"{at}{h}"] for h in rule.hyper}
            if optimizer is not None:
                _give({k: params[k] for k in own}, grads)
                optimizer.param_groups[0].update(options(type(optimizer), hyper))
                optimizer.step()
                continue
            wired = {**rule.names, "params": names["params"], "grads": names["grads"]}
            mine = {v: {k: values[v][k] for k in own if k in values[v]} for v in (names["params"], names["grads"])}
            [new] = self.call(evolve(rule, names=wired), {**values, **mine}, hyper, memory, key).values()
            _write(params, new)
        return {}

    def call(self, s: Stage, values: Mapping[str, Any], hyper: Mapping[str, float], memory: Any,
             key: str) -> dict[str, Any]:  # fmt: skip
        """What a plain function writes; its memory stays where it was, and its sums are added up."""
        given = s.arguments(values) | {h: _tensor(x) for h, x in hyper.items()}
        if s.remembers and s.finish is None:
            given["memory"] = memory[key]
        written, after = s._written(self.drawn(s, s.function, **given))
        if s.finish is not None:
            self.add(s, after)
        elif s.remembers:
            memory[key] = tree_map(_detached, after)
        return written

    def add(self, s: Stage, sums: Any) -> None:
        sums = tree_map(_detached, sums)
        self.sums[s.name] = tree_map(torch.add, self.sums[s.name], sums) if s.name in self.sums else sums

    def drawn(self, s: Stage, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """A call that draws as the stage does in a pipeline."""
        with (key := keyed(self.given["seed"], self.given["step"], zlib.crc32(s.name.encode()))), Calls():
            result = function(*args, **kwargs)
        self.drew = self.drew or key._draws > 0
        return result

    def forward(self, s: Model, values: Mapping[str, Any]) -> dict[str, Any]:
        words = s.inputs if isinstance(s.inputs, Mapping) else {}
        names = [s.inputs] if isinstance(s.inputs, str) else [] if words else s.inputs
        kwargs = {k: values[v] for k, v in words.items()}
        result = self.drawn(s, self.modules[s.params], *[values[v] for v in names], **kwargs)
        if isinstance(s.outputs, str):
            return {s.outputs: result}
        if isinstance(s.outputs, Mapping):
            parts = result if isinstance(result, Mapping) else vars(result)
            return {name: parts[k] for k, name in s.outputs.items()}
        return dict(zip(s.outputs, result, strict=False))

    def backward(self, g: Gradients, values: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """The gradients of all models that train and that the loss reaches, where nobody named some."""
        loss, weight = values[g.of], _tensor(values.get(f"{g.of}.weight", samples(batch, self.pipe.samples)))
        self.add(g, {"sum": loss.double() * weight, "weight": weight})
        if not values["training"]:
            return {}
        if g.per_example or isinstance(g, SharpnessAware):
            raise ByHandError(f"can't be done by hand: {g.name!r}, which takes more than one gradient")
        parts = [part for m in self.modules.values() for part in m.modules()]
        if g.accumulate > 1 and (self.drew or any(isinstance(p, _NormBase) and p.training for p in parts)):
            raise ByHandError(f"can't be done by hand: {g.name!r} of parts that draw, or have BatchNorm's statistics")
        for m in self.modules.values():
            m.zero_grad(set_to_none=True)
        loss.backward()
        reached = {name for name, m in self.modules.items() if any(p.grad is not None for p in m.parameters())}
        wired = next(x.wrt for x in self.pipe.backwards if x.name == g.name)
        trained = [m.params for m in self.pipe.models if not m.module.frozen]
        self.of[g.grads] = [*g.wrt] or [name for name in trained if name in {*wired, *reached}]
        params = joined({name: self.kept()[name] for name in self.of[g.grads]})
        return {g.grads: {k: p.grad for k, p in params.items() if p.grad is not None}}


def _module(s: Model, state: State, seed: int) -> nn.Module:
    """The user's own, with the weights of a State."""
    made = s.module.build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = made if isinstance(made, nn.Module) else made()
        if isinstance(made, nn.Module) or module is made():
            module = copy.deepcopy(module)
    module = getattr(module, "_orig_mod", module)
    module.load_state_dict(s.state_dict(state), strict=False)
    module.to(state.step.device)
    if s.module.frozen:
        return module.requires_grad_(False).eval()
    still = [part for part in module.modules() if not part.training]
    train = s.module.train if s.module.train is not None else not module.training
    module.train()
    for part in () if train else still:
        part.training = False
    return module


def _write(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Into what is kept, in place."""
    names = old.keys() & new.keys()
    with torch.no_grad():
        tree_map(lambda x, y: x.copy_(y), {k: old[k] for k in names}, {k: new[k] for k in names})


def _give(params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
    for k, p in params.items():
        p.grad = grads.get(k)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)
