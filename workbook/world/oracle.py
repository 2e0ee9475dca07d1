"""The oracle: a teacher whose features are the scene's truth, an upper bound for what any teacher can know.

Its features are a fixed random projection of what `render.token_labels` says of each token.  It reads that from an
image file beside the picture: the grids of the labels below each other, one grey value for each token.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbook.world.render import PROBES
from workbook.world.scenes import GRID

CLASSES = 17  # the most values that a label has: 16 categories and none


def truth_image(labels: dict[str, np.ndarray]) -> Image.Image:
    """The labels (64,) of a scene as a grey image, 8 wide and 40 high."""
    return Image.fromarray(np.concatenate([labels[name].reshape(GRID, GRID) for name in PROBES]))


class Oracle:
    """Stands where a `viral_core.teachers.Teacher` stands when features are cached; its images are truths."""

    kind, grid, dim = "oracle", GRID, 96

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.seed, self.projection = seed, torch.randn(len(PROBES) * CLASSES, self.dim, generator=generator)

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """Truths -> labels (B, 5, 64), float32."""
        values = np.stack([np.asarray(image.convert("L"), np.float32) for image in images])
        return torch.from_numpy(values).reshape(len(images), len(PROBES), -1)

    def encode(self, labels: Tensor) -> Tensor:
        """Labels (B, 5, 64) -> features (B, 64, 96), float32: of each label's value minus what every token has."""
        values = torch.nn.functional.one_hot(labels.long(), CLASSES).float()
        values = values.transpose(1, 2).flatten(2)
        return values @ self.projection

    def identity(self) -> dict:
        return {"kind": self.kind, "labels": PROBES, "seed": self.seed, "grid": self.grid, "dim": self.dim}
