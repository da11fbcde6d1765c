"""Does a step of a larger model cost more time or memory than the best torch.compile idiom?

A ConvNet, a GPT, and transformers' Llama and BERT with small configurations and random weights; AdamW, gradients
clipped to norm 1. Four batches in turn, without loading. Peak memory is of the contender's process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import charts
from benchmarks.harness import Contender, Done, Race, Target, Work
from pipeline import Pipeline, backward, forward, loss, models, place, update

LR, DECAY, CLIP = 3e-4, 0.01, 1.0
OURS, COMPILED, FUSED = "ours", "torch.compile, model and optimizer", "torch.compile, model; fused AdamW"

Batch: TypeAlias = dict[str, Tensor]


@frozen
class Job:
    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    dim: int
    """Where the outputs have their classes."""
    steps: int


class Logits(nn.Module):
    """A transformers model as a function of token ids to logits (B, T, vocabulary)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def gpt() -> nn.Module:
    """10.9 M parameters."""
    return models.transformer(256, context=256, width=384, heads=6, depth=6)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, use_cache=False,
    )  # fmt: skip
    return Logits(LlamaForCausalLM(config))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Logits(BertForMaskedLM(config))


def images(random: torch.Generator) -> Batch:
    return {
        "inputs": torch.randn(64, 3, 32, 32, generator=random),
        "targets": torch.randint(10, (64,), generator=random),
    }


def tokens(vocabulary: int, size: int, length: int) -> Callable[[torch.Generator], Batch]:
    def batch(random: torch.Generator) -> Batch:
        text = torch.randint(vocabulary, (size, length + 1), generator=random)
        return {"inputs": text[:, :-1].contiguous(), "targets": text[:, 1:].contiguous()}

    return batch


JOBS = {
    "convnet": Job("ConvNet, 64 images of 3x32x32", lambda: models.convnet(3, 10), images, 1, 8),
    "gpt": Job("GPT of 10.9 M parameters, 16 x 256 tokens", gpt, tokens(256, 16, 256), -1, 2),
    "llama": Job("transformers' Llama, 4 layers of 256, 8 x 128 tokens", llama, tokens(512, 8, 128), -1, 4),
    "bert": Job("transformers' BERT, 4 layers of 256, 8 x 128 tokens", bert, tokens(512, 8, 128), -1, 4),
}


def model(job: Job) -> nn.Module:
    torch.manual_seed(0)
    return job.model()


def batches(job: Job) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [job.batch(random) for _ in range(4)]


def ours(job: Job) -> Any:
    pipe = Pipeline(
        place.on("cpu"),
        forward.model(lambda: model(job)),
        loss.cross_entropy(dim=job.dim),
        backward.gradients(),
        update.clip_norm(CLIP),
        update.adamw(lr=LR, weight_decay=DECAY),
    )
    step = pipe.compile()
    state = pipe.init(seed=0)
    data = batches(job)

    def work() -> Done:
        nonlocal state
        for k in range(job.steps):
            state, metrics = step(state, data[k % len(data)])
        return Done(job.steps, metrics["loss"].item())

    return lambda: work


def idiom(job: Job, *, fused: bool) -> Any:
    """Model and loss compiled; the optimizer compiled with a tensor lr, or torch's fused kernel."""
    net = model(job)
    params = list(net.parameters())
    options: dict[str, Any] = {"fused": True, "lr": LR} if fused else {"lr": torch.tensor(LR)}
    optimizer = torch.optim.AdamW(params, weight_decay=DECAY, **options)
    data = batches(job)

    @torch.compile(dynamic=False)
    def objective(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(net(inputs).movedim(job.dim, 1), targets)

    def update() -> None:
        nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()

    step = update if fused else torch.compile(update)

    def work() -> Done:
        for k in range(job.steps):
            batch = data[k % len(data)]
            optimizer.zero_grad()
            value = objective(batch["inputs"], batch["targets"])
            value.backward()
            step()
        return Done(job.steps, value.item())

    return lambda: work


KINDS: dict[str, Callable[[Job], Callable[[], Work]]] = {
    OURS: ours,
    COMPILED: functools.partial(idiom, fused=False),
    FUSED: functools.partial(idiom, fused=True),
}

CONTENDERS: dict[str, Contender] = {
    f"{kind}: {name}": functools.partial(make, job) for name, job in JOBS.items() for kind, make in KINDS.items()
}

RACES = [
    Race(
        title=job.title,
        contenders=[f"{kind}: {name}" for kind in KINDS],
        baseline=f"{COMPILED}: {name}",
        targets=[Target(f"{OURS}: {name}", f"{kind}: {name}", 1 / 1.03) for kind in (COMPILED, FUSED)],
        threads=2,
        rounds=5,
        seconds=0.5,
        tolerance=0.02,
        memory=True,
    )
    for name, job in JOBS.items()
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Times as fast as each idiom of torch.compile, for each model."""
    results = {name: r for measured in races for name, r in charts.ran(measured).items()}
    kinds = {kind: charts.Point((0, 0, 0), colour=charts.COLOURS[k], mark=charts.MARKS[k], lift=0.18 - 0.36 * k)
             for k, kind in enumerate((COMPILED, FUSED))}  # fmt: skip
    points: dict[str, list[charts.Point]] = {}
    for name, job in JOBS.items():
        spreads = {kind: charts.ratios(results[f"{OURS}: {name}"], results[f"{kind}: {name}"]) for kind in kinds}
        points[job.title] = [evolve(kinds[kind], spread=s, note=f"{s[1]:.2f} x") for kind, s in spreads.items()]
    medians = [p.spread[1] for row in points.values() for p in row]
    figure = charts.rows(
        f"Larger models: {min(medians):.2f} to {max(medians):.2f} times as fast as torch.compile",
        "times as fast as this (dashed: equally fast)", points, start=0.8, height=0.62, legend=kinds,
    )  # fmt: skip
    return charts.line_at_one(figure)
