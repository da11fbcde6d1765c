"""Tasks: what a model learns of its targets."""

from typing import Any

CLASSES, LABELS, VALUES, TOKENS = "classification", "several labels", "regression", "language modelling"
TASKS: dict[str, Any] = {"classification": CLASSES, "regression": VALUES, "labels": LABELS, "language": TOKENS}
"""What --task takes -> the task."""
