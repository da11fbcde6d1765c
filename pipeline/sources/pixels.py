"""Images as samples: decoded by Pillow, scaled and augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import ConfigError, DataError
from pipeline.random import key
from pipeline.sources.dataset import Batched, dataset
from pipeline.sources.files import reading
from pipeline.sources.tensors import Source, Tensors

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""Formats that Pillow may detect, for any file name: for some other formats, it would run another program."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
WHITE = 65535
"""The value of white in an image of 16 bits."""
LARGE = 1 << 24
"""Pixels of an image that may not fit in memory."""
MEMORY = 1 << 30
"""Bytes of images that are kept in memory."""

Item: TypeAlias = Path | tuple[str, bytes]
"""An image: its file, or its name for messages and its content."""


@frozen(eq=False)
class Images(Batched):
    """Single samples: image i as (C, H, W) float32 in [0, 1], and its target."""

    items: Sequence[Item]
    targets: Tensor
    shape: tuple[int, int]
    mode: str
    augment: tuple[str, ...] = ()
    white: int = WHITE
    pixels: Tensor | None = None
    """All images decoded, (N, C, H, W) uint8, if they are kept in memory."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return augmented(self._image(i), self.augment).float().div_(255.0), self.targets[i]

    def batch(self, indices: Sequence[int], epoch: int, seed: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """The samples at these indices in an epoch, each drawn after `seed` of its index."""
        at = torch.tensor(indices)
        if self.pixels is not None and not self.augment:
            chosen = self.pixels.index_select(0, at)
        else:
            chosen = torch.empty((len(indices), len(self.mode), *self.shape), dtype=torch.uint8)
            for image, i in zip(chosen, indices, strict=True):
                seed(i)
                image.copy_(augmented(self._image(i), self.augment, (key(i) + epoch) % 2 == 1))
        return chosen.float().div_(255.0), self.targets.index_select(0, at)

    def _image(self, i: int) -> Tensor:
        return self.pixels[i] if self.pixels is not None else self._decoded(i)

    @property
    def nbytes(self) -> int:
        return len(self) * len(self.mode) * self.shape[0] * self.shape[1]

    def _decoded(self, i: int) -> Tensor:
        return decode(self.items[i], self.shape, self.mode, self.white)

    def decoded(self) -> Tensor:
        """All images, (N, C, H, W) uint8."""
        pixels = torch.empty((len(self), len(self.mode), *self.shape), dtype=torch.uint8)

        def fill(i: int) -> None:
            pixels[i] = self._decoded(i)

        with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
            list(pool.map(fill, range(len(self))))
        return pixels

    def source(self, classes: tuple[str, ...], workers: int) -> Source:
        """A Source over the images: in memory if they fit, and augmented when read."""
        if not self.augment and 4 * self.nbytes < MEMORY:
            return Tensors({"inputs": self.decoded().float().div_(255.0), "targets": self.targets}, classes)
        return dataset(evolve(self, pixels=self.decoded()) if self.nbytes < MEMORY else self, workers=workers)


def augmented(image: Tensor, kinds: Sequence[str], turn: bool = False) -> Tensor:
    """An image (C, H, W), mirrored ("flip") or shifted ("crop") at random by torch's global generator, or mirrored
    ("alternate") if it is its `turn`.

    A shift pads by an eighth, reflected, and crops to the same size (K. He et al., "Deep residual learning for image
    recognition", 2015, pads with zeros).
    """
    if not kinds:
        return image
    rows, columns = (np.arange(n) for n in image.shape[1:])
    if ("flip" in kinds and torch.rand(()).item() < 0.5) or ("alternate" in kinds and turn):
        columns = columns[::-1]
    if "crop" in kinds:
        rows = rows[_shifted(len(rows))]
        columns = columns[_shifted(len(columns))]
    return torch.from_numpy(image.numpy().take(rows, 1).take(columns, 2))  # torch takes eight times as long


def _shifted(n: int) -> np.ndarray:
    """Positions 0..n-1, shifted by up to n / 8 either way and reflected at both ends."""
    at = np.arange(n) + int(torch.randint(-(n // 8), n // 8 + 1, ()))
    return np.asarray((n - 1) - np.abs((n - 1) - np.abs(at)))


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ConfigError("images are decoded by Pillow, which is not here: pip install pillow") from None
    return PIL


@contextmanager
def _opened(item: Item) -> Iterator[Any]:
    """An image that Pillow has open. Raises DataError with its name for any error within."""
    pillow = _pillow()
    name, content = item if isinstance(item, tuple) else (str(item), None)
    with reading(name), files.opened(Path(name)) if content is None else BytesIO(content) as file:
        try:
            image = pillow.Image.open(file, formats=FORMATS)
        except pillow.UnidentifiedImageError:
            raise DataError(f"can't read {name}: it is no image of {', '.join(FORMATS)}") from None
        with image:
            if (pixels := image.size[0] * image.size[1]) > LARGE:
                memory.check(16 * pixels, f"{name}, an image of {image.size[0]} x {image.size[1]},")
            yield image


def decode(item: Item, shape: tuple[int, int], mode: str, white: int = WHITE) -> Tensor:
    """An image as (C, H, W) uint8: upright, on white if it is transparent, scaled to cover (H, W), and cropped to its
    centre. `white` is the value of white in an image of more than 8 bits."""
    with _opened(item) as image:
        ops = _pillow().ImageOps
        image.draft(None, (2 * max(shape),) * 2)  # decodes a large JPEG at an eighth, a quarter or half of its size
        upright = ops.exif_transpose(image)
        if upright.mode.startswith("I"):  # Pillow would clip 16 bits at 255
            values = np.asarray(upright).astype(np.int64)
            if (most := values.max()) > 2 * white:
                raise ValueError(f"it holds {most}, and white is {white} in the training images; scale it as those are")
            upright = _pillow().Image.fromarray((values * 255 // white).clip(0, 255).astype(np.uint8))
        elif upright.mode == "F":
            raise ValueError("it holds floats; save it with 8 or 16 bits a channel")
        elif "transparency" in upright.info or upright.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
            upright = upright.convert("RGBA")
            paper = _pillow().Image.new("RGBA", upright.size, "white")
            upright = _pillow().Image.alpha_composite(paper, upright)
        fitted = upright if upright.mode == mode else upright.convert(mode)
        if fitted.size != shape[::-1]:
            fitted = ops.fit(fitted, shape[::-1], method=_pillow().Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).reshape(*shape, -1).permute(2, 0, 1).contiguous()


def white_of(items: Sequence[Item]) -> int:
    """The value of white in images of more than 8 bits: the largest value of as many bits as some image needs."""

    def brightest(item: Item) -> int:
        with _opened(item) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I") else 0

    with ThreadPoolExecutor() as pool:
        most = max(pool.map(brightest, items))
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 64) if most < 2**bits)


def header(item: Item) -> tuple[tuple[int, int], str, bool]:
    """An image's height and width, Pillow's name of its mode, and if it has several frames, without decoding it."""
    with _opened(item) as image:
        turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5  # EXIF: lies on its side
        return image.size[:: 1 if turned else -1], image.mode, getattr(image, "is_animated", False)
