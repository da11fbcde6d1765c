"""The size of a step, and what follows from it: threads, and a refusal if memory is short."""

import pytest
import torch

from cli import build, config, step_size
from pipeline.errors import ConfigError


def sized(**settings):
    job = build.job(config.make(settings))
    return job, job.pipe.init(0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_has_the_operations_of_its_products(accumulate):
    """Two a weight and sample, and a backward takes twice as many; a part of the batch has its share of the bytes."""
    size = step_size.measured(*sized(hidden=[16], batch_size=64, accumulate=accumulate))
    assert size.operations == 3 * 2 * 64 * (64 * 16 + 16 * 10)
    assert size.activations >= 4 * 64 // accumulate * (16 + 10)


@pytest.mark.parametrize(("model", "threads"), [("mlp", 1), ("convnet", 2)])
def test_large_steps_take_all_threads(model, threads):
    """Unless others are asked for; small ones take one."""
    torch.set_num_threads(2)
    job, state = sized(model=model, batch_size=1024)
    size = step_size.measured(job, state)
    assert step_size.threads(job, size, None) == threads
    assert step_size.threads(job, size, 5) == 5


def test_uncompiled_steps_lose_few_seconds():
    """Many of a small model and few of a large one, none of members side by side, and none if a setting of the compiled
    program is given."""

    def early(**settings):
        job, state = sized(**settings)
        return step_size.eager_steps(job, state, step_size.measured(job, state), config.make(settings).run)

    few, many = early(model="convnet", batch_size=1024), early()
    assert 0 < few < 500 < 1000 < many < 2500
    assert early(eager_steps=7) == 7
    assert early(hidden=[3000, 3000]) == early(ensemble=2) == early(backend="native") == early(steps_per_call="2") == 0


def test_a_step_that_no_memory_holds_is_refused(monkeypatch):
    job, state = sized()
    size = step_size.measured(job, state)
    monkeypatch.setattr(step_size.room, "free", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"a step of 64 samples needs .* for its activations.*--batch-size"):
        step_size.threads(job, size, None)
