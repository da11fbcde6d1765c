"""Nets as people write them: each trains as in the loop by hand, or is refused by one line that says what to write."""

import copy
import dataclasses
import functools
import inspect
import random
import re
import threading
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, place, stage, testing, update
from pipeline.draws import keyed
from pipeline.errors import CaptureError, PipeError, StageError, WiringError
from tests import pipes

ROWS = torch.Generator().manual_seed(0)
TARGETS = torch.arange(18) % 3
FLAT = {"inputs": torch.randn(18, 4, generator=ROWS), "targets": TARGETS}
SEQUENCES = {"inputs": torch.randn(18, 5, 4, generator=ROWS), "targets": TARGETS}
IMAGES = {"inputs": torch.randn(18, 3, 8, 8, generator=ROWS), "targets": TARGETS}
WORDS = {"inputs": torch.randint(7, (18, 5), generator=ROWS), "targets": TARGETS}


@frozen
class Kind:
    """A net, what it is trained on in three steps, and what has to come of it: the loop by hand, where none says
    else."""

    build: Callable[[], nn.Module]
    data: dict[str, Any] = FLAT
    """18 rows: three batches of 6."""
    more: Callable[[int], dict[str, Any]] | None = None
    """From the step, what else is in its batch."""
    inputs: Any = "inputs"
    stages: tuple[Any, ...] = ()
    """Stages of one's own before the model."""
    loss: Any = F.cross_entropy
    """A function of named values; loss.cross_entropy() where it is torch's."""
    plain: Callable[[], nn.Module] | None = None
    """What the loop by hand trains, where the net itself does not go with keyed draws there."""
    precision: str = "fp32"
    tolerance: float = 1e-5
    by_tape: bool = False
    """Whether torch.func refuses it."""
    native: bool = False
    """Whether its fused steps are compiled as they are by default, which takes seconds, and not by aot_eager."""
    needs: str = "torch"
    refused: str = ""
    """What the refusal says, compiled or not."""
    uncaptured: str = ""
    """What the refusal to compile says."""
    or_refused: str = ""
    """What a refusal would have to say, where equality is as good."""

    @property
    def batches(self):
        parts = [pytree.tree_map(lambda x, k=k: x[6 * k : 6 * k + 6].clone(), self.data) for k in range(3)]
        return [{**part, **(self.more(k) if self.more else {})} for k, part in enumerate(parts)]

    @property
    def fusable(self):
        """Whether its data are tensors in memory, as fused steps need."""
        return not self.more and all(isinstance(value, Tensor) for value in self.data.values())


KINDS: dict[str, Kind] = {}


def layer():
    return {"layer": nn.Linear(4, 3)}


def module(forward, parts):
    """A module of parts, whose tensors become buffers, with a forward that reads as in any class."""
    made = type(forward.__name__, (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        made.register_buffer(name, part) if type(part) is Tensor else setattr(made, name, part)
    return made


def net(parts=layer, **options):
    """Add the kind whose forward this is, under its name in words."""

    def add(forward):
        name = forward.__name__.strip("_").replace("_", " ")
        assert name not in KINDS
        KINDS[name] = Kind(lambda: module(forward, parts()), **options)
        return forward

    return add


def call(function, values):
    return function(**{name: values[name] for name in inspect.signature(function).parameters})


@functools.cache
def by_hand(name):
    """The losses, parameters and buffers of three steps of a kind in the usual loop; draws come from (seed 0, step)."""
    kind = KINDS[name]
    torch.manual_seed(0)
    module = (kind.plain or kind.build)()
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        pipe = piped(kind)
        module.load_state_dict(pipe.models[0].state_dict(pipe.init(0).tree))
    own = [k for k, _ in (*module.named_parameters(), *module.named_buffers())]  # not what is made on the way
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    if not any(not m.training for m in module.modules()):
        module.train()
    bf16, losses = kind.precision == "bf16", []
    for step, values in enumerate(kind.batches):

        def draws(stage, step=step):
            return keyed(torch.tensor(0), torch.tensor(step), zlib.crc32(stage.encode()))

        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if bf16 else nullcontext():
            for s in kind.stages:
                with draws(s.name):
                    values[s.writes[0]] = call(s.function, values)
            with draws("forward.model"):
                if isinstance(kind.inputs, dict):
                    values["outputs"] = module(**{k: values[v] for k, v in kind.inputs.items()})
                else:
                    names = (kind.inputs,) if isinstance(kind.inputs, str) else kind.inputs
                    values["outputs"] = module(*[values[n] for n in names])
            if kind.loss is F.cross_entropy:
                value = F.cross_entropy(values["outputs"], values["targets"])
            else:
                value = call(kind.loss, values)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return losses, {k: tensors[k].detach() for k in own}


def piped(kind, route="auto", device="cpu"):
    """The kind as a pipeline."""
    return Pipeline(
        *([load.batches(kind.data, size=6, shuffle=False)] if kind.fusable else []),
        place.on(device, precision=kind.precision),
        *kind.stages,
        forward.model(kind.build, inputs=kind.inputs),
        loss.cross_entropy() if kind.loss is F.cross_entropy else loss.function(kind.loss, "loss.own"),
        backward.gradients(route=route),
        update.sgd(0.1),
    )


def trained(kind, way, device="cpu"):
    """The same as by_hand, of the pipeline; its first State has to stay what it was, refused or not."""
    route = {"functional": "auto" if kind.by_tape else "functional", "compiled": "auto"}.get(way, "tape")
    pipe = piped(kind, route, device)
    state = pipe.init(0)
    before, after, losses = state.clone(), state, []
    native = kind.native and way == "fused" and device == "cpu"
    options = {"backend": "auto" if native else pipes.TRACED, "donate": False}
    step = pipe.step if way in EAGER else pipe.compile(steps=3 if way == "fused" else 1, **options)
    try:
        if way == "fused":
            after, metrics = step(state)
            losses = metrics["loss"].tolist()
        else:
            for batch in kind.batches:
                after, metrics = testing.pure(step, after, pipe.place.batch(batch))
                losses.append(metrics["loss"].item())
    finally:
        testing.same(state.tree, before.tree)
    if way not in EAGER:
        assert len(step.report.graphs) == 1
    return losses, place.host({**after.params, **after.buffers})


# -- as they come with torch

LSTM = functools.partial(nn.LSTM, 4, 5, 2, dropout=0.5, batch_first=True)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def after(wrap):
    """A small net, one of whose layers was wrapped."""
    return lambda: nn.Sequential(wrap(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def hooked(register, hook):
    def build():
        made = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        getattr(made[1], register)(hook)
        return made

    return build


def frozen_norm():
    made = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    made[1].eval()
    return made


def twins():
    one = nn.Linear(4, 4)
    return nn.Sequential(one, nn.Tanh(), copy.deepcopy(one), nn.Linear(4, 3))


def with_hook_on_a_parameter():
    made = nn.Linear(4, 3)
    made.weight.register_hook(lambda grad: grad * 2)
    return made


def called_before(build, inputs):
    """A net that was tried once, and kept what it computed then."""

    def made():
        net = build()
        net(inputs)
        return net

    return made


HEAD = [nn.Flatten(), functools.partial(nn.Linear, 20, 3)]
KINDS |= {
    "encoder": Kind(
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True), 2),
            nn.Flatten(),
            nn.Linear(20, 3),
        ),
        SEQUENCES,
    ),
    "batch norm": Kind(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), native=True),
    "frozen batch norm": Kind(frozen_norm),
    "group norm": Kind(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3)), IMAGES
    ),
    "layer norm": Kind(lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))),
    "instance norm": Kind(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, True, track_running_stats=True), nn.Flatten(), nn.Linear(144, 3)
        ),
        IMAGES,
    ),
    "feature alpha dropout": Kind(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.FeatureAlphaDropout(0.3), nn.Flatten(), nn.Linear(144, 3)),
        IMAGES,
    ),
    "in place activations": Kind(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ELU(inplace=True))),
    "lambdas": Kind(lambda: nn.Sequential(Lambda(lambda x: x * 2), nn.Linear(4, 3), Lambda(torch.tanh))),
    "partials": Kind(lambda: nn.Sequential(*[f() for f in (functools.partial(nn.Linear, 4, 3), nn.Tanh)])),
    "bilinear": Kind(lambda: nn.Bilinear(4, 4, 3), inputs=("inputs", "inputs")),
    "deep copies": Kind(twins),
    "weight norm": Kind(after(parametrizations.weight_norm)),
    "weight norm of old": Kind(after(nn.utils.weight_norm)),
    "spectral norm": Kind(after(parametrizations.spectral_norm)),
    "spectral norm of old": Kind(after(nn.utils.spectral_norm)),
    "orthogonal": Kind(after(parametrizations.orthogonal)),
    "pruned": Kind(after(lambda layer: prune.l1_unstructured(layer, "weight", 0.4)), native=True),
    "forward hook": Kind(hooked("register_forward_hook", lambda module, args, output: output * 2)),
    "forward pre hook": Kind(hooked("register_forward_pre_hook", lambda module, args: (args[0] * 2,))),
    "backward hook": Kind(hooked("register_full_backward_hook", lambda module, before, after: (before[0] * 2,)),
                          by_tape=True),
    "hook on a parameter": Kind(with_hook_on_a_parameter, refused=r"parameter 'weight' has a hook.*grads"),
    "float64": Kind(
        lambda: nn.Linear(4, 3, dtype=torch.float64), {"inputs": FLAT["inputs"].double(), "targets": TARGETS}
    ),
    "bfloat16": Kind(
        lambda: nn.Linear(4, 3, dtype=torch.bfloat16),
        {"inputs": FLAT["inputs"].bfloat16(), "targets": TARGETS},
        tolerance=2e-2,
    ),
    "lazy linear": Kind(lambda: nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))),
    "lazy convolutions": Kind(
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)), IMAGES
    ),
    "compiled inside": Kind(lambda: nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.Linear(4, 3)),
                            or_refused=r"torch\.compile"),
    "scripted": Kind(lambda: torch.jit.script(nn.Linear(4, 3)), or_refused=r"torch\.jit|[Ss]cript"),
    "data parallel": Kind(lambda: nn.DataParallel(nn.Linear(4, 3))),
}  # fmt: skip


# -- draws


def attention():
    return {"mix": nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True), "head": nn.Linear(4, 3)}


@net(attention, data=SEQUENCES)
def multihead_attention(self, x):
    return self.head(self.mix(x, x, x, need_weights=False)[0].mean(1))


@net(attention, data=SEQUENCES, precision="bf16", tolerance=1e-2)
def attention_in_bf16(self, x):
    return self.head(self.mix(x, x, x)[0].mean(1))


@net(lambda: {"rnn": LSTM(), "head": nn.Linear(5, 3)}, data=SEQUENCES)
def lstm(self, x):
    return self.head(self.rnn(x)[0][:, -1])


@net(lambda: {"rnn": nn.GRU(4, 5, 2, dropout=0.5, batch_first=True), "head": nn.Linear(5, 3)}, data=SEQUENCES)
def gru(self, x):
    return self.head(self.rnn(x)[1][-1])


@net(lambda: {"layer": nn.Linear(5, 4)}, loss=lambda outputs: outputs[0].sub(outputs[1]).square().mean())
def diffusion(self, x):
    time = torch.randint(1, 10, (len(x), 1)) / 10
    noise = torch.randn_like(x)
    return self.layer(torch.cat([time.sqrt() * x + (1 - time).sqrt() * noise, time], 1)), noise


@net()
def mixup(self, x):
    share = torch.rand(len(x), 1)
    return self.layer(share * x + (1 - share) * x[torch.randperm(len(x))])


@net()
def multinomial(self, x):
    return self.layer(x[torch.multinomial(x.softmax(0).mean(1), len(x), replacement=True)])


@net(lambda: {"encoder": nn.Linear(4, 6), "decoder": nn.Linear(3, 3)})
def variational(self, x):
    mean, spread = self.encoder(x).chunk(2, 1)
    return self.decoder(mean + torch.normal(0.0, 1.0, mean.shape) * spread.exp())


@net(lambda: {"layer": nn.Linear(4, 5), "codes": nn.Parameter(torch.randn(5, 3))})
def gumbel_softmax(self, x):
    return F.gumbel_softmax(self.layer(x), hard=True) @ self.codes


@net(lambda: {**layer(), "generator": torch.Generator()}, refused=r"forward\.model.*torch\.Generator.*leave it out")
def generator_of_its_own(self, x):
    return self.layer(x + torch.rand(x.shape, generator=self.generator))


@net(lambda: {**layer(), "generator": torch.Generator()})
def generator_unused(self, x):
    return self.layer(x)


@net(refused=r"forward\.model.*NumPy.*torch\.rand")
def numpy_random(self, x):
    return self.layer(x * np.random.rand())


@net(
    lambda: {**layer(), "rng": np.random.default_rng(0)},
    refused=r"forward\.model.*generator that the module holds.*torch\.rand",
)
def numpy_generator_of_its_own(self, x):
    return self.layer(x * self.rng.random())


@net(refused=r"forward\.model.*Python.*torch\.rand")
def python_random(self, x):
    return self.layer(x) if random.random() < 0.5 else self.layer(x * 2)


@net(uncaptured=r"forward\.model.*torch\.where")
def stochastic_depth(self, x):
    return self.layer(x) if torch.rand(1) < 0.5 else self.layer(x + x.tanh())


@net()
def stochastic_depth_by_where(self, x):
    return self.layer(x + torch.where(torch.rand(len(x), 1) < 0.5, x.tanh(), 0.0))


@stage(writes="inputs")
def noisy(inputs):
    return inputs + 0.1 * torch.rand(inputs.shape)


KINDS["noise in a stage"] = Kind(lambda: nn.Linear(4, 3), stages=(noisy,))


# -- gradients within the forward, and beside it


class Doubled(torch.autograd.Function):
    """As most are written: with ctx in the forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0].exp()


class Rounded(torch.autograd.Function):
    """As torch.func would have it: with setup_context."""

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


@net(by_tape=True)
def function_with_ctx(self, x):
    return Doubled.apply(self.layer(x))


@net()
def function_with_setup_context(self, x):
    return Rounded.apply(self.layer(x))


@net()
def straight_through(self, x):
    y = self.layer(x)
    return y + (y.sign() - y).detach()


@net(by_tape=True)
def physics(self, x):
    x = x.detach().requires_grad_()
    y = self.layer(x).tanh()
    [slope] = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope.sum(1, keepdim=True)


@net(by_tape=True, loss=lambda outputs, targets: F.cross_entropy(outputs[0], targets) + outputs[1])
def gradient_penalty(self, x):
    x.requires_grad_()
    y = self.layer(x).tanh()
    [slope] = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y, (slope.norm(2, 1) - 1).square().mean()


@net()
def jacobian_by_func(self, x):
    return self.layer(x).tanh() + torch.func.vmap(torch.func.jacrev(lambda row: self.layer(row).tanh()))(x).sum(-1)


@net(lambda: {"backbone": nn.Linear(4, 4), **layer()})
def backbone_without_gradients(self, x):
    with torch.no_grad():
        x = self.backbone(x)
    return self.layer(x)


@net(tolerance=1e-2)
def autocast_within(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.layer(x)
    return y.float()


def blocks(p=0.0):
    return {"first": nn.Linear(4, 4), "block": nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(p)), **layer()}


def unchecked(self, x):
    return self.layer(self.block(self.first(x)))


def checkpointed(self, x):
    return self.layer(checkpoint(self.block, self.first(x), use_reentrant=False))


def checkpointed_reentrantly(self, x):
    return self.layer(checkpoint(self.block, self.first(x), use_reentrant=True))


for words, forward_, options in (
    ("checkpoint", checkpointed, {}),
    ("reentrant checkpoint", checkpointed_reentrantly, {"or_refused": "use_reentrant=False"}),
):
    for more, p in (("", 0.0), (" with dropout", 0.5)):
        KINDS[words + more] = Kind(
            functools.partial(lambda f, p: module(f, blocks(p)), forward_, p),
            plain=functools.partial(lambda p: module(unchecked, blocks(p)), p),
            by_tape=True,
            **options,
        )


# -- tensors that a module keeps


@net(lambda: {**layer(), "mean": torch.zeros(3)}, native=True)
def buffer_assigned(self, x):
    y = self.layer(x)
    self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
    return y - self.mean


@net(lambda: {**layer(), "mean": torch.zeros(3)})
def buffer_written(self, x):
    y = self.layer(x)
    with torch.no_grad():
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
    return y - self.mean


def queue():
    return {**layer(), "queue": torch.zeros(12, 3), "ptr": torch.zeros(1, dtype=torch.int64)}


@net(queue, uncaptured=r"forward\.model.*index")
def queue_by_number(self, x):
    """MoCo's, as it was published."""
    y, ptr = self.layer(x), int(self.ptr)
    scores = y + self.queue.clone().mean(0)
    self.queue[ptr : ptr + len(x)] = y.detach()
    self.ptr[0] = (ptr + len(x)) % len(self.queue)
    return scores


@net(queue)
def queue_by_tensor(self, x):
    y = self.layer(x)
    scores = y + self.queue.clone().mean(0)
    self.queue[(self.ptr + torch.arange(len(x), device=x.device)) % len(self.queue)] = y.detach()
    self.ptr += len(x)
    return scores


@net(lambda: {**layer(), "teacher": nn.Linear(4, 3).requires_grad_(False)}, native=True)
def averaged_teacher(self, x):
    with torch.no_grad():
        for slow, own in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
            slow.mul_(0.9).add_(own, alpha=0.1)
    return self.layer(x) - self.teacher(x)


@net(lambda: {"words": nn.Embedding(7, 3, max_norm=1.0)}, data=WORDS, refused=r"params\.words\.weight.*max_norm")
def renormed_embedding(self, x):
    return self.words(x).mean(1)


@net(refused=r"params\.layer\.weight.*(stage|after update)")
def clipped_weights(self, x):
    with torch.no_grad():
        self.layer.weight.clamp_(-0.1, 0.1)
    return self.layer(x)


@net(lambda: {**layer(), "calls": 0}, refused=r"forward\.model.*'calls'.*register_buffer")
def counter_in_python(self, x):
    self.calls += 1
    return self.layer(x) * self.calls


@net(lambda: {**layer(), "last": 0.0}, refused=r"forward\.model.*'last'.*register_buffer")
def output_read_again(self, x):
    y = self.layer(x) + self.last
    self.last = y.detach()
    return y


class Closures(nn.Module):
    """Functions that refer to the module by closures and defaults: a hook, and a forward put in another's place."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.layer.register_forward_hook(lambda module, args, y: setattr(self, "seen", y))
        self.head.forward = lambda x, forward=self.head.forward: 2 * forward(x)

    def forward(self, x):
        self.layer(x)
        return self.head(self.seen)


KINDS["functions that refer to the module"] = Kind(Closures, native=True)


@net(lambda: {**layer(), "last": None})
def output_kept(self, x):
    self.last = self.layer(x)
    return self.last


KINDS["output kept of an earlier call"] = Kind(called_before(KINDS["output kept"].build, FLAT["inputs"]))


@net(lambda: {**layer(), "mean": None}, refused=r"forward\.model.*'mean'.*register_buffer")
def tensor_made_in_the_first_call(self, x):
    y = self.layer(x)
    self.mean = y.detach().mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * y.detach().mean(0)
    return y - self.mean


class Late(nn.Module):
    """A buffer that has no value before the first call."""

    def __init__(self, first):
        super().__init__()
        self.layer, self.first = nn.Linear(4, 3), first
        self.register_buffer("late", None)

    def forward(self, x):
        y = self.layer(x)
        if self.late is None:
            self.late = self.first(y.detach())
        return y - self.late


KINDS["buffer made of the first batch"] = Kind(
    lambda: Late(lambda y: y.mean(0)), refused=r"forward\.model.*'late'.*first value by register_buffer"
)
KINDS["buffer that is a cache"] = Kind(lambda: Late(torch.ones_like))


@net(
    lambda: {**layer(), "counts": {"calls": np.zeros(1, np.float32)}},
    refused=r"forward\.model.*'counts'.*register_buffer",
)
def array_that_counts(self, x):
    self.counts["calls"] += 1
    return self.layer(x) * float(self.counts["calls"][0])


@net(lambda: {**layer(), "size": 0, "balance": 0.0, "pad": float("nan")})
def facts_kept(self, x):
    y = self.layer(x)
    self.size, self.balance = len(x), y.mean()
    return y


@net(lambda: {**layer(), "seen": {"mean": 0.0}}, refused=r"forward\.model.*'seen'.*register_buffer")
def statistics_for_evaluation_alone(self, x):
    y = self.layer(x)
    if not self.training:
        return y - self.seen["mean"]
    self.seen["mean"] = 0.9 * self.seen["mean"] + 0.1 * y.detach().mean(0)
    return y


@net(lambda: {**layer(), "history": []}, refused=r"forward\.model.*'history'.*register_buffer")
def list_that_grows(self, x):
    self.history.append(self.layer(x).detach())
    return self.layer(x) - sum(self.history[:-1], x.new_zeros(()))


@net(lambda: {**layer(), "seen": torch.zeros(1, 3)}, refused=r"forward\.model.*'seen'.*shape")
def buffer_that_grows(self, x):
    y = self.layer(x) - self.seen.mean(0)
    self.seen = torch.cat([self.seen, y.detach()])
    return y


class Stubborn(nn.Sequential):
    """Keeps its statistics in whatever mode it is, as detectors do."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


KINDS["train overridden"] = Kind(lambda: Stubborn(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))


@net(lambda: {**layer(), "lock": threading.Lock()})
def lock(self, x):
    with self.lock:
        return self.layer(x)


# -- what a batch holds, and what comes out


@net(inputs=("inputs", "scale"), more=lambda k: {"scale": torch.tensor(1.0 + k)})
def zero_dimensional_tensor(self, x, scale):
    return self.layer(x) * scale


@net(inputs=("inputs", "scale"), more=lambda k: {"scale": 1.0 + k})
def python_number(self, x, scale):
    return self.layer(x) * scale


@net(more=lambda k: {"source": f"file {k}"})
def string_beside(self, x):
    return self.layer(x)


@net(more=lambda k: {"ids": [f"sample {6 * k + i}" for i in range(6)]})
def list_of_strings_beside(self, x):
    return self.layer(x)


@net(inputs=("inputs", "mode"), more=lambda k: {"mode": "double"}, or_refused=r"'mode'.*(str|text)")
def string_read(self, x, mode):
    return self.layer(x) * (2 if mode == "double" else 1)


@net(data={"inputs": {"x": FLAT["inputs"], "deep": {"y": SEQUENCES["inputs"]}}, "targets": TARGETS})
def nested_dict(self, inputs):
    return self.layer(inputs["x"] + inputs["deep"]["y"].mean(1))


@net(data={"inputs": [FLAT["inputs"], FLAT["inputs"].neg().exp()], "targets": TARGETS})
def list_of_tensors(self, views):
    return torch.stack([self.layer(view) for view in views]).mean(0)


@net(inputs={"x": "inputs", "scale": "scale"}, data={**FLAT, "scale": torch.arange(18.0)[:, None] / 9})
def keywords(self, x, **options):
    return self.layer(x) * options["scale"]


def first(outputs, targets):
    return F.cross_entropy(outputs[0], targets)


def logits(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


def logits_of(outputs, targets):
    return F.cross_entropy(outputs.logits, targets)


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


def model_output(logits, hidden):
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=logits, hidden_states=(hidden,))


RETURNS = {
    "tuple": (lambda *both: both, first, {}),
    "dict": (lambda logits, hidden: {"logits": logits, "hidden": hidden}, logits, {}),
    "named tuple": (Pair, logits_of, {}),
    "dataclass": (Output, logits_of, {}),
    "model output": (model_output, logits, {"needs": "transformers.modeling_outputs"}),
}


def returning(make):
    def forward(self, x):
        y = self.layer(x)
        return make(y, y.tanh())

    return lambda: module(forward, layer())


for words, (make, pick, options) in RETURNS.items():
    KINDS[f"{words} to a loss that picks"] = Kind(returning(make), loss=pick, **options)
    KINDS[f"{words} to cross entropy"] = Kind(
        returning(make), refused=r"loss\.cross_entropy.*'?outputs'?.*(stage|outputs=|loss\.function)", **options
    )


@net(inputs=("inputs", "targets"), loss=lambda outputs: outputs)
def loss_itself(self, x, targets):
    return F.cross_entropy(self.layer(x), targets)


# -- control flow and shapes that depend on values, and other forms of the same


@net(uncaptured=r"forward\.model.*torch\.where")
def boolean_indexing(self, x):
    return self.layer(x) - x[x > 0].mean()


@net(uncaptured=r"forward\.model.*(torch\.where|mask|dense)")
def routing_by_nonzero(self, x):
    y = self.layer(x)
    chosen = (x[:, 0] > 0).nonzero().squeeze(1)
    return y.index_add(0, chosen, self.layer(x[chosen] * 2))


@net(uncaptured=r"forward\.model.*torch\.where")
def branch_on_a_value(self, x):
    y = self.layer(x)
    return y if y.mean() > 0 else -y


@net(uncaptured=r"forward\.model.*torch\.where")
def assertion(self, x):
    assert torch.isfinite(x).all(), "inputs are not finite"
    return self.layer(x)


@net(lambda: {"gate": nn.Linear(4, 3), "experts": nn.ModuleList(nn.Linear(4, 3) for _ in range(3))})
def dense_experts(self, x):
    gates = self.gate(x).softmax(1)
    kept = torch.where(gates >= gates.topk(2, 1).values[:, -1:], gates, 0.0)
    return torch.einsum("be,ebc->bc", kept, torch.stack([expert(x) for expert in self.experts]))


@net(lambda: {"gate": nn.Linear(4, 2), "experts": nn.ModuleList(nn.Linear(4, 3) for _ in range(2))},
     uncaptured=r"forward\.model.*(torch\.where|dense|mask)")  # fmt: skip
def sparse_experts(self, x):
    made, to = x.new_zeros(len(x), 3), self.gate(x).argmax(1)
    for i, expert in enumerate(self.experts):
        made[to == i] = expert(x[to == i])
    return made * self.gate(x).softmax(1).amax(1, keepdim=True)


@net(uncaptured=r"forward\.model.*torch\.where")
def number_logged(self, x):
    y = self.layer(x)
    self.norm = y.norm().item()
    return y


@net()
def profiled(self, x):
    with torch.profiler.record_function("layer"):
        return self.layer(x)


@net(native=True)
def reads_training(self, x):
    return self.layer(x) * 2 if self.training else self.layer(x)


# -- how parts are kept


def tie():
    words, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = words.weight
    return {"words": words, "head": head}


@net(tie, data=WORDS, native=True)
def tied_weights(self, x):
    return self.head(self.words(x).mean(1))


@net(lambda: {"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), **layer()})
def module_list(self, x):
    for each in self.layers:
        x = x + each(x).relu()
    return self.layer(x)


@net(lambda: {"heads": nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})})
def module_dict(self, x):
    return sum(head(x) for head in self.heads.values())


@net(lambda: {"weights": nn.ParameterList(nn.Parameter(torch.randn(4, 3)) for _ in range(2))})
def parameter_list(self, x):
    return sum(x @ w for w in self.weights)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def symmetric():
    made = nn.Linear(4, 4)
    parametrize.register_parametrization(made, "weight", Symmetric())
    return {"square": made, **layer()}


@net(symmetric)
def parametrization_of_its_own(self, x):
    return self.layer(self.square(x).tanh())


@net(lambda: {"cell": nn.GRUCell(4, 5), "head": nn.Linear(5, 3)}, data=SEQUENCES)
def loop_over_time(self, x):
    h = x.new_zeros(len(x), 5)
    for t in range(x.shape[1]):
        h = self.cell(x[:, t], h)
    return self.head(h)


LENGTHS = torch.arange(18) % 4 + 2


@net(lambda: {"rnn": LSTM(), "head": nn.Linear(5, 3)}, inputs=("inputs", "lengths"),
     data={**SEQUENCES, "lengths": LENGTHS}, by_tape=True,
     uncaptured=r"forward\.model.*pack.*(mask|lengths)")  # fmt: skip
def packed_sequence(self, x, lengths):
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return self.head(self.rnn(packed)[1][0][-1])


def ctc(outputs, labels):
    return F.ctc_loss(outputs.log_softmax(-1).transpose(0, 1), labels, [5] * len(labels), [2] * len(labels))


def ctc_of_tensors(outputs, labels):
    lengths = labels.new_full((len(labels),), 5), labels.new_full((len(labels),), 2)
    return F.ctc_loss(outputs.log_softmax(-1).transpose(0, 1), labels, *lengths)


SPOKEN = {**SEQUENCES, "labels": torch.arange(36).view(18, 2) % 2 + 1}
UNCAPTURED = r"loss\.own.*ctc_loss.*fallback='eager'"
KINDS["ctc"] = Kind(lambda: nn.Linear(4, 3), SPOKEN, loss=ctc, by_tape=True, uncaptured=UNCAPTURED)
KINDS["ctc of tensors"] = Kind(lambda: nn.Linear(4, 3), SPOKEN, loss=ctc_of_tensors, uncaptured=UNCAPTURED)


@net(lambda: {"words": nn.Embedding(7, 3, sparse=True), "bag": nn.EmbeddingBag(7, 3, sparse=True)}, data=WORDS)
def sparse_embedding(self, x):
    return self.words(x).mean(1) + self.bag(x) + F.embedding(x, self.words.weight, sparse=True).sum(1)


@net(lambda: {"bag": nn.EmbeddingBag(7, 3, mode="mean")}, data=WORDS)
def embedding_bag(self, x):
    return self.bag(x)


@net(
    lambda: {"filter": nn.Parameter(torch.randn(3, 4, dtype=torch.complex64)), "head": nn.Linear(4, 3)}, data=SEQUENCES
)
def complex_parameters(self, x):
    return self.head(torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.filter, n=5, dim=1).mean(1))


def unet():
    return {"down": nn.Conv2d(3, 4, 3, padding=1), "deep": nn.Conv2d(4, 4, 3, padding=1), "up": nn.Conv2d(8, 3, 1)}


@net(unet, data=IMAGES)
def u_net(self, x):
    high = self.down(x).relu()
    low = self.deep(F.max_pool2d(high, 2)).relu()
    low = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    return self.up(torch.cat([high, low], 1)).mean((2, 3))


@net(lambda: {**layer(), "quantised": torch.ao.quantization.get_default_qat_qconfig("fbgemm").activation()})
def quantisation_aware(self, x):
    return self.layer(self.quantised(x))


@net(lambda: {**layer(), "quantised": torch.ao.quantization.FakeQuantize()}, uncaptured=r"forward\.model.*torch\.where")
def fake_quantize(self, x):
    return self.layer(self.quantised(x))


# -- the laws

EAGER = ("functional", "tape")
WAYS = (*EAGER, "compiled", "fused")


def held(name, way, device="cpu", close=0.0):
    """Hold a net against the usual loop, `close` at least, or its refusal against the line that is expected."""
    kind = KINDS[name]
    pytest.importorskip(kind.needs)
    said, refusal = kind.refused or (kind.uncaptured if way not in EAGER else ""), None
    try:
        losses, tensors = trained(kind, way, device)
    except PipeError as error:
        if not (said or kind.or_refused):
            raise
        refusal = error
    if refusal is not None:
        assert re.search(said or kind.or_refused, str(refusal)), str(refusal)
        assert "\n" not in str(refusal)
        assert not kind.uncaptured or isinstance(refusal, CaptureError)
        return
    assert not said, f"not refused by a line like {said!r}"
    expected_losses, expected = by_hand(name)
    assert set(tensors) == set(expected)
    testing.same(
        {"losses": torch.tensor(losses), **{k: tensors[k] for k in expected}},
        {"losses": torch.tensor(expected_losses), **expected},
        max(kind.tolerance, close),
    )


def ways(kind):
    """The ways of a net; one compiled step a call is thorough where many are tried, which are compiled alike."""
    for way in WAYS:
        if way != "fused" or kind.fusable:
            yield way, [pytest.mark.thorough] if way == "compiled" and kind.fusable else []


@pytest.mark.parametrize(
    ("name", "way"), [pytest.param(n, w, marks=marks) for n, kind in KINDS.items() for w, marks in ways(kind)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_net_trains_as_by_hand_or_says_what_to_write(name, way):
    """Three steps give the losses, parameters and buffers of the usual loop, or one line that says what to write."""
    held(name, way)


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind.by_tape])
@pytest.mark.filterwarnings("ignore")
def test_what_functions_do_not_take_names_the_route_that_does(name):
    """Where route="functional" was asked for, and torch.func refuses the code, the line says which route to write."""
    pipe = piped(KINDS[name], "functional")
    with pytest.raises(PipeError, match=r"stage '(forward.model|loss.own)'.*route=.tape"):
        pipe.step(pipe.init(0), KINDS[name].batches[0])


@stage(writes="inputs")
def letters(words):
    return torch.tensor([[ord(c) / 99 for c in word] for word in words])


@pytest.mark.parametrize("options", [{"compile": False}, {"backend": "aot_eager"}], ids=["eager", "compiled"])
def test_a_loader_yields_what_people_put_into_a_batch(options):
    """A loop over a loader of strings, numbers and tensors within others trains as one over their tensors does."""
    words = ["pure", "step", "code", "tape", "loss", "grad"]
    rows = [{"words": words[k:] + words[:k], "scale": k + 1, "targets": TARGETS[:6]} for k in range(2)]
    rows = [{**row, "more": {"deep": [torch.ones(6, 4) * k]}, "file": f"part {k}"} for k, row in enumerate(rows)]

    def forward_(self, x, scale, more):
        return self.layer(x + more["deep"][0]) * scale

    stages = loss.cross_entropy(), backward.gradients(), update.sgd(0.1)
    model = forward.model(lambda: module(forward_, layer()), inputs=("inputs", "scale", "more"))
    pipe = Pipeline(load.loader(rows), letters, place.on("cpu"), model, *stages)
    [report] = fit(pipe, epochs=1, **options)
    torch.manual_seed(0)
    expected = module(forward_, layer())
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for row in rows:
        optimizer.zero_grad()
        F.cross_entropy(expected(letters(row["words"]), row["scale"], row["more"]), row["targets"]).backward()
        optimizer.step()
    testing.same(report.state.params, {k: p.detach() for k, p in expected.named_parameters()}, 1e-5)


@stage(writes="outputs")
def summed(outputs):
    outputs = outputs.clone()
    torch.distributed.all_reduce(outputs)
    return outputs


@pytest.fixture
def alone():
    """A process group of this process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_collective_in_a_stage_is_said_to_be_one():
    """What talks to other processes is not captured, and the line says that, and nothing of NumPy."""
    pipe = piped(Kind(lambda: nn.Linear(4, 3))).insert(summed, after="forward.model")
    with pytest.raises(StageError, match=r"stage 'summed' calls the collective c10d\.allreduce_"):
        pipe.compile(backend="aot_eager")(pipe.init(0), KINDS["layer norm"].batches[0])


class Balanced(nn.Module):
    """Leaves a second loss on itself, as mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.layer, self.balance = nn.Linear(4, 3), 0.0

    def forward(self, x):
        y = self.layer(x)
        self.balance = y.square().mean()
        return y


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_forward_leaves_on_its_module_is_returned_and_not_read(compiled):
    """A stage would read the first value for ever, as steps call a copy: it is refused by name, however it reads it."""
    net = Balanced()

    @stage(writes="loss")
    def total(outputs, targets):
        return F.cross_entropy(outputs, targets) + net.balance

    every = loss.function(
        lambda outputs, targets: (
            F.cross_entropy(outputs, targets) + sum(m.balance for m in net.modules() if hasattr(m, "balance"))
        )
    )
    for made in (total, every):
        pipe = Pipeline(forward.model(net), made, backward.gradients(), update.sgd(0.1))
        step = pipe.compile(backend=pipes.TRACED) if compiled else pipe.step
        with pytest.raises(StageError, match=f"'{made.name}' reads the module's 'balance'.*return it"):
            step(pipe.init(0), {"inputs": FLAT["inputs"][:6], "targets": TARGETS[:6]})


def test_names_that_tensors_have_too_are_no_attributes_of_the_module():
    """A loss of the module's own may call .mean(), where the forward sets self.mean."""

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            self.mean = x.mean(0)
            return self.layer(x - self.mean)

        def loss(self, outputs, targets):
            return F.cross_entropy(outputs, targets, reduction="none").mean()

    net = Centred()
    pipe = Pipeline(forward.model(net), loss.function(net.loss), backward.gradients(), update.sgd(0.1))
    pipe.step(pipe.init(0), {"inputs": FLAT["inputs"][:6], "targets": TARGETS[:6]})


def test_trained_models_with_equal_weights_are_warned_of():
    """Those of two equal factories stay equal if nothing tells them apart."""
    twins = [forward.model(lambda: nn.Linear(4, 3), outputs=k, params=k, name=k) for k in ("one", "other")]
    mean = stage(writes="outputs", name="mean")(lambda one, other: (one + other) / 2)
    pipe = Pipeline(*twins, mean, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    with pytest.warns(UserWarning, match="models 'one' and 'other' begin with equal weights"):
        pipe.init(0)


@pytest.mark.parametrize("hidden", [False, True])
def test_trained_models_that_share_a_parameter_are_refused(hidden):
    """Each would train a copy, also of one in a list; .again() is one module, and a frozen copy may stay behind."""
    shared = nn.Linear(4, 4)
    one = forward.model(nn.Sequential(shared, nn.Linear(4, 3)), outputs="one")
    net = module(lambda self, x: self.head(self.hidden[0](x)), {"head": nn.Linear(4, 3)})
    net.hidden = [shared]
    net = net if hidden else nn.Sequential(shared, nn.Linear(4, 3))
    mean = stage(writes="outputs", name="mean")(lambda one, other: (one + other) / 2)

    def made(other):
        return Pipeline(one, other, mean, loss.cross_entropy(), backward.gradients(), update.sgd(0.1)).init(0)

    with pytest.raises(WiringError, match=r"'params' and 'other' share '0.weight'.*one module of both.*\.again"):
        made(forward.model(net, outputs="other", params="other", name="other"))
    made(forward.model(net, outputs="other", params="other", name="other", frozen=True))
    made(one.again(outputs="other"))
    made(forward.model(copy.deepcopy(net), outputs="other", params="other", name="other"))


def sharing(way):
    made = module(lambda self, x: self.head(self.other(self.first(x))), {"first": nn.Linear(4, 4)})
    made.other, made.head = nn.Linear(4, 4), nn.Linear(4, 3)
    whole = torch.zeros(4, 8)
    if way == "transposed":
        made.other.weight = nn.Parameter(made.first.weight.t())
    elif way == "data":
        made.other.weight.data = made.first.weight.data
    elif way == "buffer":
        made.register_buffer("copy", made.first.weight.data)
    elif way == "tied":
        made.other.weight = made.first.weight
    elif way == "halves":
        made.first.weight, made.other.weight = nn.Parameter(whole[:, ::2]), nn.Parameter(whole[:, 1::2])
    else:
        made.register_buffer("one", whole), made.register_buffer("two", whole.view(-1).expand(2, 32))
    return made


@pytest.mark.parametrize("way", ["transposed", "data", "buffer", "tied", "halves", "buffers"])
def test_tensors_of_a_module_that_share_memory_are_refused(way):
    """State would have a copy of each, of which one stays behind; a tie, other numbers and constants are fine."""
    pipe = Pipeline(forward.model(sharing(way)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    if way in ("tied", "halves", "buffers"):
        pipe.step(pipe.init(0), {"inputs": FLAT["inputs"][:6], "targets": TARGETS[:6]})
        return
    with pytest.raises(WiringError, match=r"share memory.*assign the Parameter itself"):
        pipe.init(0)


class Counter:
    step = 0


def counts(of):
    """A forward that counts on its module in some way, and changes after many calls."""

    def own(self, x):
        if of == "a dict":
            self.kept["step"] += 1
        elif of == "a list":
            self.kept.append(x)
        elif of == "an object":
            self.kept.step += 1
        elif of == "a tensor":
            self.kept = self.kept + 1
        elif of == "None":
            first, self.kept = self.kept, None
            x = x if first is None else x * 2
        elif of == "no more":
            x = x * 2 if self.__dict__.pop("kept", None) else x
        elif of == "a cache":
            x = x + self.kept.setdefault(len(x), torch.ones(4))
        elif of == "nan":
            self.kept = x * float("nan")
        return self.layer(x)

    first = {"a dict": {"step": 0}, "a list": [], "an object": Counter(), "a tensor": torch.tensor(0), "a cache": {}}
    made = module(own, layer())
    made.kept = first.get(of, 1)
    return made


@pytest.mark.parametrize("of", ["a dict", "a list", "an object", "a tensor", "None", "no more", "a cache", "nan"])
@pytest.mark.parametrize("way", ["trained", "frozen", "evaluated"])
def test_what_a_module_counts_in_any_way_is_refused(of, way):
    """State does not hold it, and each call would see the first; what each call makes anew is fine."""
    net = counts(of)
    if way == "evaluated":
        net = module(lambda self, x: self.layer(x) if self.training else self.own(x), {**layer(), "own": net})
    model = forward.model(net, outputs="taught", params="teacher", frozen=True, name="teacher")
    rest = loss.cross_entropy(), evaluate.accuracy(), backward.gradients(), update.sgd(0.1)
    pipe = Pipeline(*((model, forward.model(nn.Linear(4, 3))) if way == "frozen" else (forward.model(net),)), *rest)
    fine = (
        nullcontext()
        if of in ("a cache", "nan")
        else pytest.raises(StageError, match=r"changes its attribute '.*kept'")
    )
    with fine:
        if way == "evaluated":
            pipe.evaluate(pipe.init(0), (FLAT["inputs"], TARGETS))
        else:
            pipe.step(pipe.init(0), {"inputs": FLAT["inputs"][:6], "targets": TARGETS[:6]})


@pytest.mark.parametrize("what", ["a call", "a weight", "a loss", "a shape"])
def test_a_stage_that_reads_a_trained_modules_own_weights_is_refused(what):
    """It would see the first ones for ever; what depends on no weight is fine."""
    net = nn.Linear(4, 3)

    def guess(inputs):
        with torch.no_grad():
            return net(inputs).argmax(1)

    def norm(inputs):
        return net.weight.detach().norm()

    def size(inputs):
        return torch.tensor(net.weight.shape[0])

    reads = {"a call": guess, "a weight": norm, "a shape": size}.get(what)
    sums = evaluate.metric("seen", lambda inputs: {"n": net.bias.detach().sum()}, lambda s: s, {"n": evaluate.FLOAT})
    own = stage(writes="own", name="own")(reads) if reads else sums
    pipe = Pipeline(
        load.batches((FLAT["inputs"], TARGETS), size=6), place.on("cpu"), forward.model(net), own,
        loss.cross_entropy(), backward.gradients(), update.sgd(0.1),
    )  # fmt: skip
    before = net.weight.detach().clone()
    with nullcontext() if what == "a shape" else pytest.raises(StageError, match=r"reads the weights.*\.again"):
        list(fit(pipe, epochs=1, compile=False))
    assert torch.equal(net.weight, before)


def test_a_trainable_module_outside_of_a_model_is_told():
    """Nothing trains what a forward holds by its closure, as in torch, but a line says so."""
    outside = nn.Linear(4, 4)
    net = module(lambda self, x: self.layer(outside(x)), layer())
    rest = loss.cross_entropy(), backward.gradients(), update.sgd(0.1)
    pipe = Pipeline(load.batches((FLAT["inputs"], TARGETS), size=6), place.on("cpu"), forward.model(net), *rest)
    with pytest.warns(UserWarning, match=r"holds tensors that require gradients, \(4, 4\), \(4,\).*nothing trains"):
        list(fit(pipe, epochs=1, compile=False))
