"""Tiny models with what a run trains, features for them, and trainings that are killed."""

import torch

from viral_core.aligned import AlignedModel
from viral_core.files import read_lines
from viral_core.llava import add_lora, assemble
from viral_core.recipe import Recipe
from viral_core.specs import Align
from viral_core.templates import TEMPLATES

TEMPLATE = TEMPLATES["vicuna_v1"]
RECIPE = Recipe(batch_size=4, lr=1e-2, steps=4, max_length=512, log_every=1)
ALIGN = Align(layers=(2,), hidden=16, init_std=0.2, dim=6)
MIXED = (4, 7, 0, 1)  # of `conversations`: two images, none, one and one


def build(tiny, align=ALIGN, residuals=(), reconstruct=None, vision="clip", language="llama", dropout=0.1, **options):
    """An aligned model with LoRA, always the same, and its processor; `options` as of `assemble`."""
    torch.manual_seed(1)
    llava, processor = assemble(tiny / vision, tiny / language, **options)
    return AlignedModel(add_lora(llava, r=4, alpha=8, dropout=dropout), align, residuals, reconstruct), processor


def perturb(module, part=""):
    """Leave the start, where LoRA's B and the denoiser's output are zero, in what trains and has `part` in its name."""
    generator = torch.Generator().manual_seed(3)
    for name, p in module.named_parameters():
        if p.requires_grad and part in name:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return module


def inputs(batch):
    """What a LLaVA itself takes of a batch, but for the labels."""
    return {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "image_sizes") if key in batch}


def features(keys):
    """Features of a teacher, or latents, (n, 4, 6) of images, by name."""
    return torch.stack([torch.randn(4, 6, generator=torch.Generator().manual_seed(int(key[:-4]))) for key in keys])


class Killed(BaseException):
    """Stands for the end of the process."""


def killing(after):
    """`features` that end the process when they have been read so often."""
    calls = []

    def interrupted(keys):
        calls.append(keys)
        if len(calls) > after:
            raise Killed
        return features(keys)

    return interrupted


def log(folder):
    return read_lines(folder / "log.jsonl", "")
