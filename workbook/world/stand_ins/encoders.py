"""The students' vision encoders: CLIP (softmax contrast) and SigLIP2 (sigmoid contrast) on pictures and captions.

SigLIP2's checkpoints of a fixed resolution load as transformers' Siglip classes, so that is the class here.

A caption names the kinds that are shown and sometimes their number: where things are and which way they face has to
come through the patches, as in the real encoders.  Captions of the same words are positives of each other.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from viral_core.distributed import device
from workbook.world.stand_ins import FOLDER
from workbook.world.stand_ins.fitting import fit, save, start, untrained
from workbook.world.stand_ins.pictures import Pictures


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


def train_clip(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train a CLIP; `out` loads as CLIPModel or CLIPVisionModel.  Returns the metrics that it writes."""
    return _train("clip", untrained(CLIPModel, "clip"), softmax_contrast, pictures, out, recipe)


def train_siglip2(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train a SigLIP2; `out` loads as SiglipModel or SiglipVisionModel.  Returns the metrics that it writes."""
    model = untrained(SiglipModel, "siglip2")
    with torch.no_grad():  # the paper starts at -10, right for its batches of thousands; here at the share of positives
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-np.log(recipe["batch"]))
    return _train("siglip2", model, sigmoid_contrast, pictures, out, recipe)


def _train(
    name: str, model: nn.Module, contrast: Callable, pictures: tuple[Pictures, Pictures], out: Path, recipe: dict
) -> dict:
    train, tokenizer = pictures[0], AutoTokenizer.from_pretrained(FOLDER / name)
    processor = AutoImageProcessor.from_pretrained(FOLDER / name)
    mean, std, embeddings = processor.image_mean, processor.image_std, model.vision_model.embeddings
    start(embeddings.patch_embedding.weight, embeddings.position_embedding.weight, train, mean, std)
    model.to(device())
    captions = [str(text) for text in train.captions]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device())
    bags = {}  # captions of the same words in another order are the same
    keys = [bags.setdefault(tuple(sorted(text.replace(",", "").split())), len(bags)) for text in captions]
    keys = torch.tensor(keys, device=device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        pixels = train[rows].pixels(mean, std)
        chosen = torch.from_numpy(rows).to(device())
        similarity = model(input_ids=ids[chosen], pixel_values=pixels).logits_per_image
        return contrast(similarity, keys[chosen][:, None] == keys[chosen])

    record = fit(list(model.parameters()), loss, len(train), **recipe)
    return save(out, "clip", pictures, record, model, tokenizer)
