"""The jobs in JAX with Optax: a jitted step a call, or a scan over many."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import job as digits
from benchmarks.gpu.jobs import CLIP, DECAY, LR, SMALL, VOCABULARY, Job
from benchmarks.harness import Done, Work

GRAPHS = "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"


def contender(job: Job, name: str, way: str) -> Callable[[], Work]:
    flags = GRAPHS + (",WHILE,CONDITIONAL" if "WHILE" in way else "")
    if not SMALL:  # a CPU's XLA refuses flags of a GPU
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_graph_min_graph_size=1"
    import jax
    import jax.numpy as jnp
    import optax

    init, apply = {"digits": _mlp, "members": _mlp, "airbench": _convnet, "gpt": _gpt}[name](jax)
    rule = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, weight_decay=DECAY))
    inputs, targets = (jnp.asarray(t.numpy()) for t in job.data())

    def objective(params: Any, x: Any, y: Any) -> Any:
        logits = apply(params, x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(state: Any, rows: Any) -> Any:
        params, memory = state
        value, grads = jax.value_and_grad(objective)(params, inputs[rows], targets[rows])
        updates, memory = rule.update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    def first(seed: Any) -> Any:
        params = init(jax.random.PRNGKey(seed))
        return params, rule.init(params)

    if job.members > 1:
        state, one = jax.vmap(first)(jnp.arange(job.members)), jax.vmap(step, in_axes=(0, None))
    else:
        state, one = first(0), step
    together = way != "jit"
    compiled = jax.jit((lambda s, rows: jax.lax.scan(one, s, rows)) if together else one, donate_argnums=0)
    random, batches = np.random.default_rng(0), len(inputs) // job.size

    def work() -> Done:
        nonlocal state
        order = np.concatenate([random.permutation(len(inputs))[: batches * job.size]
                                for _ in range(-(-job.steps // batches))])  # fmt: skip
        rows = jnp.asarray(order.astype(np.int32).reshape(-1, job.size)[: job.steps])
        if together:
            state, values = compiled(state, rows)
        else:
            for k in range(job.steps):
                state, values = compiled(state, rows[k])
        mean = float(values.mean())
        jax.block_until_ready(state)
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return Done(job.steps * job.members, mean, memory=peak)

    return lambda: work


def _mlp(jax: Any) -> Any:
    """The digits' MLP, with the first weights of all contenders."""
    w1, b1, w2, b2 = (jax.numpy.array(w.numpy()) for w in digits.weights())

    def apply(p: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p[0].T + p[1]) @ p[2].T + p[3]

    return lambda key: [w1, b1, w2, b2], apply


def _convnet(jax: Any) -> Any:
    """airbench94's shape, images with channels last, BatchNorm by the batch's statistics, bfloat16."""
    jnp, widths = jax.numpy, (8, 8, 8) if SMALL else (64, 256, 256)

    def init(key: Any) -> Any:
        shapes = [(2, 2, 3, 24)]
        for before, width in zip((24, *widths), widths, strict=False):
            shapes += [(3, 3, before, width), (3, 3, width, width)]
        keys = jax.random.split(key, len(shapes) + 1)
        kernels = [jax.random.normal(k, s) / np.sqrt(np.prod(s[:3])) for k, s in zip(keys, shapes, strict=False)]
        scales = [(jnp.ones(s[-1]), jnp.zeros(s[-1])) for s in shapes]
        return kernels, scales, jax.random.normal(keys[-1], (widths[-1], 10)) / np.sqrt(widths[-1])

    def conv(x: Any, kernel: Any, padding: str) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), padding, dimension_numbers=layout)

    def pool(x: Any, n: int) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, n, n, 1), (1, n, n, 1), "VALID")

    def norm(x: Any, scale: Any) -> Any:
        y = x.astype(jnp.float32)
        y = (y - y.mean((0, 1, 2))) * jax.lax.rsqrt(y.var((0, 1, 2)) + 1e-5) * scale[0] + scale[1]
        return jax.nn.gelu(y, approximate=False).astype(x.dtype)

    def apply(p: Any, x: Any) -> Any:
        kernels, scales, head = p
        x = jax.nn.gelu(conv(x.transpose(0, 2, 3, 1).astype(jnp.bfloat16), kernels[0], "VALID"), approximate=False)
        for i in range(1, len(kernels), 2):
            x = norm(pool(conv(x, kernels[i], "SAME"), 2), scales[i])
            x = norm(conv(x, kernels[i + 1], "SAME"), scales[i + 1])
        return pool(x, 3).reshape(len(x), -1) @ head.astype(x.dtype) / 9

    return init, apply


def _gpt(jax: Any) -> Any:
    """Pre-norm blocks, learned positions, the head is the embedding, bfloat16."""
    jnp = jax.numpy
    width, heads, depth, context = (32, 2, 2, 16) if SMALL else (768, 12, 12, 1024)

    def init(key: Any) -> Any:
        keys = iter(jax.random.split(key, 2 + 4 * depth))

        def linear(a: int, b: int) -> Any:
            return jax.random.normal(next(keys), (a, b)) / np.sqrt(a), jnp.zeros(b)

        def norm() -> Any:
            return jnp.ones(width), jnp.zeros(width)

        tokens = 0.02 * jax.random.normal(next(keys), (VOCABULARY, width))
        positions = 0.02 * jax.random.normal(next(keys), (context, width))
        blocks = [(norm(), linear(width, 3 * width), linear(width, width), norm(), linear(width, 4 * width),
                   linear(4 * width, width)) for _ in range(depth)]  # fmt: skip
        return tokens, positions, blocks, norm()

    def through(x: Any, layer: Any) -> Any:
        return x @ layer[0].astype(x.dtype) + layer[1].astype(x.dtype)

    def normed(x: Any, scale: Any) -> Any:
        y = x.astype(jnp.float32)
        y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)
        return (y * scale[0] + scale[1]).astype(x.dtype)

    fast = "cudnn" if jax.default_backend() == "gpu" else None

    def apply(p: Any, ids: Any) -> Any:
        tokens, positions, blocks, last = p
        x = (tokens[ids] + positions[: ids.shape[1]]).astype(jnp.bfloat16)
        for norm1, qkv, out, norm2, up, down in blocks:
            q, k, v = jnp.split(through(normed(x, norm1), qkv).reshape(*ids.shape, 3 * heads, -1), 3, axis=2)
            attended = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=fast)
            x = x + through(attended.reshape(x.shape), out)
            x = x + through(jax.nn.gelu(through(normed(x, norm2), up), approximate=False), down)
        return normed(x, last) @ tokens.T.astype(x.dtype)

    return init, apply
