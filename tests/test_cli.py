"""The command as people run it: a real process, a pseudo-terminal, bad input, an interrupt."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cli import build, config
from cli.recipes.model import MODELS
from cli.recipes.rule import OPTIMIZERS
from pipeline import fit, models
from pipeline.errors import ConfigError
from tests import commands, forked, kills

PIPE = [sys.executable, "-c", "from cli.main import main; main()"]
QUICK = ["--no-compile", "--epochs", "2", "--hidden", "16"]


def fresh():
    """The environment without what torch's compiler has put into it in this process."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR_")}


def pipe(*args, cwd, **options):
    command = [*PIPE, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=fresh(), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of `pipe train` with the compiled step."""
    cwd = tmp_path_factory.mktemp("run")
    small = ["--epochs", 4, "--hidden", 16, "--batch-size", 479, "--lr", 0.5]
    return cwd, pipe("train", *small, "--no-eager-start", cwd=cwd)


def test_train_says_what_it_does(run):
    """What is trained, that it compiled, a line an epoch, the best result and where the run is."""
    _, done = run
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "data    digits: 1,437 training and 360 held-out samples, inputs 1x8x8, 10 classes"
    assert lines[1] == "model   mlp 64-16-10: 1,210 parameters"
    assert lines[2].startswith("device  cpu, ")
    assert lines[3] == "compiling the step and the evaluation; --no-compile avoids it"
    assert re.fullmatch(r"compiled 2 graphs by native in \d+\.\d s", lines[4])
    number = r"\d+\.\d{4}"
    epoch = rf"epoch \d/4  loss {number}  val loss {number}  accuracy \d+\.\d\d %  [\d,]+ samples/s"
    assert all(re.fullmatch(epoch, line) for line in lines[5:9])
    assert re.fullmatch(r"best    accuracy \d+\.\d\d % in epoch \d", lines[9])
    assert re.fullmatch(r"baseline  accuracy \d+\.\d\d % by always predicting '\d'", lines[10])
    lines = [line for line in lines if not line.startswith("warning class")]  # after so few steps there may be one
    assert lines[11].startswith(
        "run     runs/digits-mlp-1 (best.safetensors: the weights of the best epoch, model.safetensors: "
    )
    assert len(lines) == 12


def test_the_runs_folder(run):
    """config.toml says all, metrics.jsonl has a line an epoch, and load_state_dict takes the weights."""
    folder = run[0] / "runs" / "digits-mlp-1"
    table = tomllib.loads((folder / "config.toml").read_text())
    assert table["model"]["hidden"] == [16]
    assert table["facts"]["hyper"]["update.sgd.lr"] == 0.5
    assert table["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["step"] == 12
    assert lines[0].pop("better") == {"loss": "low", "accuracy": "high"}
    for line in lines:
        metrics = [f"{part}/{name}" for part in ("train", "validate") for name in ("accuracy", "loss")]
        assert list(line) == [
            "epoch", "step", *metrics, "seconds", "samples_per_second", "train/learning rate", "checksum",
        ]  # fmt: skip
    module = models.mlp(64, 16, 10)
    module.load_state_dict(load_file(folder / "model.safetensors"))


def test_a_second_run_starts_from_the_cache(run, tmp_path):
    """With another lr, seed, number of epochs and of steps a call, in any folder, the graphs are the same: no compiler
    is even imported."""
    code = """
import sys
from cli import config, training
settings = {"hidden": [16], "batch_size": 479, "lr": 0.1, "seed": 3, "epochs": 2, "steps_per_call": "2"}
training.train(config.make(settings))
assert "torch._inductor.compile_fx" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=fresh())
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 from the cache" in done.stdout


def test_a_run_begins_at_once(run, tmp_path):
    """Uncompiled, up to a step that its config records, so that a repetition, a replay and a resumed run have the same
    bits; a short run is not compiled at all."""
    small = ["train", "--hidden", 16, "--batch-size", 479, "--lr", 0.5, "--schedule", "constant"]
    done = commands.run(*small, "--eager-steps", 5, "--save-steps", 2, "--epochs", 3, "--out", "a", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[3] == "compiling beside the first 5 steps; --no-eager-start waits for it"
    assert [line[:9] for line in lines[4:6]] == ["epoch 1/3", "compiled "]
    assert commands.run("train", "a/config.toml", "--epochs", 2, "--out", "b", cwd=tmp_path).code == 0
    assert commands.run("train", "--resume", "b", "--epochs", 3, cwd=tmp_path).code == 0
    assert kills.ended(tmp_path / "a")[:2] == kills.ended(tmp_path / "b")[:2]
    assert "the same, bit for bit" in commands.run("train", "--resume", "a", "--verify", cwd=tmp_path).out
    short = commands.run(*small, "--epochs", 1, "--out", "c", cwd=tmp_path)
    assert "uncompiled: 3 steps take less time than compiling; --no-eager-start compiles" in short.out
    facts = [tomllib.loads((tmp_path / name / "config.toml").read_text())["facts"] for name in "bc"]
    assert facts[0]["eager_steps"] == 5
    assert facts[1]["eager_steps"] > 1000


def test_threads_are_chosen_by_the_size_of_the_step(run, tmp_path):
    """A small step gets one thread, whatever the machine, unless told otherwise; the run's config records it."""
    assert tomllib.loads((run[0] / "runs/digits-mlp-1/config.toml").read_text())["facts"]["threads"] == 1
    assert "device  cpu, 2 threads" in commands.run("train", *QUICK, "--threads", 2, cwd=tmp_path).out


def test_a_runs_config_makes_the_same_run_again(tmp_path):
    """`pipe train config.toml` gives the same bits, and options beside it win."""
    assert commands.run("train", *QUICK, "--out", "a", "--seed", 5, cwd=tmp_path).code == 0
    assert commands.run("train", "a/config.toml", "--out", "b", cwd=tmp_path).code == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert commands.run("train", "a/config.toml", "--out", "c", "--seed", 6, cwd=tmp_path).code == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()
    again = commands.run("train", "a/config.toml", "--out", "a", cwd=tmp_path)
    assert again.code == 2
    assert "a already holds a run" in again.err


def test_the_tutorials_random_data(tmp_path):
    """--data random trains on 1000 normal samples; -q leaves only the result, and what it is judged by."""
    done = commands.run("train", "--data", "random", *QUICK, "-q", cwd=tmp_path)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] in (
        ["best", "baseline", "run"],
        ["best", "baseline", "warning", "run"],
    )


def test_other_models_optimizers_and_files(tmp_path):
    """A ConvNet with AdamW, a table of values, a table of classes, and tokens all train; a report names the best epoch
    by the same metric."""
    (tmp_path / "houses.csv").write_text("rooms,price\n" + "".join(f"{i % 5},{i % 5 * 1.5 + 0.1}\n" for i in range(60)))
    (tmp_path / "pets.csv").write_text(
        "weight;kind\n" + "".join(f"{i % 2}.5;{['cat', 'dog'][i % 2]}\n" for i in range(40))
    )
    tokens = np.arange(60 * 8).reshape(60, 8) % 7
    np.savez(tmp_path / "text.npz", inputs=tokens, targets=(tokens + 1) % 7)
    runs = {
        ("--model", "convnet", "--optimizer", "adamw", "--schedule", "step", "--widths", "4,8"): "accuracy",
        ("--data", "houses.csv", "--schedule", "linear"): "r2",
        ("--data", "pets.csv", "--optimizer", "adam", "--schedule", "exponential"): "accuracy",
        ("--data", "text.npz", "--model", "transformer", "--width", "16", "--weight-decay", "0.1"): "perplexity",
    }
    for options, best in runs.items():
        done = commands.run("train", *QUICK[:3], *options, "-v", cwd=tmp_path)
        assert done.code == 0, done.err
        assert f"best    {best}" in done.out
        folder = done.out.rpartition("\nrun     ")[2].split()[0]
        assert commands.run("report", folder, "--out", "page.html", cwd=tmp_path).code == 0
        assert f"<p>best {best}" in (tmp_path / "page.html").read_text()
        assert "backward.gradients" in done.out
        assert ("precision" in done.out) == (best == "accuracy")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_each_optimizer_trains(name):
    """With its own learning rate, and weight decay left out of the biases where it has some, the loss falls."""
    decay = {} if name == "rprop" else {"weight_decay": 0.01, "no_decay": "*.bias"}
    made = build.job(config.make({"optimizer": name, "hidden": [32], "epochs": 4, "seed": 1, **decay}))
    losses = [report.train["loss"] for report in fit(made.pipe, epochs=4, seed=1, compile=False)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_decay_and_parts_of_a_batch(tmp_path):
    """A run with decay on some parameters, in parts of a batch, learns what one in whole batches does, and resumes."""
    args = ["train", "--no-compile", "--hidden", "8", "--optimizer", "adamw", "--no-decay", "*.bias"]
    args += ["--weight-decay", "0.1", "--batch-size", "100"]
    ran = [
        commands.run(*args, "--epochs", 3, "--out", "whole", cwd=tmp_path),
        commands.run(*args, "--epochs", 3, "--accumulate", 4, "--out", "parts", cwd=tmp_path),
        commands.run("train", "--resume", "parts", "--verify", cwd=tmp_path),
    ]
    assert [done.code for done in ran] == [0, 0, 0], [done.err for done in ran]
    whole, parts = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    table = tomllib.loads((tmp_path / "parts" / "config.toml").read_text())
    assert table["facts"]["hyper"]["update.groups.*.bias.weight_decay"] == 0
    assert table["facts"]["hyper"]["update.groups.otherwise.weight_decay"] == 0.1


def test_show(tmp_path):
    """`pipe show` prints the table and the parameters, and writes nothing."""
    done = commands.run("show", cwd=tmp_path)
    assert done.code == 0
    assert "update.sgd          params, grads" in done.out
    assert re.search(r"1\.weight +128x64 +8,192", done.out)
    assert not list(tmp_path.iterdir())


def test_help_is_quick(tmp_path):
    """`pipe --help` takes under 0.3 seconds, at best of three."""

    def once():
        start = time.perf_counter()
        assert pipe("--help", cwd=tmp_path).returncode == 0
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.3


BAD = {
    ("train", "--data", "digit"): "unknown data 'digit'; did you mean 'digits'?",
    ("train", "--model", "mpl"): "unknown model 'mpl'; did you mean 'mlp'?",
    ("train", "--optimizer", "sdg"): "unknown optimizer 'sdg'; did you mean 'sgd'?",
    ("train", "--schedule", "cosin"): "unknown schedule 'cosin'; did you mean 'cosine'?",
    ("train", "--epochs", "0"): "--epochs 0 is out of range",
    ("train", "--batch-size", "-4"): "--batch-size -4 is out of range",
    ("train", "--hidden", "0"): "--hidden 0 is out of range",
    ("train", "--hidden", "a"): "--hidden 'a' is no list of widths",
    ("train", "--lr", "nan"): "--lr nan is out of range",
    ("train", "--seed", "-1"): "--seed -1 is out of range",
    ("train", "--threads", "0"): "--threads 0 is out of range",
    ("train", "--precision", "bf61"): "unknown precision 'bf61'; did you mean 'bf16'?",
    ("train", "--set", "steps_per_call=0"): "--set steps_per_call='0' is neither a positive whole number",
    ("train", "--set", "steps_per_call=9", "--no-compile"): "needs a compiled step; leave out --no-compile",
    ("train", "--data", "x" * 300): "unknown data",
    ("train", "--model", "convnet", "--widths", ","): "needs at least one width",
    ("train", "--momentum", "0.5", "--optimizer", "adam"): "--momentum belongs to --optimizer sgd",
    ("train", "--optimizer", "rprop", "--weight-decay", "0.1"): "--optimizer rprop has no weight decay",
    ("train", "--no-decay", "*.bias"): "--no-decay has nothing to leave out: sgd has no --weight-decay here",
    ("train", "--optimizer", "adamw", "--no-decay", "norm.*"): "the group 'norm.*' matches none of the parameters",
    ("train", "--accumulate", "0"): "--accumulate 0 is out of range",
    ("train", "--device", "gpu"): "unknown device 'gpu'",
    ("train", "--device", "cuda:99"): "device 'cuda:99'",
    ("train", "--data", "none.npz"): "can't read none.npz: No such file",
    ("train", "--data", "nan.npz"): "nan.npz has no column that says anything",
    ("train", "--data", "empty.npz"): "empty",
    ("train", "--data", "text.npz"): "no .npz archive",
    ("train", "--data", "random", "--model", "convnet"): "inputs of shape (784,)",
    ("train", "--model", "transformer"): "digits has inputs (1, 8, 8) for classification; use mlp or convnet",
    ("train", "--model", "lstm"): "digits has inputs (1, 8, 8) for classification; use mlp or convnet",
    ("train", "--data", "book.txt", "--model", "mlp"): "use --model transformer, or convert them",
    ("train", "--data", "book.txt", "--model", "lstm"): "for language modelling; use transformer",
    ("train", "--out", "/proc/nowhere"): "can't write to the output folder",
    ("train", "none.toml"): "can't read none.toml",
    ("train", "bad.toml"): "unknown setting 'epoch'; did you mean 'epochs'?",
    ("train", "--epoch", "3"): "No such option",
    ("tran",): "No such command 'tran'",
}  # fmt: skip


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    """Each gives a message that says what is wrong, no traceback, and no run."""
    inputs = np.zeros((9, 4), np.float32)
    np.savez(tmp_path / "empty.npz", inputs=inputs[:0], targets=np.zeros(0, int))
    (tmp_path / "text.npz").write_text("inputs")
    (tmp_path / "bad.toml").write_text("epoch = 3\n")
    (tmp_path / "book.txt").write_text("to be or not to be " * 400)
    inputs[3] = np.nan
    np.savez(tmp_path / "nan.npz", inputs=inputs, targets=np.arange(9) % 3)
    code = "import sys, shlex\nfrom cli.main import main\n" + (
        "for line in sys.stdin:\n"
        "    sys.argv = ['pipe', *shlex.split(line)]\n"
        "    try: main()\n"
        "    except SystemExit as e: print(e.code, file=sys.stderr, flush=True)\n"
    )
    text = "\n".join(" ".join(args) for args in BAD)
    done = forked.run(code=code, cwd=tmp_path, input=text)
    answers = done.stderr.splitlines()
    assert len(answers) == 2 * len(BAD), done.stderr
    for (args, message), said, exit_code in zip(BAD.items(), answers[::2], answers[1::2], strict=True):
        assert message in said, (args, said)
        assert said.startswith("pipe: ")
        assert exit_code == "2"
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_saves_what_was_learned(tmp_path):
    """Ctrl-C ends the run between two steps, with its weights saved, and exit code 130."""
    with forked.Process("train", "--no-compile", "--epochs", "100000", "--out", "run", cwd=tmp_path) as process:
        while "epoch" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by a signal in epoch" in said
    models.mlp(64, 128, 10).load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))


def test_a_reader_that_goes_away_loses_nothing(tmp_path):
    """`pipe train | head` ends quietly, with the weights saved."""
    with forked.Process("train", "--no-compile", "--epochs", "200", "--out", "run", cwd=tmp_path) as process:
        while "epoch" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_on_a_terminal_there_is_a_bar(tmp_path):
    """A pseudo-terminal sees a live bar and the epochs' lines; a pipe sees lines alone."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    seen = b""
    args = ["train", "--no-compile", "--epochs", "6", "--out", "run"]
    with forked.Process(*args, cwd=tmp_path, env=env, terminal=slave) as process:
        os.close(slave)
        try:
            while chunk := os.read(master, 4096):
                seen += chunk
        except OSError:
            pass  # the other end has closed
        assert process.wait(timeout=60) == 0
    assert b"\x1b[" in seen
    assert "━" in seen.decode()
    assert seen.decode().count("samples/s") >= 6


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([*MODELS, *["epochs", "hidden", "lr", "compile", "seed", "data"]]), values))
def test_any_settings_make_a_config_or_a_config_error(settings):
    """Whatever a config file holds, it is a config or one message."""
    try:
        made = config.make(settings)
    except ConfigError:
        return
    assert isinstance(made, config.TrainConfig)
