"""Training samples of the stand-ins: made in chunks by several processes, kept as .npy files."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Arrays of n samples each."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `write` has written, as memory maps."""
        return cls(**{file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")})


def write(folder: Path, make: Callable, n: int, seed: tuple[int, ...], chunk: int, workers: int) -> None:
    """Fill `folder` with `n` samples, one file for each array; does nothing where they are complete.

    `make(seed, size)` returns `Samples`, for each chunk from a seed of its own.
    """
    done = folder / f"{n}-{seed[0]}"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, n, chunk)
    seeds, sizes = [(*seed, i) for i in range(len(starts))], [min(chunk, n - start) for start in starts]
    files: dict[str, np.ndarray] = {}
    with ProcessPoolExecutor(workers) as processes:
        for start, part in zip(starts, processes.map(make, seeds, sizes), strict=True):
            for name, values in vars(part).items():
                if name not in files:
                    shape = (n, *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
                files[name][start : start + len(values)] = values
    done.touch()
