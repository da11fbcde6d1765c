"""The step of digits_step in JAX and Optax: a step a call, and an epoch a call."""

from __future__ import annotations

from typing import Any

from benchmarks import job
from benchmarks.harness import Done, Work


def functions() -> Any:
    """The initial state, and the pure step: state, x, y -> state."""
    import jax
    import jax.numpy as jnp
    import optax

    rule = optax.chain(
        optax.clip_by_global_norm(job.CLIP),
        optax.adamw(optax.cosine_decay_schedule(job.LR, job.STEPS), weight_decay=job.DECAY),
    )

    def initial() -> Any:
        params = [jnp.array(w.numpy()) for w in job.weights()]
        return params, rule.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32)

    def objective(params: Any, x: Any, y: Any) -> Any:
        w1, b1, w2, b2 = params
        outputs = jax.nn.relu(x @ w1.T + b1) @ w2.T + b2
        value = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
        return value, (outputs.argmax(1) == y).sum()

    def step(state: Any, x: Any, y: Any) -> Any:
        params, memory, total, correct = state
        (value, right), grads = jax.value_and_grad(objective, has_aux=True)(params, x, y)
        updates, memory = rule.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, total + value * len(x), correct + right

    return initial, step


def jitted() -> Any:
    """One step a call, its state donated; batches by a NumPy permutation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    inputs, targets = (t.numpy() for t in job.data())
    targets = targets.astype(np.int32)
    initial, function = functions()
    step = jax.jit(function, donate_argnums=0)
    random = np.random.default_rng(0)

    def start() -> Work:
        first = jax.block_until_ready(initial())

        def work() -> Done:
            state, steps = first, 0
            for _ in range(job.EPOCHS):
                state = (*state[:2], jnp.zeros(()), jnp.zeros((), jnp.int32))
                order = random.permutation(len(inputs))
                for k in range(0, len(order), job.SIZE):
                    rows = order[k : k + job.SIZE]
                    state = step(state, inputs[rows], targets[rows])
                    steps += 1
                total, correct = float(state[2]), int(state[3])
            jax.block_until_ready(state)
            return Done(steps, total / len(inputs), correct / len(inputs))

        return work

    return start


def scanned() -> Any:
    """An epoch a call: lax.scan over the steps, with the gather inside, and the short batch after it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    inputs, targets = (jnp.array(t.numpy()) for t in job.data())
    initial, step = functions()
    full = len(inputs) // job.SIZE
    random = np.random.default_rng(0)

    def epoch(state: Any, order: Any, inputs: Any, targets: Any) -> Any:
        state = (*state[:2], jnp.zeros(()), jnp.zeros((), jnp.int32))

        def body(state: Any, rows: Any) -> Any:
            return step(state, inputs[rows], targets[rows]), None

        state, _ = jax.lax.scan(body, state, order[: full * job.SIZE].reshape(full, job.SIZE))
        return body(state, order[full * job.SIZE :])[0]

    compiled = jax.jit(epoch, donate_argnums=0)

    def start() -> Work:
        first = jax.block_until_ready(initial())

        def work() -> Done:
            state = first
            for _ in range(job.EPOCHS):
                state = compiled(state, random.permutation(len(inputs)).astype(np.int32), inputs, targets)
                total, correct = float(state[2]), int(state[3])
            jax.block_until_ready(state)
            steps = int(state[1][1][0].count)  # Adam's own counter
            return Done(steps, total / len(inputs), correct / len(inputs))

        return work

    return start
