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


def by_class(stage: str, outputs: Tensor, targets: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...), and classes (B, ...) as they are or probabilities (B, C, ...)."""
    at = classes_at(stage, outputs, targets, dim)
    soft = targets.shape == outputs.shape
    return outputs.movedim(at, 1), targets.movedim(at, 1).to(outputs.dtype) if soft else targets
