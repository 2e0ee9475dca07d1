"""Which stand-ins there are, the recipe of each, and one call to train any of them."""

from pathlib import Path

import torch

from workbook.world.stand_ins import encoders, language, pictures, teachers

# About four minutes each, side by side on one NVIDIA H200; hours on a CPU.
LANGUAGE = dict(method=language.train_language, steps=1400, batch=256, lr=3e-3, muon=0.02)
RECIPES = {
    "vicuna-7b": dict(template="vicuna_v1", **LANGUAGE),
    "vicuna-13b": dict(template="vicuna_v1", **LANGUAGE),
    "qwen-7b": dict(template="qwen", **LANGUAGE),
    "clip": dict(method=encoders.train_encoder, steps=3000, batch=256, lr=1e-3),
    "siglip2": dict(method=encoders.train_encoder, steps=3000, batch=256, lr=1e-3),
    "dinov2": dict(method=teachers.train_dinov2, steps=1200, batch=64, lr=1.5e-3, muon=0.02),
    "sam": dict(method=teachers.train_sam, steps=1400, batch=128, lr=1e-3),
    "depth_anything": dict(method=teachers.train_depth_anything, steps=2000, batch=128, lr=1e-3),
    "vae": dict(method=teachers.train_vae, steps=1600, batch=64, lr=2e-3),
    "radio": dict(method=teachers.train_radio, steps=1250, batch=256, lr=1e-3, scenes=12000),  # after its teachers
}


def train(name: str, work: Path, out: Path, seed: int) -> dict:
    """Train one stand-in into `out`/`name`, on what lies in `work`; returns its metrics."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    recipe = {"seed": seed, "state": work / f"{name}.state", **RECIPES[name]}
    method = recipe.pop("method")
    source = work / "texts" if method is language.train_language else pictures.load(work / "pictures")
    return method(source, out / name, **recipe)
