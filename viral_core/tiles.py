"""How a LLaVA views an image: whole (LLaVA-1.5), or whole and in tiles (LLaVA-NeXT; Appendix E, Fig. 9).

LLaVA-NeXT encodes an image as a whole, squeezed into tile 0, and then in the grid of tiles, (rows, columns), that fits
its shape best. In the sequence tile 0's N tokens come first. Those of the grid follow as one map, row by row across its
tiles: rows or columns that hold nothing but padding are left out, and each row ends with the newline token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, LlavaNextConfig, LlavaNextImageProcessor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from viral_core.images import mean_color, pad_to_square

NEWLINE = -1  # patch index of a newline token
Size = Sequence[int]  # (height, width) in pixels


class View:
    """What a model sees of an image: one square; of LLaVA-NeXT, which is `tiled`, the whole and tiles of it.

    A teacher sees the same square, or each of the tiles, under the key `<name>#<tile>`.
    """

    def __init__(self, image_processor, patch_size: int):
        self.image_processor, self.patch_size = image_processor, patch_size
        self.tiled = is_tiled(image_processor)  # the number of tokens depends on the image
        cropped = self.tiled or getattr(image_processor, "do_center_crop", False)
        self.side = (image_processor.crop_size if cropped else image_processor.size)["height"]

    def prepare(self, image: Image.Image) -> Image.Image:
        """What the image processor is given of an RGB image."""
        return image if self.tiled else pad_to_square(image, mean_color(self.image_processor))

    def tokens(self, size: Size | None = None) -> int:
        """Visual tokens of an image; a square needs no size."""
        if not self.tiled:
            return (self.side // self.patch_size) ** 2
        return len(patch_index(size, self.image_processor.image_grid_pinpoints, self.side, self.patch_size))

    def keys(self, name: str, size: Size | None = None) -> list[str]:
        """Names of an image's cached features; a square needs no size."""
        if not self.tiled:
            return [name]
        count = tile_count(size, self.image_processor.image_grid_pinpoints, self.side)
        return [f"{name}#{tile}" for tile in range(count)]

    def pictures(self, image: Image.Image) -> list[Image.Image]:
        """The squares that a teacher sees of an RGB image, one for each key; padding in the grid of tiles is black."""
        if not self.tiled:
            return [self.prepare(image)]
        raw = self.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return [Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()) for tile in raw]


def view_of(processor) -> View:
    """How the model of a LLaVA processor views images."""
    return View(processor.image_processor, processor.patch_size)


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


def patch_index(size: Sequence[int], pinpoints: list[list[int]], side: int, patch: int) -> Tensor:
    """(T,) for each visual token of an image of `size` (height, width): tile * N + patch, or `NEWLINE`.

    N patches of `patch` pixels fill a tile of `side` pixels. `pinpoints`: (height, width) of the grids, in pixels.
    """
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, side)
    edge = side // patch
    whole, tiles = torch.arange((1 + rows * columns) * edge**2).split([edge**2, rows * columns * edge**2])
    plane = tiles.view(rows, columns, edge, edge).transpose(1, 2).reshape(1, rows * edge, columns * edge)
    return torch.cat([whole, F.pad(unpad_image(plane, size)[0], (0, 1), value=NEWLINE).flatten()])


def batch_patch_index(config: LlavaNextConfig, image_sizes: Tensor) -> list[Tensor]:
    """`patch_index` of each of n images of `image_sizes` (n, 2), on the CPU, counted on over all of their tiles."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    indices, before = [], 0
    for size in image_sizes.tolist():
        index = patch_index(size, config.image_grid_pinpoints, side, patch)
        indices.append(torch.where(index == NEWLINE, NEWLINE, index + before))
        before += tile_count(size, config.image_grid_pinpoints, side) * (side // patch) ** 2
    return indices


def blank_image(config, like: Tensor) -> dict[str, Tensor]:
    """Arguments of `get_image_features` for one black image, in the dtype and on the device of `like`."""
    side = config.vision_config.image_size
    sizes, tiles = {}, 1
    if is_tiled(config):
        tiles, sizes = tile_count((side, side), config.image_grid_pinpoints, side), {"image_sizes": [[side, side]]}
    return {"pixel_values": like.new_zeros(tiles, config.vision_config.num_channels, side, side), **sizes}
