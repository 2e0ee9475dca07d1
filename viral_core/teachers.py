"""Vision foundation models as teachers: frozen, each with the input that it was made for.

Design choices:
- Every teacher sees the square image that the student sees, padded with the mean colour of the student's encoder,
  resized by its own filter and normalised by its own constants, both read from its checkpoint.  CLIP-normalised pixels
  for everybody, the released code's mistake, exist as `clip_pixels`.
- The input has `grid` x patch pixels a side by default, so that the teacher's patches are the student's: 336 px for
  patches of 14, 384 px for patches of 16, and a 24 x 24 grid.  A teacher with its own input `size` has another grid;
  its features are then brought to the student's, by area if they are finer, bilinearly if they are coarser.
- Weights are loaded by `from_pretrained` and never touched again: a missing weight is an error, not a random number.
- ROSS's VAE looks like a teacher too: its tokens are latents, 2 x 2 of them to a token, which are cached the same way.
  Their grid is made equal to the student's by the size of the input; latents are never resampled.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation, Dinov2Model, SamVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import cached_file

from viral_core.checkpoints import fingerprint, load_vision_tower, load_whole, require_model
from viral_core.images import CLIP_COLOR, mean_color, pad_to_square, to_rgb

RADIO_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}  # attention heads of ViT-S, B, L, H: not readable from weights


@dataclass
class Teacher:
    """A frozen model and its preprocessing; call it on images to get features (B, grid * grid, dim), float32.

    Attributes:
        size: side of the square input in pixels.  mean, std: per channel, for pixels in 0..1.
        extract: (model, pixels (B, 3, size, size)) -> patch features (B, n, dim) of a square grid in reading order.
        grid: side of the student's grid.
        color: what images are padded with: the student's encoder's mean.
    """

    kind: str
    path: str
    model: nn.Module
    extract: Callable[[nn.Module, Tensor], Tensor]
    dim: int
    grid: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling
    revision: str | None = None
    subfolder: str = ""  # of the checkpoint's, that holds the model
    randomised: int | None = None  # seed of `randomise_linears`, if that was done
    color: tuple[int, ...] = CLIP_COLOR

    def __post_init__(self):
        self.model.requires_grad_(False).eval()

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any shape -> normalised pixels (B, 3, size, size), float32."""
        squares = [pad_to_square(to_rgb(image), self.color) for image in images]
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
            "checkpoint": fingerprint(self.path, self.revision, self.subfolder),
            "size": self.size,
            "grid": self.grid,
            "dim": self.dim,
            "mean": [round(x, 6) for x in self.mean],
            "std": [round(x, 6) for x in self.std],
            "resample": Image.Resampling(self.resample).name,
            "randomised": self.randomised,
            "color": list(self.color),
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
    if side > grid:
        maps = F.interpolate(maps, size=(grid, grid), mode="area")
    else:
        maps = F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def load_teacher(
    kind: str,
    path: str | Path,
    grid: int,
    size: int | None = None,
    revision: str | None = None,
    clip_pixels: bool = False,
    device: str | torch.device = "cpu",
    subfolder: str = "",
    color: tuple[int, ...] = CLIP_COLOR,
) -> Teacher:
    """Load a teacher: `dinov2`, `clip`, `sam`, `depth_anything`, `radio` or `vae`, from a folder or hub id.

    Features: DINOv2's normed patch tokens, CLIP's (or SigLIP's) penultimate layer without the class token, SAM's map
    after the neck, the last normed patch tokens of Depth Anything's backbone, RADIO's spatial features.
    For the VAE see `load_vae`; it alone may lie in a `subfolder`.

    Args:
        grid: side of the student's grid of visual tokens; features are resampled to it where they differ.
        size: input pixels a side; `grid` times the teacher's patch if None.  CLIP's is its checkpoint's.
        clip_pixels: normalise with CLIP's mean and deviation, whatever the teacher: known to be wrong, for the
            control `as_released` only.
        color: the mean colour of the student's encoder (`viral_core.images.mean_color`), of CLIP by default.

    Raises:
        ValueError: unknown kind, a size that does not fit, or a checkpoint that lacks weights.
        OSError: no checkpoint there.
    """
    if kind == "vae":
        return replace(load_vae(path, grid, size, revision, subfolder, device), color=color)
    if kind not in KINDS:
        raise ValueError(f"no teacher {kind!r}; there are: {', '.join([*KINDS, 'vae'])}")
    require_model(path)
    model, patch, dim, extract = KINDS[kind](str(path), revision)
    fixed = model.config.image_size if kind == "clip" else None
    size = size or fixed or grid * patch
    if size % patch or (fixed and size != fixed):
        wanted = f"it is {fixed}" if fixed else f"a multiple of {patch}"
        raise ValueError(f"input size {size} does not fit teacher {kind} of {path}: {wanted}")
    if kind == "sam" and size > model.config.image_size:
        raise ValueError(f"input size {size} does not fit the {model.config.image_size} px canvas of SAM in {path}")
    processor = AutoImageProcessor.from_pretrained(path, revision=revision)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if clip_pixels:
        mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    resample = Image.Resampling(int(processor.resample))
    pixels = {"size": size, "mean": tuple(mean), "std": tuple(std), "resample": resample, "color": color}
    return Teacher(kind, str(path), model.to(device), extract, dim, grid, **pixels, revision=revision)


def load_vae(
    path: str | Path,
    grid: int,
    size: int | None = None,
    revision: str | None = None,
    subfolder: str = "",
    device: str | torch.device = "cpu",
) -> Teacher:
    """ROSS's target: an AutoencoderKL whose "features" are the latents of the image.

    Pixels in -1..1, resized bilinearly; latents, shifted and scaled as the VAE's config says, 2 x 2 of them to a token
    (B, grid * grid, 4 * channels), channels before places. They are the mode of the VAE's distribution: ROSS draws a
    sample in every step, a cache would keep a single draw for the whole training, so it keeps the centre of all draws.

    Args:
        size: input pixels a side; None: the only size that fits, 16 pixels a token for a VAE that shrinks by 8.

    Raises:
        ValueError: another size, whose latents would not lie on the student's grid, or a checkpoint that lacks weights.
        OSError: no checkpoint there.
    """
    from diffusers import AutoencoderKL

    require_model(path)
    model = load_whole(AutoencoderKL, str(path), revision, subfolder=subfolder or None)
    fitting = grid * 2 * 2 ** (len(model.config.block_out_channels) - 1)
    if size not in (None, fitting):
        raise ValueError(f"input size {size} does not fit the VAE of {path}: a {grid} x {grid} grid needs {fitting}")
    shift, scale = model.config.shift_factor or 0.0, model.config.scaling_factor

    def latents(m: nn.Module, x: Tensor) -> Tensor:
        z = (m.encode(x).latent_dist.mode() - shift) * scale
        return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)

    dim, half = 4 * model.config.latent_channels, (0.5,) * 3
    pixels = {"size": fitting, "mean": half, "std": half, "resample": Image.Resampling.BILINEAR}
    place = {"revision": revision, "subfolder": subfolder}
    return Teacher("vae", str(path), model.to(device), latents, dim, grid, **pixels, **place)


@dataclass
class Encoder(Teacher):
    """The student's own frozen vision tower: its features z, made as in a training step, to be cached for it."""

    image_processor: object = None
    feature_layer: int = -2

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels (B, 3, size, size) as the student's processor makes them of the padded squares."""
        squares = [pad_to_square(to_rgb(image), self.color) for image in images]
        return self.image_processor(squares, return_tensors="pt")["pixel_values"]

    def identity(self) -> dict:
        return {**super().identity(), "feature_layer": self.feature_layer}


def load_encoder(
    path: str | Path, feature_layer: int = -2, revision: str | None = None, device: str | torch.device = "cpu"
) -> Encoder:
    """A CLIP or SigLIP vision tower in float32, as a source of features z (B, N, Dz): `AlignedModel.forward` takes them
    in place of pixels.

    A step in float32 is the same, bit for bit, with features that the tower makes of the same batch; the cache makes
    them in its own batches, whose matrix products may differ in the last bits, and rounds them to its dtype. A training
    in bfloat16, whose tower computes in bfloat16, sees more exact features than without the cache.

    Raises:
        FileNotFoundError, ValueError: as `load_vision_tower`.
    """
    tower, strategy = load_vision_tower(path, revision, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(path, revision=revision)
    skip, config = int(strategy == "default"), tower.config

    def features(model: nn.Module, pixels: Tensor) -> Tensor:
        return model(pixels, output_hidden_states=True).hidden_states[feature_layer][:, skip:]

    pixels = {
        "size": config.image_size,
        "mean": tuple(processor.image_mean),
        "std": tuple(processor.image_std),
        "resample": Image.Resampling(int(processor.resample)),
        "color": mean_color(processor),
        "image_processor": processor,
    }
    grid, own = config.image_size // config.patch_size, {"revision": revision, "feature_layer": feature_layer}
    return Encoder("encoder", str(path), tower.to(device), features, config.hidden_size, grid, **pixels, **own)


def randomise_linears(teacher: Teacher, seed: int) -> None:
    """Redraw every nn.Linear of the teacher, in place: weights N(0, 0.02), bias 0.

    What the released code does to all teachers but CLIP without meaning to; for the control `as_released` only.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in teacher.model.modules():
        if isinstance(module, nn.Linear):
            weight = torch.randn(module.weight.shape, generator=generator) * 0.02
            module.weight.data.copy_(weight)
            if module.bias is not None:
                module.bias.data.zero_()
    teacher.randomised = seed


def _load_dinov2(path: str, revision: str | None):
    model = load_whole(Dinov2Model, path, revision, dtype=torch.float32)
    return model, model.config.patch_size, model.config.hidden_size, lambda m, x: m(x).last_hidden_state[:, 1:]


def _load_clip(path: str, revision: str | None):
    model, strategy = load_vision_tower(path, revision, dtype=torch.float32)
    skip = 1 if strategy == "default" else 0

    def penultimate(m: nn.Module, x: Tensor) -> Tensor:
        return m(x, output_hidden_states=True).hidden_states[-2][:, skip:]

    return model, model.config.patch_size, model.config.hidden_size, penultimate


def _load_sam(path: str, revision: str | None):
    model = load_whole(SamVisionModel, path, revision, dtype=torch.float32)
    patch, canvas = model.config.patch_size, model.config.image_size

    def corner(m: nn.Module, x: Tensor) -> Tensor:
        """The content lies in the upper left corner of the canvas, zeros (the mean colour) around, as in SAM."""
        side = x.shape[-1] // patch
        maps = m(F.pad(x, (0, canvas - x.shape[-1], 0, canvas - x.shape[-2]))).last_hidden_state
        return maps[..., :side, :side].flatten(2).transpose(1, 2)

    return model, patch, model.config.output_channels, corner


def _load_depth_anything(path: str, revision: str | None):
    backbone = load_whole(DepthAnythingForDepthEstimation, path, revision, dtype=torch.float32).backbone
    size, patch = backbone.config.hidden_size, backbone.config.patch_size

    def last_stage(m: nn.Module, x: Tensor) -> Tensor:
        features = m(x).feature_maps[-1]
        return features.flatten(2).transpose(1, 2) if m.config.reshape_hidden_states else features[:, 1:]

    return backbone, patch, size, last_stage


def _load_radio(path: str, revision: str | None):
    try:
        from transformers import RadioModel
    except ImportError as error:
        raise ValueError("the teacher radio needs a transformers that has RadioModel: install 5.23 or newer") from error
    config = _radio_config(path, revision)
    model = load_whole(RadioModel, path, revision, dtype=torch.float32, **({"config": config} if config else {}))
    return model, model.config.patch_size, model.config.hidden_size, lambda m, x: m(x).features


def _radio_config(path: str, revision: str | None):
    """Config of a checkpoint in NVIDIA's own format, read from the shapes of its weights; None for transformers' own.

    NVIDIA's config.json records the arguments of training and not the sizes of the model.
    """
    from safetensors import safe_open
    from transformers import RadioConfig

    file = cached_file(path, "config.json", revision=revision)
    if "hidden_size" in json.loads(Path(file).read_text()):
        return None
    prefix = "radio_model.model."
    with safe_open(cached_file(path, "model.safetensors", revision=revision), "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    width, patch_dim = shapes[prefix + "patch_generator.embedder.weight"]
    patch, positions = round((patch_dim / 3) ** 0.5), shapes[prefix + "patch_generator.pos_embed"][1]
    if width not in RADIO_HEADS:
        raise ValueError(f"{path}: no ViT of width {width} among the RADIO models: {RADIO_HEADS}")
    return RadioConfig(
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


KINDS = {
    "dinov2": _load_dinov2,
    "clip": _load_clip,
    "sam": _load_sam,
    "depth_anything": _load_depth_anything,
    "radio": _load_radio,
}
