"""Text-to-image attention of a model that answers, and how much it spreads: VIRAL Section 5.4 and Figure 4.

Spatial entropy (Batty, "Spatial Entropy", 1974, as used on attention by Kang et al., 2025).  With S the attention of
one query over the H x W image tokens,

    B = relu(S - mean S);  components c of {B > threshold}, 8-connected
    p_c = sum of B in c / sum of all B;  entropy = - sum_c p_c ln p_c      (nats)

The primary reading renormalises S to sum 1 over the image tokens and has threshold 0: the mass that a query puts on the
image does not matter, only where it puts it.  The secondary one is the reference's: the raw row and the absolute
threshold 0.001, under which a row that hardly looks at the image scores 0, which reads as a perfect focus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from viral_core.measure.inputs import batches, square_side
from viral_core.tap import base_llava

READINGS = {"renormalised": {"threshold": 0.0, "renormalise": True}, "raw": {"threshold": 1e-3, "renormalise": False}}

# 8-connected inside one map, not connected across the maps of a stack.
_CONNECTIVITY = np.pad(np.ones((1, 3, 3), dtype=bool), ((1, 1), (0, 0), (0, 0)))


def spatial_entropies(attention, threshold: float = 0.0, renormalise: bool = True) -> np.ndarray:
    """Spatial entropy of attention maps (..., H, W), torch or numpy, in nats; the formula is in the module's docstring.

    A token belongs to a component where its attention exceeds the map's mean by more than `threshold`; `renormalise`
    divides each map by its sum first. Returns float64 >= 0, NaN where no attention stands above the mean. ValueError
    for maps that are not H x W, or hold values that are negative or not finite.
    """
    maps = torch.as_tensor(attention).detach().double().cpu().numpy()
    if maps.ndim < 2 or not (np.isfinite(maps).all() and (maps >= 0).all()):
        raise ValueError(f"attention maps must be H x W, finite and non-negative; got shape {maps.shape}")
    leading = maps.shape[:-2]
    maps = maps.reshape(-1, *maps.shape[-2:])
    flat = maps.min((1, 2)) == maps.max((1, 2))  # exactly: the rounding of a flat map's mean is not a peak
    if renormalise:
        maps = maps / np.where(flat, 1, maps.sum((1, 2)))[:, None, None]

    peaks = np.maximum(maps - maps.mean((1, 2), keepdims=True), 0)
    total = peaks.sum((1, 2))
    labels, count = ndimage.label(peaks > threshold, structure=_CONNECTIVITY)
    inside = np.nonzero(labels)
    component = labels[inside] - 1
    owner = np.zeros(count, dtype=int)  # the map that a component lies in
    owner[component] = inside[0]
    share = np.bincount(component, weights=peaks[inside], minlength=count) / total[owner]
    entropy = np.bincount(owner, weights=-share * np.log(share), minlength=len(maps))
    # A lone component's share can round to above 1.
    return np.where(flat | (total <= 0), np.nan, np.maximum(entropy, 0)).reshape(leading)


@dataclass
class Answer:
    """What one sample's greedy answer looked at, from the position that predicts each token; rows do not sum to 1."""

    tokens: list[int]  # the T generated ids, the stop token left out
    attention: torch.Tensor  # (T, layers, heads, N) to the N image tokens in reading order, float32 on the CPU


@torch.inference_mode()
def generate_with_attention(model, inputs, max_new_tokens: int = 16, stop: int | None = None) -> list[Answer]:
    """Answer greedily and collect the text-to-image attention of every generated token, one `Answer` per prompt.

    A hook on each self-attention keeps the last query's row at the image columns and lets the matrix go. `inputs` are
    the processor's output for B prompts, padded on the left, on the model's device; `stop` is the id of the stop token,
    by default what the model's generation config says.

    ValueError for a prompt without image tokens, or padding on the right.
    """
    llava = base_llava(model)
    blocks = llava.model.language_model.layers
    ids = inputs["input_ids"]
    if "attention_mask" in inputs and not inputs["attention_mask"][:, -1].all():
        raise ValueError("the prompts are padded on the right: answers are generated from prompts padded on the left")
    columns = [(row == llava.config.image_token_id).nonzero().squeeze(1) for row in ids]
    if empty := [sample for sample, column in enumerate(columns) if not len(column)]:
        raise ValueError(f"samples {empty} of the batch have no image tokens: only prompts with an image have them")

    seen = [[] for _ in blocks]  # of each block: a list over steps of lists over samples of (heads, N)

    def record(steps, _module, _args, output):
        last = output[1][:, :, -1]
        steps.append([row[:, column] for row, column in zip(last, columns, strict=True)])

    handles = [
        block.self_attn.register_forward_hook(partial(record, steps)) for block, steps in zip(blocks, seen, strict=True)
    ]
    stop = llava.generation_config.eos_token_id if stop is None else stop
    greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    before = llava.config.text_config._attn_implementation
    llava.set_attn_implementation({"text_config": "eager"})  # the one that returns its weights
    try:
        generated = llava.generate(**inputs, max_new_tokens=max_new_tokens, eos_token_id=stop, **greedy)
    finally:
        llava.set_attn_implementation({"text_config": before})
        for handle in handles:
            handle.remove()

    stops, answers = {stop} if isinstance(stop, int) else set(stop or ()), []
    for sample, tokens in enumerate(generated[:, ids.shape[1] :].tolist()):
        end = next((position for position, token in enumerate(tokens) if token in stops), len(tokens))
        attention = [torch.stack([step[sample] for step in steps[: max(end, 1)]]) for steps in seen]
        answers.append(Answer(tokens[:end], torch.stack(attention, dim=1)[:end].float().cpu()))
    return answers


def question_entropies(
    model,
    processor,
    images: Sequence,
    prompts: str | Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    maps: dict | None = None,
    max_new_tokens: int = 16,
    stop: int | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Spatial entropy of text-to-image attention per question, layer and head, over greedy answers.

    Images and prompts as of `viral_core.measure.inputs.batches`; every image needs a square grid of tokens. `ids` names
    the questions, else they have numbers. `maps` gets the attention of each question, (layers, H, W), mean over the
    answer's tokens and the heads.

    Columns: reading (a key of `READINGS`), question, layer, head, entropy (nats, mean over the answer's tokens where it
    is defined), tokens, undefined (tokens left out).
    """
    ids = list(range(len(images))) if ids is None else list(ids)
    frames = []
    for chosen, inputs in batches(model, processor, images, prompts, batch_size, "spatial entropy"):
        answers = generate_with_attention(model, inputs, max_new_tokens, stop)
        for question, answer in zip(ids[chosen], answers, strict=True):
            steps, layers, heads, n = answer.attention.shape
            grid = answer.attention.unflatten(-1, (square_side(n),) * 2)
            if maps is not None:
                maps[question] = grid.mean((0, 2)).numpy()
            layer, head = np.indices((layers, heads)).reshape(2, -1)
            for reading, options in READINGS.items():
                entropy = pd.DataFrame(spatial_entropies(grid, **options).reshape(steps, layers * heads))
                columns = {"reading": reading, "question": question, "layer": layer + 1, "head": head}
                columns |= {"entropy": entropy.mean(), "tokens": steps, "undefined": entropy.isna().sum()}
                frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def entropy_per_head(questions: pd.DataFrame) -> pd.DataFrame:
    """Mean over the questions of what `question_entropies` returns, one row per reading, layer and head (Figure 4).

    Of entropy (nats) also std (over questions) and questions (that entered the mean); tokens and undefined are sums.
    """
    groups = questions.groupby(["reading", "layer", "head"], sort=False)
    table = groups["entropy"].agg(entropy="mean", std="std", questions="count")
    return table.assign(undefined=groups["undefined"].sum(), tokens=groups["tokens"].sum()).reset_index()
