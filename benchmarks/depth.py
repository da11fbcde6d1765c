"""How long until the first step of a deeper and deeper transformer, and how long is a step then?

`python -m benchmarks.depth`. Blocks of width 64 with 4 heads, 8 x 32 tokens, SGD with momentum, two threads. Each start
is a process of its own on empty caches, timed from torch and JAX imported to the first step done. A step is the median
of 100. "JAX" is the same arithmetic with the same weights under jax.jit, written by hand; its losses are compared.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.start import cold

DEPTHS = 2, 6, 24, 48
WAYS = "ours", "JAX"
STEPS, LR, MOMENTUM = 100, 0.01, 0.9

CODE = """
import json, sys
from benchmarks import depth
print(json.dumps(depth.measured(sys.argv[1], int(sys.argv[2]))))
"""


def measured(way: str, blocks: int) -> dict[str, Any]:
    """Seconds to the first step, and of a median step; losses of the first steps."""
    import jax  # noqa: F401  # imported before the clock starts, as torch is
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    from pipeline import models

    model = models.transformer(64, width=64, heads=4, depth=blocks, context=32)
    inputs = torch.randint(64, (8, 32))
    start = time.perf_counter()
    step = {"ours": ours, "JAX": in_jax}[way](model, inputs, (inputs + 1) % 64)
    losses = [step()]
    first, seconds = time.perf_counter() - start, []
    for _ in range(STEPS):
        begin = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
    return {"all": first, "step": statistics.median(seconds), "losses": losses[:5]}


def ours(model: Any, inputs: Any, targets: Any) -> Callable[[], float]:
    from pipeline import Pipeline, backward, forward, loss, update

    stages = loss.cross_entropy(dim=-1), backward.gradients(), update.sgd(LR, momentum=MOMENTUM)
    pipe = Pipeline(forward.model(model), *stages)
    compiled, state = pipe.compile(), pipe.init(0)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, {"inputs": inputs, "targets": targets})
        return float(metrics["loss"])

    return step


def in_jax(model: Any, inputs: Any, targets: Any) -> Callable[[], float]:
    import jax
    from jax import numpy as jnp

    weights = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    velocity = jax.tree.map(jnp.zeros_like, weights)
    tokens, wanted, heads, blocks = jnp.array(inputs.numpy()), jnp.array(targets.numpy()), 4, len(model.blocks)
    causal = jnp.tril(jnp.ones((32, 32), bool))

    def norm(w: Any, name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(w: Any, name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def objective(w: Any) -> Any:
        x = w["tokens.weight"][tokens] + w["positions.weight"][jnp.arange(32)]
        for i in range(blocks):
            b = f"blocks.{i}"
            qkv = linear(w, f"{b}.qkv", norm(w, f"{b}.norm1", x)).reshape(8, 32, 3, heads, 16)
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)
            scores = jnp.where(causal, q @ k.swapaxes(-1, -2) / 4.0, -jnp.inf)
            attended = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(8, 32, 64)
            x = x + linear(w, f"{b}.out", attended)
            hidden = jax.nn.gelu(linear(w, f"{b}.mlp.0", norm(w, f"{b}.norm2", x)), approximate=False)
            x = x + linear(w, f"{b}.mlp.2", hidden)
        logits = norm(w, "norm", x) @ w["head.weight"].T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], -1).mean()

    def update(w: Any, v: Any) -> Any:
        value, grads = jax.value_and_grad(objective)(w)
        v = jax.tree.map(lambda v, g: MOMENTUM * v + g, v, grads)
        return jax.tree.map(lambda w, v: w - LR * v, w, v), v, value

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> float:
        nonlocal weights, velocity
        weights, velocity, value = compiled(weights, velocity)
        return float(value)

    return step


def main() -> None:
    depths = [int(word) for word in sys.argv[1:]] or DEPTHS
    found = {f"{blocks} blocks: {way}": cold(CODE, way, str(blocks)) for blocks in depths for way in WAYS}
    lines = ["| blocks | first step, s | JAX's | a step, ms | JAX's |", "| ---: | ---: | ---: | ---: | ---: |"]
    for blocks in depths:
        own, jax = (found[f"{blocks} blocks: {way}"] for way in WAYS)
        gap = max(abs(a - b) for a, b in zip(own["losses"], jax["losses"], strict=True))
        assert gap < 1e-4, f"the losses of {blocks} blocks differ by {gap}"
        times = f"{own['all']:.1f} | {jax['all']:.1f} | {1e3 * own['step']:.2f} | {1e3 * jax['step']:.2f}"
        lines.append(f"| {blocks} | {times} |")
    report.save("depth", __doc__.splitlines()[0], "\n".join(lines), starts=found)


if __name__ == "__main__":
    main()
