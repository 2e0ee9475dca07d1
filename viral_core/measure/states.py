"""Hidden states at the visual positions: streamed, measured against the encoder (Figure 2(d)), and written to disk.

Layer 0 is the language model's input, layer l the output of block l before any final norm, the last one too.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from viral_core.measure.cknna import cknna_batch, clamp_outliers
from viral_core.measure.inputs import batches
from viral_core.measure.permutation import patch_order
from viral_core.measure.tables import label, write_csv
from viral_core.tap import VisualTap, base_llava
from viral_core.tiles import NEWLINE, batch_patch_index, is_tiled


@dataclass
class ImageStates:
    """Of one image with N visual tokens, on the model's device.

    position: of the image in the input.  states: (layers, N, D).  features: (N, Dz), what the encoder gave to the
    projector, for LLaVA the patches of its penultimate layer.  tiles: (N,), the tile of each token, on the CPU: 0, but
    for LLaVA-NeXT, whose newlines and unpadded patches are left out.
    """

    position: int
    states: torch.Tensor
    features: torch.Tensor
    tiles: torch.Tensor


def stream_states(
    model, processor, images: Sequence, prompts: str | Sequence[str], layers: Sequence[int], batch_size: int, task: str
) -> Iterator[ImageStates]:
    """Run images through a model and yield what it holds of each, one by one.

    Args:
        model, processor: of one run, the model in evaluation mode.
        images: PIL images or paths.
        prompts: one per image, or one for all.  The text before `<image>` is seen by the visual tokens, that after it
            is not.
        layers: 0 to L.

    Raises:
        ValueError: a layer that does not exist, and as `viral_core.measure.inputs.batches`.
    """
    llava = base_llava(model)
    for chosen, inputs in batches(llava, processor, images, prompts, batch_size, task):
        counts = (inputs["input_ids"] == llava.config.image_token_id).sum(1).tolist()
        with torch.inference_mode(), VisualTap(llava, layers) as tap:
            llava(**inputs, use_cache=False, logits_to_keep=1)
            per_layer = [tap.states[layer].split(counts) for layer in layers]
            features = tap.features.flatten(0, 1)
        n, sizes = tap.features.shape[1], inputs.get("image_sizes")
        patches = torch.arange(len(features)).split(n) if sizes is None else batch_patch_index(llava.config, sizes)
        for row, (index, *states) in enumerate(zip(patches, *per_layer, strict=True)):
            shown = (index != NEWLINE).nonzero().squeeze(1)
            index = index[shown]
            tiles = index // n - index[0] // n  # counted on over the batch; an image begins with its tile 0
            yield ImageStates(chosen.start + row, torch.stack(states)[:, shown], features[index], tiles)


def layerwise_cknna(
    model,
    processor,
    images: Sequence,
    prompts: str | Sequence[str],
    *,
    run: str,
    seed: int,
    ids: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    k: int = 10,
    clamps: Sequence[float] = (1.0, 0.95),
    pooled: bool = False,
    batch_size: int = 8,
    csv=None,
) -> pd.DataFrame:
    """CKNNA between a model's visual tokens and its encoder's features, layer by layer: Figures 2(d) and 9.

    Two readings.  "tokens": the N visual tokens of one image are the samples, one value per image and layer; of
    LLaVA-NeXT those of one tile, one value per tile, to be averaged over an image's tiles and then over images.
    "pooled": the images are the samples, each the mean of its tokens, one value per layer; the literature takes 1000
    images or more.  What counts as high depends on k / n, so every value has its chance level beside it: the same
    measurement against the same features in an arbitrary order.

    Args:
        model, processor, images, prompts: as `stream_states`.
        run, seed: name the run in the table.
        ids: names of the images; their numbers by default.
        layers: every one by default, 0 to L.
        k: neighbours; less than the number of samples of each reading.
        clamps: quantiles for `clamp_outliers` on both sides; 1 does not clamp.
        pooled: take the second reading too, over all images.
        csv: where to write the table.

    Returns:
        One row per reading, clamp, image and layer: run, seed, reading, layer, image ("all" for the pooled reading),
        cknna and chance (NaN where undefined), k, n, clamp.  LLaVA-NeXT: one row per tile, named in a column `tile`; a
        tile of which unpadding leaves fewer than k + 2 tokens is not measured and has NaN.

    Raises:
        ValueError: no more than k images for the pooled reading; features that are not finite or k out of range, with
            the image; and as `stream_states`.
    """
    layers = list(range(len(base_llava(model).model.language_model.layers) + 1)) if layers is None else list(layers)
    ids = _names(ids, images)
    if pooled and len(images) <= max(k, 3):
        raise ValueError(f"the pooled reading with k = {k} needs more than {max(k, 3)} images, got {len(images)}")

    frames, means = [], []
    for image in stream_states(model, processor, images, prompts, layers, batch_size, "CKNNA"):
        name = ids[image.position]
        if not is_tiled(processor):
            frames += _rows("tokens", name, image.states, image.features, layers, k, clamps)
        for tile in image.tiles.unique().tolist() if is_tiled(processor) else ():
            own = image.tiles == tile
            states, features = image.states[:, own], image.features[own]
            rows = _rows("tokens", f"{name}#{tile}", states, features, layers, k, clamps, least=k + 2)
            frames += [table.assign(image=name, tile=tile) for table in rows]
        if pooled:
            means.append((image.states.float().mean(1).cpu(), image.features.float().mean(0).cpu()))
    if pooled:
        states, features = (torch.stack(side) for side in zip(*means, strict=True))
        frames += _rows("pooled", "all", states.transpose(0, 1), features, layers, k, clamps)
    return write_csv(label(pd.concat(frames, ignore_index=True), run, seed), csv)


def _rows(reading, name, states, features, layers, k, clamps, least=0) -> list[pd.DataFrame]:
    """A table per clamp of a set of samples: states (layers, n, D) against features (n, Dz); NaN if n < `least`."""
    n = len(features)
    if states.shape[1] != n:
        raise ValueError(f"image {name}: {states.shape[1]} visual tokens in the model and {n} from the encoder")
    order = torch.from_numpy(patch_order(0, f"chance:{name}", n))
    tables = []
    for clamp in clamps:
        x, y = clamp_outliers(states.float(), clamp), clamp_outliers(features.float(), clamp)
        try:
            if n < least:
                values = torch.full((2, len(layers)), torch.nan)
            else:
                values, _ = cknna_batch(x, torch.stack([y, y[order]])[:, None], k)  # (2, layers)
        except ValueError as error:
            raise ValueError(f"image {name}: {error}") from error
        cknna, chance = values.cpu().numpy()
        columns = {"reading": reading, "layer": layers, "image": name, "cknna": cknna, "chance": chance}
        tables.append(pd.DataFrame({**columns, "k": k, "n": n, "clamp": clamp}))
    return tables


def export_states(
    model,
    processor,
    images: Sequence,
    prompts: str | Sequence[str],
    layers: Sequence[int],
    folder,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 8,
    shard_bytes: int = 1 << 30,
) -> Path:
    """Write the hidden states at the visual positions of chosen layers and images to disk, in the model's dtype.

    Shards of safetensors are written as they fill, so that memory holds one of them, and last an `index.json`:
    {"layers": [...], "shards": {file: [image, ...]}}.  Read them with `ExportedStates`.

    Args:
        model, processor, images, prompts: as `stream_states`.
        folder: made here; must not hold an export already.
        ids: unique names of the images; their numbers by default.
        shard_bytes: a shard ends with the image that reaches this.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds an export.  ValueError: ids that repeat, and as `stream_states`.
    """
    folder, ids = Path(folder), _names(ids, images)
    if (folder / "index.json").exists():
        raise FileExistsError(f"{folder} holds an export already: remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards, pending = {}, {}

    def flush():
        name = f"states-{len(shards):05d}.safetensors"
        save_file({f"{image}/{key}": value for image, parts in pending.items() for key, value in parts}, folder / name)
        shards[name] = list(pending)
        pending.clear()

    size = 0
    for image in stream_states(model, processor, images, prompts, layers, batch_size, "export"):
        parts = [*zip(map(str, layers), image.states, strict=True)]
        parts += [("features", image.features), ("tiles", image.tiles)]
        pending[ids[image.position]] = [
            (key, value.cpu().clone(memory_format=torch.contiguous_format)) for key, value in parts
        ]
        size += image.states.nbytes + image.features.nbytes
        if size >= shard_bytes:
            flush()
            size = 0
    if pending:
        flush()
    (folder / "index.json").write_text(json.dumps({"layers": list(layers), "shards": shards}, indent=1))
    return folder


class ExportedStates:
    """Read what `export_states` wrote; a tensor is read from disk when it is asked for.

    `ids`: names of the images, in the order of the export.  `layers`: what was exported.

    Raises:
        FileNotFoundError: the folder has no index, as when the export did not finish.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        index = self.folder / "index.json"
        if not index.is_file():
            raise FileNotFoundError(f"{index} is missing: the export did not finish, or this is not its folder")
        content = json.loads(index.read_text())
        self.layers: list[int] = content["layers"]
        self._shard = {image: shard for shard, images in content["shards"].items() for image in images}
        self.ids: list[str] = list(self._shard)

    def state(self, image: str, layer: int) -> torch.Tensor:
        """(N, D) hidden states of an image in a layer; KeyError for one that was not exported."""
        if layer not in self.layers:
            raise KeyError(f"layer {layer} was not exported to {self.folder}, only {self.layers}")
        return self._read(image, str(layer))

    def features(self, image: str) -> torch.Tensor:
        """(N, Dz) features of an image that the encoder gave to the projector."""
        return self._read(image, "features")

    def tiles(self, image: str) -> torch.Tensor:
        """(N,) tile of each token of an image: 0, but for LLaVA-NeXT."""
        return self._read(image, "tiles")

    def _read(self, image: str, key: str) -> torch.Tensor:
        if image not in self._shard:
            raise KeyError(f"image {image!r} was not exported to {self.folder}")
        with safe_open(self.folder / self._shard[image], framework="pt") as shard:
            return shard.get_tensor(f"{image}/{key}")


def _names(ids: Sequence[str] | None, images: Sequence) -> list[str]:
    names = [str(name) for name in (range(len(images)) if ids is None else ids)]
    if len(names) != len(images) or len(set(names)) < len(names):
        raise ValueError(f"{len(images)} images and {len(set(names))} different ids: every image needs its own")
    return names
