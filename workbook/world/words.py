"""The start of an embedded projector: features of a patch to the words of its cell.

LLaVA's stage 1 alone makes a tiny projector name what it sees, and no more: from captions, and with a frozen language
model, it learns to be read by the heads that write captions, not by those that look a noun up (object words of the
captions 0.76 right after 800 steps, POPE at chance, also after stage 2).  Regressing the sum of the words' embeddings,
which is what the language model found at a visual position when it learned from text, takes seconds; the same model
then answers 0.9 of POPE.  Stage 1 goes on from there.

Which way a thing faces is one word of four, and one cell in nine has it.  With every cell weighing the same it was
right in 0.75 of the projector's outputs; with those that have a front weighing eight times as much in 0.84, and what
the thing is in 0.93 of both.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from viral_core.llava import assemble, save_projector

from .fitting import fit, split_pool
from .language import cell_embeddings
from .pool import FACINGS, Pool
from .questions import COLUMNS, ROWS
from .scenes import CATEGORIES, GRID


def words_of(categories: np.ndarray, facings: np.ndarray) -> list[tuple[str, ...]]:
    """Words of the 16 cells of a scene of the pool, as `questions.spelled_out` has them."""
    cells = []
    for cell, (category, facing) in enumerate(zip(categories, facings, strict=True)):
        words = (CATEGORIES[category - 1].name, ROWS[cell // GRID], COLUMNS[cell % GRID]) if category else ("nothing",)
        cells.append((*words, FACINGS[facing]) if facing else words)
    return cells


@torch.no_grad()
def patches_and_words(llava: nn.Module, processor, pool: Pool, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Encoder features (n, 16, Dz) of the pool's scenes and the embeddings (n, 16, D) of their cells' words."""
    tower, config = llava.model.vision_tower, llava.config
    skipped = int(config.vision_feature_select_strategy == "default")
    features = []
    for i in tqdm(range(0, len(pool), batch), "features of the pool"):
        images = [Image.fromarray(image) for image in pool.images[i : i + batch]]
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        states = tower(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
        features.append(states[:, skipped:])
    return torch.cat(features), embedded(llava, processor, pool)


def embedded(llava: nn.Module, processor, pool: Pool) -> Tensor:
    """Embeddings (n, 16, D) of the words of the pool's cells."""
    words = [words_of(*scene) for scene in zip(pool.categories, pool.facings, strict=True)]
    return cell_embeddings(llava, processor.tokenizer, words)


def facing_right(llava: nn.Module, processor, pool: Pool, outputs: Tensor) -> Tensor:
    """Whether each cell with a front has an output, of (n, 16, D), nearer to its words than to those turned round."""
    turned = replace(pool, facings=np.where(pool.facings, 3 - pool.facings, 0))
    own, other = ((outputs - embedded(llava, processor, p)).square().sum(-1) for p in (pool, turned))
    return (own < other)[torch.from_numpy(pool.facings > 0)]


def train_words(
    vision: str | Path, language: str | Path, pool: str | Path, out: str | Path, *, feature_layer: int, steps: int,
    seed: int, front: float = 8.0, batch: int = 256, lr: float = 1e-2,
) -> dict:  # fmt: skip
    """Fit a new projector on the pool; `out` gets `projector.safetensors` and `metrics.json`.

    Args:
        front: weight of the error at a cell whose thing has a front, next to 1 for the others.

    Returns:
        The metrics, on scenes that were not trained on: `explained`, the share of the variance of the words'
        embeddings; `facing`, how often a cell with a front comes out nearer to its words than to those with the other
        facing, and of how many `fronts`.
    """
    torch.manual_seed(seed)
    llava, processor = assemble(vision, language, vision_feature_layer=feature_layer)
    projector = llava.model.multi_modal_projector
    train, held_out = split_pool(pool)
    features, words = patches_and_words(llava, processor, train)
    weights = torch.where(torch.from_numpy(train.facings > 0), front, 1.0)
    weights /= weights.mean() * words.var()

    def loss(rows: np.ndarray) -> Tensor:
        return ((projector(features[rows]) - words[rows]).square().mean(-1) * weights[rows]).mean()

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="projector on words")
    record = fit(list(projector.parameters()), loss, len(features), **recipe)
    features, words = patches_and_words(llava, processor, held_out)
    with torch.no_grad():
        outputs = projector(features)
    faced = facing_right(llava, processor, held_out, outputs)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_projector(llava, out / "projector.safetensors")
    error, spread = (outputs - words).square().sum(), (words - words.mean((0, 1))).square().sum()
    metrics = {
        **record,
        "explained": round(1 - float(error / spread), 4),
        "facing": round(float(faced.float().mean()), 4),
        "fronts": len(faced),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics
