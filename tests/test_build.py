"""The size of a step, and what follows from it: threads, and a refusal if memory is short."""

import pytest
import torch

from cli import build, config
from pipeline.errors import ConfigError


def sized(**settings):
    job = build.job(config.make(settings))
    return job, job.pipe.init(0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_has_the_operations_of_its_products(accumulate):
    """Two a weight and sample, and a backward takes twice as many; a part of the batch has its share of the bytes."""
    operations, nbytes = build.size(*sized(hidden=[16], batch_size=64, accumulate=accumulate))
    assert operations == 3 * 2 * 64 * (64 * 16 + 16 * 10)
    assert nbytes >= 4 * 64 // accumulate * (16 + 10)


@pytest.mark.parametrize(("model", "threads"), [("mlp", 1), ("convnet", 2)])
def test_large_steps_take_all_threads(model, threads):
    """Unless others are asked for; small ones take one."""
    torch.set_num_threads(2)
    job, state = sized(model=model, batch_size=1024)
    assert build.threads(job, state, None) == threads
    assert build.threads(job, state, 5) == 5


def test_a_step_that_no_memory_holds_is_refused(monkeypatch):
    job, state = sized()
    monkeypatch.setattr(build.room, "free", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"a step of 64 samples needs .* for its activations.*--batch-size"):
        build.threads(job, state, None)
