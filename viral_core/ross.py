"""ROSS (Table 6): the image's latents are denoised under the condition of the language model's visual tokens.

The clean signal are a VAE's latents of the image, one token of `dim` channels per visual token. The denoiser is a DiT
whose adaLN-Zero condition is different for each token: timestep plus that token's hidden state. Its output starts at
zero: the first loss is the mean square of the noise, and no gradient reaches the hidden states before the first step.
Timesteps and noise come from torch's global generator, timesteps first, so that a killed run resumes exactly.
"""

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from viral_core.specs import Reconstruct

FREQUENCIES = 256  # of the timestep embedding, as in DiT


class Block(nn.Module):
    """A DiT block with adaLN-Zero: attention and MLP, each shifted, scaled and gated token by token."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, N, width) and their activated conditions (B, N, width) -> tokens (B, N, width)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


class Denoiser(nn.Module):
    """DiT with patches of one token, fixed sin-cos positions and a condition per token; predicts the noise."""

    def __init__(self, hidden: int, spec: Reconstruct):
        """`hidden` is the width D of the condition, `spec.dim` the latents' channels d; N is `spec.grid` ** 2."""
        width = spec.width
        if width % 4 or width % spec.heads:
            raise ValueError(f"a denoiser's width is a multiple of 4 and of its {spec.heads} heads, not {width}")
        super().__init__()
        self.input = nn.Linear(spec.dim, width)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(FREQUENCIES, width)
        self.condition = nn.Linear(hidden, width)
        self.blocks = nn.ModuleList(Block(width, spec.heads, spec.mlp_ratio) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, spec.dim)
        positions = get_2d_sincos_pos_embed(width, spec.grid, base_size=spec.grid)  # whole numbers: 0 to grid - 1
        self.register_buffer("positions", positions.float(), persistent=False)
        self.apply(_xavier)
        for layer in (self.condition, self.time.linear_1, self.time.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.output):
            nn.init.zeros_(layer.weight)

    def forward(self, noisy: Tensor, t: Tensor, hidden_states: Tensor) -> Tensor:
        """Predict the noise (B, N, d) of latents with noise (B, N, d) at timesteps (B,).

        Hidden states are (n, N, D), normalised; B is a multiple of n, and image i conditions rows i, n + i, ...
        """
        dtype = self.input.weight.dtype
        z = self.condition(F.silu(hidden_states).to(dtype))
        c = F.silu(self.time(self.frequencies(t).to(dtype))[:, None] + z.repeat(len(noisy) // max(len(z), 1), 1, 1))
        x = self.input(noisy.to(dtype)) + self.positions.to(dtype)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return self.output(self.norm(x) * (1 + scale) + shift)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class Reconstruction(nn.Module):
    """The objective: mean squared error of the predicted noise, each image with `spec.repeats` timesteps and noises."""

    def __init__(self, hidden: int, spec: Reconstruct):
        super().__init__()
        self.spec = spec
        self.schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")  # max beta 0.999
        self.denoiser = Denoiser(hidden, spec)

    def forward(self, hidden_states: Tensor, latents: Tensor | None) -> Tensor:
        """Loss of n images (n may be 0), a float32 scalar: the mean over images, repeats, tokens and channels.

        Hidden states are (n * N, D), image by image. Latents are (n, N, d), N = grid ** 2, or None without images;
        ValueError if they do not match.
        """
        tokens, dim = self.spec.grid**2, self.spec.dim
        if latents is None:
            latents = hidden_states.new_zeros(0, tokens, dim)
        if latents.shape[1:] != (tokens, dim) or len(hidden_states) != len(latents) * tokens:
            sides = f"latents {tuple(latents.shape)} and {len(hidden_states)} visual tokens"
            raise ValueError(f"{sides} do not match {tokens} x {dim}: cache the latents on the student's grid")
        clean = latents.detach().to(hidden_states.device).float().repeat(self.spec.repeats, 1, 1)
        t = torch.randint(self.schedule.config.num_train_timesteps, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        condition = F.layer_norm(hidden_states.float(), hidden_states.shape[-1:]).unflatten(0, (-1, tokens))
        predicted = self.denoiser(self.schedule.add_noise(clean, noise, t), t, condition)
        return (predicted.float() - noise).square().sum() / max(noise.numel(), 1)
