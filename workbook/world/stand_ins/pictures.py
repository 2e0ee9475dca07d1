"""The pictures that encoders and teachers learn from: drawn training scenes with all that is known of them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from viral_core.distributed import device
from workbook.world.questions import caption
from workbook.world.render import LABELS, SIZE, draw, render, token_labels
from workbook.world.scenes import GRID, MAX_OBJECTS, draw_scenes
from workbook.world.stand_ins import samples

HELD_OUT = 1000  # scenes at the end that no training sees, for the probes (at most a fifth of all)
CHUNK = 500  # scenes that a process draws at a time
# Depth of the background in each row of a picture: it recedes upwards; objects, at depths in (0, 1), are nearer.
BACKGROUND = (1 + 0.5 * (1 - (np.arange(SIZE) + 0.5) / SIZE)).astype(np.float32)


@dataclass(frozen=True)
class Pictures(samples.Samples):
    """n scenes of P = 128 pixels a side, T = 64 tokens."""

    images: np.ndarray  # uint8 (n, P, P, 3)
    views: np.ndarray  # the same objects before other photographs, in another light
    owners: np.ndarray  # uint8 (n, P, P), 0 for the background, else 1 + the index of the object that a pixel shows
    depths: np.ndarray  # float32 (n, MAX_OBJECTS), of each object
    labels: np.ndarray  # uint8 (n, T, 6), `render.token_labels` in the order of `render.LABELS`, for probes only
    captions: np.ndarray  # a natural one each

    def depth(self) -> np.ndarray:
        """Depth of every pixel, float32 (n, P, P): of the object that it shows, or of the background."""
        objects = np.concatenate([np.zeros((len(self), 1), np.float32), self.depths], axis=1)
        depth = np.take_along_axis(objects, self.owners.reshape(len(self), -1).astype(int), axis=1)
        return np.where(self.owners, depth.reshape(self.owners.shape), BACKGROUND[:, None])

    def pixels(self, mean, std) -> Tensor:
        """Normalised pixels (n, 3, P, P), float32: pixels in 0..1 minus mean, over deviation, per channel."""
        images = torch.from_numpy(np.array(self.images)).to(device())
        mean, std = (torch.tensor(x, dtype=torch.float32, device=device()) * 255 for x in (mean, std))
        return ((images - mean) / std).permute(0, 3, 1, 2).contiguous()


def _draw(seed: tuple[int, ...], n: int) -> Pictures:
    rng = np.random.default_rng((*seed, 1))
    owners, depths = np.zeros((n, SIZE, SIZE), np.uint8), np.zeros((n, MAX_OBJECTS), np.float32)
    images, views = np.zeros((2, n, SIZE, SIZE, 3), np.uint8)
    labels, captions = np.zeros((n, GRID**2, len(LABELS)), np.uint8), []
    for i, scene in enumerate(draw_scenes(n, seed)):
        images[i], masks = draw(scene)
        views[i] = render(dataclasses.replace(scene, seed=int(rng.integers(2**31))))
        owners[i] = (masks * np.arange(1, len(scene.objects) + 1)[:, None, None]).sum(0)
        depths[i, : len(scene.objects)] = [o.depth for o in scene.objects]
        labels[i] = np.stack(list(token_labels(scene, masks).values()), axis=1)
        captions.append(caption(scene, rng))
    return Pictures(images, views, owners, depths, labels, np.array(captions, "U120"))


def write(folder: Path, n: int, seed: int, workers: int) -> None:
    """Draw `n` training scenes into `folder`; does nothing where they are complete."""
    samples.write(folder, _draw, n, (seed, 9), CHUNK, workers)


def load(folder: Path) -> tuple[Pictures, Pictures]:
    """The scenes to train on, and those held out for the probes."""
    pictures = Pictures.load(folder)
    end = len(pictures) - min(HELD_OUT, len(pictures) // 5)
    return pictures[:end], pictures[end:]
