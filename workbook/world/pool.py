"""The pool: scenes, with all that is known of them, that encoders and teachers learn from.

Many more than the instruction mix has, and none of its scenes or the benchmarks' (`accept` says which scenes may be
drawn).  Arrays in .npy files, read through memory maps:

    images.npy      uint8 (n, size, size, 3)
    masks.npy       uint8 (n, size, size / 8), which pixels show an object, packed bits
    categories.npy  uint8 (n, 16), category of each cell: 0 for none, else 1 + its index in CATEGORIES
    facings.npy     uint8 (n, 16): 0 for none, 1 left, 2 right
    depths.npy      float32 (n, 16): depth of the cell's object, 0 where there is none
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .render import background_depth, render_full
from .scenes import CATEGORIES, GRID, Scene, sample_scene

FACINGS = (None, "left", "right")
_NUMBER = {category.name: i + 1 for i, category in enumerate(CATEGORIES)}


@dataclass(frozen=True)
class Pool:
    """Arrays of n scenes; see the module."""

    images: np.ndarray
    masks: np.ndarray
    categories: np.ndarray
    facings: np.ndarray
    depths: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> "Pool":
        return Pool(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def mask(self) -> np.ndarray:
        """Which pixels show an object: bool (n, size, size)."""
        return np.unpackbits(self.masks, axis=-1).astype(bool)

    def depth(self) -> np.ndarray:
        """Depth of every pixel, float32 (n, size, size), as in `render_full`."""
        size = self.images.shape[1]
        cells = self.depths.reshape(-1, GRID, GRID).repeat(size // GRID, 1).repeat(size // GRID, 2)
        return np.where(self.mask(), cells, background_depth(size)[:, None])


def write_pool(
    folder: str | Path,
    n: int,
    seed: int,
    accept: Callable[[Scene], bool] = lambda scene: True,
    size: int = 96,
) -> None:
    """Draw `n` scenes that `accept` lets through and write them into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shapes = {
        "images": (np.uint8, (size, size, 3)),
        "masks": (np.uint8, (size, size // 8)),
        "categories": (np.uint8, (GRID * GRID,)),
        "facings": (np.uint8, (GRID * GRID,)),
        "depths": (np.float32, (GRID * GRID,)),
    }
    pool = Pool(**{
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (n, *shape))
        for name, (dtype, shape) in shapes.items()
    })  # fmt: skip
    for i in tqdm(range(n), "scenes of the pool", unit="scene"):
        while not accept(scene := sample_scene(rng)):
            pass
        drawn = render_full(scene, size)
        pool.images[i] = drawn.image
        pool.masks[i] = np.packbits(drawn.masks.any(0), axis=-1)
        for item in scene.objects:
            pool.categories[i, item.cell] = _NUMBER[item.category]
            pool.facings[i, item.cell] = FACINGS.index(item.facing)
            pool.depths[i, item.cell] = item.depth


def load_pool(folder: str | Path) -> Pool:
    """Map a pool that `write_pool` wrote.

    Raises:
        FileNotFoundError: a file of the pool is missing.
    """
    files = {name: Path(folder) / f"{name}.npy" for name in Pool.__dataclass_fields__}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise FileNotFoundError(f"no pool of scenes in {folder}: {missing[0]} is missing, write the pool first")
    return Pool(**{name: np.load(file, mmap_mode="r") for name, file in files.items()})
