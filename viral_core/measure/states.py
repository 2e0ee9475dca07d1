"""Hidden states at the visual positions, image by image, and their similarity to the encoder (Figures 2(d) and 9).

Layer 0 is the language model's input, layer l the output of block l before any final norm, the last one too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from viral_core.measure.cknna import cknna_batch, clamp_outliers
from viral_core.measure.inputs import batches
from viral_core.measure.permutation import patch_order
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
    ids: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    k: int = 10,
    clamps: Sequence[float] = (1.0, 0.95),
    batch_size: int = 8,
) -> pd.DataFrame:
    """CKNNA between a model's visual tokens and its encoder's features, layer by layer: Figures 2(d) and 9.

    The N visual tokens of one image are the samples, one value per image and layer; of LLaVA-NeXT those of one tile,
    one value per tile, to be averaged over an image's tiles and then over images.  What counts as high depends on
    k / n, so every value has its chance level beside it: the same measurement against the same features in an
    arbitrary order.

    Args:
        model, processor, images, prompts: as `stream_states`.
        ids: names of the images; their numbers by default.
        layers: every one by default, 0 to L.
        k: neighbours; less than the number of tokens.
        clamps: quantiles for `clamp_outliers` on both sides; 1 does not clamp.

    Returns:
        One row per clamp, image and layer: layer, image, cknna and chance (NaN where undefined), k, n, clamp.
        LLaVA-NeXT: one row per tile, named in a column `tile`; a tile of which unpadding leaves fewer than k + 2 tokens
        is not measured and has NaN.

    Raises:
        ValueError: features that are not finite or k out of range, with the image; and as `stream_states`.
    """
    layers = list(range(len(base_llava(model).model.language_model.layers) + 1)) if layers is None else list(layers)
    ids = [str(name) for name in (range(len(images)) if ids is None else ids)]
    if len(ids) != len(images) or len(set(ids)) < len(ids):
        raise ValueError(f"{len(images)} images and {len(set(ids))} different ids: every image needs its own")
    frames = []
    for image in stream_states(model, processor, images, prompts, layers, batch_size, "CKNNA"):
        name = ids[image.position]
        if not is_tiled(processor):
            frames += _tables(name, image.states, image.features, layers, k, clamps)
            continue
        for tile in image.tiles.unique().tolist():
            own = image.tiles == tile
            tables = _tables(f"{name}#{tile}", image.states[:, own], image.features[own], layers, k, clamps, k + 2)
            frames += [table.assign(image=name, tile=tile) for table in tables]
    return pd.concat(frames, ignore_index=True)


def _tables(name, states, features, layers, k, clamps, least=0) -> list[pd.DataFrame]:
    """A table per clamp of one set of samples: states (layers, n, D), features (n, Dz); NaN where n < `least`."""
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
        columns = {"layer": layers, "image": name, "cknna": cknna, "chance": chance, "k": k, "n": n, "clamp": clamp}
        tables.append(pd.DataFrame(columns))
    return tables
