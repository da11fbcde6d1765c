"""The examples of docs/examples.md run as they stand there, each as one graph, and learn what they say."""

import copy
import re
import zlib
from pathlib import Path

import pytest
import torch
from torch import optim
from torch.nn import functional as F

from pipeline import Compiled, Pipeline, models, sources, testing
from pipeline.draws import keyed

PAGE = (Path(__file__).parent.parent / "docs" / "examples.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n[^#]*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def diffusion(report, x, **_):
    """What it makes of noise is far nearer to the digits than the noise was."""
    digits = 2 * sources.digits()[0].tensors["inputs"].flatten(1) - 1
    near = [torch.cdist(y.flatten(1).clamp(-1, 1), digits).amin(1).mean() for y in (x, torch.randn_like(x))]
    assert report.train["loss"] < 0.3
    assert near[0] < 0.7 * near[1]


def vae(report, **_):
    """It needs fewer nats for an image than the pixels' means do."""
    inputs = sources.digits()[0].tensors["inputs"].flatten(1)
    mean = inputs.mean(0).expand_as(inputs)
    assert report.train["loss"] < 0.93 * F.binary_cross_entropy(mean, inputs, reduction="sum") / len(inputs)


def moco(report, pipe, **_):
    """It tells an image from 512 others, and all that the module writes into itself was written."""
    before, after = pipe.init(0).buffers, report.state.buffers
    assert report.train["accuracy"] > 0.4
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert after["pointer"] == report.step * 128
    assert (after["queue"].norm(dim=1) - 1).abs().max() < 1e-5


def gan(points, **_):
    """What is generated lies about on the circle, and all around it."""
    assert (points.norm(dim=1) - 1).abs().mean() < 0.2
    points = points.detach()
    assert torch.atan2(*points.T).histc(8, -torch.pi, torch.pi).min() > 40


def experts(report, **_):
    """It knows the digits, and no expert is idle."""
    images = sources.digits()[0].tensors["inputs"].flatten(1)
    gate = images @ report.state.params["gate.weight"].T + report.state.params["gate.bias"]
    assert report.train["accuracy"] > 0.97
    assert gate.topk(2).indices.flatten().bincount(minlength=8).min() > 100


def pinn(report, **_):
    """It finds the solution, which it was never shown."""
    assert report.train["mae"] < 0.01


def distillation(report, teacher, test, pipe, **_):
    """Without a label the student knows most digits that neither has seen, and the teacher is as it was."""
    assert report.validate["accuracy"] > 0.9
    testing.same(report.state["teacher"], dict(teacher.named_parameters()))


def averaged_teacher(report, **_):
    """It tells an image from 127 others, and the teacher has followed the student, which it is not."""
    student, teacher = report.state.params, report.state["teacher"]
    assert report.train["accuracy"] > 0.5
    for name in student:
        assert 0 < (student[name] - teacher[name]).norm() < student[name].norm()


def learned_rate(report, **_):
    """The learning rate went up by more than tenfold, and training with it learned the digits."""
    assert report.state.memory["descend"]["log_lr"].exp() > 1e-2
    assert report.train["accuracy"] > 0.93


def maml(report, **_):
    """After three steps on ten points the error is a third of what it was before."""
    assert report.train["loss"] < report.train["mse"] / 3


# What has to be so after each, and by which backend: the default one where it compiles in few seconds.
EXAMPLES = {
    "Diffusion": (diffusion, "aot_eager"),
    "A variational autoencoder": (vae, "auto"),
    "Contrastive learning with a queue": (moco, "aot_eager"),
    "A GAN with gradient penalty": (gan, "aot_eager"),
    "A mixture of experts": (experts, "aot_eager"),
    "A physics-informed network": (pinn, "aot_eager"),
    "Distillation": (distillation, "aot_eager"),
    "An averaged teacher": (averaged_teacher, "aot_eager"),
    "A GAN with several critic steps": (gan, "aot_eager"),
    "A run that learns its learning rate": (learned_rate, "aot_eager"),
    "Learning to learn": (maml, "aot_eager"),
}


def drawn(stage, step):
    """What a stage draws at a step of seed 0."""
    return keyed(torch.tensor(0), torch.tensor(step), zlib.crc32(stage.encode()))


def fresh(make):
    """A module with the first weights of seed 0."""
    torch.manual_seed(0)
    return make()


def descended(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def distillation_by_hand(batches, teacher, **_):
    student = fresh(lambda: models.mlp(64, 8, 10))
    optimizer = optim.Adam(student.parameters(), lr=1e-2)
    for batch in batches:
        with torch.no_grad():
            wanted = (teacher(batch["inputs"]) / 2).log_softmax(1)
        said = (student(batch["inputs"]) / 2).log_softmax(1)
        descended(optimizer, 4 * F.kl_div(said, wanted, log_target=True, reduction="batchmean"))
    return {"params": student}


def averaged_teacher_by_hand(batches, **named):
    student = fresh(named["Encoder"])
    teacher = copy.deepcopy(student)
    optimizer = optim.Adam(student.parameters(), lr=2e-3)
    for step, batch in enumerate(batches):
        with drawn("views", step):
            one, other = F.dropout(batch["inputs"], 0.2), F.dropout(batch["inputs"], 0.2)
        with torch.no_grad():
            goal = teacher(other)[0]
        descended(optimizer, 2 - 2 * F.cosine_similarity(student(one)[1], goal).mean())
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.98).add_(fast, alpha=0.02)
            for slow, fast in zip(teacher.buffers(), student.buffers(), strict=True):
                slow.copy_(fast)
    return {"params": student, "teacher": teacher}


def gan_by_hand(batches, **_):
    generator, critic = fresh(lambda: models.mlp(8, 64, 64, 2)), fresh(lambda: models.mlp(2, 64, 64, 1))
    slow = optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    fast = optim.SGD(critic.parameters(), lr=0.3)
    for step, batch in enumerate(batches):
        real = batch["real"]
        for k in range(3):
            with drawn(f"draw {k}", step):
                z = torch.randn(len(real), 8)
            descended(fast, (critic(generator(z).detach()) - critic(real)).mean())
            with torch.no_grad():
                for p in critic.parameters():
                    p.clamp_(-0.1, 0.1)
        with drawn("draw", step):
            z = torch.randn(len(real), 8)
        descended(slow, -critic(generator(z)).mean())
    return {"G": generator, "C": critic}


BY_HAND = {
    "Distillation": distillation_by_hand,
    "An averaged teacher": averaged_teacher_by_hand,
    "A GAN with several critic steps": gan_by_hand,
}


# Two train for long; test_device has a few steps of each.
LONG = ("Diffusion", "Learning to learn")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.thorough] if n in LONG else []) for n in EXAMPLES])
def test_examples_run_as_one_graph_learn_and_are_pure(name, monkeypatch):
    """An example, alone and as it stands, trains as one compiled graph, learns, and its step is pure."""
    learned, backend = EXAMPLES[name]
    made = []

    def recorded(pipe, **options):
        made.append(Compiled(pipe.program, **{**options, "backend": backend}))
        return made[-1]

    monkeypatch.setattr(Pipeline, "compile", recorded)
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(BLOCKS[name], "examples.md", "exec"), namespace)

    [program] = made
    assert program.report.fallback is None
    graphs = [(g.program, g.refused) for g in program.report.graphs]
    assert [graph for graph in graphs if graph != ("evaluation", ())] == [("train step", ())]
    pipe, report = namespace["pipe"], namespace["report"]
    testing.pure(pipe.step, report.state, next(iter(pipe.load.epoch(0, 0))))
    learned(**namespace)
    if name in BY_HAND:
        as_by_hand(BY_HAND[name], program, namespace)


def as_by_hand(loop, program, namespace, steps=5):
    """The same graph, from the beginning, does what a loop of plain torch does: all parameters and buffers."""
    pipe, graphs = program.pipe, len(program.report.graphs)
    state = pipe.init(0)
    for _ in range(steps):
        state, _ = program.step(state)
    expected = loop(list(pipe.load.epoch(0, 0))[:steps], **namespace)
    for name, module in expected.items():
        testing.same(state[name], dict(module.named_parameters()), 1e-5)
        testing.same(state["buffers" if name == "params" else f"{name}.buffers"], dict(module.named_buffers()), 1e-5)
    assert len(program.report.graphs) == graphs


def test_every_example_is_tried():
    """No example of the page is left out."""
    assert list(BLOCKS) == list(EXAMPLES)
