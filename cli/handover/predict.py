"""Predictions of the model in this folder: python predict.py FILE prints a JSON object for each row."""

import json
import sys
from pathlib import Path
from typing import Any

import rows  # rows.py, beside this file
import torch

FOLDER = Path(__file__).parent
FACTS = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
PROGRAM = torch.export.load(FOLDER / "model.pt2").module()


def predict(given: list[Any]) -> list[dict[str, Any]]:
    """An answer for each row. Raises ValueError for a row that the model does not take."""
    with torch.inference_mode():
        return [answer(values) for values in PROGRAM(*rows.tensors(FACTS, given))]


def unseen(given: list[Any]) -> list[str]:
    """A line for each column of a table with categories that the model never saw."""
    return rows.unseen(FACTS, given) if hasattr(rows, "unseen") else []


def answer(values: torch.Tensor) -> dict[str, Any]:
    """What the program gives for a row, by name."""
    numbers: Any = values.tolist()
    if not values.ndim:
        return {"prediction": numbers}
    named = dict(zip(FACTS["classes"] or map(str, range(len(numbers))), numbers, strict=True))
    if FACTS["task"] == "classification":
        edge = FACTS.get("threshold", {}).get("from probability")
        at = int(values.argmax() if edge is None else values[1] >= edge)
        return {"prediction": [*named][at], "probability": numbers[at], "probabilities": named}
    if FACTS["task"] == "several labels":
        return {name: {"prediction": share > 0.5, "probability": share} for name, share in named.items()}
    return {f"prediction_{name}": value for name, value in named.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        given = rows.read(FACTS, sys.argv[1])
        answers = predict(given)
        for line in unseen(given):
            print(f"predict.py: {line}", file=sys.stderr)
        for found in answers:
            print(json.dumps(found, ensure_ascii=False))
    except (OSError, ValueError) as e:
        sys.exit(f"predict.py: {e}")
