"""What does each ingredient of the recipes for texts and images bring, at the same seconds?

`python -m benchmarks.recipes`: three texts of 1.1 MB (code, documentation, manual pages) and three sets of images
(digits, glyphs of fonts, parts of photographs), of files that packages and this system ship. The contenders are the
defaults of today and of before, nanoGPT's and torchvision's recipes, and today's without each ingredient. A contender's
steps are timed first, compiled, in processor seconds of one thread; then its run has as many steps as fit into
`--seconds`, with its schedule over these. Texts are compared by bits per byte, images by errors of held-out samples.

Each measurement is kept in recipes.jsonl beside the results, and a second call goes on from there. `--only docs,old`
takes data and contenders with these words, `--seeds 1` as many seeds.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import itertools
import json
import math
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from attrs import frozen

from benchmarks import report
from cli import build, config
from cli.prepared import prepared
from cli.settled import settled
from pipeline import Pipeline, fit
from pipeline.errors import PipeError
from pipeline.sources import Prepared

SECONDS, SEEDS, BYTES, TIMED = 180.0, 3, 1_100_000, 12
OLD_TEXT: dict[str, Any] = {
    "context": 128, "width": 128, "positions": "learned", "norm": "layer", "activation": "gelu", "qk_norm": False,
    "bias": True, "zero_init": False, "tied": False, "softcap": 0.0, "bigrams": 0, "optimizer": "adamw", "lr": 0.003,
    "schedule": "cosine", "clip": 1.0, "batch_size": 64,
}  # fmt: skip
"""The defaults of version 0.1.0 and before, as settings."""
OLD_IMAGES: dict[str, Any] = {
    "widths": [32, 64, 128], "activation": "relu", "zero_init": False, "whitening": False, "shift": 0, "views": 1,
    "optimizer": "sgd", "lr": 0.3, "schedule": "cosine", "smoothing": 0.0, "clip": 1.0,
}  # fmt: skip
NANOGPT = {"batch_size": 16, "beta2": 0.99, "weight_decay": 0.1, "lr": 0.001, "bias": False, "warmup": 0.05}
"""What nanoGPT's train_shakespeare_char.py sets beside LayerNorm, GELU, learned positions, AdamW, a cosine and a clip
at 1: for a model of this size, of which it says that the rate may be higher than 0.001, the default's."""
TEXT: dict[str, dict[str, Any]] = {
    "new default": {},
    "old default": OLD_TEXT,
    "nanoGPT's recipe": {**OLD_TEXT, **NANOGPT},
    "old default, batch of the new": {**OLD_TEXT, "batches": 1},
    "without rotary positions": {"positions": "learned"},
    "without RMSNorm": {"norm": "layer"},
    "without squared ReLU": {"activation": "gelu"},
    "SwiGLU": {"activation": "swiglu"},
    "without QK norm": {"qk_norm": False},
    "with biases": {"bias": True},
    "without zero init": {"zero_init": False},
    "tied head": {"tied": True},
    "without soft cap": {"softcap": 0.0},
    "without pairs": {"bigrams": 0},
    "AdamW": {"optimizer": "adamw"},
    "cosine": {"schedule": "cosine"},
    "with clipping": {"clip": 1.0},
    "four times the batch": {"batches": 4},
}
"""Contender -> settings; `batches` is a batch size as a multiple of the new default's."""
IMAGES: dict[str, dict[str, Any]] = {
    "new default": {},
    "old default": OLD_IMAGES,
    "torchvision's recipe": {**OLD_IMAGES, "lr": 0.1, "weight_decay": 1e-4, "clip": 0.0, "augment": "flip+crop"},
    "with whitening": {"whitening": True},
    "without zero init": {"zero_init": False},
    "without shifts": {"shift": 0},
    "flips at random": {"augment": "flip+crop"},
    "one view": {"views": 1},
    "six views": {"views": 6},
    "without smoothing": {"smoothing": 0.0},
    "SGD": {"optimizer": "sgd", "nesterov": True, "lr": 0.1},
    "cosine": {"schedule": "cosine"},
    "with clipping": {"clip": 1.0},
    "EMA": {"ema": 0.99},
}


@frozen
class Task:
    """Data to learn, and what the contenders set."""

    model: str
    contenders: Mapping[str, Mapping[str, Any]]
    write: Callable[[Path], str]
    """Writes the data into a folder, and returns their name as --data takes it."""


def code() -> Iterator[str]:
    """Python's own modules."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.read_text("utf-8")


def docs() -> Iterator[str]:
    """The docstrings of SciPy."""
    import scipy

    for file in sorted(Path(scipy.__file__).parent.rglob("*.py")):
        if "tests" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    yield ast.get_docstring(node) or ""


def manuals() -> Iterator[str]:
    """The system's manual pages of commands."""
    for file in sorted(Path("/usr/share/man/man1").glob("*.gz")):
        yield gzip.decompress(file.read_bytes()).decode("utf-8", "replace")


def written(parts: Callable[[], Iterator[str]]) -> Callable[[Path], str]:
    """Write the first BYTES of some texts."""

    def write(folder: Path) -> str:
        path, whole, size = folder / f"{parts.__name__}.txt", list[str](), 0
        for part in parts():
            whole.append(part)
            if (size := size + len(part)) > BYTES:
                break
        path.write_bytes("\n".join(whole).encode()[:BYTES])
        return str(path)

    return write


def glyphs(folder: Path) -> str:
    """2,500 digits of 18 fonts, 16x16, turned, sheared, moved and noisy, as MNIST-1D's are."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    files = sorted((Path(mpl.get_data_path()) / "fonts/ttf").glob("*.ttf"))
    fonts = [f for f in files if f.name.startswith(("DejaVu", "STIXGeneral")) and "Display" not in f.name]
    g, images, bilinear = np.random.default_rng(0), [], Image.Resampling.BILINEAR
    for i in range(2_500):
        font = ImageFont.truetype(str(fonts[g.integers(len(fonts))]), int(g.integers(32, 50)))
        image = Image.new("L", (64, 64))
        ImageDraw.Draw(image).text((32, 32), str(i % 10), 255, font=font, anchor="mm")
        shear, (x, y) = g.uniform(-0.3, 0.3), g.uniform(-6, 6, 2)
        moved = (1, shear, x - 32 * shear, 0, 1, y)
        image = image.rotate(g.uniform(-35, 35), bilinear).transform((64, 64), Image.Transform.AFFINE, moved, bilinear)
        small = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32) / 255
        images.append(np.clip(small + g.normal(0, 0.15, small.shape), 0, 1).astype(np.float32))
    path = folder / "glyphs.npz"
    np.savez(path, inputs=np.array(images)[:, None], targets=np.arange(2_500) % 10)
    return str(path)


def photos(folder: Path) -> str:
    """Parts of three photographs, 32x32 in colours: which photograph, and which quarter of its height."""
    import matplotlib as mpl
    import sklearn
    from PIL import Image

    shipped = Path(sklearn.__file__).parent / "datasets/images"
    files = [shipped / "china.jpg", shipped / "flower.jpg", Path(mpl.get_data_path()) / "sample_data/grace_hopper.jpg"]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        high, wide = pixels.shape[0] // 32, pixels.shape[1] // 32
        for r in range(high):
            place = folder / "photos" / f"{file.stem}-{4 * r // high}"
            place.mkdir(parents=True, exist_ok=True)
            for c in range(wide):
                Image.fromarray(pixels[32 * r : 32 * r + 32, 32 * c : 32 * c + 32]).save(place / f"{r}-{c}.png")
    return str(folder / "photos")


TASKS: dict[str, Task] = {
    "code": Task("transformer", TEXT, written(code)),
    "docs": Task("transformer", TEXT, written(docs)),
    "manuals": Task("transformer", TEXT, written(manuals)),
    "digits": Task("resnet", IMAGES, lambda _: "digits"),
    "glyphs": Task("resnet", IMAGES, glyphs),
    "photos": Task("resnet", IMAGES, photos),
}


def chosen(task: Task, source: str, contender: str, seed: int, threads: int) -> tuple[config.TrainConfig, Prepared]:
    """The settings of a run, and its data. Raises PipeError if the data do not have one of them."""
    base = {"data": source, "model": task.model, "seed": seed, "threads": threads}
    own = dict(task.contenders[contender])
    if times := own.pop("batches", 0):
        own["batch_size"] = times * settled(config.make(base))[0].run.batch_size
    made, data = settled(config.make(base, own))
    return made, data or prepared(made)


def measured(task: Task, source: str, contender: str, seed: int, seconds: float, threads: int) -> dict[str, Any]:
    """Bits per byte or the share of errors after so many seconds of steps."""
    clock = time.process_time if threads == 1 else time.perf_counter
    settings, data = chosen(task, source, contender, seed, threads)
    made = build.job(settings, data)
    assert isinstance(made.pipe, Pipeline)
    torch.set_num_threads(threads)
    program, state, took = made.pipe.compile(), build.first(made, settings), list[float]()
    assert made.stages.load is not None
    began = clock()
    for batch in islice(made.stages.load.epoch(seed, 0), 1 + TIMED):
        state, _ = program.step(state, None if program.resident else batch)
        took.append(clock() - began)
        began = clock()
    step = statistics.median(took[1:])
    steps = max(round(seconds / step), 10)
    with patch.object(build, "steps", lambda load, config: steps):  # the length of its schedule
        made = build.job(settings, data)
    state = made.pipe.init(seed, steps=steps)
    *_, last = fit(made.pipe, max_steps=steps, state=state, validate=made.validation, compile=made.pipe.compile())
    metrics = last.validate
    right = metrics.get("ema.accuracy", metrics["accuracy"])
    value = metrics["loss"] / math.log(2) if task.model == "transformer" else 1.0 - right
    return {"value": value, "loss": metrics["loss"], "steps": steps, "step": step, "epochs": last.epoch}


def table(found: list[dict[str, Any]], names: list[str]) -> str:
    """Means over seeds with the spread, and the mean of their ratios to the old default's of the same seed."""
    contenders = list(dict.fromkeys(r["contender"] for r in found if r["data"] in names))
    lines = ["| contender | " + " | ".join(names) + " | of the old default's | steps |",
             "| --- |" + " ---: |" * (len(names) + 2)]  # fmt: skip
    value = {(r["data"], r["contender"], r["seed"]): r for r in found}
    for name in contenders:
        cells, ratios = [], []
        for data in names:
            rows = [r for r in found if (r["data"], r["contender"]) == (data, name)]
            values = [r["value"] for r in rows]
            spread = f" ± {statistics.pstdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "-")
            old = [value.get((data, "old default", r["seed"])) for r in rows]
            pairs = [(v, o["value"]) for v, o in zip(values, old, strict=True) if o is not None]
            if pairs and (below := sum(o for _, o in pairs)):
                ratios.append(sum(v for v, _ in pairs) / below)
        ratio = f"{statistics.geometric_mean([max(r, 1e-3) for r in ratios]):.3f}" if ratios else "-"
        steps = statistics.median(r["steps"] for r in found if r["contender"] == name and r["data"] in names)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {ratio} | {steps:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes")
    parser.add_argument("--only", default="", help="data and contenders with one of these words, comma-separated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a run ({SECONDS:g})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"({SEEDS})")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; of several, seconds are the clock's (1)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    kept = report.RESULTS / "recipes.jsonl"
    every = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    how = {"seconds": options.seconds, "threads": options.threads}
    words = [w for w in options.only.split(",") if w]
    named = [n for n in TASKS if not words or any(w in n for w in words)] or list(TASKS)
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: TASKS[name].write(Path(folder)) for name in named}
        for seed, name in itertools.product(range(options.seeds), named):
            ours = TASKS[name].contenders
            for contender in [c for c in ours if any(w in c for w in words)] or list(ours):
                key = {"data": name, "contender": contender, "seed": seed, **how}
                if contender in missing or any(r.items() >= key.items() for r in every):
                    continue
                try:
                    result = measured(TASKS[name], sources[name], contender, seed, options.seconds, options.threads)
                except PipeError as e:
                    missing[f"{contender} on {name}"] = str(e)
                    continue
                every.append({**key, **result})
                with kept.open("a") as file:
                    file.write(json.dumps(every[-1]) + "\n")
                print(f"{name}, seed {seed}, {contender}: {result['value']:.4f} after {result['steps']:,} steps of "
                      f"{1e3 * result['step']:.1f} ms", flush=True)  # fmt: skip
    text = ""
    for seconds, threads in sorted({(r["seconds"], r["threads"]) for r in every}, reverse=True):
        found = [r for r in every if (r["seconds"], r["threads"]) == (seconds, threads)]
        text += f"Each run: {seconds:g} seconds of {threads} thread{'s' * (threads > 1)}; " \
                f"{len({r['seed'] for r in found})} seeds at most.\n\n"  # fmt: skip
        for title, model in (("Bits per byte", "transformer"), ("Share of errors", "resnet")):
            names = [n for n, t in TASKS.items() if t.model == model and any(r["data"] == n for r in found)]
            text += f"{title} of held-out samples:\n\n{table(found, names)}\n\n" if names else ""
    text += "".join(f"Missing: {what}: {why}\n" for what, why in missing.items())
    report.save("recipes", (__doc__ or "").splitlines()[0], text.strip(), measurements=every, missing=missing)


if __name__ == "__main__":
    main()
