"""What a run makes of one image and one question: one pass over question and answer, everything else from its states.

N is the number of visual tokens, L of blocks, D the width of the language model, T of tokens in the answer.  Layer 0 is
the language model's input, layer l the output of block l.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from viral_core.images import mean_color, pad_to_square
from viral_core.measure.attention import generate_with_attention
from viral_core.measure.inputs import batches, square_side
from viral_core.measure.permutation import PatchPermutation, patch_order
from viral_core.run_folder import Run
from viral_core.tap import VisualTap, base_llava
from viral_core.templates import IMAGE_MARKER, prompt, stop_token_id

PERMUTATION = 0  # seed of the shuffled order
WORDS = 5  # of the logit lens, per visual token and layer
MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Look:
    """The measurements of one run; tensors lie on the run's device."""

    ids: list[int]  # T, of the answer
    tokens: list[tuple]  # T (text, probability, [(text, probability) of the most probable])
    attention: torch.Tensor  # (T, L, heads, N), from the position that predicts a token to the image, on the CPU
    states: torch.Tensor  # (L + 1, N, D)
    features: torch.Tensor  # (N, Dz), what the encoder gave to the projector
    lens: torch.Tensor  # (L + 1, N, D) states after the final norm
    normaliser: torch.Tensor  # (L + 1, N) the logsumexp of their logits
    words: torch.Tensor  # (L + 1, N, WORDS) ids of the most probable tokens
    probabilities: torch.Tensor  # theirs
    order: np.ndarray  # (N,) which patch lies at each visual token; without permutation 0, 1, 2, ...
    color: tuple[int, ...]  # that the encoder's images are padded with

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return square_side(len(self.features))


@torch.inference_mode()
def look(run: Run, image: Image.Image, question: str, permuted: bool = False) -> Look:
    """Ask a run one question, the user's turn without an image marker, about one RGB image, padded to a square here.

    `permuted`: shuffle the visual features before the projector, always in the same way for one image.  ValueError: a
    question with an image marker, or visual tokens that are no square grid.
    """
    if IMAGE_MARKER in question:
        raise ValueError(f"the question holds {IMAGE_MARKER}: leave it out, the image comes first by itself")
    llava, tokenizer = base_llava(run.model), run.processor.tokenizer
    sample = hashlib.sha256(image.tobytes()).hexdigest()
    text = prompt(run.template, f"{IMAGE_MARKER}\n{question}")
    with PatchPermutation(llava, PERMUTATION) if permuted else nullcontext() as permutation:
        if permutation:
            permutation.set_samples([sample])
        ((_, inputs),) = batches(llava, run.processor, [image], [text], 1, "")
        stop = stop_token_id(tokenizer, run.template)
        (answer,) = generate_with_attention(llava, inputs, MAX_NEW_TOKENS, stop)
        generated = inputs["input_ids"].new_tensor([answer.tokens])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], generated], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        layers = range(llava.config.text_config.num_hidden_layers + 1)
        with VisualTap(llava, layers) as tap:
            logits = llava(**inputs, use_cache=False, logits_to_keep=len(answer.tokens) + 1).logits[0]
        states = torch.stack([tap.states[layer] for layer in layers])
        lens = torch.stack([tap.post_norm(layer) for layer in layers])
        features = tap.features[0]

    normaliser, words, probabilities = [], [], []
    for layer in lens:  # one at a time: the logits of all layers would be large
        word_logits = llava.lm_head(layer).float()
        best = word_logits.topk(WORDS)
        normaliser.append(word_logits.logsumexp(-1))
        words.append(best.indices)
        probabilities.append((best.values - normaliser[-1][:, None]).exp())
    n = len(features)
    return Look(
        answer.tokens,
        _answer(tokenizer, answer.tokens, logits.float().softmax(-1)),
        answer.attention,
        states,
        features,
        lens,
        torch.stack(normaliser),
        torch.stack(words),
        torch.stack(probabilities),
        patch_order(PERMUTATION, sample, n) if permuted else np.arange(n),
        mean_color(run.processor.image_processor),
    )


def _answer(tokenizer, tokens: list[int], probabilities: torch.Tensor) -> list[tuple]:
    """(text, probability, most probable) of each token; `probabilities` (T + 1, vocabulary), the last the stop's."""
    described = []
    for token, row in zip(tokens, probabilities, strict=False):
        best = row.topk(3)
        rivals = [(tokenizer.decode([i]), p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        described.append((tokenizer.decode([token]), row[token].item(), rivals))
    return described


def similarity(vectors: torch.Tensor, patch: int) -> torch.Tensor:
    """(..., N) cosine similarity of one token to every other, of vectors (..., N, D)."""
    unit = F.normalize(vectors.float(), dim=-1)
    return (unit @ unit[..., patch, :, None]).squeeze(-1)


def first_token(run: Run, word: str) -> int:
    """Id of a word, or of its first token; ValueError for a word without tokens."""
    tokenizer = run.processor.tokenizer
    ids = tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no token for the word {word!r}")
    return next((i for i in ids if tokenizer.decode([i]).strip()), ids[0])


def word_map(run: Run, seen: Look, token: int) -> torch.Tensor:
    """The logit lens of one token: its probabilities (L + 1, N)."""
    logits = seen.lens.float() @ base_llava(run.model).lm_head.weight[token].float()
    return (logits - seen.normaliser).exp()


def shown(image: Image.Image, seen: Look, side: int = 336) -> Image.Image:
    """The padded image as the model gets it: its patches in the order of the visual tokens, about `side` pixels."""
    grid = seen.grid
    patch = max(1, side // grid)
    square = pad_to_square(image, seen.color).resize((grid * patch,) * 2, Image.Resampling.BICUBIC)
    patches = np.asarray(square).reshape(grid, patch, grid, patch, 3).swapaxes(1, 2).reshape(-1, patch, patch, 3)
    rows = patches[seen.order].reshape(grid, grid, patch, patch, 3).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(rows.reshape(grid * patch, grid * patch, 3)))
