"""The students' vision encoders: CLIP (softmax contrast) and SigLIP2 (sigmoid contrast) on pictures and captions.

SigLIP2's checkpoints of a fixed resolution load as transformers' Siglip classes, so that is the class here.

A caption names the kinds that are shown and sometimes their number: where things are and which way they face has to
come through the patches, as in the real encoders.  Captions of the same words are positives of each other.
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

from workbook.world.render import SIZE
from workbook.world.scenes import GRID
from workbook.world.stand_ins.fitting import device, fit, save, start_patches
from workbook.world.stand_ins.pictures import Pictures

LENGTH = 24  # tokens of the longest caption and its end
WIDTH, LAYERS, HEADS, MLP = 96, 4, 4, 192


def word_tokenizer(captions: np.ndarray) -> PreTrainedTokenizerFast:
    """One token a word; captions end with </s> and are padded to `LENGTH`."""
    words = sorted({word for text in captions for word in text.replace(",", " ,").replace(".", " .").split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = dict(pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **special)


def _configs(words: int) -> dict:
    text = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=words)
    text |= dict(max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=None, eos_token_id=2)
    vision = dict(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    return {"text_config": text, "vision_config": vision | dict(image_size=SIZE, patch_size=SIZE // GRID)}


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


def _train(model, contrast, processor, tokenizer, pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    train, mean, std = pictures[0], processor.image_mean, processor.image_std
    some = train[: min(800, len(train))].pixels(mean, std, "cpu")
    start_patches(model.vision_model.embeddings.patch_embedding.weight, some)
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    model.to(device())
    captions = [str(text) for text in train.captions]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].to(device())
    bags = {}  # captions of the same words in another order are the same
    keys = [bags.setdefault(tuple(sorted(text.replace(",", "").split())), len(bags)) for text in captions]
    keys = torch.tensor(keys, device=device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        pixels = train[rows].pixels(mean, std, device())
        chosen = torch.from_numpy(rows).to(device())
        similarity = model(input_ids=ids[chosen], pixel_values=pixels).logits_per_image
        return contrast(similarity, keys[chosen][:, None] == keys[chosen])

    record = fit(list(model.parameters()), loss, len(train), **recipe)
    return save(out, "clip", pictures, record, model, processor, tokenizer)


def train_clip(pictures: tuple[Pictures, Pictures], out: Path, seed: int, **recipe) -> dict:
    """Train a CLIP; `out` loads as CLIPModel or CLIPVisionModel.  Returns the metrics that it writes."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(pictures[0].captions[:2000])
    model = CLIPModel(CLIPConfig(**_configs(len(tokenizer)), projection_dim=64))
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return _train(model, softmax_contrast, processor, tokenizer, pictures, out, seed=seed, **recipe)


def train_siglip2(pictures: tuple[Pictures, Pictures], out: Path, seed: int, batch: int, **recipe) -> dict:
    """Train a SigLIP2; `out` loads as SiglipModel or SiglipVisionModel.  Returns the metrics that it writes."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(pictures[0].captions[:2000])
    configs = _configs(len(tokenizer))
    configs["text_config"]["projection_size"] = WIDTH
    model = SiglipModel(SiglipConfig(**configs))
    with torch.no_grad():  # the paper starts at -10, right for its batches of thousands; here at the share of positives
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-np.log(batch))
    processor = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    recipe |= dict(seed=seed, batch=batch)
    return _train(model, sigmoid_contrast, processor, tokenizer, pictures, out, **recipe)
