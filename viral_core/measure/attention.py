"""Text-to-image attention of a model that answers, and how much it spreads: VIRAL Section 5.4 and Figure 4.

Spatial entropy (Batty, "Spatial Entropy", 1974, as used on attention by Kang et al., 2025).  With S the attention of
one query over the H x W image tokens,

    B = relu(S - mean S);  components c of {B > threshold}, 8-connected
    p_c = sum of B in c / sum of all B;  entropy = - sum_c p_c ln p_c      (nats)

Two readings.  The primary one renormalises S to sum 1 over the image tokens and has threshold 0: the mass that a query
puts on the image does not matter, only where it puts it.  The secondary one is the reference's: the raw row and the
absolute threshold 0.001.  There, a row that hardly looks at the image falls under the threshold everywhere and scores
0, which reads as a perfect focus.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from viral_core.measure.inputs import batches, square_side
from viral_core.tap import base_llava

READINGS = {"renormalised": {"threshold": 0.0, "renormalise": True}, "raw": {"threshold": 1e-3, "renormalise": False}}

# 8-connected inside one map, not connected across the maps of a stack.
_CONNECTIVITY = np.zeros((3, 3, 3), dtype=bool)
_CONNECTIVITY[1] = True


def spatial_entropy(attention, threshold: float = 0.0, renormalise: bool = True) -> float | None:
    """Spatial entropy of one attention map, in nats; see the module's docstring for the formula.

    Args:
        attention: (H, W) non-negative attention over the image tokens, torch or numpy.
        threshold: tau; a token belongs to a component where its attention exceeds the map's mean by more than this.
        renormalise: divide the map by its sum first.

    Returns:
        A float >= 0, or None where the entropy is undefined: no attention stands above the mean.

    Raises:
        ValueError: not an H x W map, or values that are negative or not finite.
    """
    if np.ndim(attention) != 2:
        raise ValueError(f"an attention map is H x W, got shape {tuple(np.shape(attention))}")
    entropy = spatial_entropies(attention, threshold, renormalise)
    return None if np.isnan(entropy) else float(entropy)


def spatial_entropies(attention, threshold: float = 0.0, renormalise: bool = True) -> np.ndarray:
    """Spatial entropy of a stack of maps, labelled in one call.

    Args:
        attention: (..., H, W), torch or numpy; otherwise as `spatial_entropy`.

    Returns:
        float64 of the leading shape, NaN where undefined.

    Raises:
        ValueError: as `spatial_entropy`.
    """
    if isinstance(attention, torch.Tensor):
        attention = attention.detach().double().cpu().numpy()
    maps = np.asarray(attention, dtype=np.float64)
    if not (np.isfinite(maps).all() and (maps >= 0).all()):
        raise ValueError("attention maps must be finite and non-negative")
    if threshold < 0:
        raise ValueError(f"threshold = {threshold}: tokens below the mean are no peaks, choose 0 or more")
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
    """What one sample's greedy answer looked at.

    tokens: the T generated ids, the stop token left out.  attention: (T, layers, heads, N) float32 on the CPU, from the
    position that predicts each token to the N image tokens, in reading order; the rows are raw, they do not sum to 1.
    """

    tokens: list[int]
    attention: torch.Tensor


@contextmanager
def eager_attention(model) -> Iterator[None]:
    """Run the language model with eager attention, the one that returns its weights, and restore the setting after."""
    llava = base_llava(model)
    before = llava.config.text_config._attn_implementation
    llava.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        llava.set_attn_implementation({"text_config": before})


@torch.inference_mode()
def generate_with_attention(
    model, inputs, max_new_tokens: int = 16, stop: int | None = None, layers: Sequence[int] | None = None
) -> list[Answer]:
    """Answer greedily and collect the text-to-image attention of every generated token.

    A hook on each self-attention keeps the last query's row at the image columns and lets the matrix go, so what is
    kept grows with the number of image tokens, not with its square.  The last query of a forward pass is the position
    that predicts the next token: the last position of the prompt for the first one.

    Args:
        model: a LLaVA of transformers, with LoRA (peft) or without, in evaluation mode.
        inputs: the processor's output for B prompts, padded on the left, on the model's device.
        max_new_tokens: generation stops here or at a stop token.
        stop: id of the stop token; by default what the model's generation config says.
        layers: the blocks to collect, 1-based and in this order; all by default.

    Returns:
        One `Answer` per prompt.

    Raises:
        ValueError: a prompt without image tokens, padding on the right, or a block that does not exist.
    """
    llava = base_llava(model)
    blocks = llava.model.language_model.layers
    layers = list(range(1, len(blocks) + 1)) if layers is None else list(layers)
    if not all(1 <= layer <= len(blocks) for layer in layers):
        raise ValueError(f"layers {layers}: the language model has blocks 1 to {len(blocks)}")
    ids = inputs["input_ids"]
    if "attention_mask" in inputs and not inputs["attention_mask"][:, -1].all():
        raise ValueError("the prompts are padded on the right: answers are generated from prompts padded on the left")
    columns = [(row == llava.config.image_token_id).nonzero().squeeze(1) for row in ids]
    if empty := [sample for sample, column in enumerate(columns) if not len(column)]:
        raise ValueError(f"samples {empty} of the batch have no image tokens: only prompts with an image have them")

    seen = {layer: [] for layer in layers}  # of each layer: a list over steps of lists over samples of (heads, N)

    def record(layer):
        def hook(module, args, output):
            last = output[1][:, :, -1]
            seen[layer].append([row[:, column] for row, column in zip(last, columns, strict=True)])

        return hook

    handles = [blocks[layer - 1].self_attn.register_forward_hook(record(layer)) for layer in layers]
    try:
        with eager_attention(llava):
            greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
            stop = llava.generation_config.eos_token_id if stop is None else stop
            generated = llava.generate(**inputs, max_new_tokens=max_new_tokens, eos_token_id=stop, **greedy)
    finally:
        for handle in handles:
            handle.remove()

    answers = []
    for sample, tokens in enumerate(_until_stop(generated[:, ids.shape[1] :], stop)):
        rows = [torch.stack([seen[layer][step][sample] for layer in layers]) for step in range(len(tokens))]
        nothing = torch.empty(0, len(layers), llava.config.text_config.num_attention_heads, len(columns[sample]))
        answers.append(Answer(tokens, torch.stack(rows).float().cpu() if rows else nothing))
    return answers


def _until_stop(generated: torch.Tensor, stop: int | list[int] | None) -> list[list[int]]:
    """The ids of each row before its first stop token."""
    stop = {stop} if isinstance(stop, int) else set(stop or ())
    answers = []
    for row in generated.tolist():
        end = next((position for position, token in enumerate(row) if token in stop), len(row))
        answers.append(row[:end])
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

    Args:
        model, processor: of one run.
        images: Q images, PIL or paths; padded to a square here.  Every image needs a square grid of tokens.
        prompts: Q prompts, or one for all, as the model was trained on, each with one `<image>`.
        ids: names of the questions; their numbers by default.
        maps: gets the attention of each question, (layers, H, W), mean over the answer's tokens and the heads.
        max_new_tokens, stop: as `generate_with_attention`.

    Returns:
        One row per reading, question, layer and head: reading (a key of `READINGS`), question, layer, head, entropy
        (nats, mean over the answer's tokens where it is defined), tokens, undefined (tokens left out).

    Raises:
        ValueError: as `generate_with_attention`, or a number of image tokens that is not a square.
    """
    ids = list(range(len(images))) if ids is None else list(ids)
    frames = []
    for chosen, inputs in batches(model, processor, images, prompts, batch_size, "spatial entropy"):
        for question, answer in zip(
            ids[chosen], generate_with_attention(model, inputs, max_new_tokens, stop), strict=True
        ):
            steps, layers, heads, n = answer.attention.shape
            grid = answer.attention.unflatten(-1, (square_side(n),) * 2)
            if maps is not None:
                maps[question] = grid.mean((0, 2)).numpy()
            layer, head = np.indices((layers, heads)).reshape(2, -1)
            for reading, options in READINGS.items():
                entropy = pd.DataFrame(spatial_entropies(grid, **options).reshape(steps, layers * heads))
                frames.append(
                    pd.DataFrame({
                        "reading": reading, "question": question, "layer": layer + 1, "head": head,
                        "entropy": entropy.mean(), "tokens": steps, "undefined": entropy.isna().sum(),
                    })
                )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def entropy_per_head(questions: pd.DataFrame) -> pd.DataFrame:
    """Mean over the questions of what `question_entropies` returns (Figure 4, right).

    Returns:
        One row per reading, layer and head: reading, layer, head, entropy (nats), std (over questions), questions (that
        entered the mean), tokens, undefined (tokens left out).
    """
    groups = questions.groupby(["reading", "layer", "head"], sort=False)
    table = groups["entropy"].agg(entropy="mean", std="std", questions="count")
    return table.assign(undefined=groups["undefined"].sum(), tokens=groups["tokens"].sum()).reset_index()
