"""Fingerprints: one for each graph, and one for all that is only data."""

import collections
import contextlib
import dataclasses
import enum
import functools
import os
import random
import subprocess
import sys
import textwrap
import threading
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, schedules, stage, update
from pipeline.fingerprint import UnknownError, fingerprint
from tests import pipes


def pipe(model=pipes.Linear, *more, rule=None, grads=None, crit=None):
    return Pipeline(
        forward.model(model), *more, crit or loss.cross_entropy(), backward.gradients(**(grads or {})),
        *([rule or update.sgd(0.1)] if not isinstance(rule, list) else rule),
    )  # fmt: skip


def of(*args, **options):
    return fingerprint(pipe(*args, **options).stages)


def scaled(factor):
    return stage(writes="outputs", name="scaled")(lambda outputs: outputs * factor)


def chosen(kind):
    def function(outputs, how=kind):
        return getattr(outputs, how)()

    return stage(writes="outputs", name="chosen")(function)


def teacher(net):
    return stage(writes="outputs", name="taught")(lambda outputs, inputs: outputs + net(inputs))


def numbered(lr):
    def function(params, grads, lr=lr):
        return {k: p - lr * grads[k] for k, p in params.items()}

    return stage(writes="params", name="own")(function)


class Config:
    """As those of transformers: an object with a __dict__."""

    def __init__(self, **settings):
        self.__dict__.update(settings)


class Configured(pipes.Linear):
    def __init__(self, **settings):
        super().__init__()
        self.config = Config(**settings)


class Three(nn.Module):
    """Three layers, of which one may be another."""

    def __init__(self, tied=()):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for a, b in tied:
            self.layers[a].weight = self.layers[b].weight


def sequence(*layers):
    return lambda: nn.Sequential(nn.Linear(4, 3), *layers)


def buffered(persistent=True, shape=(2,)):
    module = pipes.Linear()
    module.register_buffer("b", torch.zeros(shape), persistent=persistent)
    return module


def patched(forward):
    module = pipes.Linear()
    module.layer.forward = forward
    return module


SGD = functools.partial(update.sgd, 0.1)
GRAPHS = {
    "a constant in a closure": lambda: (of(pipes.Linear, scaled(2.0)), of(pipes.Linear, scaled(3.0))),
    "a constant's type": lambda: (of(pipes.Linear, scaled(2.0)), of(pipes.Linear, scaled(2))),
    "a default that is no number": lambda: (of(pipes.Linear, chosen("relu")), of(pipes.Linear, chosen("tanh"))),
    "a tensor in a closure": lambda: (
        of(pipes.Linear, scaled(torch.ones(3))), of(pipes.Linear, scaled(torch.zeros(3)))),
    "the weights of a net that is no stage": lambda: tuple(of(pipes.Linear, teacher(nn.Linear(4, 3))) for _ in "ab"),
    "dropout": lambda: tuple(of(sequence(nn.Dropout(p))) for p in (0.1, 0.2)),
    "order": lambda: (of(sequence(nn.ReLU(), nn.Tanh())), of(sequence(nn.Tanh(), nn.ReLU()))),
    "tied": lambda: tuple(of(functools.partial(Three, tied)) for tied in ((), [(2, 0)], [(2, 1)])),
    "frozen": lambda: (of(pipes.Linear), of(lambda: pipes.Linear().requires_grad_(False))),
    "buffers": lambda: (of(buffered), of(lambda: buffered(shape=(3,))), of(pipes.Linear)),
    "a config": lambda: tuple(of(lambda a=a: Configured(act=a)) for a in ("relu", "gelu")),
    "a nested config": lambda: tuple(of(lambda a=a: Configured(rope={"a": [1, Config(b=a)]})) for a in (1.0, 2.0)),
    "a method of one module": lambda: (of(lambda: patched(lambda x: F.relu(x))), of(lambda: patched(lambda x: -x))),
    "smoothing": lambda: tuple(of(crit=loss.cross_entropy(smoothing=s)) for s in (0.0, 0.1)),
    "weight": lambda: tuple(of(crit=loss.cross_entropy(weight=w)) for w in (None, torch.ones(3), torch.arange(3))),
    "accumulate": lambda: tuple(of(grads={"accumulate": k}) for k in (1, 2)),
    "route": lambda: tuple(of(grads={"route": r}) for r in ("functional", "tape")),
    "clip": lambda: (of(), *(of(rule=[c(1.0), SGD()]) for c in (update.clip_norm, update.clip_value))),
    "rule": lambda: (of(), of(rule=SGD(momentum=0.9)), of(rule=SGD(momentum=0.9, nesterov=True)),
                     of(rule=update.adam()), of(rule=update.adamw())),
    "schedule": lambda: tuple(of(rule=update.sgd(s)) for s in (
        0.1, schedules.constant(0.1), schedules.cosine(0.1), schedules.linear(0.1), schedules.step(0.1, 5),
        schedules.schedule(0.1, lambda step, a=2.0: a**step), schedules.schedule(0.1, lambda step, a=2.0: a * step))),
    "metrics": lambda: (of(), of(pipes.Linear, evaluate.accuracy()), of(pipes.Linear, evaluate.accuracy(dim=-1))),
    "loss": lambda: (of(), of(crit=loss.mse()), of(crit=loss.l1())),
}  # fmt: skip


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_what_shapes_the_graph_shapes_the_hash(make):
    """Two graphs have two hashes, and each is the same when all is built again."""
    first = make()
    assert len(set(first)) == len(first)
    torch.manual_seed(0)
    assert make() == first


@given(lr=st.floats(0, 1), momentum=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), steps=st.integers(1, 99))
def test_what_is_data_is_not_in_the_hash(lr, momentum, seed, steps):
    """The numbers of hyperparameters and schedules, weights and data are inputs of the graph."""

    def made(lr, momentum, seed, steps):
        torch.manual_seed(seed)
        data = {"inputs": torch.randn(9, 4), "targets": torch.randint(3, (9,))}
        net = Three([(1, 0)])
        begin = (load.batches(data, size=4), forward.model(net), loss.cross_entropy(), backward.gradients())
        rules = update.sgd(schedules.cosine(lr, steps=steps), momentum=momentum), numbered(lr)
        whole = Pipeline(*begin, update.clip_norm(lr), *rules)
        whole.init(seed)
        return fingerprint(whole.stages)

    assert made(lr, momentum, seed, steps) == made(0.1, 0.5, 0, 7)


def test_a_stage_that_another_calls_is_seen_whole():
    """Its defaults are then numbers of the graph, though its own hyperparameters are State's."""

    def both(scale):
        @stage(writes="outputs", name="inner")
        def inner(outputs, scale=scale):
            return outputs * scale

        outer = stage(writes="outputs", name="outer")(lambda outputs: inner(outputs))
        return of(pipes.Linear, inner), of(pipes.Linear, inner, outer)

    (alone, together), (alone_2, together_2) = both(2.0), both(3.0)
    assert alone == alone_2
    assert together != together_2


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class SlotsAndMore(Slots):
    def __init__(self, a):
        super().__init__(a)
        self.b = 1


class Dict(dict):
    pass


class Number(float):
    pass


@dataclasses.dataclass
class Data:
    a: object
    b: list[int] | None = dataclasses.field(default_factory=list)


Pair = collections.namedtuple("Pair", "a b")


def attribute(value):
    def function():
        return function.value

    function.value = value
    return function


def wrapped(value):
    @functools.wraps(F.relu)
    def function(x):
        return F.relu(x) * value

    return function


def lambdas():
    return [lambda x: x + 1, lambda x: x - 1]


def guarded(early):
    def first(x):
        try:
            x = int(x)
            x = abs(x)
        except ValueError:
            x = 0
        return x

    def second(x):
        x = int(x)
        try:
            x = abs(x)
        except ValueError:
            x = 0
        return x

    return first if early else second


def kind(value):
    return enum.Enum("Kind", {"A": value}).A


@contextlib.contextmanager
def scope(value):
    yield value


def dict_with(value):
    made = Dict(a=1)
    made.more = value
    return made


def number_with(value):
    made = Number(1.0)
    made.more = value
    return made


def tensor_with(value):
    made = torch.ones(2)
    made.more = value
    return made


def ring(value):
    made = [value]
    made.append({"again": made})
    return made


ODD = {
    "slots": Slots,
    "slots and a dict": SlotsAndMore,
    "a dataclass": Data,
    "a namedtuple": functools.partial(Pair, 1),
    "a partial": functools.partial(functools.partial, print),
    "a keyword of a partial": lambda v: functools.partial(print, end=v),
    "a bound method": lambda v: Data(v).__eq__,
    "a bound method in C": lambda v: [v].append,
    "a dict's attributes": dict_with,
    "a number's attributes": number_with,
    "a tensor's attributes": tensor_with,
    "a function's attributes": attribute,
    "a wrapper of a known function": wrapped,
    "a ring": ring,
    "a set of functions": lambda v: {functools.partial(print, v)},
    "an enum's value": kind,
    "a default factory": lambda v: collections.defaultdict(functools.partial(int, v)),
    "a slice of a tensor": lambda v: slice(None, torch.arange(2000) == 1000 + v),
    "objects in an array": lambda v: torch.zeros(1).numpy().astype(object) + v,
    "bfloat16": lambda v: torch.tensor(v, dtype=torch.bfloat16),
    "complex": lambda v: torch.tensor([v + 1j]).conj(),
    "a class's attribute": lambda v: type("Local", (), {"a": v}),
    "a made dataclass": lambda v: dataclasses.make_dataclass("Made", [("x", float, v)]),
    "a metaclass": lambda v: type("Meta", (type,), {"a": v})("Local", (), {}),
    "a property": lambda v: type("Local", (), {"a": property(lambda self: v)}),
    "a cached property": lambda v: type("Local", (), {"a": functools.cached_property(lambda self: v)}),
    "a cached function": lambda v: functools.lru_cache(lambda: v),
    "a nested function": lambda v: lambda: lambda: v,
    "a decorator made from a generator": lambda v: scope(v)(lambda: None),
    "no_grad": lambda v: torch.no_grad()(lambda: v),
    "vmap": lambda v: torch.func.vmap(lambda x: x * v),
    "one of two lambdas": lambda v: lambdas()[v == 1],
    "where a try begins": lambda v: guarded(v == 1),
    "a module": lambda v: setattr(made := types.ModuleType("own"), "SCALE", v) or made,
    "what it is a key of": lambda v: [{1: 2, 3: 4}, {}] if v == 1 else [{1: 2}, {3: 4}],
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_objects_are_seen_through(make):
    """Whatever holds a value, another value gives another hash, and the same one the same."""
    assert fingerprint([make(1)]) != fingerprint([make(2)])
    assert fingerprint([make(1)]) == fingerprint([make(1)])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    ),
    st.integers(),
)
def test_structures_differ_where_their_texts_do(value, more):
    """Nested values have the hash of their text, and another beside anything else."""
    assert fingerprint([value]) == fingerprint([eval(repr(value), {"inf": float("inf")})])
    assert fingerprint([value]) != fingerprint([[value]])
    assert fingerprint([value, [more]]) != fingerprint([[value, more]])


def test_an_installed_class_is_another_when_somebody_changed_it(monkeypatch):
    """Methods and functions put into installed code are seen."""
    net = sequence(nn.GELU())
    before = of(net)
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: x)
    assert of(net) != before


def reads_the_environment(outputs):
    return outputs * float(os.environ["SCALE"])


def evaluates(outputs):
    return eval("outputs * 2")


def imports_later(outputs):
    import no_such_module_anywhere as later

    return later.f(outputs)


class Answers:
    def __getattr__(self, name):
        raise RuntimeError("no")


UNKNOWN = {
    "a lock": lambda: threading.Lock(),
    "an open file": lambda: sys.__stdout__,
    "a generator": lambda: (i for i in "ab"),
    "a generator of numbers": lambda: random.Random(0),
    "torch's generator": lambda: torch.Generator(),
    "a sparse tensor": lambda: torch.ones(2).to_sparse(),
    "a scripted module": lambda: torch.jit.script(nn.ReLU()),
    "the environment": lambda: reads_the_environment,
    "eval": lambda: evaluates,
    "a module that is not there": lambda: imports_later,
    "too deep": lambda: functools.reduce(lambda inner, _: [inner], range(5000), []),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_seen_through_is_unknown(make):
    """It has no hash, alone or inside an object, and the error is the one that says so."""
    held = make()
    for value in (held, Config(held=held), functools.partial(print, held)):
        with pytest.raises(UnknownError):
            fingerprint(value)


def test_a_cell_without_content_is_no_error():
    """A closure over a name that is assigned later has a hash."""

    def function():
        return later

    fingerprint(function)
    later = 1
    assert function() == 1


USER = """
import helper, deep.inner
from pipeline import Pipeline, backward, forward, loss, stage, update
from pipeline.fingerprint import fingerprint
from tests import pipes
NAMES = {"a", "b", "c", "d"}
LIMIT = 1.0
@stage(writes="outputs")
def mine(outputs):
    import lazy
    kept = [outputs for n in NAMES if n in {"a", "b", "x"}]
    return helper.scale(outputs) * helper.SCALE * deep.inner.FACTOR * lazy.SHIFT * LIMIT
def hash():
    import lazy
    stages = (forward.model(pipes.Linear), mine, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    return fingerprint(Pipeline(*stages).stages)
"""
FILES = {
    "user.py": USER,
    "helper.py": "SCALE = 2.0\ndef scale(x):\n    return inner(x)\ndef inner(x):\n    return x + 1\n",
    "lazy.py": "SHIFT = 1\n",
    "deep/__init__.py": "",
    "deep/inner.py": "FACTOR = 3\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The hash of a user's project in a new process, with some text of its files replaced."""
    folder = tmp_path_factory.mktemp("project")

    def run(*changes, seed="0", cached=False):
        names = []
        for i, change in enumerate(changes):
            place = folder / f"{len(list(folder.iterdir()))}-{i}"
            names.append(str(place))
            for name, content in FILES.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(content.replace(*change) if change else content)
        script = textwrap.dedent("""
            import sys
            for folder in sys.argv[1:]:
                sys.path.insert(0, folder)
                for name in ("user", "helper", "lazy", "deep", "deep.inner"):
                    sys.modules.pop(name, None)
                import user
                print(user.hash())
                sys.path.pop(0)
        """)
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", script, *names]
        outputs = []
        for _ in range(2 if cached else 1):  # the second time from .pyc files
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            outputs += done.stdout.split()
        return outputs

    return run


def test_a_new_process_and_pyc_files_give_the_same_hash(project):
    """The order of sets, and whether Python compiles or loads the code, are nothing to it."""
    first = project(None, cached=True)
    assert {*first, *project(None, seed="7")} == {first[0]}


def test_what_a_users_modules_say_is_in_the_hash(project):
    """A value or a function's body in any module that the code reaches."""
    changes = [None, ("SCALE = 2.0", "SCALE = 2.5"), ("x + 1", "x + 2"), ("FACTOR = 3", "FACTOR = 4"),
               ("SHIFT = 1", "SHIFT = 2"), ("LIMIT = 1.0", "LIMIT = 2.0"), ('"d"', '"e"')]  # fmt: skip
    hashes = project(*changes)
    assert len(set(hashes)) == len(changes)


def test_models_of_the_library_have_hashes():
    """Each of them, of another size another one."""
    assert of(lambda: models.mlp(4, 5, 3)) != of(lambda: models.mlp(4, 6, 3))
    assert of(lambda: nn.LSTM(4, 3)) == of(lambda: nn.LSTM(4, 3)) != of(lambda: nn.LSTM(4, 3, num_layers=2))
