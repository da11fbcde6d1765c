"""Images, as the program takes them: a row is {"image": the content of its file in base64}."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def read(_: Mapping[str, Any], path: str) -> list[dict[str, str]]:
    """A row for an image file; for a folder, a row for each of its image files, sorted by name."""
    files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
    return [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]


def tensors(facts: Mapping[str, Any], rows: Sequence[Any]) -> list[torch.Tensor]:
    """Images (B, C, H, W) in [0, 1]. Raises ValueError for a row that is none."""
    return [torch.stack([_pixels(facts, row, i) for i, row in enumerate(rows, 1)]).float().div_(255.0)]


def _pixels(facts: Mapping[str, Any], row: Any, number: int) -> torch.Tensor:
    try:
        content = base64.b64decode(row["image"], validate=True)
    except (TypeError, KeyError, ValueError, binascii.Error):
        raise ValueError(f'row {number} is not {{"image": content of a file in base64}}') from None
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return _decoded(image, facts["size"], facts["mode"])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(
            f"row {number} is no image of {', '.join(FORMATS)} with 8 bits a channel, too large, or damaged"
        ) from None


def _decoded(image: Any, size: Sequence[int], mode: str) -> torch.Tensor:
    """(C, H, W) uint8: upright, on white if it is transparent, scaled to cover (H, W), and cropped to its centre."""
    height, width = size
    image.draft(None, (2 * max(height, width),) * 2)  # decodes a large JPEG at an eighth, a quarter or half of its size
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        raise ValueError
    if "transparency" in upright.info or upright.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    fitted = upright if upright.mode == mode else upright.convert(mode)
    if fitted.size != (width, height):
        fitted = ImageOps.fit(fitted, (width, height), method=Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).reshape(height, width, -1).permute(2, 0, 1)
