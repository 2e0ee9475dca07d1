"""Features of images computed once: sharded, checksummed, memory-mapped, keyed by image name.

Design choices:
- A shard is one safetensors file of `shard_size` images that appears whole or not at all; a run that was stopped goes
  on behind the last whole shard.  `index.json` is written last: without it, the cache is not finished.
- Checksums are kept per image and compared at every read, so that a memory-mapped read of one image needs no pass over
  its shard, at any size of the cache.
- float32 keeps the bits; float16 rounds to 11 of them (a relative error of 2^-11); int8, with one float32 scale per
  token, has half its size again (an error of at most half a step, max|x| / 254).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from viral_core import distributed
from viral_core.atomic import replacement
from viral_core.checkpoints import checksum, read_json, write_json
from viral_core.images import image_size, open_rgb
from viral_core.teachers import Teacher
from viral_core.tiles import View

DTYPES = ("float32", "float16", "int8")
INDEX = "index.json"


def pack(features: Tensor, dtype: str) -> dict[str, Tensor]:
    """Float features (..., d) -> what is stored: `features` and, for int8, `scale` (..., 1), float32.

    Raises:
        ValueError: an unknown dtype, or values that are not finite in it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no cache dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    if dtype == "int8":
        scale = features.float().abs().amax(-1, keepdim=True) / 127
        steps = (features / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
        packed = {"features": steps.to(torch.int8), "scale": scale}
    else:
        packed = {"features": features.to(getattr(torch, dtype))}
    if not all(tensor.isfinite().all() for tensor in (features, *packed.values())):
        raise ValueError(f"features that are not finite in {dtype}: check the teacher, or choose another cache dtype")
    return packed


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """What is stored -> float32 features (..., d)."""
    features = packed["features"].float()
    return features * packed["scale"] if "scale" in packed else features


class _Picture(NamedTuple):
    """What a teacher sees under one key: a file, or one of the tiles that a LLaVA-NeXT cuts it into."""

    file: Path
    tile: int | None = None


class _Pixels(Dataset):
    """Preprocessed pixels (3, size, size), made in the loader's workers."""

    def __init__(self, teacher: Teacher, pictures: Sequence[_Picture], view: View | None):
        self.teacher, self.pictures, self.view = teacher, pictures, view

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Tensor:
        picture = self.pictures[i]
        image = open_rgb(picture.file)
        if picture.tile is not None:
            image = self.view.pictures(image)[picture.tile]
        return self.teacher.preprocess([image])[0]


def write_cache(
    teacher: Teacher,
    images: Mapping[str, str | Path],
    folder: str | Path,
    dtype: str = "float16",
    shard_size: int = 1024,
    batch_size: int = 32,
    workers: int = 0,
    tiles: View | None = None,
) -> None:
    """Write the teacher's features of all images, {name: file}, into `folder`; finished shards are kept.

    With the view of a LLaVA-NeXT (`tiles`), features of each image's tiles, named `<name>#<tile>`.

    Processes that were launched together (`viral_core.distributed`) divide the shards among them.

    Raises:
        FileNotFoundError: image files are missing; lists them before any work.
        ValueError: an unreadable image, or features that `dtype` cannot hold.
    """
    folder = Path(folder)
    missing = [str(file) for _, file in sorted(images.items()) if not Path(file).is_file()]
    if missing:
        listed = ", ".join(missing[:10])
        raise FileNotFoundError(f"{len(missing)} of {len(images)} images to cache are missing, such as {listed}")
    if not images:
        raise ValueError(f"no images to cache in {folder}")
    pack(torch.zeros(1, 1), dtype)  # refuse an unknown dtype before any work
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        (folder / INDEX).unlink(missing_ok=True)
    identity = {"teacher": teacher.identity(), "dtype": dtype}
    if tiles is not None:
        identity["tiles"] = tiles.image_processor.image_grid_pinpoints
    pictures = _pictures(images, tiles)
    names = list(pictures)

    shards, mine = {}, distributed.share(range(math.ceil(len(names) / shard_size)))
    images_here = sum(len(names[i * shard_size : (i + 1) * shard_size]) for i in mine)
    label, quiet = f"features of {teacher.kind}", not distributed.is_main()
    with tqdm(total=images_here, desc=label, unit="image", disable=quiet) as bar:
        for number in mine:
            chosen = names[number * shard_size : (number + 1) * shard_size]
            file = folder / f"shard-{number:05d}.safetensors"
            expected = json.dumps({**identity, "names": chosen})
            checksums = _finished(file, expected)
            if checksums is None:
                pixels = _Pixels(teacher, [pictures[name] for name in chosen], tiles)
                batches = []
                for batch in DataLoader(pixels, batch_size, num_workers=workers):
                    batches.append(pack(teacher.encode(batch).cpu(), dtype))
                    bar.update(len(batch))
                checksums = _write_shard(file, batches, expected)
            else:
                bar.update(len(chosen))
            shards[number] = {"file": file.name, "names": chosen, "checksums": checksums}
    parts = distributed.gather(shards)
    if parts is None:
        return
    merged = {number: shard for part in parts for number, shard in part.items()}
    shards = [merged[number] for number in sorted(merged)]
    for surplus in set(folder.glob("shard-*")) - {folder / shard["file"] for shard in shards}:
        surplus.unlink()
    index = {**identity, "tokens": teacher.grid**2, "dim": teacher.dim, "images": len(names), "shards": shards}
    write_json(folder / INDEX, index)


def _pictures(images: Mapping[str, str | Path], tiles: View | None) -> dict[str, _Picture]:
    """What is cached under which key, in order."""
    if tiles is None:
        return {name: _Picture(Path(images[name])) for name in sorted(images)}
    pictures = {}
    for name in tqdm(sorted(images), "sizes of images", unit="image"):
        keys = tiles.keys(name, image_size(images[name]))
        pictures |= {key: _Picture(Path(images[name]), number) for number, key in enumerate(keys)}
    return pictures


def _write_shard(file: Path, batches: list[dict[str, Tensor]], identity: str) -> list[int]:
    """Write a shard, at once; returns the checksum of each image."""
    tensors = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    rows = range(len(tensors["features"]))
    checksums = [checksum({key: tensor[i] for key, tensor in tensors.items()}) for i in rows]
    with replacement(file) as temporary:
        save_file(tensors, temporary, {"identity": identity, "checksums": json.dumps(checksums)})
    return checksums


def _finished(file: Path, identity: str) -> list[int] | None:
    """Checksums of a shard that exists, is intact and belongs to this cache; None if it has to be written."""
    try:
        with safe_open(file, "pt") as shard:
            metadata = shard.metadata() or {}
            if metadata.get("identity") != identity:
                return None
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    checksums = json.loads(metadata["checksums"])
    actual = [checksum({key: tensor[i] for key, tensor in tensors.items()}) for i in range(len(checksums))]
    return checksums if actual == checksums else None


class FeatureCache:
    """Read features by image name: `cache[name]` is (N, d) float32, `cache(names)` is (n, N, d), n = 0 included.

    Attributes:
        teacher: identity of the teacher (checkpoint, preprocessing).  tokens, dim: N and d.

    Raises:
        FileNotFoundError: no finished cache in the folder.
        ValueError: an index or a shard that was changed or is missing; with the remedy.
        KeyError: on access, an image that is not in the cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            index = read_json(self.folder / INDEX, "write the cache again, intact shards stay")
        except FileNotFoundError:
            raise FileNotFoundError(f"no finished feature cache in {self.folder}: write it first") from None
        self.teacher, self.dtype = index["teacher"], index["dtype"]
        self.tokens, self.dim = index["tokens"], index["dim"]
        self._shards = [shard["file"] for shard in index["shards"]]
        self._open_shards: dict[int, dict] = {}
        self._where = {
            name: (number, row, value)
            for number, shard in enumerate(index["shards"])
            for row, (name, value) in enumerate(zip(shard["names"], shard["checksums"], strict=True))
        }

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise KeyError(f"image {name!r} is not in the feature cache {self.folder}: write the cache for this data")
        number, row, expected = self._where[name]
        try:
            packed = {key: part[row] for key, part in self._shard(number).items()}
        except (OSError, SafetensorError, IndexError) as error:
            raise self._damaged(number, name) from error
        if checksum(packed) != expected:
            raise self._damaged(number, name)
        return unpack(packed)

    def __call__(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self[name] for name in names]) if names else torch.zeros(0, self.tokens, self.dim)

    def _damaged(self, number: int, name: str) -> ValueError:
        file = self.folder / self._shards[number]
        return ValueError(
            f"{file} is missing or was changed (image {name!r}): write the cache again, intact shards stay"
        )

    def _shard(self, number: int) -> dict:
        """Memory-mapped slices of a shard, opened once per process."""
        if number not in self._open_shards:
            shard = safe_open(self.folder / self._shards[number], "pt")
            self._open_shards[number] = {key: shard.get_slice(key) for key in shard.keys()}  # noqa: SIM118
        return self._open_shards[number]

    def __getstate__(self) -> dict:
        """Without open files: every worker of a loader maps the shards itself."""
        return {**self.__dict__, "_open_shards": {}}
