"""Features of images computed once: sharded, checksummed, memory-mapped, keyed by image name.

- A shard is one safetensors file of `shard_size` images that appears whole or not at all; a run that was stopped goes
  on behind the last whole shard.  `index.json` is written last: without it, the cache is not finished.
- float32 keeps the bits; float16 rounds to 11 of them (a relative error of 2^-11); int8, with one float32 scale per
  token, has half its size again (an error of at most half a step, max|x| / 254).
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from viral_core import distributed
from viral_core.checkpoints import checksum, read_json, save_tensors, write_json
from viral_core.files import set_aside
from viral_core.images import image_size, open_rgb
from viral_core.specs import check_choice
from viral_core.teachers import Teacher
from viral_core.tiles import View

INDEX = "index.json"
DIFFERENT = 0.05  # of the norm of an image's features: far above what another machine computes, and rounding


def pack(features: Tensor, dtype: str) -> dict[str, Tensor]:
    """Float features (..., d) -> `features` and, for int8, `scale` (..., 1); ValueError where they are not finite."""
    check_choice("cache dtype", dtype, ("float32", "float16", "int8"))
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


def _is_packed(tensors: Mapping[str, Tensor], dtype: str) -> bool:
    """Whether tensors have the names and types of what `pack` returns, which no checksum covers."""
    kinds = {"features": getattr(torch, dtype), **({"scale": torch.float32} if dtype == "int8" else {})}
    return {name: tensor.dtype for name, tensor in tensors.items()} == kinds


def _load(teacher: Teacher, view: View | None, pictures: Sequence[tuple[Path, int | None]]) -> Tensor:
    """Preprocessed pixels (B, 3, size, size) of image files, or of their tiles; runs in the loader's workers."""
    cut = lru_cache(1)(lambda file: view.pictures(open_rgb(file)))  # tiles of an image stand side by side
    return teacher.preprocess([open_rgb(file) if tile is None else cut(file)[tile] for file, tile in pictures])


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

    With the view of a LLaVA-NeXT (`tiles`), features of each image's tiles, named `<name>#<tile>`. Shards of another
    teacher, dtype or set of images are set aside, with a warning; so are those of images whose files have another size
    now, and those whose first image has other features now, by another loader. Launched processes divide the shards.

    FileNotFoundError lists missing image files before any work; ValueError for an unreadable image, or features that
    `dtype` cannot hold.
    """
    folder = Path(folder)
    if missing := [str(file) for _, file in sorted(images.items()) if not Path(file).is_file()]:
        listed = ", ".join(missing[:10])
        raise FileNotFoundError(f"{len(missing)} of {len(images)} images to cache are missing, such as {listed}")
    pack(torch.zeros(1, 1), dtype)  # refuse an unknown dtype before any work
    identity = {"teacher": teacher.identity(), "dtype": dtype}
    if tiles is not None:
        identity["tiles"] = tiles.image_processor.image_grid_pinpoints
    pictures = _pictures(images, tiles)
    names, chunks = list(pictures), {}
    for number, start in enumerate(range(0, len(names), shard_size)):
        chunks[folder / f"shard-{number:05d}.safetensors"] = names[start : start + shard_size]
    identities = {}
    for file, chunk in chunks.items():
        sizes = [pictures[name][0].stat().st_size for name in chunk]
        identities[file] = json.dumps({**identity, "names": chunk, "bytes": sizes})
    encode = partial(_features, teacher, tiles, batch_size, workers)
    if distributed.is_main():
        _prepare(folder, identities, lambda file: encode([pictures[chunks[file][0]]]))
    distributed.barrier()

    checksums, mine = {}, distributed.share(list(chunks))
    label, quiet = f"features of {teacher.kind}", not distributed.is_main()
    with tqdm(total=sum(len(chunks[file]) for file in mine), desc=label, unit="image", disable=quiet) as bar:
        for file in mine:
            checksums[file] = _finished(file, identities[file])
            if checksums[file] is not None:
                bar.update(len(chunks[file]))
                continue
            batches = []
            for batch in encode([pictures[name] for name in chunks[file]]):
                batches.append(pack(batch, dtype))
                bar.update(len(batch))
            tensors = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
            checksums[file] = _checksums(tensors)
            save_tensors(tensors, file, {"identity": identities[file], "checksums": json.dumps(checksums[file])})
    parts = distributed.gather(checksums)
    if parts is None:
        return
    merged = {file: values for part in parts for file, values in part.items()}
    shards = [{"file": file.name, "names": chunk, "checksums": merged[file]} for file, chunk in chunks.items()]
    index = {**identity, "tokens": teacher.grid**2, "dim": teacher.dim, "images": len(names), "shards": shards}
    write_json(folder / INDEX, index)


def _features(
    teacher: Teacher, tiles: View | None, batch_size: int, workers: int, pictures: Sequence[tuple[Path, int | None]]
) -> Iterator[Tensor]:
    """Features (B, N, d) of pictures, batch by batch; ValueError where they are not of the size that is stated."""
    stated, workers = (teacher.grid**2, teacher.dim), min(workers, len(pictures) // batch_size)
    for batch in DataLoader(pictures, batch_size, num_workers=workers, collate_fn=partial(_load, teacher, tiles)):
        features = teacher.encode(batch).cpu()
        if features.shape[1:] != stated:
            raise ValueError(f"{teacher.kind} gives {tuple(features.shape[1:])} of an image, and says {stated}")
        yield features


def _pictures(images: Mapping[str, str | Path], tiles: View | None) -> dict[str, tuple[Path, int | None]]:
    """What is cached under which key, in order: a file, or one of the tiles that a LLaVA-NeXT cuts it into."""
    if tiles is None:
        return {name: (Path(images[name]), None) for name in sorted(images)}
    pictures = {}
    for name in tqdm(sorted(images), "sizes of images", unit="image"):
        keys = tiles.keys(name, image_size(images[name]))
        pictures |= {key: (Path(images[name]), number) for number, key in enumerate(keys)}
    return pictures


def _prepare(folder: Path, identities: Mapping[Path, str], first: Callable[[Path], Iterator[Tensor]]) -> None:
    """Leave in the folder only shards that go on; the others, which may have cost hours, are set aside.

    `first` gives the features of a shard's first picture as they are now.
    """
    (folder / INDEX).unlink(missing_ok=True)
    shards = sorted(folder.glob("shard-*.safetensors"))
    others = [file for file in shards if _identity(file) not in (None, identities.get(file))]
    others += [file for file in shards if _identity(file) == identities.get(file) and _differs(file, *first(file))]
    if others:
        place = set_aside(folder, "other-settings", others)
        warnings.warn(f"{folder} held {len(others)} shards of other settings: they lie in {place} now", stacklevel=3)


def _differs(file: Path, now: Tensor) -> bool:
    """Whether the first picture of a shard has other features than these, (1, N, d); not where it is damaged."""
    with safe_open(file, "pt") as shard:
        packed = {key: shard.get_slice(key)[:1] for key in shard.keys()}  # noqa: SIM118
        dtype = json.loads(shard.metadata()["identity"])["dtype"]
    return _is_packed(packed, dtype) and bool((now - unpack(packed)).norm() > DIFFERENT * now.norm())


def _identity(file: Path) -> str | None:
    """What a shard holds; None if it is missing or damaged."""
    try:
        with safe_open(file, "pt") as shard:
            return shard.metadata()["identity"]
    except (OSError, SafetensorError, TypeError, KeyError):
        return None


def _finished(file: Path, identity: str) -> list[int] | None:
    """Checksums of a shard that exists and is intact; None if it has to be written."""
    if _identity(file) != identity:
        return None
    try:
        with safe_open(file, "pt") as shard:
            expected = json.loads(shard.metadata()["checksums"])
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    except (KeyError, ValueError):
        return None
    intact = _is_packed(tensors, json.loads(identity)["dtype"]) and _checksums(tensors) == expected
    return expected if intact else None


def _checksums(tensors: Mapping[str, Tensor]) -> list[int]:
    return [checksum({key: tensor[i] for key, tensor in tensors.items()}) for i in range(len(tensors["features"]))]


class FeatureCache:
    """Read features by image name: `cache[name]` is (N, d) float32, `cache(names)` is (n, N, d), n = 0 included.

    FileNotFoundError where the folder holds no finished cache, ValueError for an index or a shard that was changed or
    is missing, KeyError, on access, for an image that is not in the cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(f"no finished feature cache in {self.folder}: write it first")
        index = read_json(self.folder / INDEX, "write the cache again, intact shards stay")
        self.teacher, self.dtype = index["teacher"], index["dtype"]
        self.tokens, self.dim = index["tokens"], index["dim"]
        self._open_shards: dict[str, dict] = {}
        self._where = {
            name: (shard["file"], row, value)
            for shard in index["shards"]
            for row, (name, value) in enumerate(zip(shard["names"], shard["checksums"], strict=True))
        }

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise KeyError(f"image {name!r} is not in the feature cache {self.folder}: write the cache for this data")
        file, row, expected = self._where[name]
        try:
            packed = {key: part[row] for key, part in self._shard(file).items()}
            if checksum(packed) != expected or not _is_packed(packed, self.dtype):
                raise ValueError("its checksum differs")
        except (OSError, SafetensorError, IndexError, ValueError) as error:
            fault = f"{self.folder / file} is missing or was changed (image {name!r})"
            raise ValueError(f"{fault}: write the cache again, intact shards stay") from error
        return unpack(packed)

    def __call__(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self[name] for name in names]) if names else torch.zeros(0, self.tokens, self.dim)

    def _shard(self, file: str) -> dict:
        """Memory-mapped slices of a shard, opened once per process."""
        if file not in self._open_shards:
            shard = safe_open(self.folder / file, "pt")
            self._open_shards[file] = {key: shard.get_slice(key) for key in shard.keys()}  # noqa: SIM118
        return self._open_shards[file]

    def __getstate__(self) -> dict:
        """Without open files: every worker of a loader maps the shards itself."""
        return {**self.__dict__, "_open_shards": {}}
