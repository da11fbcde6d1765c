"""Jobs for a GPU, the same for all contenders: AdamW, gradients clipped to norm 1, data on the device.

N   samples        B   samples a step        T   tokens of a sample
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import job as digits
from pipeline import models

SMALL = bool(os.environ.get("BENCH_SMALL"))
"""Whether sizes are small, to try it on a CPU."""
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() and not SMALL else torch.device("cpu")
LR, DECAY, CLIP = 1e-3, 0.01, 1.0


@frozen
class Job:
    title: str
    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    size: int
    """B."""
    steps: int
    """Of one timed work."""
    precision: str = "fp32"
    dim: int = 1
    """Dimension of the classes in the outputs."""
    members: int = 1
    per_step: int = 1
    """Things in a step, for the rate."""
    thing: str = "steps"
    goals: tuple[str, ...] = ()

    def built(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model()

    def placed(self) -> tuple[Tensor, Tensor]:
        """The data on the device."""
        inputs, targets = self.data()
        return inputs.to(DEVICE), targets.to(DEVICE)

    def operations(self) -> float:
        """Floating-point operations of a step's products: a forward, and a backward of twice that."""
        from torch.utils.flop_counter import FlopCounterMode

        inputs, _ = self.data()
        with FlopCounterMode(display=False) as count, torch.no_grad():
            self.built()(inputs[:2])
        return 3.0 * count.get_total_flops() / 2 * self.size * self.members


class Airbench(nn.Module):
    """(B, 3, 32, 32) -> (B, 10): the shape of airbench94's net: a 2x2 layer, then three groups of two convolutions."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 2)
        groups: list[nn.Module] = []
        for before, width in zip((24, *widths), widths, strict=False):
            one, other = (
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
            )
            groups += [one, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU(), other, nn.BatchNorm2d(width), nn.GELU()]
        self.groups, self.head = nn.Sequential(*groups), nn.Linear(widths[-1], 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.max_pool2d(self.groups(F.gelu(self.first(x))), 3).flatten(1)) / 9
        return y


class Tied(nn.Module):
    """A GPT whose head is its embedding: token ids (B, T) -> logits (B, T, vocabulary)."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.net = models.transformer(vocabulary, context=context, width=width, heads=heads, depth=depth)
        self.net.tokens.weight = self.net.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.net(tokens)
        return logits


def images() -> tuple[Tensor, Tensor]:
    n, random = 64 if SMALL else 50_000, torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 32, 32, generator=random), torch.randint(10, (n,), generator=random)


VOCABULARY, CONTEXT = (97, 16) if SMALL else (50_304, 1024)


def text() -> tuple[Tensor, Tensor]:
    n, random = 8 if SMALL else 512, torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (n, CONTEXT + 1), generator=random)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def gpt() -> nn.Module:
    """124 M parameters."""
    return Tied(VOCABULARY, CONTEXT, 32, 2, 2) if SMALL else Tied(VOCABULARY, CONTEXT, 768, 12, 12)


MEMBERS = 8 if SMALL else 1024
IMAGES, TEXTS = (16, 2) if SMALL else (2000, 32)
JOBS = {
    "digits": Job(
        "Digits: an MLP of 2,410 parameters, batch 64", digits.model, digits.data, digits.SIZE, 3 if SMALL else 460,
        goals=("<= 20 µs a step", ">= 2 x JAX's scan"),
    ),
    "members": Job(
        f"{MEMBERS:,} members of it, with the same batches", digits.model, digits.data, digits.SIZE, 3 if SMALL else 46,
        members=MEMBERS, per_step=MEMBERS, thing="members' steps", goals=("<= 0.1 µs a member's step",),
    ),
    "gpt": Job(
        f"A GPT of 124 M parameters, {TEXTS} x {CONTEXT:,} tokens, bf16",
        gpt, text, TEXTS, 2 if SMALL else 8, "bf16", -1,
        per_step=TEXTS * CONTEXT, thing="tokens", goals=(">= 450,000 tokens/s on an H100", "memory <= torch.compile's"),
    ),
    "airbench": Job(
        f"A ConvNet of airbench's shape, {IMAGES:,} images of 3x32x32, bf16",
        lambda: Airbench((8, 8, 8) if SMALL else (64, 256, 256)), images, IMAGES, 2 if SMALL else 24, "bf16",
        per_step=IMAGES, thing="images",
    ),
}  # fmt: skip
