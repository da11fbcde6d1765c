"""pipe port: what it reads from a training script, and that the pipeline it writes does the same step."""

import ast
import inspect
import json
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cli.flags import flags
from cli.port.names import METHODS, NAMES
from cli.port.parts import parts
from cli.port.script import Script
from cli.port.skeleton import skeleton
from cli.recipes.setting import flag
from tests import by_hand
from tests.commands import run

ROOT = Path(__file__).parent.parent
MNIST = """
import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import optim
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from own import Net, train_set, test_set

def train(args, model, loader, optimizer, epoch):
    model.train()
    for batch, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

def test(model, loader):
    model.eval()
    with torch.no_grad():
        for data, target in loader:
            F.nll_loss(model(data), target, reduction="sum")

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("-n", "--epochs", type=int, default=14)
parser.add_argument("--lr", type=float, default=1.0)
args = parser.parse_args()
torch.manual_seed(7)
train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, num_workers=1)
test_loader = DataLoader(test_set, 1000)
model = Net().cuda()
optimizer = optim.Adadelta(model.parameters(), lr=args.lr, weight_decay=config.decay)
scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
for epoch in range(1, args.epochs + 1):
    train(args, model, train_loader, optimizer, epoch)
    test(model, test_loader)
    scheduler.step()
"""


LOOP = """
for epoch in range(2):
    for x, y in loader:
        step.zero_grad()
        f(net(x), y).backward()
        step.step()
"""
SCRIPT = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
N, crit, aux = 4, nn.CrossEntropyLoss(), nn.MSELoss()
test_loader = DataLoader(test, 100)
loader = DataLoader(data, 8, sampler=balanced)
net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.1)
sched = torch.optim.lr_scheduler.StepLR(opt, 1000)
for epoch in range(30):
    for i, (x, y) in enumerate(loader):
        x, y = x.to(device), y.to(device)
        opt.zero_grad()
        out = net(x)
        loss = crit(out, y)
        loss.backward()
        opt.step()
    sched.step()
"""
KNOWN = ["sampler=balanced"]
"""What of SCRIPT is not translated."""


def read(folder, text):
    """The parts of a script, and its skeleton as a namespace."""
    (folder / "train.py").write_text(text)
    found = parts(Script.read(folder / "train.py"))
    namespace = {}
    exec(compile(skeleton("train.py", found), "skeleton", "exec"), namespace)
    return found, namespace


def test_a_known_script(tmp_path):
    """Aliases, argparse's defaults and loops are followed; what is unknown is listed with its line."""
    (tmp_path / "train.py").write_text(MNIST)
    code, out, _ = run("port", "train.py", "--json", cwd=tmp_path)
    found = json.loads(out)
    assert code == 0
    text = found["pipeline"]
    for line in (
        "load.batches(data=data, size=64, shuffle=True),",
        "loss.function(partial(F.nll_loss", "update.clip_norm(limit=2.0),",
        "update.adadelta(lr=schedules.step(base=1.0, every=1 * schedules.EPOCH, gamma=0.7)),",
        "epochs=14, seed=7, validate=held_out",
    ):  # fmt: skip
        assert line.split("(partial")[0] in text, line
    assert "loss.function(F.nll_loss)" in text  # not the evaluation's sum
    number = MNIST.splitlines().index(next(n for n in MNIST.splitlines() if "config.decay" in n)) + 1
    assert [p["not_translated"] for p in found["parts"] if p["not_translated"]] == [["weight_decay=config.decay"]]
    assert f"# not translated: line {number}: weight_decay=config.decay" in text
    assert {p["what"] for p in found["parts"]} >= {"seed", "data", "loss", "optimizer", "scheduler", "eval", "epochs"}
    ast.parse(text)


def test_the_skeleton_trains(tmp_path):
    """In a file of its own, with a model and data."""
    (tmp_path / "train.py").write_text(MNIST.replace("F.nll_loss", "F.cross_entropy"))
    assert run("port", "train.py", "--out", "new.py", cwd=tmp_path).code == 0
    assert "exists" in run("port", "train.py", "--out", "new.py", cwd=tmp_path).err
    namespace = {}
    exec((tmp_path / "new.py").read_text().replace("epochs=14", "epochs=2, compile=False"), namespace)
    data = torch.randn(128, 3), torch.randint(0, 4, (128,))
    state = namespace["train"](nn.Linear(3, 4), data)
    assert int(state.step) == 4


small = st.floats(1e-4, 0.5)
betas = st.tuples(st.floats(0.1, 0.9), st.floats(0.5, 0.99))
RULES = {
    "SGD": st.fixed_dictionaries({"lr": small}, optional={
        "momentum": small, "weight_decay": small, "dampening": small, "maximize": st.booleans()}),
    "Adam": st.fixed_dictionaries({}, optional={
        "lr": small, "betas": betas, "eps": small, "weight_decay": small, "amsgrad": st.booleans()}),
    "AdamW": st.fixed_dictionaries({}, optional={"lr": small, "betas": betas, "weight_decay": small}),
    "RMSprop": st.fixed_dictionaries({}, optional={
        "lr": small, "alpha": small, "momentum": small, "centered": st.booleans(), "eps": small}),
    "Adagrad": st.fixed_dictionaries({}, optional={"lr": small, "lr_decay": small, "weight_decay": small}),
    "NAdam": st.fixed_dictionaries({}, optional={"momentum_decay": small, "decoupled_weight_decay": st.booleans()}),
}  # fmt: skip
LOSSES = {
    "CrossEntropyLoss": st.fixed_dictionaries({}, optional={
        "label_smoothing": st.floats(0, 0.9), "ignore_index": st.integers(-1, 3),
        "reduction": st.sampled_from(["mean", "sum"])}),
    "MSELoss": st.fixed_dictionaries({}, optional={"reduction": st.sampled_from(["mean", "sum"])}),
    "HuberLoss": st.fixed_dictionaries({}, optional={"delta": st.floats(0.1, 2)}),
    "SmoothL1Loss": st.fixed_dictionaries({}, optional={"beta": st.floats(0.1, 2)}),
}  # fmt: skip


def drawn(table):
    return st.sampled_from(sorted(table)).flatmap(lambda name: st.tuples(st.just(name), table[name]))


@settings(max_examples=30)
@given(drawn(RULES), drawn(LOSSES), st.sampled_from(["torch.optim", "O", "from"]), st.integers(0, 9))
def test_a_step_is_torchs(tmp_path_factory, rule, criterion, how, seed):
    """One step of the skeleton gives the weights of the script's own loss and optimizer, whatever their arguments."""
    folder = tmp_path_factory.mktemp("port")
    (kind, options), (of, arguments) = rule, criterion
    head = {"torch.optim": f"rule = torch.optim.{kind}", "O": f"import torch.optim as O\nrule = O.{kind}",
            "from": f"from torch.optim import {kind} as rule"}[how]  # fmt: skip
    lr = {"lr": options["lr"]} if "lr" in options else {}
    rest = ", ".join(f"{k}={v!r}" for k, v in options.items() if k != "lr")
    given = ", ".join(filter(None, ["net.parameters()", *map(repr, lr.values()), rest]))
    criterion = f"nn.{of}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    found, namespace = read(
        folder,
        f"import torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader\n{head}\n"
        f"step = rule({given})\nf = {criterion}\nloader = DataLoader(data, 8)\n{LOOP}",
    )
    assert not [m for p in found for m in p.missing]
    torch.manual_seed(seed)
    net, inputs = nn.Linear(3, 4), torch.randn(8, 3)
    targets = torch.randint(0, 4, (8,)) if of == "CrossEntropyLoss" else torch.randn(8, 4)
    pipe = namespace["pipeline"](net, (inputs, targets))
    batch = {"inputs": inputs, "targets": targets}
    state, _ = pipe.step(pipe.init(0), batch)
    optimizer = getattr(torch.optim, kind)(net.parameters(), **options)
    by_hand.train(net, [batch], optimizer, criterion=getattr(nn, of)(**arguments))
    for name, p in net.named_parameters():
        if not p.isnan().any():  # torch's 0 / 0 if all are ignored
            torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-4, atol=1e-5)


SCHEDULERS = {
    "StepLR": {"step_size": 2, "gamma": 0.5}, "MultiStepLR": {"milestones": [2, 3]}, "LinearLR": {"total_iters": 3},
    "ExponentialLR": {"gamma": 0.9}, "PolynomialLR": {"total_iters": 4, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 0.01}, "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "OneCycleLR": {"max_lr": 0.3, "total_steps": 5, "cycle_momentum": False},
}  # fmt: skip


@pytest.mark.parametrize("per", ["batch", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_is_torchs(tmp_path, name, per):
    """At each step if it is stepped after each batch; otherwise where an epoch begins, which is said if it matters."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in SCHEDULERS[name].items())
    step = " " * (8 if per == "batch" else 4) + "s.step()"
    text = f"""
import torch
o = torch.optim.SGD(net.parameters(), 0.1)
s = torch.optim.lr_scheduler.{name}(o, {arguments})
f = torch.nn.MSELoss()
for epoch in range(5):
    for x, y in loader:
        o.zero_grad()
        f(net(x), y).backward()
        o.step()
{step}
"""
    found, namespace = read(tmp_path, text)
    [part] = [p for p in found if p.what == "scheduler"]
    if (name, per) == ("OneCycleLR", "epoch"):
        assert "once an epoch" in part.missing[0]
        return
    assert part.missing == []
    assert any("once an epoch" in n for n in part.notes) == (per == "epoch" and "Step" not in name)
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULERS[name])
    pipe = namespace["pipeline"](nn.Linear(1, 1), (torch.zeros(256, 1), torch.zeros(256, 1)))
    assert pipe.load.batches == 4
    rate = pipe["update.sgd"].hyper["lr"].filled(20, 4)
    schedule = pipe["update.sgd"].hyper["lr"]
    for at in range(5):
        here = schedule.factor(
            torch.tensor(at * (4 if per == "epoch" else 1)), **{k: torch.tensor(v) for k, v in rate.items()}
        )
        assert float(here) * schedule.base == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        optimizer.step()
        if at < 4:
            scheduler.step()


@pytest.mark.parametrize(("text", "what"), {
    "torch.optim.SGD(groups, lr=0.1)": "the parameters of groups",
    "torch.optim.SGD(n.parameters(), **options)": "**options",
    "torch.optim.SGD(n.parameters(), lr=rate())": "lr=rate()",
    "torch.optim.LBFGS(n.parameters())": "torch.optim.LBFGS(n.parameters())",
    "torch.optim.lr_scheduler.LambdaLR(o, f)": "torch.optim.lr_scheduler.LambdaLR(o, f)",
    "torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD(n.parameters()), 0.1)": "cycle_momentum, on by default",
    "torch.nn.CrossEntropyLoss(weight=w)": "weight=w",
    "torch.nn.MSELoss(reduction='none')": "reduction='none'",
    "torch.utils.data.DataLoader(d, sampler=s)": "sampler=s",
    "torch.autocast('cuda', dtype=kind)": "dtype=kind",
    "torch.manual_seed(args.seed)": "the seed torch.manual_seed(args.seed)",
}.items())  # fmt: skip
def test_nothing_is_dropped(tmp_path, text, what):
    """What can't be told is listed, in the table and in the skeleton."""
    found, _ = read(tmp_path, f"import torch\n{text}\n")
    assert any(m.startswith(what) for p in found for m in p.missing), found
    assert f"# not translated: line 2: {what}" in skeleton("train.py", found)


def test_one_cycle_is_the_whole_run(tmp_path):
    """Where torch has epochs and steps in an epoch, which is said."""
    text = "from torch import optim\nstep = optim.SGD(net.parameters())\n"
    cycle = "optim.lr_scheduler.OneCycleLR(step, 0.2, epochs=3, steps_per_epoch=len(loader), cycle_momentum=False)"
    found, namespace = read(
        tmp_path, f"{text}import torch\ns = {cycle}\nf = torch.nn.MSELoss()\n{LOOP}        s.step()\n"
    )
    [part] = [p for p in found if p.what == "scheduler"]
    assert "epochs=3, steps_per_epoch=len(loader): the cycle here is the whole run" in part.notes
    assert part.missing == []
    pipe = namespace["pipeline"](nn.Linear(1, 1), (torch.zeros(64, 1), torch.zeros(64, 1)))
    assert "pct_start" in pipe["update.sgd"].hyper["lr"].filled(9, 3)


def test_accumulation_multiplies_the_batch(tmp_path):
    """A batch here is all microbatches; a loss that is not divided is said."""
    text = """
from torch import optim, nn
from torch.utils.data import DataLoader
N, f, loader = 4, nn.MSELoss(), DataLoader(d, 8, True)
o = optim.SGD(net.parameters(), 0.1)
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        (f(net(x), y) / N).backward()
        if (i + 1) % N == 0:
            o.step()
            o.zero_grad()
"""
    found, namespace = read(tmp_path, text)
    pipe = namespace["pipeline"](nn.Linear(1, 1), (torch.zeros(64, 1), torch.zeros(64, 1)))
    assert (pipe.load.size, pipe["backward.gradients"].accumulate) == (32, 4)
    assert not [m for p in found for m in p.missing]
    for other in (text.replace(" / N", ""), text.replace(" / N", "") + "x / N\n"):
        assert any("not divided" in m for p in read(tmp_path, other)[0] for m in p.missing)


def missing(folder, text):
    return [m for p in read(folder, text)[0] for m in p.missing]


def test_a_plain_loop_is_read_whole(tmp_path):
    """Its own loader with its size, its schedule once an epoch, and no accumulation."""
    found, _ = read(tmp_path, SCRIPT)
    assert missing(tmp_path, SCRIPT) == KNOWN
    text = skeleton("train.py", found)
    for line in ("size=8", "epochs=30", "every=1000 * schedules.EPOCH", "backward.gradients(),", "cross_entropy(),"):
        assert line in text
    assert "shuffle=False" in text


LISTED = {
    "    sched.step()": {
        "    if epoch % 2 == 0:\n        sched.step()": "sched.step() is neither",
        "": "no one step() of it",
        "    break": "break: it leaves",
        "    for p in net.parameters():\n        p.grad.clamp_(-1, 1)": "weights or gradients by hand",
        "    for g in opt.param_groups:\n        g['lr'] *= 0.9": "g['lr'] *= 0.9; a schedule",
        "sched.step()": "sched.step() is neither",
    },
    "        loss = crit(out, y)": {
        "        loss = crit(out, y) + 0.1 * aux(out, y)": "crit(out, y) + 0.1 * aux(out, y): the loss",
        "        loss = crit(out, y) + 1e-4 * sum(p.abs().sum() for p in net.parameters())": "crit(out, y) + 0.0001",
        "        loss = 0.5 * F.cross_entropy(out, y)": "0.5 * F.cross_entropy(out, y): the loss",
        "        loss = crit(net(x) / 0.07, y)": "net(x) / 0.07: what the loss is of",
        "        loss = crit(out.view(-1, 10), y)": "out.view(-1, 10): what the loss is of",
        "        loss = crit(out, y.flatten())": "y.flatten(): the targets",
        "        loss = crit(out, y)\n        loss += aux(out, y)": "the loss is no bare call",
        "        loss = crit(out, y)\n        if hard:\n            loss = aux(out, y)": "the loss is no bare call",
        "        loss = own(out, y)": "own(out, y): the loss",
        "        loss = crit(y, out)": "y: what the loss is of",
    },
    "        loss.backward()": {
        "        (2.0 * loss).backward()": "2.0 * loss: the loss",
        "        (loss / 3).backward()": "loss / 3: the loss",
        "        loss.backward(retain_graph=True)": "a backward() with arguments",
        "        loss.backward()\n        other.backward()": "a second backward()",
        "        if ready:\n            loss.backward()": "if ready: the step depends on it",
        "        loss.backward()\n        if bad:\n            continue": "continue: it leaves",
    },
    "        loss.backward()\n        opt.step()": {
        "        for micro in range(4):\n            (loss / 4).backward()\n        opt.step()": "in other loops than",
    },
    "        opt.step()": {
        "        opt.step()\n        net.weight.data.clamp_(-1, 1)": "a change in place",
        "        opt.step()\n        h = h.detach()\n        state[0].copy_(h)": "a change in place",
        "        if i % 2 == 0:\n            opt.step()": "the step depends on it",
        "        opt.step(closure)": "a step with a closure",
        "        nn.utils.clip_grad_norm_(head.parameters(), 1.0)\n        opt.step()": "of other parameters than",
        "        opt.step()\n        prune(net)": "prune(net): it may change",
        "        opt.step()\n        average.update_parameters(net)": "average.update_parameters(net): it may change",
        "        with warm.dampening():\n            opt.step()": "warm.dampening(): it is around",
        "        opt.step()\n        if i > 9:\n            exit()": "exit(): it leaves",
        "        opt.step()\n        loader.dataset.grow()": "loader.dataset.grow(): it may change",
    },
    "        out = net(x)": {
        "        out, h = net(x, h)\n        h = h.detach()": "out: what the loss is of",
        "        x = x + noise\n        out = net(x)": "x: the inputs are not the loader's",
        "        net.norm.eval()\n        out = net(x)": "net.norm.eval(): it is trained in eval mode",
        "        with torch.autocast('cuda', enabled=amp):\n            out = net(x)": "enabled=amp",
        "        with torch.autocast('cpu'):\n            out = net(x)": "it is not around the model and the loss",
        "        out = net(x)\n        out[y == 3] = 0": "out[y == 3] = 0: a change in place",
        "        y[y == 3] = 0\n        out = net(x)": "y[y == 3] = 0: a change in place",
        "        out = net(x).squeeze()": "out: what the loss is of",
        "        out = teacher(x)": "out: what the loss is of",
    },
    "        out = net(x)\n": {
        "        net.train(False)\n        out = net(x)\n": "net.train(False): it may change",
        "        with torch.no_grad():\n            out = net(x)\n": "torch.no_grad(): it is around",
        "        out = net(x)\n        net.load_state_dict(average)\n": "net.load_state_dict(average): it may change",
        "        out = net(x)\n        opt.state.clear()\n": "opt.state.clear(): it may change",
        "        torch._foreach_mul_(list(net.parameters()), 0.9)\n        out = net(x)\n": "net.parameters(): it may",
    },
    "        opt.zero_grad()": {"": "gradients that are not cleared"},
    "net.parameters()": {
        "net.fc.parameters()": "the parameters of net.fc.parameters()",
        "[p for p in net.parameters() if p.ndim > 1]": "the parameters of [",
    },
    "test_loader = ": {"from own import crit\ntest_loader = ": "crit(out, y): the loss"},
    "net = Net()": {"net = Net()\nnet.register_full_backward_hook(f)": "it may change gradients",
                  "net = Net()\nnet.requires_grad_(False)": "a change in place",
                            "torch.set_default_dtype(torch.double)\nnet = Net()": "torch.set_default_dtype("},
    "sched = ": {"opt2 = torch.optim.Adam(critic.parameters())\nsched = ": "a second optimizer"},
    "for epoch in range(30):\n    for i, (x, y) in enumerate(loader):": {
        "for step in range(5000):\n    for micro in range(4):": "these are steps, and no epochs",
        "while True:\n    for i, (x, y) in enumerate(loader):": "the epochs of while True",
        "for epoch in count(range(30)):\n    for i, (x, y) in enumerate(loader):": "the epochs of for epoch in count(",
        "for fold in range(5):\n  for epoch in range(30):\n    for i, (x, y) in enumerate(loader):": "a loop around",
        "for epoch in range(30):\n    for i, (x, y) in enumerate(rows()):": "no DataLoader is found",
    },
}  # fmt: skip


CHANGES = [(old, new, what) for old, news in LISTED.items() for new, what in news.items()]


@pytest.mark.parametrize(("old", "new", "what"), CHANGES)
def test_what_is_no_plain_step_is_listed(tmp_path, old, new, what):
    """Each change of a plain loop that changes what is trained."""
    assert SCRIPT.count(old) == 1
    found = missing(tmp_path, SCRIPT.replace(old, new))
    assert any(what in m for m in found), found


HARMLESS = [
    "total += loss.item()", "print(i, loss)", "history['loss'].append(float(loss))", "writer.add_scalar('l', loss, i)",
    "right += (out.argmax(1) == y).sum().item()", "seen = x.shape[0]",
    "if i % 10 == 0:\n            print(opt.param_groups[0]['lr'])",
    "for name in names:\n            if name:\n                break",
]  # fmt: skip


@settings(max_examples=30)
@given(st.lists(st.sampled_from(HARMLESS), max_size=4), st.lists(st.sampled_from(HARMLESS), max_size=4),
       st.sampled_from([("", "", None), *CHANGES]))  # fmt: skip
def test_what_only_tells_changes_nothing(tmp_path_factory, before, after, change):
    """Lines that print or count hide nothing and are not listed, wherever they are."""
    old, new, what = change
    text = SCRIPT.replace(old, new) if old else SCRIPT
    for line, lines in (("        loss = crit(out, y)\n", before), ("        opt.step()\n", after)):
        text = text.replace(line, line + "".join(f"        {n}\n" for n in lines))
    found = missing(tmp_path_factory.getbasetemp(), text)
    assert any(what in m for m in found) if what else found == KNOWN


def test_a_loop_that_runs_twice_is_listed(tmp_path):
    """As one of a function with two calls."""
    head, body = SCRIPT[: SCRIPT.index("for epoch")], SCRIPT[SCRIPT.index("for epoch") :]
    twice = f"{head}def work():\n    {body.replace(chr(10), chr(10) + '    ')}\nwork()\n"
    assert missing(tmp_path, twice) == KNOWN
    assert any("called more than once" in m for m in missing(tmp_path, f"{twice}work()\n"))
    assert any("second backward" in m for m in missing(tmp_path, SCRIPT + body))


@pytest.mark.parametrize("given", ["[p for p in net.parameters() if p.requires_grad]",
                                   "filter(lambda p: p.requires_grad, net.parameters())"])  # fmt: skip
def test_parameters_without_gradients_may_be_left_out(tmp_path, given):
    assert missing(tmp_path, SCRIPT.replace("net.parameters()", given)) == KNOWN


def test_a_wrap_has_the_parameters_of_its_model(tmp_path):
    """So clipping those clips all gradients of the optimizer."""
    text = SCRIPT.replace("sched = ", "both = nn.DataParallel(net)\nsched = ").replace("out = net(x)", "out = both(x)")
    clip = "        nn.utils.clip_grad_norm_(both.parameters(), 1.0)\n        opt.step()"
    assert [m for m in missing(tmp_path, text.replace("        opt.step()", clip)) if "clip" in m] == []


ARGS = """
parser.add_argument("--lr", default=0.1)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
args.device = torch.device(args.device)
"""


@pytest.mark.parametrize(("line", "rate"), {
    "if args.big:\n    args.lr = 3.0": "args.lr",
    "args.lr *= world": "args.lr",
    "def scale(args):\n    args.lr = 3.0 * args.lr\nrate = self.args.lr": "rate",
    "parser.set_defaults(lr=3.0)": "args.lr",
    "parser.set_defaults(**config)": "1 * args.lr",
}.items())  # fmt: skip
def test_an_option_has_its_default(tmp_path, line, rate):
    """What else may set it is listed, but not of options that are not translated."""
    text = SCRIPT.replace("net = Net()", f"{ARGS}{line}\nnet = Net()").replace("lr=0.1", f"lr={rate}")
    found, _ = read(tmp_path, text)
    assert "base=0.1" in skeleton("train.py", found)
    [told] = [m for p in found for m in p.missing if m not in KNOWN]
    assert told.endswith(": the default of that option is taken")


OPTION = "p.add_argument('--lr', default={})"


@pytest.mark.parametrize("lines", ["if big:\n    args.lr = 3.0", f"{OPTION.format(1)}\n{OPTION.format(2)}"])
def test_a_value_that_only_some_runs_have_is_listed(tmp_path, lines):
    """An attribute that an `if` sets may have another one already; an option may have two defaults."""
    text = SCRIPT.replace("net = Net()", f"{lines}\nnet = Net()").replace("lr=0.1", "lr=args.lr")
    assert "lr=args.lr" in missing(tmp_path, text)


def test_a_helper_does_what_its_body_does(tmp_path):
    """A schedule stepped beside it is one of steps."""
    body = SCRIPT[SCRIPT.index("        out = ") : SCRIPT.index("    sched.step()")]
    helper = "def work(model, o, x, y):\n    o.zero_grad()\n" + body.replace("        ", "    ").replace(
        "net(", "model("
    )
    text = SCRIPT.replace("        opt.zero_grad()\n", "").replace(body, "        work(net, opt, x, y)\n").replace(
        "opt.step()", "o.step()").replace("    sched.step()", "        sched.step()")  # fmt: skip
    text = text.replace("for epoch in", helper.replace("opt.step", "o.step") + "for epoch in")
    assert missing(tmp_path, text) == KNOWN
    assert "every=1000)" in skeleton("train.py", read(tmp_path, text)[0])


def test_a_schedule_of_microbatches_is_listed(tmp_path):
    """And one of updates is of updates here."""
    text = SCRIPT.replace("        opt.zero_grad()\n", "").replace("    sched.step()\n", "").replace(
        "loss.backward()", "(loss / N).backward()")  # fmt: skip
    update = "        if (i + 1) % N == 0:\n            opt.step()\n            opt.zero_grad()\n"
    every = text.replace("        opt.step()\n", update + "            sched.step()\n")
    assert missing(tmp_path, every) == KNOWN
    assert "accumulate=4" in skeleton("train.py", read(tmp_path, every)[0])
    assert any("not cleared once a step" in m for m in missing(
        tmp_path, every.replace("        out = net(x)", "        opt.zero_grad()\n        out = net(x)")))  # fmt: skip
    micro = missing(tmp_path, text.replace("        opt.step()\n", update + "        sched.step()\n"))
    assert any(m.startswith("sched.step() is neither") for m in micro)


@pytest.mark.parametrize(("rule", "option"), {
    "SGD(net.parameters(), lr=0.1)": "--optimizer sgd --lr 0.1 --momentum 0.0 --weight-decay 0.0",
    "SGD(net.parameters(), 0.1, 0.9, nesterov=True)":
        "--optimizer sgd --lr 0.1 --momentum 0.9 --weight-decay 0.0 --set nesterov=True",
    "Adam(net.parameters(), betas=(0.9, 0.95))": "--optimizer adam --lr 0.001 --weight-decay 0.0 --set beta2=0.95",
    "Adam(net.parameters(), eps=1e-6)": "",
}.items())  # fmt: skip
def test_options_are_the_whole_rule(tmp_path, rule, option):
    """The command's defaults are other ones, and are written out; a rule that it has not has no options."""
    text = "\n".join(n for n in SCRIPT.replace("SGD(net.parameters(), lr=0.1)", rule).splitlines() if "sched" not in n)
    [part] = [p for p in read(tmp_path, text)[0] if p.what == "optimizer"]
    assert part.option == option + " --clip 0 --schedule constant --set regularization=constant" * bool(option)
    assert "--loss cross-entropy --set smoothing=0" in [p.option for p in read(tmp_path, text)[0]]


def test_a_resumed_run_is_resumed(tmp_path):
    """If the optimizer's state is loaded too; weights alone are --init."""
    for lines, option in (("net.load_state_dict(torch.load('a'))\n", "--init"),
                          ("net.load_state_dict(c)\nopt.load_state_dict(c)\n", "--resume RUN")):  # fmt: skip
        found, _ = read(tmp_path, SCRIPT.replace("sched =", f"{lines}sched ="))
        assert {p.option for p in found if p.what == "checkpoint"} == {option}


def test_every_name_on_our_side_exists():
    """And torch's, their arguments, ours for them, and the options of the command."""
    known = {flag(name) for name in flags()} | {"--processes"}
    for full, name in {**NAMES, **METHODS}.items():
        ours = resolve_name(f"pipeline:{name.here}")
        assert {*name.option.split()[:1]} <= known, name.option
        if full in NAMES:
            renamed = {theirs for theirs, own in name.names.items() if own}
            assert renamed <= {*inspect.signature(resolve_name(full)).parameters}
            assert {n for n in (*name.names.values(), *name.lengths, *name.shares) if n} <= {
                *inspect.signature(ours).parameters}  # fmt: skip


BAD = {
    "def f(:\n": "train.py:1: ", "x = (\n": "train.py:1: ", "a = 1\n  b = 2\n": "train.py:2: ", "\0": "train.py:1: ",
    "# -*- coding: nope -*-\n": "train.py:", "(" * 1000: "train.py:1: ", "1" * 5000 + "\n": "train.py:1: ",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_python_is_one_line(tmp_path, text):
    """With the file and the line, and exit code 2."""
    (tmp_path / "train.py").write_text(text)
    code, out, err = run("port", "train.py", cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert BAD[text] in err
    assert run("port", "none.py", cwd=tmp_path).err == "pipe: can't read none.py: No such file or directory\n"


names = st.sampled_from(sorted(NAMES))
texts = st.sampled_from(
    [
        "x",
        "0.1",
        "-1",
        "None",
        "[1, 2]",
        "'a'",
        "1e999",
        "True",
        "a.b",
        "n.parameters()",
        "*c",
        "f()",
        "9 ** 9",
        "1 / 0",
        "{}",
    ]
)
calls = st.tuples(names, st.lists(texts, max_size=4), st.dictionaries(
    st.sampled_from(["lr", "betas", "T_max", "eta_min", "weight", "reduction", "batch_size", "shuffle", "dtype", "no"]),
    texts.filter(lambda t: t != "*c"), max_size=4))  # fmt: skip


@settings(max_examples=60)
@given(st.lists(calls, max_size=5))
def test_any_arguments_are_read(tmp_path_factory, drawn):
    """Whatever is called with what: no error, and the skeleton is Python."""
    lines = ["import torch"]
    for i, (name, args, more) in enumerate(drawn):
        lines.append(f"v{i} = {name}({', '.join([*args, *(f'{k}={v}' for k, v in more.items())])})")
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text("\n".join(lines) + "\n")
    ast.parse(skeleton("any.py", parts(Script.read(path))))


@pytest.mark.parametrize(
    "file", ["pipeline/update/sgd.py", "cli/training.py", "tests/test_port.py", "tests/by_hand.py"]
)
def test_any_file_is_read(file):
    """Files that are no training scripts, too."""
    ast.parse(skeleton("x.py", parts(Script.read(ROOT / file))))
