"""The embedded vision encoders: CLIP (softmax contrast) and SigLIP2 (sigmoid contrast), trained on the pool.

SigLIP2's checkpoints of a fixed resolution load as transformers' Siglip classes, so that is the class here.

A caption names the categories that are shown, in random order, and neither positions nor counts nor facings: where
things are and which way they look has to come through the patches, as in the real encoders.  Many captions of a batch
are the same; they are positives of each other (as distributions in CLIP's softmax, as further pairs in the sigmoid).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from .fitting import SIZES, fit, normalise, split_pool, start_patches, write
from .scenes import CATEGORIES, GRID

WORDS = ["a", "photo", "of", "and", *(category.name for category in CATEGORIES)]
LENGTH = 15  # tokens of the longest caption: "a photo of", four times "a x", three times "and", and the end


def caption(categories: np.ndarray, rng: np.random.Generator) -> str:
    """Caption of a scene from its row of `Pool.categories`."""
    named = rng.permutation(np.unique(categories[categories > 0]))
    return "a photo of " + " and ".join(f"a {CATEGORIES[i - 1].name}" for i in named)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; captions end with </s> and are padded to `LENGTH`."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = dict(pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LENGTH, **special)


def _configs(size: int) -> dict:
    text = dict(
        vocab_size=len(WORDS) + 3, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    vision = dict(
        hidden_size=SIZES["width"], intermediate_size=SIZES["mlp"], num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"], image_size=size, patch_size=size // GRID,
    )  # fmt: skip
    return {"text_config": text, "vision_config": vision}


def softmax_contrast(similarity: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss, images (rows) against texts: cross-entropy in both directions, spread evenly over equal captions.

    similarity: scaled logits (n, n).  same: bool (n, n), whether the captions are equal.
    """
    target = same / same.sum(1, keepdim=True)
    to_text, to_image = similarity.log_softmax(1), similarity.log_softmax(0)
    return -(target * (to_text + to_image)).sum() / (2 * len(same))


def sigmoid_contrast(similarity: Tensor, same: Tensor) -> Tensor:
    """SigLIP's loss: every pair is a binary question, whether image and text belong together; summed over texts."""
    sign = 2.0 * same - 1
    return -F.logsigmoid(sign * similarity).sum(1).mean()


def _train(kind: str, model, contrast, image_processor, pools, out, **recipe) -> dict:
    train = pools[0]
    mean, std = image_processor.image_mean, image_processor.image_std
    embeddings = model.vision_model.embeddings
    rng = np.random.default_rng(recipe["seed"])
    some = np.sort(rng.choice(len(train), min(800, len(train)), replace=False))
    start_patches(embeddings.patch_embedding.weight, normalise(train.images[some], mean, std))
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.3)
    words = tokenizer()

    def loss(rows: np.ndarray) -> Tensor:
        captions = [caption(row, rng) for row in train.categories[rows]]
        sets = [frozenset(text.split()) for text in captions]
        numbers = torch.tensor([sets.index(s) for s in sets])
        ids = words(captions, padding="max_length", return_tensors="pt")["input_ids"]
        pixels = normalise(train.images[rows], mean, std)
        return contrast(model(input_ids=ids, pixel_values=pixels).logits_per_image, numbers[:, None] == numbers)

    record = fit(list(model.parameters()), loss, len(train), name=f"{kind} encoder", **recipe)
    return write(out, "clip", pools, {"encoder": kind, **record}, model, image_processor, words)


def train_clip(pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 128, lr: float = 2e-3) -> dict:
    """Train a CLIP on the pool; `out` loads as CLIPModel or CLIPVisionModel.  Returns the metrics that it writes."""
    torch.manual_seed(seed)
    pools = split_pool(pool)
    size = pools[0].images.shape[1]
    config = CLIPConfig(**_configs(size), projection_dim=64, attn_implementation="eager")
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    recipe = dict(steps=steps, seed=seed, batch=batch, lr=lr)
    return _train("clip", CLIPModel(config), softmax_contrast, processor, pools, out, **recipe)


def train_siglip(
    pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 128, lr: float = 2e-3
) -> dict:
    """Train a SigLIP2 on the pool; `out` loads as SiglipModel or SiglipVisionModel.  Returns the metrics."""
    torch.manual_seed(seed)
    pools = split_pool(pool)
    size = pools[0].images.shape[1]
    configs = _configs(size)
    configs["text_config"]["projection_size"] = SIZES["width"]
    model = SiglipModel(SiglipConfig(**configs, attn_implementation="eager"))
    with torch.no_grad():  # the paper starts at -10, right for its batches of thousands; here at the share of positives
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-np.log(batch))
    processor = SiglipImageProcessor(size={"height": size, "width": size})
    recipe = dict(steps=steps, seed=seed, batch=batch, lr=lr)
    return _train("siglip", model, sigmoid_contrast, processor, pools, out, **recipe)
