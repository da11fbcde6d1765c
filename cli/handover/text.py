"""Texts by the language model in this folder: python predict.py PROMPT continues it."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
FACTS = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
PROGRAM = torch.export.load(FOLDER / "model.pt2").module()


def predict(rows: list[Any]) -> list[dict[str, Any]]:
    """A continuation for each row: {"prompt": a text}, and count, temperature and seed if others are wanted. Raises
    ValueError for other rows."""
    return [{"text": continued(row, i)} for i, row in enumerate(rows, 1)]


def unseen(rows: list[Any]) -> list[str]:
    """None: a prompt has no categories."""
    return []


def continued(row: Any, number: int) -> str:
    """The prompt of a row, with `count` tokens after it."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise ValueError(f'row {number} is not {{"prompt": a text}}')
    count, temperature, seed = row.get("count", 200), row.get("temperature", 0.8), row.get("seed", 0)
    good = type(count) is int and 0 < count <= 10_000 and type(seed) is int and 0 <= seed < 1 << 63
    if not good or type(temperature) not in (int, float) or not 0 <= temperature < 1e9:
        raise ValueError(f"row {number}: count is 1 to 10000, temperature and seed are at least 0")
    letters = FACTS["alphabet"]  # None: tokens are bytes
    ids = [*row["prompt"].encode()] if letters is None else [letters.find(c) for c in row["prompt"]]
    if -1 in ids:
        raise ValueError(f"row {number}: the training text has no character {row['prompt'][ids.index(-1)]!r}")
    context, generator = FACTS["context"], torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for _ in range(count):
            last = ids[-context:]
            window = torch.tensor([last + [0] * (context - len(last))])  # nothing sees the tokens after it
            logits = PROGRAM(window)[:, len(last) - 1].float()
            chances = logits if temperature == 0 else (logits / temperature).softmax(-1)
            new = chances.argmax(-1) if temperature == 0 else chances.multinomial(1, generator=generator)
            ids.append(int(new))
    return bytes(ids).decode("utf-8", "replace") if letters is None else "".join(letters[i] for i in ids)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for found in predict([{"prompt": sys.argv[1]}]):
            print(json.dumps(found, ensure_ascii=False))
    except (OSError, ValueError) as e:
        sys.exit(f"predict.py: {e}")
