"""Which stand-ins there are, the recipe of each, and one call to train any of them."""

from pathlib import Path

import torch

from workbook.world.stand_ins import encoders, pictures, teachers, vae
from workbook.world.stand_ins.language import train_language

# About four minutes each, side by side on one NVIDIA H200; hours on a CPU.
LANGUAGE = dict(steps=1400, batch=256, lr=3e-3, muon=0.02)
RECIPES = {
    "vicuna-7b": dict(family="llama", template="vicuna_v1", blocks=8, **LANGUAGE),
    "vicuna-13b": dict(family="llama", template="vicuna_v1", blocks=10, **LANGUAGE),
    "qwen-7b": dict(family="qwen2", template="qwen", blocks=7, **LANGUAGE),
    "clip": dict(steps=3000, batch=256, lr=1e-3),
    "siglip2": dict(steps=3000, batch=256, lr=1e-3),
    "dinov2": dict(steps=1800, batch=256, lr=1e-3),
    "sam": dict(steps=1400, batch=128, lr=1e-3),
    "depth_anything": dict(steps=2000, batch=128, lr=1e-3),
    "vae": dict(steps=1600, batch=64, lr=2e-3),
    "radio": dict(steps=1250, batch=256, lr=1e-3, scenes=12000),
}
DISTILLED = {"radio": ("clip", "dinov2", "sam")}


TRAININGS = {
    "clip": encoders.train_clip,
    "siglip2": encoders.train_siglip2,
    "dinov2": teachers.train_dinov2,
    "sam": teachers.train_sam,
    "depth_anything": teachers.train_depth_anything,
    "radio": teachers.train_radio,
    "vae": vae.train_vae,
}


def train(name: str, work: Path, out: Path, seed: int, minutes: float, threads: int) -> dict:
    """Train one stand-in into `out`/`name`, on what is drawn in `work`; returns its metrics."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    recipe = RECIPES[name] | {"name": name, "seed": seed, "minutes": minutes, "state": work / f"{name}.state"}
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    if "family" in recipe:
        return train_language(work / "texts", folder, **recipe)
    if name in DISTILLED:
        recipe["teachers"] = {kind: out / kind for kind in DISTILLED[name]}
    return TRAININGS[name](pictures.load(work / "pictures"), folder, **recipe)
