"""How long do batches from disk take, once the system has cached the files?

4 GB of 4,194,304 rows of 256 float32 numbers as a .npy file, 1,024 random batches of 256 a turn, beside the same array
in memory, each by one thread of torch: two that wait for each other beside other work take 100 times as long. 50,000
JPEG files of 64 x 64 in ten folders, an epoch of batches of 256, beside a DataLoader with two workers that decodes by
Pillow. A step is a batch. Each contender writes files of its own, which are removed when its process ends.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import charts
from benchmarks.harness import Contender, Done, Race, Target
from pipeline import load, sources
from pipeline.sources import pixels

ROWS, WIDTH, SIZE, BATCHES = 1 << 22, 256, 256, 1024
IMAGES, SIDE = 50_000, 64
MEMORY, DISK = "array in memory", "mapped array"
LOADER, KEPT, READ = "torch DataLoader, 2 workers", "ours, decoded once", "ours, decoded each epoch"


def filled(array: np.ndarray) -> np.ndarray:
    """The array, with the same random numbers in each 65,536th of its rows."""
    block = np.random.default_rng(0).standard_normal((1 << 16, WIDTH), dtype=np.float32)
    for first in range(0, ROWS, len(block)):
        array[first : first + len(block)] = block
    return array


def folder() -> Path:
    """A folder that another process removes when this one ends: 50,000 files may take longer than is waited for."""
    path = tempfile.mkdtemp(prefix="benchmark-")
    weakref.finalize(load, subprocess.run, f"rm -rf {shlex.quote(path)} &", shell=True)  # at exit
    return Path(path)


def epochs(source: Any, most: int | None = None) -> Callable[[], Callable[[], Done]]:
    """Turns of an epoch each, or of its first `most` batches."""
    torch.set_num_threads(1)
    batches, number = load.batches(source, size=SIZE), 0

    def work() -> Done:
        nonlocal number
        number += 1
        return counted(islice(batches.epoch(0, number), most))

    return lambda: work


def counted(batches: Iterable[Any]) -> Done:
    return Done(sum(1 for _ in batches))


def in_memory() -> Any:
    return epochs({"inputs": filled(np.empty((ROWS, WIDTH), np.float32))}, BATCHES)


def mapped() -> Any:
    path = folder() / "inputs.npy"
    filled(np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, WIDTH)))
    return epochs(sources.Mapped({"inputs": np.load(path, mmap_mode="r")}), BATCHES)


def saved() -> Path:
    """Smooth random images as JPEG files, in ten folders."""
    from PIL import Image

    root, random = folder(), np.random.default_rng(0)
    for c in range(10):
        (root / str(c)).mkdir()
    for i in range(IMAGES):
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(root / str(i % 10) / f"{i:05}.jpg", quality=90)
    return root


class Decoded(torch.utils.data.Dataset[Any]):
    """Images as a DataLoader's users read them."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        from PIL import Image

        with Image.open(self.files[i]) as image:
            array = np.array(image.convert("RGB"))
        return torch.from_numpy(array).permute(2, 0, 1).float() / 255, int(self.files[i].parent.name)


def loader() -> Any:
    batches = torch.utils.data.DataLoader(
        Decoded(saved()), batch_size=SIZE, shuffle=True, num_workers=2, persistent_workers=True
    )
    return lambda: lambda: counted(batches)


def ours(most: int, workers: int) -> Any:
    """Epochs of images that are kept in memory up to `most` bytes."""
    pixels.MEMORY = most
    files = sorted((root := saved()).rglob("*.jpg"))
    targets = torch.tensor([int(file.parent.name) for file in files])
    images = pixels.Images(files, targets, (SIDE, SIDE), "RGB")
    return epochs(images.source(tuple(sorted(f.name for f in root.iterdir())), workers))


CONTENDERS: dict[str, Contender] = {
    MEMORY: in_memory, DISK: mapped, LOADER: loader, KEPT: lambda: ours(1 << 30, 0), READ: lambda: ours(0, 2),
}  # fmt: skip

RACES: list[Race] = [
    Race(
        title="Random batches of 256 rows of 1 KiB from 4 GB",
        contenders=[MEMORY, DISK],
        baseline=MEMORY,
        targets=[Target(DISK, MEMORY, 1 / 1.5)],
        threads=2,
    ),
    Race(
        title="50,000 JPEG files of 64 x 64, batch 256",
        contenders=[LOADER, KEPT, READ],
        baseline=LOADER,
        targets=[Target(KEPT, LOADER, 1.5), Target(READ, LOADER, 1.5)],
        threads=2,
        rounds=3,
    ),
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Times as fast as what each race is measured beside."""
    points = {}
    for race, results in ((race, charts.ran((race, found))) for race, found in races):
        for name in race.contenders:
            spread = charts.ratios(results[name], results[race.baseline])
            label = f"{spread[1]:.2f} x  ({charts.times(results[name])[1]:,.0f} µs a batch)"
            points[name] = [charts.Point(spread, label, charts.colour(name))]
    return charts.rows(
        "Batches from files that are cached",
        "times as fast as an array in memory, or a DataLoader",
        points,
        height=0.42,
    )
