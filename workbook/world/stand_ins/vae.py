"""The VAE whose latents ROSS's denoiser reconstructs: a tiny AutoencoderKL.

Three halvings turn 128 px into 16 x 16 latents of 16 channels (as FLUX's VAE turns 384 px into 48 x 48), 2 x 2 of which
make one token on the student's grid.  Loss: squared error of the pixels plus a small KL term; no perceptual and no
adversarial loss, so that reconstructions are smooth.  Shift and scale are then set so that latents have mean 0 and
deviation 1, which FLUX's have too.
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from workbook.world.render import SIZE
from workbook.world.stand_ins.fitting import device, fit, save
from workbook.world.stand_ins.pictures import Pictures

WIDTHS = (8, 16, 24, 32)  # channels at 128, 64, 32 and 16 px
CENTRE = ([0.5] * 3, [0.5] * 3)


def train_vae(pictures: tuple[Pictures, Pictures], out: Path, seed: int, kl: float = 1e-4, **recipe) -> dict:
    """Train the VAE; `out` loads as AutoencoderKL.  Returns the metrics that it writes.

    `kl` weighs the divergence (nats per pixel value) against the squared error of pixel values in -1..1.
    `reconstruction` tells, for held-out scenes, how well pictures come back: peak signal-to-noise ratio in dB and the
    share of the variance within pictures that is explained.
    """
    torch.manual_seed(seed)
    train, held_out = pictures
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    nn.init.constant_(model.encoder.conv_out.bias[16:], -6.0)  # from unit noise it takes long to say anything
    model.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        x = train[rows].pixels(*CENTRE, device())
        latent = model.encode(x).latent_dist
        error = (model.decode(latent.sample()).sample - x).square().mean()
        return error + kl * latent.kl().mean() / x[0].numel()

    record = fit(list(model.parameters()), loss, len(train), seed=seed, **recipe)
    model.eval().requires_grad_(False)
    x = held_out.pixels(*CENTRE, device())
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in x.split(100)])
    y = torch.cat([model.decode(part).sample for part in latents.split(100)])
    error, spread = float((x - y).square().mean()), float((x - x.mean((2, 3), keepdim=True)).square().mean())
    record["reconstruction"] = {
        "psnr": round(10 * math.log10(4 / error), 2),
        "explained": round(1 - error / spread, 4),
    }
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
    return save(out, "vae", pictures, record, model)
