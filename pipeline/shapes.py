"""Shapes: outputs and targets that fit each other."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import StageError
from pipeline.tree import describe


def fitted(stage: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs in the shape of the targets: equal, or (B, 1) for (B,). Others would broadcast silently."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise StageError(stage, f"takes one shape, not {describe({'outputs': outputs, 'targets': targets})}")
    return outputs


def classes_at(stage: str, outputs: Tensor, targets: Tensor, dim: int | None, hint: str = "") -> int:
    """Dimension of the classes in outputs: `dim`, or 1 or -1, by the shape of the targets."""
    shape, of = tuple(outputs.shape), tuple(targets.shape)
    if dim is not None or len(shape) < 3:
        return 1 if dim is None else dim
    # But for the number of samples: targets that are looked at may be of all.
    first, last = of[1:] in (shape[1:], shape[2:]), of[1:] in (shape[1:], shape[1:-1])
    if first and last and shape[1] * shape[-1] > 1:
        told = describe({"outputs": outputs, "targets": targets})
        raise StageError(stage, f"can't tell where the classes are in {told}: pass dim=1, or dim=-1 if last{hint}")
    return -1 if last and not first else 1


def by_class(
    stage: str, outputs: Tensor, targets: Tensor, dim: int | None, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...), and classes (B, ...) as they are or probabilities (B, C, ...). C is `classes`, or 2 at
    least."""
    at = classes_at(stage, outputs, targets, dim)
    count = outputs.shape[at] if outputs.ndim > 1 else 1
    if count < 2 or count != (classes or count):
        one = ": the one logit of a label is for loss.binary_cross_entropy(), and metrics with several=True"
        raise StageError(
            stage, f"takes outputs of {classes or '2 or more'} classes, not {tuple(outputs.shape)}{one * (count < 2)}"
        )
    soft = targets.shape == outputs.shape
    return outputs.movedim(at, 1), targets.movedim(at, 1).to(outputs.dtype) if soft else targets


def by_label(stage: str, outputs: Tensor, targets: Tensor, labels: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets (B, L) of several labels, and which count: an ignored target is below 0."""
    logits, goals = (x.reshape(len(x), -1) for x in (fitted(stage, outputs, targets), targets))
    if labels not in (None, logits.shape[1]):
        raise StageError(stage, f"takes outputs (B, {labels}), not {tuple(outputs.shape)}")
    return logits, goals, goals >= 0
