"""The embedded teachers, each trained from scratch on the pool by a small version of its own family's objective.

dinov2          self-supervision by patches, without labels: a patch of one view has to find itself among all patches
                of the batch in another view; the exponential average of the model is kept.  (DINOv2's own prototypes
                with Sinkhorn-Knopp centring, tried first, told categories apart less well in as many steps.)
sam             masks: from a point, the mask of the object under it (focal and dice loss)
depth_anything  depth: inverse depth up to scale and shift of the scene (the loss of MiDaS and Depth Anything)
radio           distillation: one model that predicts the patch features of several teachers through small heads
"""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    DPTImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
)

from viral_core.teachers import load_teacher

from .fitting import SIZES, features_of, fit, normalise, split_pool, start_patches, write
from .pool import Pool
from .scenes import GRID

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT = dict(
    hidden_size=SIZES["width"], num_hidden_layers=SIZES["layers"], num_attention_heads=SIZES["heads"],
    attn_implementation="eager",
)  # fmt: skip
RATIO = SIZES["mlp"] // SIZES["width"]


def _some(pool: Pool, seed: int, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """Normalised pixels of up to 800 random scenes."""
    rows = np.random.default_rng(seed).choice(len(pool), min(800, len(pool)), replace=False)
    return normalise(pool.images[np.sort(rows)], mean, std)


def _start_dinov2(embeddings: nn.Module, pixels: Tensor) -> None:
    start_patches(embeddings.patch_embeddings.projection.weight, pixels)
    nn.init.normal_(embeddings.position_embeddings, std=0.3)


# DINOv2


def view(images: Tensor, rng: torch.Generator, shift: int = 2) -> Tensor:
    """A random view of images (n, 3, h, w) in 0..1: another light, contrast, tint and noise, moved by a few pixels.

    Patches of two views at one place show one thing: the shift is small against a patch.
    """
    n = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=rng) * (high - low) + low

    mean = images.mean((1, 2, 3), keepdim=True)
    out = (images - mean) * draw(0.6, 1.4, 1, 1, 1) + mean + draw(-0.15, 0.15, 1, 1, 1)
    out = out * draw(0.75, 1.25, 3, 1, 1)
    grey = (torch.rand(n, 1, 1, 1, generator=rng) < 0.2).float()
    out = grey * out.mean(1, keepdim=True) + (1 - grey) * out
    y, x = torch.randint(-shift, shift + 1, (2,), generator=rng).tolist()
    padded = F.pad(out, (shift,) * 4, mode="replicate")
    h, w = images.shape[-2:]
    out = padded[..., shift + y : shift + y + h, shift + x : shift + x + w]
    return out + 0.02 * torch.randn(out.shape, generator=rng)


def train_dinov2(
    pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 64, lr: float = 2e-3,
    momentum: float = 0.99, temperature: float = 0.1, shift: int = 2,
) -> dict:  # fmt: skip
    """Train a DINOv2 without labels; `out` loads as Dinov2Model (the averaged weights).  Returns the metrics."""
    torch.manual_seed(seed)
    pools = split_pool(pool)
    train = pools[0]
    size, width = train.images.shape[1], SIZES["width"]
    config = Dinov2Config(image_size=size, patch_size=size // GRID, mlp_ratio=RATIO, **VIT)
    student = Dinov2Model(config)
    _start_dinov2(student.embeddings, _some(train, seed))
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 64))
    averaged = copy.deepcopy(student).requires_grad_(False).eval()
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    rng = torch.Generator().manual_seed(seed)

    def embedded(images: Tensor) -> Tensor:
        """Unit vectors (n * 16, 64) of the patches of a view that is moved by whole patches, put back in place."""
        moved = [int(torch.randint(GRID, (), generator=rng)) for _ in range(2)]
        pixels = view(images, rng, shift).roll([m * size // GRID for m in moved], (2, 3))
        patches = student((pixels - mean) / std).last_hidden_state[:, 1:].unflatten(1, (GRID, GRID))
        return F.normalize(head(patches.roll([-m for m in moved], (1, 2)).flatten(0, 2)), dim=-1)

    def loss(rows: np.ndarray) -> Tensor:
        images = normalise(train.images[rows], [0, 0, 0], [1, 1, 1])
        similarity = embedded(images) @ embedded(images).T / temperature
        same = torch.arange(len(similarity))
        return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2

    def average(step: int) -> None:
        rate = min(momentum, (1 + step) / (10 + step))
        with torch.no_grad():
            for mine, theirs in zip(averaged.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 1 - rate)

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="teacher dinov2", after=average)
    record = fit([*student.parameters(), *head.parameters()], loss, len(train), **recipe)
    processor = BitImageProcessor(size={"shortest_edge": size}, crop_size=size, resample=3)
    processor.image_mean, processor.image_std = IMAGENET_MEAN, IMAGENET_STD
    return write(out, "dinov2", pools, record, averaged, processor)


# SAM


def mask_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal plus dice loss of masks (..., h, w).

    The focal term is summed over pixels and divided by the object's area: with SAM's own weights, a mean over all
    pixels, objects of one hundredth of the picture are never found.
    """
    area = target.sum((-2, -1))
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((1 - (-each).exp()) ** gamma * each).sum((-2, -1)) / area.clamp(min=1)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.square().sum((-2, -1)) + target.square().sum((-2, -1)) + 1)
    return (focal + dice).mean()


def train_sam(
    pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 32, lr: float = 1e-3, points: int = 3,
    patch: int = 24,
) -> dict:  # fmt: skip
    """Train a SAM on the objects' masks, `points` prompts per image; `out` loads as SamModel.  Returns the metrics.

    As in SAM the picture lies in the upper left corner of a larger canvas: here of 5 x 5 cells.
    """
    torch.manual_seed(seed)
    pools = split_pool(pool)
    train = pools[0]
    size = train.images.shape[1]
    cell, channels = size // GRID, 64
    canvas = size + cell
    vision = dict(
        **VIT, image_size=canvas, patch_size=patch, mlp_dim=SIZES["mlp"], output_channels=channels, window_size=0,
        global_attn_indexes=list(range(SIZES["layers"])), initializer_range=0.02, num_pos_feats=channels // 2,
    )  # fmt: skip
    prompt = dict(hidden_size=channels, image_size=canvas, patch_size=patch, mask_input_channels=4)
    decoder = dict(
        hidden_size=channels, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=32, num_multimask_outputs=3
    )
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = SamModel(config)
    start_patches(model.vision_encoder.patch_embed.projection.weight, _some(train, seed))
    nn.init.normal_(model.vision_encoder.pos_embed, std=0.3)
    # SAM's frequencies of places; transformers' start value is for loading checkpoints and useless for learning
    nn.init.normal_(model.shared_image_embedding.positional_embedding)
    rng = np.random.default_rng(seed)

    def prompts(rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Points (n, points, 1, 2) as x, y on objects, and the masks (n, points, h, w) of these objects."""
        shown = train[rows]
        cells = np.stack([rng.choice(np.flatnonzero(c), points) for c in shown.categories])
        inside = np.kron(np.eye(GRID * GRID).reshape(-1, GRID, GRID), np.ones((cell, cell))).astype(bool)
        masks = shown.mask()[:, None] & inside[cells]
        order = rng.random(masks.shape) * masks
        y, x = np.unravel_index(order.reshape(len(rows), points, -1).argmax(-1), masks.shape[-2:])
        return np.stack([x, y], -1)[:, :, None], torch.from_numpy(masks)

    def loss(rows: np.ndarray) -> Tensor:
        places, masks = prompts(rows)
        pixels = F.pad(normalise(train.images[rows], IMAGENET_MEAN, IMAGENET_STD), (0, cell, 0, cell))
        out = model(
            pixel_values=pixels, input_points=torch.from_numpy(places).float(),
            input_labels=torch.ones(places.shape[:3], dtype=torch.long), multimask_output=False,
        )  # fmt: skip
        logits = out.pred_masks[:, :, 0]
        target = F.interpolate(F.pad(masks.float(), (0, cell, 0, cell)), size=logits.shape[-2:], mode="area")
        return mask_loss(logits, target)

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="teacher sam")
    record = fit(list(model.parameters()), loss, len(train), **recipe)
    processor = SamImageProcessor(size={"longest_edge": size}, pad_size={"height": canvas, "width": canvas})
    return write(out, "sam", pools, record, model, processor)


# Depth Anything


def relative_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of (n, h, w) after each picture's median and mean absolute deviation are removed."""

    def align(x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x - x.median(1, keepdim=True).values
        return x / x.abs().mean(1, keepdim=True).clamp(min=1e-4)

    return (align(predicted) - align(target)).abs().mean()


def train_depth_anything(
    pool: str | Path, out: str | Path, *, steps: int, seed: int, batch: int = 64, lr: float = 2e-3
) -> dict:
    """Train a Depth Anything v2 on the scenes' depth; `out` loads as DepthAnythingForDepthEstimation."""
    torch.manual_seed(seed)
    pools = split_pool(pool)
    train = pools[0]
    size, layers = train.images.shape[1], SIZES["layers"]
    backbone = Dinov2Config(
        image_size=size, patch_size=size // GRID, mlp_ratio=RATIO, reshape_hidden_states=False,
        out_indices=list(range(1, layers + 1)), **VIT,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=size // GRID, reassemble_hidden_size=SIZES["width"],
        neck_hidden_sizes=[24, 32, 48, 48], fusion_hidden_size=24, head_hidden_size=8,
        reassemble_factors=[2, 1, 1, 0.5],
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    nn.init.ones_(model.head.conv3.bias)  # the output is rectified: from zero it may never come alive
    _start_dinov2(model.backbone.embeddings, _some(train, seed))

    def loss(rows: np.ndarray) -> Tensor:
        shown = train[rows]
        pixels = normalise(shown.images, IMAGENET_MEAN, IMAGENET_STD)
        return relative_loss(model(pixels).predicted_depth, 1 / (0.5 + torch.from_numpy(shown.depth())))

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="teacher depth_anything")
    record = fit(list(model.parameters()), loss, len(train), **recipe)
    processor = DPTImageProcessor(size={"height": size, "width": size}, resample=3)
    processor.image_mean, processor.image_std = IMAGENET_MEAN, IMAGENET_STD
    return write(out, "depth_anything", pools, record, model, processor)


# RADIO


def train_radio(
    pool: str | Path, out: str | Path, *, teachers: dict[str, str], steps: int, seed: int, batch: int = 128,
    lr: float = 2e-3, scenes: int = 6000,
) -> dict:  # fmt: skip
    """Distil several trained teachers, {kind: folder}, into one RADIO; `out` loads as RadioModel.

    The teachers' features of `scenes` scenes are computed once and standardised per channel, so that each teacher has
    the same say; the loss is 1 - cosine plus a smooth L1 term, as in RADIO's spatial loss.
    """
    from transformers import RadioConfig, RadioModel

    torch.manual_seed(seed)
    pools = split_pool(pool)
    train = pools[0]
    train = train[:scenes]
    size = train.images.shape[1]
    config = RadioConfig(
        patch_size=size // GRID, image_size=size, max_img_size=size, mlp_ratio=float(RATIO), num_cls_tokens=1,
        num_registers=1, summary_idxs=[0], **VIT,
    )  # fmt: skip
    model = RadioModel(config)
    conditioned = _some(train, seed, config.norm_mean, config.norm_std)
    start_patches(model.embeddings.patch_projection.weight, conditioned)
    nn.init.normal_(model.embeddings.position_embedding, std=0.3)
    targets = {}
    for kind, path in teachers.items():
        features = features_of(load_teacher(kind, path, GRID, size=size), train)
        targets[kind] = (features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-6)
    heads = nn.ModuleDict({
        kind: nn.Sequential(nn.Linear(SIZES["width"], 128), nn.GELU(), nn.Linear(128, target.shape[-1]))
        for kind, target in targets.items()
    })  # fmt: skip

    def loss(rows: np.ndarray) -> Tensor:
        features = model(normalise(train.images[rows], [0, 0, 0], [1, 1, 1])).features
        total = 0.0
        for kind, target in targets.items():
            predicted, wanted = heads[kind](features), target[rows]
            cosine = F.cosine_similarity(predicted, wanted, dim=-1).mean()
            total = total + 0.9 * (1 - cosine) + 0.1 * F.smooth_l1_loss(predicted, wanted)
        return total / len(targets)

    recipe = dict(steps=steps, batch=batch, lr=lr, seed=seed, name="teacher radio")
    record = fit([*model.parameters(), *heads.parameters()], loss, len(train), **recipe)
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, do_normalize=False)
    return write(out, "radio", pools, {"teachers": sorted(teachers), **record}, model, processor)
