"""What torch's names are here: a line each. Arguments of the same name pass; the others are named."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen

from cli.recipes.rule import OPTIMIZERS


@frozen
class Name:
    """What a class or function of torch is here."""

    what: str
    here: str
    """A function of `pipeline`, such as update.sgd."""
    option: str = ""
    """The option of `pipe train`."""
    names: Mapping[str, str] = MappingProxyType({})
    """torch's argument -> ours; "" if ours of that name is another."""
    lengths: tuple[str, ...] = ()
    """Our arguments that are numbers of steps."""
    shares: tuple[str, ...] = ()
    """Our arguments that are shares of the base, where torch has the value itself."""
    note: str = ""
    """What differs, or what to write."""


def _rules() -> dict[str, Name]:
    names = ("SGD", "ASGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adadelta", "Adafactor", "Adagrad", "RMSprop",
             "Rprop")  # fmt: skip
    rules = {n: n.lower() for n in names}
    option = {n: f"--optimizer {rule}" if rule in OPTIMIZERS else "" for n, rule in rules.items()}
    return {f"torch.optim.{n}": Name("optimizer", f"update.{rule}", option[n]) for n, rule in rules.items()}


def _losses() -> dict[str, Name]:
    found: dict[str, Name] = {}
    for module, function, name in (
        ("CrossEntropyLoss", "cross_entropy", Name(
            "loss", "loss.cross_entropy", "--loss cross-entropy", {"label_smoothing": "smoothing"})),
        ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", Name(
            "loss", "loss.binary_cross_entropy", "--loss binary-cross-entropy",
            {"pos_weight": "weight", "weight": ""})),
        ("MSELoss", "mse_loss", Name("loss", "loss.mse", "--loss mse", {"weight": ""})),
        ("L1Loss", "l1_loss", Name("loss", "loss.l1", "--loss mae", {"weight": ""})),
        ("HuberLoss", "huber_loss", Name("loss", "loss.huber", "--loss huber", {"weight": ""})),
        ("PoissonNLLLoss", "poisson_nll_loss", Name("loss", "loss.poisson", "--loss poisson")),
        ("NLLLoss", "nll_loss", Name("loss", "loss.function")),
        ("SmoothL1Loss", "smooth_l1_loss", Name("loss", "loss.function")),
        ("BCELoss", "binary_cross_entropy", Name("loss", "loss.function")),
        ("KLDivLoss", "kl_div", Name("loss", "loss.function")),
    ):  # fmt: skip
        found |= {f"torch.nn.{module}": name, f"torch.nn.functional.{function}": name}
    return found


def _schedules() -> dict[str, Name]:
    floor = {"eta_min": "floor"}
    return {f"torch.optim.lr_scheduler.{n}": name for n, name in {
        "StepLR": Name("scheduler", "schedules.step", "--schedule step", {"step_size": "every"}, ("every",)),
        "MultiStepLR": Name("scheduler", "schedules.multi_step", "--schedule multi-step", lengths=("milestones",)),
        "LinearLR": Name("scheduler", "schedules.linear", "--schedule linear", {
            "start_factor": "start", "end_factor": "end", "total_iters": "steps"}, ("steps",)),
        "ExponentialLR": Name("scheduler", "schedules.exponential", "--schedule exponential", lengths=("every",)),
        "PolynomialLR": Name(
            "scheduler", "schedules.polynomial", "--schedule polynomial", {"total_iters": "steps"}, ("steps",)),
        "CosineAnnealingLR": Name("scheduler", "schedules.cosine", "--schedule cosine", {
            "T_max": "steps", **floor}, ("steps",), ("floor",), "after T_max it stays, where torch's rises again"),
        "CosineAnnealingWarmRestarts": Name("scheduler", "schedules.cosine_restarts", "--schedule cosine-restarts", {
            "T_0": "period", "T_mult": "mult", **floor}, ("period",), ("floor",)),
        "OneCycleLR": Name("scheduler", "schedules.one_cycle", "--schedule one-cycle", {
            "max_lr": "highest", "total_steps": "steps", "epochs": "", "steps_per_epoch": ""}, ("steps",)),
        "ReduceLROnPlateau": Name("scheduler", "schedules.reduce_on_plateau", "--schedule plateau", {
            "min_lr": "floor"}, (), ("floor", "eps"), "metric= names the one to watch; here it is the held-out loss"),
    }.items()}  # fmt: skip


_MESH = "place.mesh() in the place of place.on() trains on several processes"
NAMES: dict[str, Name] = {
    **_rules(), **_losses(), **_schedules(),
    "torch.utils.data.DataLoader": Name("data", "load.batches", "--data", {"dataset": "data", "batch_size": "size"}),
    "torch.nn.utils.clip_grad_norm_": Name("clipping", "update.clip_norm", "--clip", {"max_norm": "limit"}),
    "torch.nn.utils.clip_grad_value_": Name("clipping", "update.clip_value", "", {"clip_value": "limit"}),
    "torch.autocast": Name("amp", "place.on", "--precision"),
    "torch.amp.autocast": Name("amp", "place.on", "--precision"),
    "torch.cuda.amp.autocast": Name("amp", "place.on", "--precision"),
    "torch.amp.GradScaler": Name("amp", "update.finite", "--precision fp16"),
    "torch.cuda.amp.GradScaler": Name("amp", "update.finite", "--precision fp16"),
    "torch.manual_seed": Name("seed", "fit", "--seed", note="draws follow (seed, step), so they are other ones"),
    "torch.compile": Name("compile", "fit", "--compile", note="the whole step is one graph"),
    "torch.no_grad": Name("eval", "fit", note="fit(validate=...), or pipe.evaluate(state, data)"),
    "torch.inference_mode": Name("eval", "fit", note="fit(validate=...), or pipe.evaluate(state, data)"),
    "torch.save": Name("checkpoint", "checkpoint.Saver", note="a run of pipe train has them"),
    "torch.load": Name("checkpoint", "forward.model", "--init", note="forward.model(..., weights=FILE) begins from it"),
    "torch.nn.parallel.DistributedDataParallel": Name("processes", "place.mesh", "--processes", note=_MESH),
    "torch.distributed.fsdp.FullyShardedDataParallel": Name("processes", "place.mesh", "--shard", note=_MESH),
    "torch.distributed.fsdp.fully_shard": Name("processes", "place.mesh", "--shard", note=_MESH),
    "torch.distributed.init_process_group": Name("processes", "place.mesh", "--processes", note=_MESH),
}  # fmt: skip
"""torch's name -> what it is here."""
METHODS = {
    "backward": Name("backward", "backward.gradients"),
    "zero_grad": Name("backward", "backward.gradients", note="gradients are values, so there is nothing to clear"),
    "eval": Name("eval", "fit", note="an evaluation is in eval mode"),
    "cuda": Name("device", "place.on", "--device"),
    "load_state_dict": Name("checkpoint", "forward.model", "--init"),
}
"""Methods, whatever they are of."""
SPEED = (
    "foreach", "fused", "capturable", "differentiable", "num_workers", "pin_memory", "pin_memory_device",
    "persistent_workers", "prefetch_factor", "in_order", "cache_enabled", "device_type",
)  # fmt: skip
"""Arguments that concern speed alone."""
