"""Hidden states at the visual positions, image by image, and their similarity to the encoder (Figures 2(d) and 9).

Layer 0 is the language model's input, layer l the output of block l before any final norm, the last one too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from viral_core.measure.cknna import cknna, clamp_outliers
from viral_core.measure.inputs import batches
from viral_core.measure.permutation import patch_order
from viral_core.tap import VisualTap, base_llava
from viral_core.tiles import NEWLINE, batch_patch_index, is_tiled

CLAMPS = (1.0, 0.95)  # quantiles for `clamp_outliers` on both sides; 1 does not clamp


@dataclass
class ImageStates:
    """Of one image with N visual tokens, on the model's device; LLaVA-NeXT's newlines are left out."""

    position: int  # of the image in the input
    states: torch.Tensor  # (layers, N, D)
    features: torch.Tensor  # (N, Dz), what the encoder gave to the projector
    tiles: torch.Tensor  # (N,), the tile of each token, on the CPU; 0 but for LLaVA-NeXT


def stream_states(
    model, processor, images: Sequence, prompts: str | Sequence[str], layers: Sequence[int], batch_size: int, task: str
) -> Iterator[ImageStates]:
    """Run images through a model and yield what it holds of each, one by one, in `layers` of 0 to L.

    Other arguments as `viral_core.measure.inputs.batches`; visual tokens see the text before `<image>` only.
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
    model, processor, images: Sequence, prompts: str | Sequence[str], ids: Sequence[str], k: int, batch_size: int = 8
) -> pd.DataFrame:
    """CKNNA between a model's visual tokens, of each layer 0 to L, and its encoder's features: Figures 2(d) and 9.

    The N visual tokens of one image are the samples, of LLaVA-NeXT those of one tile, to be averaged over an image's
    tiles and then over images.  Every value has its chance level beside it, which depends on k / n: the same
    measurement against the same features in an arbitrary order.

    Returns:
        One row per clamp, image and layer: layer, image, cknna and chance (NaN where undefined), k, n, clamp.
        LLaVA-NeXT: one row per tile, named in a column `tile`; NaN where unpadding leaves fewer than k + 2 tokens.
    """
    layers = list(range(len(base_llava(model).model.language_model.layers) + 1))
    if len(ids) != len(images) or len(set(ids)) < len(ids):
        raise ValueError(f"{len(images)} images and {len(set(ids))} different ids: every image needs its own")
    frames = []
    for image in stream_states(model, processor, images, prompts, layers, batch_size, "CKNNA"):
        name = ids[image.position]
        if not is_tiled(processor):
            frames += _tables(name, image.states, image.features, k)
            continue
        for tile in image.tiles.unique().tolist():
            own = image.tiles == tile
            tables = _tables(f"{name}#{tile}", image.states[:, own], image.features[own], k, least=k + 2)
            frames += [table.assign(image=name, tile=tile) for table in tables]
    return pd.concat(frames, ignore_index=True)


def _tables(name, states, features, k, least=0) -> list[pd.DataFrame]:
    """A table per clamp of one set of samples: states (L + 1, n, D), features (n, Dz); NaN where n < `least`."""
    n = len(features)
    order = torch.from_numpy(patch_order(0, f"chance:{name}", n))
    tables = []
    for clamp in CLAMPS:
        x, y = clamp_outliers(states.float(), clamp), clamp_outliers(features.float(), clamp)
        both = torch.stack([y, y[order]])[:, None]
        try:
            values = torch.full((2, len(x)), torch.nan) if n < least else cknna(x, both, k)  # (2, L + 1)
        except ValueError as error:
            raise ValueError(f"image {name}: {error}") from error
        value, chance = values.cpu().numpy()
        columns = {"layer": range(len(x)), "image": name, "cknna": value, "chance": chance, "k": k, "n": n}
        tables.append(pd.DataFrame(columns).assign(clamp=clamp))
    return tables
