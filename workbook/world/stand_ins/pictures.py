"""The pictures that encoders and teachers learn from: drawn training scenes with all that is known of them.

Arrays in .npy files, read through memory maps; n scenes of P = 128 pixels a side, T = 64 tokens:

    images.npy    uint8 (n, P, P, 3)
    owners.npy    uint8 (n, P, P): 0 for the background, else 1 + the index of the object that a pixel shows
    depths.npy    float32 (n, MAX_OBJECTS): depth of each object
    labels.npy    uint8 (n, T, 6): `render.token_labels` in the order of `render.LABELS`, for probes only
    captions.npy  strings: one natural caption each
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbook.world.questions import caption
from workbook.world.render import LABELS, SIZE, background_depth, render_full, token_labels
from workbook.world.scenes import GRID, MAX_OBJECTS, draw_scenes

HELD_OUT = 1000  # scenes at the end that no training sees, for the probes (at most a fifth of all)
CHUNK = 500  # scenes that a process draws at a time


@dataclass(frozen=True)
class Pictures:
    """Arrays of n scenes; see the module."""

    images: np.ndarray
    owners: np.ndarray
    depths: np.ndarray
    labels: np.ndarray
    captions: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> "Pictures":
        return Pictures(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def depth(self) -> np.ndarray:
        """Depth of every pixel, float32 (n, P, P), as in `render_full`."""
        objects = np.concatenate([np.zeros((len(self), 1), np.float32), self.depths], axis=1)
        depth = np.take_along_axis(objects, self.owners.reshape(len(self), -1).astype(int), axis=1)
        return np.where(self.owners, depth.reshape(self.owners.shape), background_depth(SIZE)[:, None])

    def pixels(self, mean, std, device: str) -> Tensor:
        """Normalised pixels (n, 3, P, P), float32: pixels in 0..1 minus mean, over deviation, per channel."""
        images = torch.from_numpy(np.array(self.images)).to(device)
        mean, std = (torch.tensor(x, dtype=torch.float32, device=device) * 255 for x in (mean, std))
        return ((images - mean) / std).permute(0, 3, 1, 2).contiguous()


def _draw(seed: tuple[int, ...], n: int) -> Pictures:
    rng = np.random.default_rng((*seed, 1))
    owners, depths = np.zeros((n, SIZE, SIZE), np.uint8), np.zeros((n, MAX_OBJECTS), np.float32)
    images, labels, captions = np.zeros((n, SIZE, SIZE, 3), np.uint8), np.zeros((n, GRID**2, len(LABELS)), np.uint8), []
    for i, scene in enumerate(draw_scenes(n, seed)):
        rendering = render_full(scene)
        images[i] = rendering.image
        owners[i] = (rendering.masks * np.arange(1, len(scene.objects) + 1)[:, None, None]).sum(0)
        depths[i, : len(scene.objects)] = [o.depth for o in scene.objects]
        labels[i] = np.stack(list(token_labels(scene, rendering.masks).values()), axis=1)
        captions.append(caption(scene, rng))
    return Pictures(images, owners, depths, labels, np.array(captions, "U120"))


def draw(folder: Path, n: int, seed: int, workers: int) -> None:
    """Draw `n` training scenes into `folder` by `workers` processes; does nothing where they are complete."""
    done = folder / f"{n}-{seed}"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, n, CHUNK)
    sizes = [min(CHUNK, n - start) for start in starts]
    arrays: dict[str, np.ndarray] = {}
    with ProcessPoolExecutor(workers) as processes:
        parts = processes.map(_draw, [(seed, 9, i) for i in range(len(sizes))], sizes)
        for start, part in zip(starts, parts, strict=True):
            for name in Pictures.__dataclass_fields__:
                values = getattr(part, name)
                if name not in arrays:
                    shape = (n, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
                arrays[name][start : start + len(part)] = values
    done.touch()


def load(folder: Path) -> tuple[Pictures, Pictures]:
    """The scenes to train on, and those held out for the probes."""
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in Pictures.__dataclass_fields__]
    pictures = Pictures(*arrays)
    held_out = min(HELD_OUT, len(pictures) // 5)
    return pictures[: len(pictures) - held_out], pictures[len(pictures) - held_out :]
