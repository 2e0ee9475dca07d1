"""LLaVA-NeXT's tiles: how an image is cut, and which tile and patch each visual token belongs to (Appendix E, Fig. 9).

LLaVA-NeXT encodes an image several times: once as a whole, squeezed into tile 0, and then in a grid of tiles, at the
resolution of the grid that fits its shape best. In the sequence tile 0's N tokens come first. Those of the grid follow
as one map, row by row across its tiles: rows or columns that hold nothing but padding are left out ("unpadding"), and
each row ends with the newline token, which belongs to no tile.

Grids are given in tiles, (rows, columns), so that they fit an encoder of any input size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, LlavaNextConfig, LlavaNextImageProcessor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

NEWLINE = -1  # patch index of a newline token


def tile_processor(vision, side: int, grids: Sequence[Sequence[int]], revision: str | None = None):
    """Image processor of a LLaVA-NeXT with a vision tower of input size `side`: the tower's filter and constants."""
    own = AutoImageProcessor.from_pretrained(vision, revision=revision)
    return LlavaNextImageProcessor(
        size={"height": side, "width": side},
        crop_size={"height": side, "width": side},
        resample=own.resample,
        image_mean=own.image_mean,
        image_std=own.image_std,
        image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in grids],
    )


def is_tiled(source) -> bool:
    """Whether a processor, an image processor or a model's configuration is LLaVA-NeXT's."""
    return hasattr(getattr(source, "image_processor", source), "image_grid_pinpoints")


def tile_count(size: Sequence[int], pinpoints: list[list[int]], side: int) -> int:
    """Tiles of an image of `size` (height, width), tile 0 included; `pinpoints` and `side` as for `patch_index`."""
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, side)
    return 1 + rows * columns


def tile_keys(image_processor, name: str, size: Sequence[int]) -> list[str]:
    """Names of the tiles of an image of `size` (height, width), `<name>#<tile>`: keys of cached teacher features."""
    count = tile_count(size, image_processor.image_grid_pinpoints, image_processor.crop_size["height"])
    return [f"{name}#{tile}" for tile in range(count)]


def cut(image_processor, image: Image.Image) -> list[Image.Image]:
    """The tiles of an RGB image as squares of the encoder's input size: its pixels before they are normalised.

    Grid tiles carry black padding where the image does not fill the grid.
    """
    raw = image_processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    return [Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()) for tile in raw]


def patch_index(size: Sequence[int], pinpoints: list[list[int]], side: int, patch: int) -> Tensor:
    """(T,) for each visual token of an image of `size` (height, width): tile * N + patch, or `NEWLINE`.

    N patches of `patch` pixels fill a tile of `side` pixels, in reading order. `pinpoints`: (height, width) of the
    grids, in pixels.
    """
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, side)
    edge = side // patch
    whole, tiles = torch.arange((1 + rows * columns) * edge**2).split([edge**2, rows * columns * edge**2])
    plane = tiles.view(rows, columns, edge, edge).transpose(1, 2).reshape(1, rows * edge, columns * edge)
    return torch.cat([whole, F.pad(unpad_image(plane, size)[0], (0, 1), value=NEWLINE).flatten()])


def batch_patch_index(config: LlavaNextConfig, image_sizes: Tensor) -> list[Tensor]:
    """`patch_index` of each of n images, on the CPU, counted on over all of their tiles.

    Entries point into the patches of the whole batch: rows of `VisualTap.features`, or of teacher features, flattened
    to (tiles * N, d).

    Args:
        image_sizes: (n, 2) heights and widths.
    """
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    found, before = [], 0
    for size in image_sizes.tolist():
        index = patch_index(size, config.image_grid_pinpoints, side, patch)
        found.append(torch.where(index == NEWLINE, NEWLINE, index + before))
        before += tile_count(size, config.image_grid_pinpoints, side) * (side // patch) ** 2
    return found
