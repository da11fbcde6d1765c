"""The examples of EXAMPLES.md run as they stand there, each as one graph, and learn what they say."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pipeline import Compiled, Pipeline, sources, testing

PAGE = (Path(__file__).parent.parent / "EXAMPLES.md").read_text(encoding="utf-8")
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


# What has to be so after each, and by which backend: the default one where it compiles in few seconds.
EXAMPLES = {
    "Diffusion": (diffusion, "aot_eager"),
    "A variational autoencoder": (vae, "auto"),
    "Contrastive learning with a queue": (moco, "auto"),
    "A GAN with gradient penalty": (gan, "aot_eager"),
    "A mixture of experts": (experts, "auto"),
    "A physics-informed network": (pinn, "auto"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_as_one_graph_learn_and_are_pure(name, monkeypatch):
    """An example, alone and as it stands, trains as one compiled graph, learns, and its step is pure."""
    learned, backend = EXAMPLES[name]
    made = []

    def recorded(pipe, **options):
        made.append(Compiled(pipe, **{**options, "backend": backend}))
        return made[-1]

    monkeypatch.setattr(Pipeline, "compile", recorded)
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(BLOCKS[name], "EXAMPLES.md", "exec"), namespace)

    [program] = made
    assert program.report.fallback is None
    assert [(g.program, g.refused) for g in program.report.graphs] == [("train step", ())]
    pipe, report = namespace["pipe"], namespace["report"]
    testing.pure(pipe.step, report.state, next(iter(pipe.load.epoch(0, 0))))
    learned(**namespace)


def test_every_example_is_tried():
    """No example of the page is left out."""
    assert list(BLOCKS) == list(EXAMPLES)
