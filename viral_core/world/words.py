"""The start of an embedded projector: features of a patch to the words of its cell.

LLaVA's stage 1 alone makes a tiny projector name what it sees, and no more: from captions, and with a frozen language
model, it learns to be read by the heads that write captions, not by those that look a noun up (object words of the
captions 0.76 right after 800 steps, POPE at chance, also after stage 2).  Regressing the sum of the words' embeddings,
which is what the language model found at a visual position when it learned from text, takes seconds; the same model
then answers 0.9 of POPE.  Stage 1 goes on from there.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from viral_core.model import assemble, save_projector

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
    words = [words_of(*scene) for scene in zip(pool.categories, pool.facings, strict=True)]
    return torch.cat(features), cell_embeddings(llava, processor.tokenizer, words)


def train_words(
    vision: str | Path, language: str | Path, pool: str | Path, out: str | Path, *, feature_layer: int, steps: int,
    seed: int, scenes: int = 5000, batch: int = 128, lr: float = 5e-3,
) -> dict:  # fmt: skip
    """Fit a new projector on `scenes` of the pool; `out` gets `projector.safetensors` and `metrics.json`.

    The metrics have `explained`, the share of the variance of the words' embeddings in scenes that were not trained on.
    """
    torch.manual_seed(seed)
    llava, processor = assemble(vision, language, vision_feature_layer=feature_layer)
    projector = llava.model.multi_modal_projector
    train, held_out = split_pool(pool)
    features, words = patches_and_words(llava, processor, train[:scenes])

    def loss(rows: np.ndarray) -> Tensor:
        return (projector(features[rows]) - words[rows]).square().mean() / words.var()

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="projector on words")
    record = fit(list(projector.parameters()), loss, len(features), **recipe)
    features, words = patches_and_words(llava, processor, held_out)
    with torch.no_grad():
        error = (projector(features) - words).square().mean() / words.var()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_projector(llava, out / "projector.safetensors")
    metrics = {**record, "explained": round(1 - float(error), 4)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics
