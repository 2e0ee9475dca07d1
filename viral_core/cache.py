"""Teacher features computed once: sharded, checksummed, memory-mapped, keyed by image name.

Design choices:
- A shard is one safetensors file of `shard_size` images that appears whole or not at all; a run that was stopped goes
  on behind the last whole shard.  `index.json` is written last: without it, the cache is not finished.
- Checksums are kept per image and compared at every read, so that a memory-mapped read of one image needs no pass over
  its shard, at any size of the cache.
- float16, or int8 with one float32 scale per token (half the size; an error of at most half a step, max|x| / 254).
"""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from viral_core import distributed
from viral_core.teachers import Teacher
from viral_core.tiles import cut, tile_keys

DTYPES = {"float16": torch.float16, "int8": torch.int8}
INDEX = "index.json"


def pack(features: Tensor, dtype: str) -> dict[str, Tensor]:
    """Float features (..., d) -> what is stored: `features` and, for int8, `scale` (..., 1), float32.

    Raises:
        ValueError: an unknown dtype, or values that are not finite in it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no cache dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    if dtype == "float16":
        packed = {"features": features.to(torch.float16)}
    else:
        scale = features.float().abs().amax(-1, keepdim=True) / 127
        steps = (features / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
        packed = {"features": steps.to(torch.int8), "scale": scale}
    if not all(tensor.isfinite().all() for tensor in (features, *packed.values())):
        raise ValueError(f"features that are not finite in {dtype}: check the teacher, or choose another cache dtype")
    return packed


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """What is stored -> float32 features (..., d)."""
    features = packed["features"].float()
    return features * packed["scale"] if "scale" in packed else features


class _Tile(NamedTuple):
    """One of the tiles that LLaVA-NeXT's image processor cuts an image file into."""

    file: Path
    number: int
    image_processor: object


class _Pixels(Dataset):
    """Preprocessed pixels (3, size, size) of image files or tiles, made in the loader's workers."""

    def __init__(self, teacher: Teacher, files: Sequence[Path | _Tile]):
        self.teacher, self.files = teacher, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        tile = self.files[i] if isinstance(self.files[i], _Tile) else None
        file = tile.file if tile else self.files[i]
        try:
            with Image.open(file) as image:
                if tile:
                    image = cut(tile.image_processor, image.convert("RGB"))[tile.number]
                return self.teacher.preprocess([image])[0]
        except OSError as error:
            raise ValueError(f"cannot read image {file} ({error}): restore it") from error


def write_cache(
    teacher: Teacher,
    images: Mapping[str, str | Path],
    folder: str | Path,
    dtype: str = "float16",
    shard_size: int = 1024,
    batch_size: int = 32,
    workers: int = 0,
    image_processor=None,
) -> None:
    """Write the teacher's features of all images, {name: file}, into `folder`; finished shards are kept.

    With a LLaVA-NeXT's `image_processor`, features of each image's tiles, named `<name>#<tile>`.

    Processes that were launched together (`viral_core.distributed`) divide the shards among them.

    Raises:
        FileNotFoundError: image files are missing; lists them before any work.
        ValueError: an unreadable image, or features that `dtype` cannot hold.
    """
    folder, names = Path(folder), sorted(images)
    if missing := [name for name in names if not Path(images[name]).is_file()]:
        listed = ", ".join(str(images[name]) for name in missing[:10])
        raise FileNotFoundError(f"{len(missing)} of {len(names)} images to cache are missing, such as {listed}")
    if not names:
        raise ValueError(f"no images to cache in {folder}")
    pack(torch.zeros(1, 1), dtype)  # refuse an unknown dtype before any work
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        (folder / INDEX).unlink(missing_ok=True)
    identity = {"teacher": teacher.identity(), "dtype": dtype}
    if image_processor is not None:
        identity["tiles"] = image_processor.image_grid_pinpoints
        tiles = {}
        for name in tqdm(names, "sizes of images", unit="image"):
            with Image.open(images[name]) as image:
                keys = tile_keys(image_processor, name, (image.height, image.width))
            tiles |= {key: _Tile(Path(images[name]), number, image_processor) for number, key in enumerate(keys)}
        images, names = tiles, list(tiles)

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
                pixels = _Pixels(teacher, [images[name] for name in chosen])
                loader = DataLoader(pixels, batch_size, num_workers=workers)
                batches = []
                for batch in loader:
                    batches.append(pack(teacher.encode(batch).cpu(), dtype))
                    bar.update(len(batch))
                tensors = {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
                checksums = [_checksum({k: v[i] for k, v in tensors.items()}) for i in range(len(chosen))]
                metadata = {"identity": expected, "checksums": json.dumps(checksums)}
                temporary = file.with_suffix(".part")
                save_file(tensors, temporary, metadata)
                os.replace(temporary, file)
            else:
                bar.update(len(chosen))
            shards[number] = {"file": file.name, "names": chosen, "checksums": checksums}
    parts = distributed.gather(shards)
    if parts is None:
        return
    shards = [shard for _, shard in sorted((item for part in parts for item in part.items()), key=lambda item: item[0])]
    for surplus in set(folder.glob("shard-*")) - {folder / shard["file"] for shard in shards}:
        surplus.unlink()
    index = {**identity, "tokens": teacher.grid**2, "dim": teacher.dim, "images": len(names), "shards": shards}
    temporary = folder / f"{INDEX}.part"
    temporary.write_text(json.dumps(index))
    os.replace(temporary, folder / INDEX)


def _checksum(row: Mapping[str, Tensor]) -> int:
    """CRC-32 over the bytes of one image's tensors."""
    value = 0
    for key in sorted(row):
        value = zlib.crc32(row[key].contiguous().numpy(), value)
    return value


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
    intact = all(_checksum({k: v[i] for k, v in tensors.items()}) == c for i, c in enumerate(checksums))
    return checksums if intact else None


class FeatureCache:
    """Read features by image name: `cache[name]` is (N, d) float32, `cache(names)` is (n, N, d).

    Attributes:
        teacher: identity of the teacher (checkpoint, preprocessing).  tokens, dim: N and d.

    Raises:
        FileNotFoundError: no finished cache in the folder.
        ValueError: a shard that was changed or is missing; on access, with the remedy.
        KeyError: on access, an image that is not in the cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text())
        except FileNotFoundError:
            raise FileNotFoundError(f"no finished feature cache in {self.folder}: write it first") from None
        self.teacher, self.dtype = index["teacher"], index["dtype"]
        self.tokens, self.dim = index["tokens"], index["dim"]
        self._shards = [shard["file"] for shard in index["shards"]]
        self._where = {
            name: (number, row, checksum)
            for number, shard in enumerate(index["shards"])
            for row, (name, checksum) in enumerate(zip(shard["names"], shard["checksums"], strict=True))
        }

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise KeyError(f"image {name!r} is not in the feature cache {self.folder}: write the cache for this data")
        number, row, checksum = self._where[name]
        try:
            packed = {key: part[row] for key, part in self._open(number).items()}
        except (OSError, SafetensorError, IndexError) as error:
            raise self._damaged(number, name) from error
        if _checksum(packed) != checksum:
            raise self._damaged(number, name)
        return unpack(packed)

    def __call__(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self[name] for name in names])

    def verify(self) -> None:
        """Compare every checksum; raises ValueError at the first shard that was changed."""
        for name in tqdm(self._where, "checking the feature cache"):
            self[name]

    def _damaged(self, number: int, name: str) -> ValueError:
        file = self.folder / self._shards[number]
        return ValueError(
            f"{file} is missing or was changed (image {name!r}): write the cache again, intact shards stay"
        )

    @cached_property
    def _parts(self) -> dict[int, dict]:
        return {}

    def _open(self, number: int) -> dict:
        """Memory-mapped slices of a shard, opened once per process."""
        if number not in self._parts:
            shard = safe_open(self.folder / self._shards[number], "pt")
            self._parts[number] = {key: shard.get_slice(key) for key in shard.keys()}  # noqa: SIM118
        return self._parts[number]

    def __getstate__(self) -> dict:
        """Without open files: every worker of a loader maps the shards itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_parts"}
