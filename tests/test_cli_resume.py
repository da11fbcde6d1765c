"""`pipe train --resume`: a run goes on as if it had not stopped; what can't is said in a line, and nothing is lost."""

import contextlib
import io
import json
import os
import pty
import shutil
import signal
import stat
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cli import seal
from cli.flags import flags as settings_with_flags
from cli.folder import accept
from cli.main import main
from cli.recipes.setting import flag
from pipeline import PipeError, checkpoint, files, log
from tests import commands, forked, kills
from tests.test_checkpoint import rewrite

TINY = ["train", "--no-compile", "--hidden", "8", "--dropout", "0.2", "--batch-size", "479", "--save-steps", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 4 epochs of 3 steps that was never stopped, in a folder that is copied."""
    root = tmp_path_factory.mktemp("runs")
    done = commands.run(*TINY, "--epochs", 4, "--out", "whole", cwd=root)
    assert done.code == 0, done.err
    return root


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """A copy of that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "whole", tmp_path / "run")
    return tmp_path / "run"


def checkpoints(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def back_to(folder, step):
    """Forget what is newer than a checkpoint, as a kill does; the log is a step ahead, and cut in a line."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    sealed = seal.read(folder)
    sealed.checkpoints = {path.name: sealed.checkpoints[path.name] for path in (folder / "checkpoints").iterdir()}
    sealed.save()
    (folder / "model.safetensors").unlink()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 5, "st')


@pytest.mark.parametrize(("step", "number"), [(10, None), (11, signal.SIGTERM), (11, signal.SIGHUP)])
def test_a_run_goes_on_where_it_was(pipe, runs, folder, step, number):
    """In the middle of an epoch: the same weights, memories, figures, and lines of the log."""
    if step == 11:  # as an interrupt makes one
        shutil.rmtree(folder)
        stopped(folder, 11, number)
    else:
        back_to(folder, 10)
    code, out, err = pipe("train", "--resume", folder)
    assert (code, err) == (0, "")
    assert f"resume  step-{step:09d}: after {step} steps, 3 epochs, batch {step - 9} of 3\n" in out
    assert kills.ended(folder) == kills.ended(runs / "whole")
    table = tomllib.loads((folder / "config.toml").read_text())
    assert table["resumed"][-1]["step"] == step


def stopped(folder, step, number):
    """The same run, ended by a signal after a step."""
    code = f"""
import os, signal, sys
signal.signal({number:d}, signal.SIG_DFL)  # the tests may run under nohup
from pipeline.checkpoint import Saver
offer = Saver.offer
def watched(self, report, **options):
    if report.step == {step}:
        os.kill(os.getpid(), {number:d})
    return offer(self, report, now=report.step == {step})
Saver.offer = watched
from cli.main import main
main()
"""
    args = [*TINY, "--epochs", "4", "--out", str(folder), "--save-steps", "1"]
    done = forked.run(*args, code=code)
    assert done.returncode == 128 + number, done.stderr
    assert f"after step {step}; go on with: pipe train --resume {folder}" in done.stderr


def test_a_finished_run_has_nothing_to_do(pipe, folder, runs):
    """It says so; weights that a kill left unwritten are written; more epochs go on."""
    (folder / "model.safetensors").unlink()
    code, out, err = pipe("train", "--resume", folder)
    assert (code, err) == (0, "")
    assert "done    all 4 epochs; for more, add --epochs 8" in out
    assert kills.ended(folder) == kills.ended(runs / "whole")
    code, out, err = pipe("train", "--resume", folder, "--epochs", 6, "--lr", 0.05)
    assert (code, err) == (0, "")
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    table = tomllib.loads((folder / "config.toml").read_text())
    assert table["resumed"][-1] | {"epochs": [4, 6], "lr": ["default", 0.05], "step": 12} == table["resumed"][-1]
    assert table["run"]["epochs"] == 6
    assert table["facts"]["hyper"]["update.sgd.lr"] == 0.05


def test_what_a_finished_run_can_not_do_is_said(pipe, folder):
    """What needs no training is recorded, and the rest has no effect."""
    code, _, err = pipe("train", "--resume", folder, "--lr", 0.05, "--patience", 9, "--threads", 1)
    assert (code, err.count("--lr without effect, as the run is done: all 4 epochs")) == (0, 1)
    table = tomllib.loads((folder / "config.toml").read_text())
    assert (table["run"]["patience"], "lr" in table["optimizer"], "resumed" in table) == (9, False, False)
    code, _, err = pipe("train", "--resume", folder, "--best", "loss")
    assert code == 2
    assert "with its best epoch by accuracy; to train it again: pipe train" in err


def test_what_is_set_is_recorded_as_what_a_resumed_run_has(pipe, folder):
    """In [[resumed]], with its step; of a finished run only what needs no training."""
    code, _, err = pipe("set", folder, "lr=0.05", "patience=9")
    assert (code, err.count("--lr without effect, as the run is done: all 4 epochs")) == (0, 1)
    table = tomllib.loads((folder / "config.toml").read_text())
    assert ("lr" in table["optimizer"], table["resumed"][-1]["patience"]) == (False, ["default", 9])
    code, _, err = pipe("set", folder, "best=loss")
    assert (code, f"pipe train --resume {folder} --best loss" in err) == (2, True)
    assert pipe("set", folder, "epochs=6", "lr=0.05")[::2] == (0, "")
    entry = tomllib.loads((folder / "config.toml").read_text())["resumed"][-1]
    assert entry | {"epochs": [4, 6], "lr": ["default", 0.05], "step": 12} == entry
    assert "(lr default -> 0.05 at step 12" in pipe("train", folder, "--epochs", 1, "--out", "again")[2]
    assert pipe("train", "--resume", folder)[::2] == (0, "")


def test_another_best_metric_ranks_all_epochs(pipe, folder):
    """Also those before, unless it was not measured in them; it is refused if the best one's weights were not kept."""
    for name in ("unmeasured", "unkept"):
        shutil.copytree(folder, name)
    code, out, _ = pipe("train", "--resume", folder, "--best", "loss", "--epochs", 5)
    best = min(log.read(folder / "metrics.jsonl"), key=lambda row: row["validate/loss"])
    assert (code, f"best    loss {best['validate/loss']:.4f} in epoch {best['epoch']}\n" in out) == (0, True)
    code, out, err = pipe("train", "--resume", "unmeasured", "--best", "f1-score", "--epochs", 5)
    assert "the 4 epochs so far were not measured by f1 score: the best one will be a later one" in err
    assert (code, "best    f1 score" in out, pipe("report", "unmeasured")[0]) == (0, True, 0)
    assert "in epoch 5 of 5" in Path("unmeasured/report.html").read_text()
    rows = log.read("unkept/metrics.jsonl")
    rows[0]["validate/loss"] = 0.0
    Path("unkept/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, _, err = pipe("train", "--resume", "unkept", "--best", "loss", "--epochs", 5)
    assert (code, "epoch 1 is the best so far by loss, and its weights were not kept; to train it" in err) == (2, True)


def test_a_run_that_went_on_otherwise_says_so(pipe, folder):
    """Training by its settings has the last ones from the beginning; what the line says to do gives the same bits."""
    assert pipe("train", "--resume", folder, "--set", "keep=1")[::2] == (0, "")
    assert pipe("train", folder, "--out", "plain")[::2] == (0, "")  # which changes no bit
    assert (folder / "model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()
    assert pipe("train", "--resume", folder, "--epochs", 6, "--lr", 0.05)[::2] == (0, "")
    code, _, err = pipe("train", folder, "--out", "last")
    assert (code, err) == (
        0,
        f"pipe: {folder} was resumed with other options (lr default -> 0.05 at step 12, epochs 4 -> 6 at step 12). "
        "Here the last ones hold from the first step, so the bits may differ: to train the same run, give the first "
        "ones here and the others to --resume\n",
    )
    assert (folder / "model.safetensors").read_bytes() != Path("last/model.safetensors").read_bytes()
    assert pipe("train", folder, "--epochs", 4, "--lr", 0.3, "--out", "same")[0] == 0
    assert pipe("train", "--resume", "same", "--epochs", 6, "--lr", 0.05)[::2] == (0, "")
    assert (folder / "model.safetensors").read_bytes() == Path("same/model.safetensors").read_bytes()


def test_another_schedule_goes_on(pipe, folder):
    """Its numbers are others, and take the place of the old ones; what was changed in between can't be verified as
    one."""
    back_to(folder, 10)
    code, out, err = pipe("train", "--resume", folder, "--schedule", "constant", "--set", "keep=1", "--save-steps", 100)
    assert (code, err) == (0, "")
    assert "resume  step-000000010" in out
    for path in (folder / "checkpoints").iterdir():
        if path.name == "step-000000010":
            shutil.rmtree(path)
    code, _, err = pipe("train", "--resume", folder, "--verify")
    assert (code, "the settings were changed between steps" in err) == (2, True)
    code, _, err = pipe("train", "--resume", folder, "--verify", "--lr", 1)
    assert (code, "leave out other settings" in err) == (2, True)


def test_no_checkpoint_that_can_be_used_is_no_beginning(pipe, folder):
    """The run is not begun anew over what may be mended."""
    for path in (folder / "checkpoints").iterdir():
        (path / "state.safetensors").unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = pipe("train", "--resume", folder)
    assert (code, "can be used (" in err) == (2, True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_verify_replays_and_compares(pipe, folder):
    """The steps between the last two checkpoints, bit for bit; a State that is no step's is found out, with exit code
    1."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    code, out, err = pipe("train", "--resume", folder, "--verify")
    assert (code, err) == (0, "")
    assert "verify  steps 11 to 12 replayed: every tensor of the State is the same, bit for bit" in out
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"} == before
    with_other_bits(folder / "checkpoints" / "step-000000012")
    code, out, err = pipe("train", "--resume", folder, "--verify")
    assert code == 1
    assert "pipe: the replay of steps 11 to 12 differs from the run in 1 tensors, the first is params/1.bias" in err


def with_other_bits(path):
    """A checkpoint whose checksums are right, of another State."""
    tensors = load_file(path / checkpoint.STATE)
    tensors["params/1.bias"][0] += 1e-6
    save_file(tensors, path / checkpoint.STATE)
    rewrite(path, sha256=files.sha256(path / checkpoint.STATE))


def test_a_damaged_checkpoint_is_passed_over(pipe, folder, runs):
    """The one before it serves, and that is said."""
    (folder / "checkpoints/step-000000012/state.safetensors").write_bytes(b"nothing")
    code, _, err = pipe("train", "--resume", folder)
    assert code == 0
    assert err == (
        f"pipe: {folder}/checkpoints/step-000000012/state.safetensors is damaged: its checksum is another; using "
        "step-000000010 instead\n"
    )
    assert kills.ended(folder) == kills.ended(runs / "whole")


def test_without_a_checkpoint_it_begins_anew(pipe, folder, runs):
    """As where a run was killed before the first one."""
    shutil.rmtree(folder / "checkpoints")
    code, out, _ = pipe("train", "--resume", folder)
    assert code == 0
    assert "resume  no checkpoint yet, so from the beginning" in out
    assert kills.ended(folder) == kills.ended(runs / "whole")


def test_a_lost_log_is_said(pipe, folder):
    """Lines that are gone are named, and the run goes on."""
    back_to(folder, 10)
    (folder / "metrics.jsonl").unlink()
    code, _, err = pipe("train", "--resume", folder)
    assert code == 0
    assert "metrics.jsonl has no line for epoch 1, 2, 3; it goes on without" in err


REFUSED = {
    ("--batch-size", "32"): "--batch-size 32 would not be the same run, which has 479; start a new one",
    ("--seed", "1"): "--seed 1 would not be the same run",
    ("--hidden", "9"): "--hidden (9,) would not be the same run",
    ("--clip", "0"): "--clip 0.0 would not be the same run",
    ("--momentum", "0"): "--momentum 0.0 would not be the same run",
    ("--epochs", "0"): "--epochs 0 is out of range",
    ("--threads", "3000000000"): "--threads 3000000000 is out of range",
    ("--best", "acuracy"): "--best 'acuracy' is no metric of this run; did you mean 'accuracy'?",
}  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSED.items(), ids=[a[0] for a in REFUSED])
def test_what_would_be_another_run_is_refused(pipe, folder, args, message):
    before = (folder / "config.toml").read_bytes()
    code, _, err = pipe("train", "--resume", folder, *args)
    assert code == 2
    assert message in err
    assert (folder / "config.toml").read_bytes() == before


def test_other_uses_that_make_no_sense(pipe, folder):
    """Each is one line and exit code 2."""
    for args, message in {
        ("--resume", "nowhere"): "nowhere holds no run: it has no config.toml",
        ("--resume", "n" * 5000): "holds no run: it has no config.toml",
        ("--verify",): "--verify needs --resume RUN",
        ("--resume", "run", "other.toml"): "leave out other.toml",
        ("--out", "run"): "run already holds a run; choose another --out, or go on with it: --resume run",
        ("--out", "run/config.toml"): "can't write to the output folder",
    }.items():
        code, _, err = pipe("train", *args)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


def test_a_sweep_is_no_run(pipe, folder):
    """It and one of its runs are named."""
    (folder / "sweep.json").write_text("{}")
    accept(folder)
    for command in (("train", "--resume", folder), ("set", folder, "lr=1")):
        code, _, err = pipe(*command)
        assert (code, f"pipe sweep --resume {folder} goes on with it; or name a run of it" in err) == (2, True)


def test_other_data_are_refused(pipe, folder):
    """A file that has changed since."""
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('data = "', 'data = "0', 2).replace('"0digits"', '"digits"'))
    accept(folder)
    code, _, err = pipe("train", "--resume", folder)
    assert code == 2
    assert "have changed since the run was made" in err


def test_another_version_is_said(pipe, folder):
    """Its bits are not promised."""
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('numpy = "', 'numpy = "0.'))
    accept(folder)
    code, _, err = pipe("train", "--resume", folder)
    assert code == 0
    assert "the run was made with numpy 0." in err
    assert "its last bits may differ from here on" in err


def test_two_processes_can_not_have_one_folder(pipe, folder):
    """The second says who has it, and changes nothing."""
    with forked.Process("train", "--resume", folder, "--epochs", "1000000") as process:
        while "epoch" not in process.stdout.readline():
            assert process.poll() is None
        code, _, err = pipe("train", "--resume", folder)
        assert (code, err) == (
            2,
            f"pipe: another process ({process.pid}) is writing to {folder}; wait for it or stop it\n",
        )
    assert pipe("train", "--resume", folder, "--verify")[0] == 0


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(pipe, folder):
    (folder / "checkpoints").chmod(stat.S_IRUSR | stat.S_IXUSR)
    back_to(folder, 10)
    code, _, err = pipe("train", "--resume", folder)
    assert code == 2
    assert "can't write the checkpoint" in err


def test_interrupts(tmp_path):
    """Ctrl-C, SIGTERM and SIGHUP: the step in hand is finished and saved, and the command that goes on is said."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        out = tmp_path / f"run-{number}"
        args = ["train", "--no-compile", "--epochs", "1000000", "--out", out]
        with forked.Process(*args, signals={signal.SIGHUP: signal.SIG_DFL}) as process:
            while " 1/1000000" not in process.stdout.readline():
                assert process.poll() is None
            began = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert time.monotonic() - began < 10
        assert f"go on with: pipe train --resume {out}" in said
        newest = checkpoints(out)[-1]
        assert f"after step {int(newest.removeprefix('step-'))};" in said


def test_a_terminal_that_is_closed(tmp_path):
    """What can no longer be written there keeps nothing from being saved; under nohup the run goes on."""
    for hung_up, code in ((signal.SIG_DFL, 128 + signal.SIGHUP), (signal.SIG_IGN, 141)):
        master, slave = pty.openpty()
        out = tmp_path / f"run-{code}"
        args = ["train", "--no-compile", "-v", "--epochs", "1000000", "--set", "save_minutes=99", "--out", out]
        there = {"terminal": slave, "session": True, "signals": {signal.SIGHUP: hung_up}}
        with forked.Process(*args, **there) as process:
            os.close(slave)
            seen = b""
            while b" 1/1000000" not in seen:
                seen += os.read(master, 4096)
            os.close(master)
            assert process.wait(timeout=60) == code
        assert json.loads((out / "status.json").read_text()) == {"state": "stopped", "why": "by a signal"}
        assert load_file(out / "checkpoints" / checkpoints(out)[-1] / "state.safetensors")


def test_hangups_may_be_ignored(tmp_path):
    """As by nohup."""
    args = ["train", "-v", "--no-compile", "--epochs", "1000000", "--out", tmp_path / "run"]
    with forked.Process(*args, signals={signal.SIGHUP: signal.SIG_IGN}) as process:
        for epoch in ("1/1000000", "2/1000000"):
            while f" {epoch}" not in (line := process.stdout.readline()):
                assert line or process.poll() is None
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training(tmp_path, number):
    """One line, and no folder."""
    code = f"""
import os, signal, sys, time
signal.signal({number:d}, signal.default_int_handler if {number:d} == signal.SIGINT else signal.SIG_DFL)
from cli import training
def reads(*_):
    os.kill(os.getpid(), {number:d})
    time.sleep(60)
training.begin = reads
sys.argv = ["pipe", "train", "--out", "run"]
from cli.main import main
main()
"""
    done = forked.run(code=code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.strip() == f"pipe: interrupted by {number.name}"
    assert not (tmp_path / "run").exists()


def test_a_step_that_is_not_finite(pipe, tmp_path, monkeypatch):
    """What was wrong is said, checkpoints stay as they were, and another rate goes on; or such steps are skipped."""
    monkeypatch.chdir(tmp_path)
    args = [
        "train",
        "--data",
        "random",
        "--no-compile",
        "--epochs",
        3,
        "--clip",
        0,
        "--schedule",
        "constant",
        "--hidden",
        8,
    ]
    code, _, err = pipe(*args, "--lr", 1e30, "--out", "a")
    assert code == 2
    assert err.startswith("pipe: step 2 (epoch 1, batch 2) is not finite: stage 'forward.model' made 'outputs' has ")
    assert err.endswith("pipe: to go on from the last checkpoint: pipe train --resume a --lr X\n")
    assert checkpoints(tmp_path / "a") == []
    code, out, _ = pipe(*args, "--lr", 1e30, "--out", "b", "--set", "on_nonfinite=skip")
    assert code == 0
    assert "skipped 15" in out
    assert pipe("train", "--resume", "a", "--lr", 0.1)[0] == 0


def test_killed_at_any_moment(tmp_path):
    """A few of the kills of tests/kills.py, of single eager steps, which need no compiler."""
    found = kills.campaign(times=2, modes=["uncompiled"], epochs=4, longest=0.6, seed=1, start=forked.Process)
    [(count, ended, same)] = found.values()
    assert count == 2
    assert same == ended


FLAGS = [*settings_with_flags()]
flags = st.sampled_from(sorted({flag(name) for name in FLAGS} - {"--out", "--compile", "--epochs"}))
words = st.one_of(
    st.sampled_from([
        "0", "1", "-1", "2", "1e400", "nan", "inf", "auto", "cpu", "sgd", "adam", "mlp", "digits", "skip", "epoch",
        "constant", "loss", "--", "-", "a/b", "run",
        "", " ", "9" * 30, "\N{SNOWMAN}", "run/config.toml",
    ]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)  # fmt: skip
settings_of = st.dictionaries(
    st.sampled_from(sorted(FLAGS)),
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=3),
              st.just({})),
)  # fmt: skip


@given(st.data())
@settings(max_examples=settings.default.max_examples * 4)
def test_fuzzed_commands(data):
    """Whatever flags, config files and folders are given: exit code 0 or 2 and words, never a traceback, never a
    hang."""
    with tempfile.TemporaryDirectory() as root:
        run = Path(root).resolve() / "run"
        shape_run(data, run)
        given_flags = data.draw(st.lists(st.tuples(flags, words), max_size=3))
        args = ["show", "train"][data.draw(st.booleans())]
        command = [args, "--no-compile", "--epochs", "1", "--hidden", "4", *[w for pair in given_flags for w in pair]]
        if args == "train":
            command += data.draw(
                st.sampled_from([["--resume", str(run)], ["--resume", str(run), "--verify"], ["--out", f"{root}/new"]])
            )
        if data.draw(st.booleans()):
            table = {k: v for k, v in data.draw(settings_of).items() if v is not None}
            content = data.draw(st.one_of(st.binary(max_size=60), st.just(tomli_w.dumps(table).encode())))
            (Path(root) / "some.toml").write_bytes(content)
            command += [f"{root}/some.toml"] * data.draw(st.integers(0, 1))
        out, err = io.StringIO(), io.StringIO()
        before, argv = os.getcwd(), sys.argv
        os.chdir(root)
        sys.argv = ["pipe", *command]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main()
        finally:
            os.chdir(before)
            sys.argv = argv
        assert ended.value.code in (0, 2), (command, err.getvalue())
        assert ended.value.code == 0 or err.getvalue().startswith("pipe: "), (command, err.getvalue())


def shape_run(data, run):
    """A run's folder with anything in the place of its files."""
    run.mkdir()
    names = ["config.toml", "metrics.jsonl", "checkpoints", ".lock", "checkpoints/step-000000003",
             "checkpoints/step-000000003/checkpoint.json", "checkpoints/step-000000003/state.safetensors"]  # fmt: skip
    for name in names:
        kind = data.draw(st.sampled_from(["good", "good", "none", "bytes", "folder", "fifo", "link", "device"]))
        path = run / name
        if kind == "none" or not path.parent.is_dir() or path.parent.resolve() != path.parent or os.path.lexists(path):
            continue
        if kind == "folder" or (kind == "good" and "." not in name.split("/")[-1]):
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(data.draw(st.sampled_from(["nowhere", ".", "/", path.name])))
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "bytes":
            path.write_bytes(data.draw(st.binary(max_size=40)))
        elif name == "config.toml":
            path.write_text("epochs = 1\ncompile = false\nhidden = [4]\n")
    if data.draw(st.booleans()):
        with contextlib.suppress(PipeError):
            accept(run)
