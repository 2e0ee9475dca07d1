"""The students' vision encoders: CLIP (softmax contrast) and SigLIP2 (sigmoid contrast) on pictures and captions.

SigLIP2's checkpoints of a fixed resolution load as transformers' Siglip classes, so that is the class here.

A caption names the kinds that are shown and sometimes their number: where things are and which way they face has to
come through the patches, as in the real encoders.  Captions of the same words are positives of each other.
"""

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


MODELS = {"clip": (CLIPModel, softmax_contrast), "siglip2": (SiglipModel, sigmoid_contrast)}


def train_encoder(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train the one of `MODELS` that `out` is named after, and loads as; returns the metrics that it writes."""
    name = out.name
    model_class, contrast = MODELS[name]
    model = untrained(model_class, name)
    if name == "siglip2":  # the paper starts at -10, right for batches of thousands; here at the share of positives
        nn.init.constant_(model.logit_scale, np.log(10))
        nn.init.constant_(model.logit_bias, -np.log(recipe["batch"]))
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
