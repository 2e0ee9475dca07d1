"""Image files: which file a name stands for, and its pixels as 8-bit RGB."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
CLIP_COLOR = (122, 116, 104)  # CLIP's mean pixel
# What Pillow's decoders raise for a damaged file, besides OSError.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def find_image(folder: str | Path, name: str) -> Path | None:
    """The named file of an image, else one of its stem with another suffix, as OCR-VQA's in the 665K json; or None."""
    file = Path(folder) / name
    others = (file.with_suffix(either) for suffix in SUFFIXES for either in (suffix, suffix.upper()))
    return next(filter(os.path.isfile, chain([file], others)), None)  # False, too, for names that no file can have


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, 16-bit grey scaled; ValueError for pixels without a known range."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.rint(np.asarray(image).astype(np.float32) / 257)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range: save the image with 8 bits a channel")
    return image.convert("RGB")


@contextmanager
def _opened(file: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except DAMAGED as error:
        raise ValueError(f"cannot read image {file} ({error}): restore it") from error


def open_rgb(file: str | Path) -> Image.Image:
    """An image file as RGB; ValueError, naming the file, if it is no readable image."""
    with _opened(file) as image:
        return to_rgb(image)


def image_size(file: str | Path) -> tuple[int, int]:
    """(height, width) of an image file, of which only the header is read; errors as `open_rgb`."""
    with _opened(file) as image:
        return image.height, image.width


def pad_to_square(image: Image.Image, color: Sequence[int] = CLIP_COLOR) -> Image.Image:
    """Centre an RGB image (W, H) on a square canvas of side max(W, H), as LLaVA does."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(color))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def mean_color(image_processor) -> tuple[int, ...]:
    """The colour (0 to 255) that an encoder's normalisation maps to zero: what LLaVA pads with."""
    return tuple(int(255 * mean) for mean in image_processor.image_mean)
