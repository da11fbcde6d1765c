"""Checkpoints: what is written is read back bit for bit, and nothing else ever is."""

import errno
import io
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import (
    Pipeline,
    backward,
    checkpoint,
    evaluate,
    files,
    fit,
    forward,
    load,
    loss,
    place,
    stage,
    testing,
    update,
)
from pipeline.checkpoint import Saver
from pipeline.errors import CheckpointError, ConfigError
from pipeline.state import Report
from tests import pipes

DATA = {"inputs": torch.randn(22, 4), "targets": torch.arange(22) % 3}


def pipeline(*updates, model=pipes.Linear):
    return Pipeline(
        load.batches(DATA, size=4), place.on("cpu"), forward.model(model), loss.cross_entropy(), evaluate.accuracy(),
        backward.gradients(), *(updates or (update.finite(), update.adamw(0.1))),
    )  # fmt: skip


def report(state, epoch=1, batch=0, *, complete=False, **validate):
    better = {"accuracy": "high", "loss": "low"}
    return Report(epoch, 9, int(state.step), batch, 6, complete, {}, validate, 1.0, 1, state, better=better)


def at(pipe, step, seed=0):
    """A State that has done so many steps, as far as its count says."""
    return pipe.init(seed).replace(step=torch.tensor(step))


def steps(folder):
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, and the pipeline and State that it was made of."""
    pipe = pipeline()
    state, _ = pipe.step(pipe.init(3))
    with Saver(tmp_path, best="accuracy") as saver:
        saver.offer(report(state, accuracy=0.5, complete=True), now=True)
    return checkpoint.newest(tmp_path).saved, pipe, state


@pytest.mark.parametrize("name", pipes.ALL)
def test_a_state_is_read_back_bit_for_bit(name, tmp_path):
    """Weights, buffers, memories, hyperparameters, step and seed: in the same structure, shapes, dtypes and bits."""
    pipe = pipes.ALL[name]()
    state, _ = pipe.step(pipe.init(7, steps=50), pipes.first(pipe))
    with Saver(tmp_path) as saver:
        saver.save(state, 0, 1)
    back = checkpoint.newest(tmp_path).saved
    assert (back.step, back.start, back.best, back.torch) == (1, (0, 1), None, torch.__version__)
    assert testing.differences(back.restore(pipe).tree, state.tree) == []


ODD = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.complex64]


@given(st.sampled_from(ODD), st.sampled_from([(), (0,), (1,), (2, 0), (3, 1, 2)]), st.integers(0, 2**31))
def test_any_tensor_is_read_back(tmp_path_factory, dtype, shape, seed):
    """Whatever a stage remembers: any dtype and shape, empty ones too, in dicts, lists and tuples; NaN keeps its
    bits."""
    value = (
        torch.full(shape, float("nan"))
        if seed % 5 == 0 and dtype.is_floating_point
        else torch.arange(1 + seed % 7).sum()
    )
    memory = {"a": [value.to(dtype).expand(shape).clone()], "b": (torch.tensor(seed), {"c/d": torch.ones(2)})}
    odd = keeping(memory)
    pipe = pipeline(update.sgd(0.1), odd)
    state, folder = pipe.init(0), tmp_path_factory.mktemp("any")
    with Saver(folder) as saver:
        saver.save(state, 0, 0)
    assert testing.differences(checkpoint.newest(folder).saved.restore(pipe).tree, state.tree) == []


def keeping(memory):
    @stage(init=lambda: memory)
    def keeps(outputs, memory):
        return memory

    return keeps


def test_tensors_that_lie_otherwise(tmp_path):
    """A State of another memory format comes back in that format."""
    pipe = pipeline(model=lambda: torch.nn.Sequential(torch.nn.Unflatten(1, (1, 2, 2)), torch.nn.Conv2d(1, 3, 2).to(
        memory_format=torch.channels_last), torch.nn.Flatten()))  # fmt: skip
    state = pipe.init(0)
    with Saver(tmp_path) as saver:
        saver.save(state, 0, 0)
    back = checkpoint.newest(tmp_path).saved.restore(pipe)
    assert testing.differences(back.tree, state.tree) == []
    assert [t.stride() for t in back.params.values()] == [t.stride() for t in state.params.values()]


def test_every_byte_counts(saved):
    """A flip of any byte, in both files, and a cut at any place is found, or changed nothing that is read."""
    whole, pipe, state = saved
    for name in (checkpoint.FACTS, checkpoint.STATE):
        path = whole.path / name
        good = path.read_bytes()
        for i in range(len(good)):
            for bad in (good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :], good[:i]):
                path.write_bytes(bad)
                try:
                    back = checkpoint.read(whole.path)
                except CheckpointError:
                    continue
                else:
                    assert name == checkpoint.FACTS  # white space, or how a character is written
                    assert back == whole
        path.write_bytes(good)
    assert testing.differences(checkpoint.read(whole.path).restore(pipe).tree, state.tree) == []


@given(st.data())
def test_mutations_are_found(tmp_path_factory, data):
    """Bytes inserted, removed, exchanged or repeated anywhere: each gives the old content, or a CheckpointError."""
    pipe = pipeline()
    folder = tmp_path_factory.mktemp("mutations")
    with Saver(folder) as saver:
        saver.save(pipe.init(0), 0, 0)
    whole = checkpoint.newest(folder).saved
    originals = {name: (whole.path / name).read_bytes() for name in (checkpoint.FACTS, checkpoint.STATE)}
    for _ in range(40):
        name = data.draw(st.sampled_from(sorted(originals)))
        good = originals[name]
        i, j = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
        middle = data.draw(
            st.one_of(st.binary(max_size=9), st.just(good[i:j][::-1]), st.just(good[i:j] * 2), st.just(b"\0" * (j - i)))
        )
        (whole.path / name).write_bytes(good[:i] + middle + good[j:])
        try:
            back = checkpoint.read(whole.path)
        except CheckpointError:
            pass
        else:
            assert back == whole
            assert testing.differences(back.restore(pipe).tree, pipe.init(0).tree) == []
        (whole.path / name).write_bytes(good)


def rewrite(path, **changes):
    """Facts changed by somebody who knows how their checksum is made."""
    facts = {**json.loads((path / checkpoint.FACTS).read_text()), **changes}
    facts["checksum"] = files.checksum(facts)
    (path / checkpoint.FACTS).write_text(json.dumps(facts))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder_for(path):
    path.unlink()
    path.mkdir()


FAULTS = {
    "of a newer version": (
        lambda p: rewrite(p, format=2),
        "format 2, which this version of pipe-train does not know; update it",
    ),
    "without its facts": (lambda p: (p / checkpoint.FACTS).unlink(), "checkpoint.json: No such file"),
    "without its tensors": (lambda p: (p / checkpoint.STATE).unlink(), "state.safetensors: No such file"),
    "a list": (lambda p: (p / checkpoint.FACTS).write_text("[]"), "is damaged"),
    "deep": (lambda p: (p / checkpoint.FACTS).write_text("[" * 10**5), "is damaged"),
    "no text": (lambda p: (p / checkpoint.FACTS).write_bytes(b"\xff\xfe"), "is damaged"),
    "a folder": (lambda p: folder_for(p / checkpoint.STATE), "not a regular file"),
    "a pipe that nobody writes to": (lambda p: fifo(p / checkpoint.FACTS), "not a regular file"),
    "a link": (
        lambda p: ((p / checkpoint.FACTS).unlink(), (p / checkpoint.FACTS).symlink_to("/dev/zero")),
        "is a link, which is not followed",
    ),
}


@pytest.mark.parametrize(("harm", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_said_and_the_one_before_is_used(saved, harm, message):
    """Each fault is one line; the newest good checkpoint is found, with the reason why newer ones were passed over."""
    good, _, _ = saved
    bad = good.path.with_name("step-000000099")
    shutil.copytree(good.path, bad)
    harm(bad)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(bad)
    found = checkpoint.newest(good.path.parent)
    assert found.saved == good
    assert [message in fault for fault in found.faults] == [True]


def test_another_pipelines_checkpoint_is_refused(saved):
    """Other shapes, other stages, or more of them."""
    whole, _, _ = saved
    for other, message in (
        (pipeline(model=lambda: pipes.Linear(4, 5)), "it has .*3, 4"),
        (pipeline(update.finite(), update.sgd(0.1, momentum=0.9)), "it has nothing"),
        (pipeline(update.finite(), update.sgd(0.1)), "it has nothing|it also holds"),
    ):
        with pytest.raises(CheckpointError, match=message):
            whole.restore(other)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('this code must not run')",)


def test_nothing_is_unpickled(saved):
    """A pickle under the name of each file is refused, also where its checksums were made to fit."""
    whole, pipe, _ = saved
    good = (whole.path / checkpoint.FACTS).read_bytes()
    (whole.path / checkpoint.FACTS).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError):
        checkpoint.read(whole.path)
    (whole.path / checkpoint.FACTS).write_bytes(good)
    for content in (pickle.dumps(Malicious()), zipped(Malicious())):
        (whole.path / checkpoint.STATE).write_bytes(content)
        rewrite(whole.path, sha256=files.sha256(whole.path / checkpoint.STATE))
        with pytest.raises(CheckpointError, match="can't be read"):
            checkpoint.read(whole.path).restore(pipe)


def zipped(value):
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_the_newest_and_the_best_stay(tmp_path):
    """`keep` of them and the best epoch's; what a killed process began is removed; newer ones are of a past that was
    left."""
    pipe = pipeline()
    (tmp_path / ".making-abc").mkdir()
    shutil.copytree(tmp_path / ".making-abc", tmp_path / "step-000001000")
    with Saver(tmp_path, keep=2, best="accuracy") as saver:
        assert not (tmp_path / ".making-abc").exists()
        for epoch, accuracy in enumerate([0.5, 0.9, float("nan"), 0.7, 0.9], 1):
            saver.offer(report(at(pipe, 10 * epoch), epoch, complete=True, accuracy=accuracy), now=True)
    assert steps(tmp_path) == [40, 50]
    best = checkpoint.newest(tmp_path).saved.best
    assert (best.metric, best.value, best.epoch, best.step, best.since) == ("accuracy", 0.9, 5, 50, 2)
    with Saver(tmp_path, keep=1, best="accuracy", saved=checkpoint.newest(tmp_path).saved) as saver:
        saver.offer(report(at(pipe, 60), 6, complete=True, accuracy=0.8), now=True)
    assert steps(tmp_path) == [50, 60]


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, math.nan])] * 2), min_size=1, max_size=8), st.booleans())
def test_ties_go_by_the_loss_then_to_the_later(tmp_path_factory, results, known):
    """The best epoch is that of the best metric, of these of the lowest loss, of these the last, also across a resume;
    the metric's own direction, or better=."""
    folder, pipe, saved = tmp_path_factory.mktemp("ties"), pipeline(), None
    for epoch, (brier, value) in enumerate(results, 1):
        better = {"brier": "low", "loss": "low"} if known else {"brier": "high"}
        with Saver(folder, best="brier", better=None if known else "low", keep=1, saved=saved) as saver:
            told = report(at(pipe, epoch), epoch, complete=True, brier=brier, loss=value)
            saver.offer(evolve(told, better=better), now=True)
        saved = checkpoint.newest(folder).saved
    finite = [(b, math.inf if loss != loss else loss, -e) for e, (b, loss) in enumerate(results, 1) if b == b]
    if not finite:
        assert saved.best is None
        return
    assert (saved.best.value, saved.best.epoch) == (min(finite)[0], -min(finite)[2])
    assert saved.best.since == -max(e for b, _, e in finite if b == saved.best.value)
    assert steps(folder) == sorted({saved.best.step, len(results)})


def test_a_metric_that_does_not_say_what_is_best_is_refused(tmp_path):
    """In one line, with those that do; better= says it."""
    told = evolve(report(pipeline().init(0), complete=True, accuracy=0.1, wer=0.5), better={"accuracy": "high"})
    wrong = "nothing says whether 'wer' is better high or low: write better='high' or 'low'; known of accuracy$"
    with Saver(tmp_path, best="wer") as saver, pytest.raises(ConfigError, match=wrong):
        saver.offer(told)
    with Saver(tmp_path, best="wer", better="low") as saver:
        saver.offer(told)
        assert saver.best.value == 0.5


def test_the_best_is_written_with_the_next(tmp_path):
    """An epoch that is best, but not worth a checkpoint by itself, is on disk before the next one, and at the end."""
    pipe = pipeline()
    with Saver(tmp_path, best="loss") as saver:
        saver._took = 1e6  # so long that none is due
        saver.offer(report(at(pipe, 10), 1, complete=True, loss=0.5))
        saver.offer(report(at(pipe, 20), 2, complete=True, loss=0.6))
        assert steps(tmp_path) == []
        saver.offer(report(at(pipe, 30), 3, complete=True, loss=0.6), now=True)
        saver.offer(report(at(pipe, 40), 4, complete=True, loss=0.4))
    assert steps(tmp_path) == [30, 40]
    assert checkpoint.newest(tmp_path).saved.best.step == 40
    assert checkpoint.read(tmp_path / "step-000000030").best.step == 10


def test_when_one_is_due(tmp_path):
    """By steps whenever asked for; by epochs and minutes only as far as they take no 0.5 % of the time."""
    pipe = pipeline()
    with Saver(tmp_path, steps=7) as saver:
        saver._took = 1e6
        assert [saver.offer(report(at(pipe, n), batch=n)) for n in (6, 7, 8, 14)] == [False, True, False, True]
    with Saver(tmp_path / "b", minutes=1.0) as saver:
        saver._at -= 61
        assert saver.offer(report(at(pipe, 1), batch=1))
        assert not saver.offer(report(at(pipe, 2), batch=2))
        saver._finish()
        saver._took = 1.0
        saver._at -= 199
        assert not saver.offer(report(at(pipe, 3), complete=True))
        saver._at -= 2
        assert saver.offer(report(at(pipe, 4), complete=True))


def test_options_that_do_not_fit(tmp_path):
    """A count that is none, and a metric that validation does not give."""
    with pytest.raises(ConfigError, match="keep=0"):
        Saver(tmp_path, keep=0)
    with Saver(tmp_path, best="acuracy") as saver, pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        saver.offer(report(pipeline().init(0), complete=True, accuracy=0.1))


def test_trouble_on_disk_is_said_and_earlier_ones_stay(saved, monkeypatch):
    """Where the disk is full, the error says so, nothing half is left, and the earlier checkpoint can be read."""
    whole, pipe, state = saved
    folder = whole.path.parent

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = Saver(folder)
    monkeypatch.setattr(os, "fsync", full)
    saver.save(at(pipe, 5), 0, 5)
    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints"):
        saver.close()
    monkeypatch.undo()
    assert sorted(p.name for p in folder.iterdir()) == [whole.path.name]
    assert testing.differences(checkpoint.newest(folder).saved.restore(pipe).tree, state.tree) == []
    (folder / "file").touch()
    with pytest.raises(CheckpointError, match="can't write the checkpoint"):
        Saver(folder / "file")
    with pytest.raises(CheckpointError, match="can't look into"):
        checkpoint.newest(folder / "file")
    assert checkpoint.newest(folder / "nowhere").saved is None


def test_a_folder_is_a_path_or_a_text(saved):
    """For all that look into one."""
    folder = saved[0].path.parent
    assert checkpoint.steps(str(folder)) == checkpoint.steps(folder) == [(1, saved[0].path)]
    assert checkpoint.newest(str(folder)).saved.path == checkpoint.at(str(folder), 1).path == saved[0].path


LIMITED = """
import resource, sys
from pipeline import checkpoint, models
from pipeline.errors import CheckpointError
from tests.test_checkpoint import at, pipeline
pipe = pipeline(model=lambda: models.mlp(4, 1000, 3))
with checkpoint.Saver(sys.argv[1]) as saver:
    saver.save(at(pipe, 1), 0, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with checkpoint.Saver(sys.argv[1]) as saver:
        saver.save(at(pipe, 2), 0, 2)
except CheckpointError as e:
    print(e)
"""


def test_a_limit_on_the_size_of_files(tmp_path):
    """The system refuses in the middle of a write: the same clear error, and the earlier checkpoint is whole."""
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert "can't write the checkpoint" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoint.newest(tmp_path).saved.step == 1


def test_it_is_written_on_another_thread(tmp_path, monkeypatch):
    """Training goes on meanwhile, and what it does to State is no part of what is written."""
    pipe, go = pipeline(), threading.Event()
    write = Saver._write
    monkeypatch.setattr(Saver, "_write", lambda self, jobs: go.wait(60) and write(self, jobs))
    state = pipe.init(0)
    copy = state.clone()
    with Saver(tmp_path) as saver:
        saver.save(state, 0, 0)
        for t in state.params.values():
            t.zero_()
        assert steps(tmp_path) == []
        go.set()
    assert testing.differences(checkpoint.newest(tmp_path).saved.restore(pipe).tree, copy.tree) == []


@given(st.integers(1, 45), st.sampled_from([None, 1, 5, "epoch"]), st.sampled_from(["mlp", "convnet"]))
@settings(max_examples=settings.default.max_examples // 2)  # each is three runs
def test_resumed_is_as_if_never_stopped(tmp_path_factory, stop, per_call, name):
    """Stopped after any step, saved, and gone on with: State and figures are those of the run that was not, bit for
    bit.

    With BatchNorm, dropout, momentum or Adam, a schedule, and a short last batch.
    """
    pipe, program = pipes.compiled(name)
    options = {"epochs": 2, "compile": program, "validate": pipes.TEST, "steps_per_call": per_call}
    *_, whole = fit(pipe, seed=5, **options)
    whole_state, figures = whole.state.clone(), (whole.train, whole.validate)
    folder = tmp_path_factory.mktemp("resumed")
    with Saver(folder) as saver:
        for r in fit(pipe, seed=5, every=stop, **options):
            if r.step >= stop:
                saver.offer(r, now=True)
                break
    back = checkpoint.newest(folder).saved
    assert back.step == stop
    *_, last = fit(pipe, state=back.restore(pipe), start=back.start, **options)
    assert testing.differences(last.state.tree, whole_state.tree) == []
    assert (last.train, last.validate) == figures
    assert last.step == whole.step
