"""The embedded VAE, whose latents ROSS's denoiser reconstructs: a tiny AutoencoderKL, trained on the pool.

Three halvings turn 64 px into 8 x 8 latents of 16 channels (as FLUX's VAE turns 384 px into 48 x 48), 2 x 2 of which
make one token on the student's 4 x 4 grid.  Loss: squared error of the pixels plus a small KL term; no perceptual and
no adversarial loss, so that reconstructions are smooth.  Shift and scale are then set so that latents have mean 0 and
deviation 1 over the pool, which FLUX's have too.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from viral_core.teachers import load_teacher

from .fitting import PROBED, features_of, fit, normalise, split_pool
from .pool import Pool
from .probe import probe
from .scenes import GRID

SIZE = 16 * GRID  # pixels a side
WIDTHS = (8, 16, 32, 48)  # channels at 64, 32, 16 and 8 px
MEASURED = 1000  # scenes that latents are shifted and scaled by


def pixels(pool: Pool, rows: np.ndarray | slice = slice(None)) -> Tensor:
    """Scenes as the VAE sees them: (n, 3, 64, 64) in -1..1, resized bilinearly."""
    images = normalise(pool.images[rows], [0.5] * 3, [0.5] * 3)
    return F.interpolate(images, SIZE, mode="bilinear", antialias=True, align_corners=False)


def train_vae(
    pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 16, lr: float = 3e-3, kl: float = 1e-4
) -> dict:
    """Train the VAE; `out` loads as AutoencoderKL.  Returns the metrics, also written to metrics.json.

    `kl` weighs the divergence (nats per pixel value) against the squared error of pixel values in -1..1.
    `reconstruction` tells, for held-out scenes, how well pictures come back: peak signal-to-noise ratio in dB and the
    share of the variance within pictures, beside the ratio that each picture's mean colour would have.
    """
    torch.manual_seed(seed)
    train, held_out = split_pool(pool)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS, layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=SIZE,
        scaling_factor=1.0, shift_factor=0.0, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    nn.init.constant_(model.encoder.conv_out.bias[16:], -6.0)  # from unit noise it takes long to say anything

    def loss(rows: np.ndarray) -> Tensor:
        x = pixels(train, rows)
        latent = model.encode(x).latent_dist
        error = (model.decode(latent.sample()).sample - x).square().mean()
        return error + kl * latent.kl().mean() / x[0].numel()

    record = fit(list(model.parameters()), loss, len(train), steps=steps, batch=batch, lr=lr, seed=seed, name="vae")
    model.eval().requires_grad_(False)
    latents = torch.cat([model.encode(x).latent_dist.mode() for x in pixels(train, slice(MEASURED)).split(100)])
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
    model.save_pretrained(out)

    teacher = load_teacher("vae", out, GRID)
    metrics = {
        "kind": "vae",
        "note": "stand-in: a tiny model trained from scratch on the embedded world",
        "parameters": sum(p.numel() for p in model.parameters()),
        **record,
        "reconstruction": quality(model, held_out),
        "probe": probe(*((features_of(teacher, part), part) for part in (train[:PROBED], held_out))),
    }
    (Path(out) / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics


@torch.no_grad()
def quality(model: AutoencoderKL, pool: Pool) -> dict[str, float]:
    """How well pictures come back from the mode of their latents: `psnr`, `psnr_mean_colour` (dB) and `explained`."""
    x = pixels(pool)
    y = torch.cat([model.decode(model.encode(part).latent_dist.mode()).sample for part in x.split(100)])
    error, spread = float((x - y).square().mean()), float((x - x.mean((2, 3), keepdim=True)).square().mean())
    return {
        "psnr": round(10 * math.log10(4 / error), 2),
        "psnr_mean_colour": round(10 * math.log10(4 / spread), 2),
        "explained": round(1 - error / spread, 4),
    }
