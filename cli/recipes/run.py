"""Run: its length, speed, checkpoints and output."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, frozen

from cli.recipes.code import each_in
from cli.recipes.logger import LOGGERS, PROJECT, base
from cli.recipes.setting import at_least, below_one, bounded, given, one_of, refusal, setting

_seed = at_least(0, most=2**63 - 1)


def _steps(_: Any, attribute: Attribute[Any], value: str) -> None:
    if value not in ("auto", "epoch") and not (value.isdecimal() and len(value) < 10 and int(value) > 0):
        raise refusal(
            f"{given('steps_per_call', repr(value))} is neither a positive whole number below 10**9, 'epoch' nor 'auto'"
        )


bounded(_steps, pattern=r"^(auto|epoch|\d{1,9})$")


@frozen
class Run:
    """A training."""

    epochs: int = setting(
        20, "passes over the training data  [default: 20; by the rows for realmlp and tabm, up to 256]", at_least(1)
    )
    batch_size: int = setting(
        64,
        "samples a step  [default: 64; by the rows for realmlp, 256 to 1,024, and tabm, 32 to 512; by width and "
        "context for transformer]",
        at_least(1),
        fixed=True,
    )
    accumulate: int = setting(1, "gradient accumulation: microbatches of a batch", at_least(1))
    clip: float = setting(
        1.0, "largest gradient norm; 0 for none  [default: 1; 0 for realmlp, transformer, resnet]", at_least(0)
    )
    ema: float | None = setting(
        None,
        "decay of an average of the weights, such as 0.999, evaluated and saved as well  [default: none]",
        below_one,
    )
    folds: int | None = setting(
        None, "hold out one of so many folds, instead of a share", at_least(2, most=1000), fixed=True
    )
    fold: int | None = setting(
        None, "with --folds: index of the fold  [default: each in turn]", at_least(0), fixed=True
    )
    ensemble: int | None = setting(
        None,
        "ensemble: members with their own seeds, trained side by side, with averaged predictions  [default: none]",
        at_least(2),
        fixed=True,
    )
    seed: int = setting(0, "of the split, the weights, the order and dropout", _seed, fixed=True)
    split_seed: int | None = setting(
        None, "of the split alone, such as one for all members of a sweep  [default: --seed]", _seed, fixed=True
    )
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: a GPU; for a small model, the faster of both")
    shard: int = setting(
        1,
        "with several processes: shards of the weights and of the optimizer's memory, a divisor of their number",
        at_least(1),
    )
    timeout: float = setting(600.0, "seconds to wait for another process", at_least(0, above=True, most=1e8))
    precision: str = setting(
        "fp32",
        "of products: fp32, tf32 (of a GPU), bf16, fp16, or auto: bf16 if a CPU is faster by it; weights stay fp32",
        one_of(("fp32", "tf32", "bf16", "fp16", "auto")),
    )
    threads: int | None = setting(
        None, "of the CPU  [default: 1 for small steps, else all cores]", at_least(1, most=4096)
    )
    steps_per_call: str = setting(
        "auto", "steps in one call of the compiled program: a number, epoch, or auto: about 0.1 s of them", _steps
    )
    compile: bool = setting(
        True, "run the step as one compiled graph  [default: on; off for short runs of realmlp and tabm]"
    )
    eager_steps: int | None = setting(
        None, "first steps to run uncompiled, while the graph is compiled  [default: about 5 seconds of them]",
        at_least(0),
    )  # fmt: skip
    backend: str = setting("auto", "of torch.compile: auto, native (for a CPU), inductor, or another of torch's")
    on_nonfinite: str | None = setting(
        None,
        "if a loss or gradient is NaN or infinite: stop, or skip that step  [default: stop; for fp16 skip]",
        one_of(("stop", "skip")),
        fixed=True,
    )
    save_steps: int | None = setting(None, "also write a checkpoint after each N steps", at_least(1))
    save_minutes: float = setting(
        5.0,
        "minutes between checkpoints inside an epoch; each epoch ends with one, unless it costs over 0.5 % of the time",
        at_least(0, most=1e8),
    )
    keep: int = setting(2, "number of newest checkpoints to keep, besides the best", at_least(1))
    telemetry: bool = setting(
        False, "measure gradient norm, update ratio and learning rate in each step; --verbose does too", fixed=True
    )
    patience: int | None = setting(
        None, "stop after so many epochs without improvement  [default: never; 16 for tabm]", at_least(1)
    )
    minutes: float | None = setting(None, "stop after so many minutes  [default: never]", at_least(0, True, most=1e8))
    log: tuple[str, ...] = setting(
        (),
        f"also log: {', '.join(LOGGERS)}, the last three with :PROJECT, or FILE.py:FUNCTION of reports and a folder",
        each_in(LOGGERS, base, [PROJECT]),
    )
    best: str | None = setting(
        None,
        "metric of held-out samples for the best epoch  [default: accuracy, or, if a class has 90 % of the samples, "
        "balanced-accuracy; r2 for values, perplexity for tokens]",
    )
    sample: str = setting(
        "each",
        "samples of an epoch: each once, or balanced: as many draws, each class equally often",
        one_of(("each", "balanced")),
        fixed=True,
    )
    out: str | None = setting(None, "folder of the run  [default: the next free runs/DATA-MODEL-N]", fixed=True)

    @property
    def splits_by(self) -> int:
        """The seed of the split."""
        return self.seed if self.split_seed is None else self.split_seed

    def __attrs_post_init__(self) -> None:
        if not self.compile and self.steps_per_call not in ("auto", "1"):
            raise refusal(
                f"{given('steps_per_call', self.steps_per_call)} needs a compiled step; leave out --no-compile"
            )
