"""Vision foundation models as teachers: frozen, each with the input that it was made for.

Every teacher sees the square image that the student sees, padded with the mean colour of the student's encoder, resized
by its own filter and normalised by its own constants, both read from its checkpoint. The input has `grid` x patch
pixels a side, so that the teacher's patches are the student's: 336 px for patches of 14, 384 px for patches of 16, and
a 24 x 24 grid. CLIP's input is fixed: another grid is brought to the student's.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import cached_file

from viral_core.checkpoints import VISION, fingerprint, load_vision_tower, load_whole, require_model
from viral_core.images import CLIP_COLOR, mean_color, pad_to_square, to_rgb

RADIO_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}  # attention heads of ViT-S, B, L, H: not readable from weights


@dataclass
class Teacher:
    """A frozen model and its preprocessing; call it on images to get features (B, grid * grid, dim), float32."""

    kind: str
    checkpoint: str  # its fingerprint
    model: nn.Module
    extract: Callable[[nn.Module, Tensor], Tensor]  # of pixels (B, 3, size, size): (B, n, dim) of a square grid
    dim: int
    grid: int  # side of the student's grid
    size: int  # side of the square input in pixels
    mean: tuple[float, ...]  # per channel, for pixels in 0..1
    std: tuple[float, ...]
    resample: Image.Resampling
    randomised: int | None = None  # seed of `randomise_linears`, if that was done
    color: tuple[int, ...] = CLIP_COLOR  # what images are padded with: the mean of the student's encoder
    image_processor: object = None  # of the student's encoder alone: makes its pixels as in a training step
    feature_layer: int | None = None  # of the student's encoder alone

    def __post_init__(self):
        self.model.requires_grad_(False).eval()

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any shape -> normalised pixels (B, 3, size, size), float32."""
        squares = [pad_to_square(to_rgb(image), self.color) for image in images]
        if self.image_processor is not None:
            return self.image_processor(squares, return_tensors="pt")["pixel_values"]
        squares = [square.resize((self.size,) * 2, self.resample) for square in squares]
        pixels = torch.from_numpy(np.stack([np.asarray(square, np.float32) for square in squares]) / 255)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, size, size) -> features (B, grid * grid, dim), float32, on the model's device."""
        weight = next(self.model.parameters())
        tokens = self.extract(self.model, pixels.to(weight.device, weight.dtype)).float()
        return resample_grid(tokens, self.grid)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        return self.encode(self.preprocess(images))

    def identity(self) -> dict:
        """What decides the features: checkpoint and preprocessing, as plain values."""
        return {
            "kind": self.kind,
            "checkpoint": self.checkpoint,
            "size": self.size,
            "grid": self.grid,
            "dim": self.dim,
            "mean": [round(x, 6) for x in self.mean],
            "std": [round(x, 6) for x in self.std],
            "resample": Image.Resampling(self.resample).name,
            "randomised": self.randomised,
            "color": list(self.color),
            **({} if self.feature_layer is None else {"feature_layer": self.feature_layer}),
        }


def resample_grid(tokens: Tensor, grid: int) -> Tensor:
    """Tokens (B, g * g, d) of a square grid -> (B, grid * grid, d): mean over areas if g > grid, else bilinear."""
    b, n, d = tokens.shape
    side = round(n**0.5)
    if side * side != n:
        raise ValueError(f"{n} tokens are no square grid")
    if side == grid:
        return tokens
    maps = tokens.transpose(1, 2).reshape(b, d, side, side)
    filter = {"mode": "area"} if side > grid else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(maps, size=(grid, grid), **filter).flatten(2).transpose(1, 2)


def load_teacher(
    kind: str,
    path: str | Path,
    grid: int,
    revision: str | None = None,
    clip_pixels: bool = False,
    device: str | torch.device = "cpu",
    subfolder: str = "",
    color: tuple[int, ...] = CLIP_COLOR,
) -> Teacher:
    """Load a teacher: `dinov2`, `clip`, `sam`, `depth_anything`, `radio` or `vae`, from a folder or hub id.

    Features: DINOv2's normed patch tokens, CLIP's (or SigLIP's) penultimate layer without the class token, SAM's map
    after the neck, the last normed patch tokens of Depth Anything's backbone, RADIO's spatial features; see `load_vae`.

    `grid` is the side of the student's grid of visual tokens, `color` the mean colour of its encoder. `clip_pixels`
    normalises with CLIP's constants, the released code's mistake, for the control `as_released`.
    """
    if kind not in (*KINDS, "vae"):
        raise ValueError(f"no teacher {kind!r}; there are: {', '.join([*KINDS, 'vae'])}")
    require_model(path)
    if kind == "vae":
        model, patch, dim, extract = load_vae(str(path), revision, subfolder)
        pixels = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resample": Image.Resampling.BILINEAR}
    else:
        model, patch, dim, extract = KINDS[kind](str(path), revision)
        pixels = _constants(transformers.AutoImageProcessor.from_pretrained(path, revision=revision))
    if clip_pixels:
        pixels |= {"mean": tuple(OPENAI_CLIP_MEAN), "std": tuple(OPENAI_CLIP_STD)}
    size = model.config.image_size if kind == "clip" else grid * patch
    if kind == "sam" and size > model.config.image_size:
        raise ValueError(f"input size {size} does not fit the {model.config.image_size} px canvas of SAM in {path}")
    checkpoint = fingerprint(path, revision, subfolder)
    return Teacher(kind, checkpoint, model.to(device), extract, dim, grid, size, **pixels, color=color)


def _constants(processor) -> dict:
    """An image processor's mean, deviation and filter."""
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return {"mean": tuple(mean), "std": tuple(std), "resample": Image.Resampling(int(processor.resample))}


def load_encoder(
    path: str | Path, feature_layer: int = -2, revision: str | None = None, device: str | torch.device = "cpu"
) -> Teacher:
    """The student's own frozen CLIP or SigLIP tower in float32: its features z (B, N, Dz), to be cached for it.

    A step in float32 is the same, bit for bit, with features that the tower makes of the same batch; the cache makes
    them in its own batches, and rounds them to its dtype.
    """
    tower, patch, dim, extract = _load_clip(path, revision, feature_layer)
    processor, size = transformers.AutoImageProcessor.from_pretrained(path, revision=revision), tower.config.image_size
    own = {"color": mean_color(processor), "image_processor": processor, "feature_layer": feature_layer}
    own |= _constants(processor)
    checkpoint = fingerprint(path, revision)
    return Teacher("encoder", checkpoint, tower.to(device), extract, dim, size // patch, size, **own)


def randomise_linears(teacher: Teacher, seed: int) -> None:
    """Redraw every nn.Linear in place, weights N(0, 0.02), bias 0, as the released code does to all but CLIP."""
    generator = torch.Generator().manual_seed(seed)
    for module in teacher.model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) * 0.02)
            if module.bias is not None:
                module.bias.data.zero_()
    teacher.randomised = seed


def _load_dinov2(path: str, revision: str | None):
    model = load_whole(transformers.Dinov2Model, path, revision, dtype=torch.float32)
    return model, model.config.patch_size, model.config.hidden_size, lambda m, x: m(x).last_hidden_state[:, 1:]


def _load_clip(path: str | Path, revision: str | None, layer: int = -2):
    model, strategy = load_vision_tower(path, revision, dtype=torch.float32)
    skip = int(strategy == "default")

    def features(m: nn.Module, x: Tensor) -> Tensor:
        return m(x, output_hidden_states=True).hidden_states[layer][:, skip:]

    return model, model.config.patch_size, model.config.hidden_size, features


def _load_sam(path: str, revision: str | None):
    model = load_whole(transformers.SamVisionModel, path, revision, dtype=torch.float32)
    patch, canvas = model.config.patch_size, model.config.image_size

    def corner(m: nn.Module, x: Tensor) -> Tensor:
        """The content lies in the upper left corner of the canvas, zeros (the mean colour) around, as in SAM."""
        side = x.shape[-1] // patch
        maps = m(F.pad(x, (0, canvas - x.shape[-1], 0, canvas - x.shape[-2]))).last_hidden_state
        return maps[..., :side, :side].flatten(2).transpose(1, 2)

    return model, patch, model.config.output_channels, corner


def _load_depth_anything(path: str, revision: str | None):
    model = load_whole(transformers.DepthAnythingForDepthEstimation, path, revision, dtype=torch.float32).backbone
    return model, model.config.patch_size, model.config.hidden_size, lambda m, x: m(x).feature_maps[-1][:, 1:]


def _load_radio(path: str, revision: str | None):
    config = _radio_config(path, revision)
    model = load_whole(transformers.RadioModel, path, revision, dtype=torch.float32, config=config)
    return model, model.config.patch_size, model.config.hidden_size, lambda m, x: m(x).features


def _radio_config(path: str, revision: str | None):
    """None for a checkpoint of transformers; NVIDIA's own config.json has no sizes: the weights have them."""
    file = cached_file(path, "config.json", revision=revision)
    if "hidden_size" in json.loads(Path(file).read_text(encoding="utf-8")):
        return None
    prefix = "radio_model.model."
    with safe_open(cached_file(path, "model.safetensors", revision=revision), "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    width, patch_dim = shapes[prefix + "patch_generator.embedder.weight"]
    patch, positions = round((patch_dim / 3) ** 0.5), shapes[prefix + "patch_generator.pos_embed"][1]
    if width not in RADIO_HEADS:
        raise ValueError(f"{path}: no ViT of width {width} among the RADIO models: {RADIO_HEADS}")
    return transformers.RadioConfig(
        hidden_size=width,
        num_attention_heads=RADIO_HEADS[width],
        num_hidden_layers=len({n.split(".")[3] for n in shapes if n.startswith(prefix + "blocks.")}),
        mlp_ratio=shapes[prefix + "blocks.0.mlp.fc1.weight"][0] / width,
        patch_size=patch,
        max_img_size=round(positions**0.5) * patch,
        num_cls_tokens=shapes[prefix + "patch_generator.cls_token.token"][0],  # with registers: only the sum matters
        num_registers=0,
        summary_idxs=list(range(shapes["radio_model.summary_idxs"][0])),
    )


def load_vae(path: str, revision: str | None, subfolder: str):
    """ROSS's target: an AutoencoderKL whose "features" are the latents of the image.

    Pixels in -1..1, resized bilinearly; latents, shifted and scaled as the VAE's config says, 2 x 2 of them to a token
    (B, grid * grid, 4 * channels), channels before places. They are the mode of the VAE's distribution: ROSS draws a
    sample in every step, of which a cache would keep a single one for the whole training.
    """
    from diffusers import AutoencoderKL

    model = load_whole(AutoencoderKL, path, revision, subfolder=subfolder or None)
    shift, scale = model.config.shift_factor or 0.0, model.config.scaling_factor

    def latents(m: nn.Module, x: Tensor) -> Tensor:
        z = (m.encode(x).latent_dist.mode() - shift) * scale
        return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)

    return model, 2 * 2 ** (len(model.config.block_out_channels) - 1), 4 * model.config.latent_channels, latents


# Loaders: the model, the pixels a side of a patch, the width of its features, and how they are read.
KINDS = {
    "dinov2": _load_dinov2,
    "clip": _load_clip,
    "sam": _load_sam,
    "depth_anything": _load_depth_anything,
    "radio": _load_radio,
}
# What config.json calls these models, so that `workbook.scale.doctor` sees others before anything is loaded.
MODEL_TYPES = {
    "dinov2": ("dinov2",),
    "clip": tuple(VISION),
    "sam": ("sam", "sam_vision_model"),
    "depth_anything": ("depth_anything",),
}
