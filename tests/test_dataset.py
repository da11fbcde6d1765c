"""Single samples come in our order, and what they draw does not depend on who reads them, or from where on."""

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pipeline import Pipeline, backward, fit, forward, load, loss, models, order, sources, testing, update
from pipeline.errors import ConfigError, DataError
from tests.strategies import batch_sizes, samples, seeds


class Noisy(Dataset):
    """Inputs (3,), drawn from each of the global generators, and the index."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.stack([torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.rand())]).float(), i


class Broken(Noisy):
    def __getitem__(self, i):
        if i == 3:
            raise KeyError("no such key")
        return super().__getitem__(i)


class Dies(Noisy):
    def __getitem__(self, i):
        if i == 3 and torch.utils.data.get_worker_info() is not None:
            os._exit(1)
        return super().__getitem__(i)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2, 1), torch.zeros(2))])


@pytest.fixture(scope="module", params=[0, 1, 2])
def pooled(request):
    """A data set of 50 samples, read by 0, 1 or 2 workers, which are the same ones for all examples."""
    return sources.dataset(Noisy(50), workers=request.param)


def rows(batches):
    """Each sample's index, and what it drew."""
    return [(int(i), x.tolist()) for b in batches for i, x in zip(b["targets"], b["inputs"], strict=True)]


# -- the law: a sample is a function of (seed, epoch, index)


@settings(max_examples=10)
@given(size=st.integers(1, 60), seed=seeds, epoch=st.integers(0, 9), start=st.integers(0, 60))
def test_workers_and_resuming_change_no_bit(pooled, size, seed, epoch, start):
    """Any number of workers gives the same bits, from any batch on."""
    alone = load.batches(Noisy(50), size=size)
    here = load.batches(pooled, size=size)
    start = min(start, here.batches)
    expected = rows(alone.epoch(seed, epoch))
    assert rows(here.epoch(seed, epoch, start)) == expected[start * here.size :]
    assert len({tuple(x) for _, x in expected}) == 50


@settings(max_examples=10)
@given(kept=st.lists(st.integers(0, 49), min_size=1, unique=True), size=batch_sizes, seed=seeds)
def test_a_part_draws_as_the_whole_does(pooled, kept, size, seed):
    """A sample of a part has the bits that it has in the whole, and comes in the part's own order."""
    part = load.batches(sources.Subset(pooled, torch.tensor(kept)), size=size)
    whole = dict(rows(load.batches(Noisy(50), size=50).epoch(seed, 1)))
    found = rows(part.epoch(seed, 1))
    assert found == [(kept[i], whole[kept[i]]) for b in order.batches(part.order, part.size, seed, 1) for i in b]


@given(samples, seeds, seeds, st.integers(0, 9))
def test_draws_are_new_in_each_epoch(n, seed, other, epoch):
    """Each epoch, seed of a run and seed of the data set has draws of its own; an index alone is of epoch 0."""
    data, moved = sources.dataset(Noisy(n)), sources.dataset(Noisy(n), seed=other or 1)
    every = [torch.arange(n)]
    first = rows(data.epoch(seed, epoch, every))
    for again in (
        data.epoch(seed, epoch + 1, every),
        data.epoch(seed + 1, epoch, every),
        moved.epoch(seed, epoch, every),
    ):
        assert all(a != b for a, b in zip(first, rows(again), strict=True))
    assert rows([data[every[0]]]) == rows(data.epoch(0, 0, every))


def test_the_global_generators_stay_as_they_were(pooled):
    """Reading takes nothing from the generators of whoever reads."""

    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = state()
    rows(load.batches(pooled, size=7).epoch(0, 0))
    pooled[torch.tensor([1])]
    assert state() == before


def pipe(data):
    return Pipeline(
        load.batches(data, size=8), forward.model(lambda: models.mlp(3, 4, 50)), loss.cross_entropy(),
        backward.gradients(), update.sgd(0.1),
    )  # fmt: skip


def test_a_run_resumed_in_mid_epoch_is_the_run(pooled):
    """fit(start=...) ends with the bits of the run that was not stopped, however many workers read; so do parts, and
    the validation."""
    for make in (lambda data: data, lambda data: sources.Subset(data, torch.arange(0, 50, 2))):
        alone, here = pipe(make(sources.dataset(Noisy(50)))), pipe(make(pooled))
        *_, expected = fit(alone, epochs=2, seed=3, validate=alone.load.data, compile=False)
        for stopped in fit(here, epochs=2, seed=3, compile=False, every=1):
            if (stopped.epoch, stopped.batch) == (2, 2):
                break
        options = {"epochs": 2, "state": stopped.state.clone(), "start": (1, 2), "compile": False}
        *_, resumed = fit(here, validate=here.load.data, **options)
        testing.same(resumed.state.tree, expected.state.tree)
        assert resumed.validate == expected.validate


def test_two_epochs_may_be_read_at_once(pooled):
    """Epochs that are read in turn, or left in the middle, do not disturb one another."""
    at, alone = load.batches(pooled, size=5), load.batches(Noisy(50), size=5)
    pairs = list(zip(at.epoch(0, 0), at.epoch(0, 1), strict=True))
    for epoch in (0, 1):
        assert rows(p[epoch] for p in pairs) == rows(alone.epoch(0, epoch))
    for _ in range(3):
        assert rows(islice(at.epoch(0, 2), 2)) == rows(islice(alone.epoch(0, 2), 2))


# -- what samples may be


@pytest.mark.parametrize(
    "sample",
    [
        (torch.ones(2), 1),
        [np.ones(2), np.int32(1)],
        (np.ones(2, np.float32), np.array(1, np.uint8)),
        {"inputs": torch.ones(2), "targets": torch.tensor(1)},
    ],
    ids=["a tuple", "a list", "narrow arrays", "a mapping"],
)
def test_samples_become_float32_and_int64(sample):
    """Tuples, lists and mappings of tensors, arrays and numbers make batches of the dtypes of any Source."""
    batch = sources.dataset([sample] * 3)[torch.tensor([0, 2])]
    torch.testing.assert_close(batch, {"inputs": torch.ones(2, 2), "targets": torch.tensor([1, 1])})


def test_names_and_nesting():
    """A mapping keeps its names and what is nested in it, tuples get the names that are given, floats are float32."""
    nested = load.batches(sources.dataset([{"inputs": {"a": 1.5, "b": (np.ones(2),)}, "weight": 2.0}] * 3), size=2)
    assert nested.writes == ("inputs", "weight")
    batch = next(nested.epoch(0, 0))
    assert (batch["inputs"]["b"][0].shape, batch["weight"].dtype) == ((2, 2), torch.float32)
    assert sources.dataset([(1, 2, 3)], names=("a", "b", "c")).names == ("a", "b", "c")


def test_load_takes_a_torch_dataset():
    """A map-style torch Dataset needs no wrapping, to train on or to validate with; one of tensors stays in memory."""
    at = load.batches(Subset(Noisy(10), [4, 2]), size=2, shuffle=False)
    assert [i for i, _ in rows(at.epoch(0, 0))] == [4, 2]
    assert at.over(Noisy(3)).known
    assert load.batches(TensorDataset(torch.zeros(2), torch.zeros(2)), size=1).in_memory
    assert not load.batches(Noisy(3), size=1).over(Stream()).known


# -- what can't be read


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), r"Stream is an IterableDataset, .*load\.loader\(DataLoader"),
        (iter([]), "has no length"),
        ([], "is empty"),
        ([(1, 2, 3)], r"sample 0 of list is tuple, which does not fit the names inputs, targets; pass names="),
        ([torch.ones(2)], "sample 0 of list is Tensor"),
        ([(object(), 1)], r"make no batch: .*found <class 'object'>; give tensors"),
    ],
)
def test_what_is_no_data_set_of_samples_is_refused(data, message):
    """What has no length, no samples, or samples that fit no names raises a DataError that says what to do."""
    with pytest.raises(DataError, match=message):
        sources.dataset(data)


@pytest.mark.parametrize("workers", [-1, 1.5, None])
def test_workers_are_counted(workers):
    """Any other number of workers is a ConfigError."""
    with pytest.raises(ConfigError, match=f"workers={workers} is not"):
        sources.dataset(Noisy(3), workers=workers)


def test_load_refuses_a_stream():
    """load.batches() says where an IterableDataset belongs."""
    with pytest.raises(DataError, match=r"load\.loader\(DataLoader"):
        load.batches(Stream(), size=2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_sample_that_fails_is_named(workers):
    """An exception in a sample is a DataError with its index, the type of the data set and the line, chained from it;
    the next epoch is as if there had been none."""
    data = sources.dataset(Broken(8), workers=workers)
    with pytest.raises(DataError, match=r"can't read sample 3 of Broken: KeyError: 'no such key' \(test_dataset") as e:
        list(load.batches(data, size=2).epoch(0, 0))
    assert "no such key" in str(e.value.__cause__)
    kept = sources.Subset(data, torch.tensor([0, 1, 2, 4]))
    assert rows(kept.epoch(0, 0, [torch.arange(4)])) == rows(data.epoch(0, 0, [kept.rows]))


def test_samples_that_differ_are_named():
    """Samples of different shapes raise a DataError that says how to batch them."""
    data = sources.dataset([(torch.ones(n + 1), n) for n in range(3)])
    with pytest.raises(DataError, match=r"samples 1, \.\.\. of list make no batch: .*collate_fn"):
        data[torch.tensor([1, 2])]


def test_parts_are_of_the_whole():
    """A part without rows, or with rows beyond the data set, is a DataError."""
    for kept, message in (([], "is empty"), ([-1], "rows -1 to -1 of 3"), ([0, 3], "rows 0 to 3 of 3 samples")):
        with pytest.raises(DataError, match=message):
            sources.Subset(sources.dataset(Noisy(3)), torch.tensor(kept, dtype=torch.int64))


# -- processes


def test_a_worker_that_dies_is_an_error():
    """A worker that ends by itself is a DataError, and the next epoch has new ones."""
    data = sources.dataset(Dies(4), workers=1)
    with pytest.raises(DataError, match="a worker that reads Dies has ended"):
        list(data.epoch(0, 0, [torch.tensor([3])]))
    assert len(rows(data.epoch(0, 0, [torch.tensor([1])]))) == 1


def test_an_epoch_may_be_left_in_a_cycle(monkeypatch):
    """What the collector of cycles finds, an epoch or the data set too, ends without waiting for workers."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0)  # the longest wait for each
    data, began = sources.dataset(Noisy(10), workers=1), time.monotonic()
    for dropped in (False, True):
        cycle = [data.epoch(0, 0, torch.arange(10).split(1))]
        next(cycle[0])
        cycle += [cycle, data if dropped else None]
        if dropped:
            del data
        del cycle
        gc.collect()
        if not dropped:
            assert rows(data.epoch(0, 1, [torch.arange(3)])) == rows(
                sources.dataset(Noisy(3)).epoch(0, 1, [torch.arange(3)])
            )
    assert time.monotonic() - began < 30


# A shell's background commands, and so tests that run there, ignore Ctrl-C.
RUN = """
import signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)
from multiprocessing import active_children
from pipeline import load
from tests.test_dataset import Noisy
from pipeline.sources import dataset
batches = load.batches(dataset(Noisy(10), workers=2), size=1).epoch(0, 0)
next(batches)
print(*[p.pid for p in active_children()], flush=True)
time.sleep({sleep})
"""


SIGNALS = """
import os, threading
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
def send():
    for _ in range(50):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.killpg(0, number)
        time.sleep(0.001)
threading.Thread(target=send).start()
next(batches)
"""


def test_a_signal_to_all_is_for_the_reader():
    """It may need more batches before it can save, and the signal may come while workers start."""
    code = RUN.format(sleep=0).replace("next(batches)\n", SIGNALS) + "print(len(list(batches)))\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert (run.returncode, run.stdout.splitlines()[1:]) == (0, ["9"]), run.stderr


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("ended", ["exit", "Ctrl-C", "killed"])
def test_workers_end_with_the_run(ended):
    """No worker outlives the process that reads, however it ends."""
    code = RUN.format(sleep=0 if ended == "exit" else 600)
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    try:
        assert len(workers) == 2
        if ended == "Ctrl-C":
            os.killpg(run.pid, signal.SIGINT)
        elif ended == "killed":
            run.kill()
        run.communicate(timeout=120)  # what it says, a traceback of each process, must not fill the pipe
        deadline = time.monotonic() + 30
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, workers))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
