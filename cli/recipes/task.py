"""Tasks, such as classification or regression."""

from typing import Any

CLASSES, LABELS, VALUES, TOKENS = "classification", "several labels", "regression", "language modelling"
TASKS: dict[str, Any] = {"classification": CLASSES, "regression": VALUES, "labels": LABELS, "language": TOKENS}
"""Value of --task -> task."""
