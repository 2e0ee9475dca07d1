"""The teachers' stand-ins, each trained from scratch by a small version of its own family's objective.

dinov2          self-distillation without labels: from a masked, recoloured view a student predicts what the running
                average of itself sees at the masked patches of another view, told apart from all others of the batch
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
from workbook.world.render import SIZE
from workbook.world.scenes import GRID
from workbook.world.stand_ins.fitting import device, features_of, fit, save, start_patches
from workbook.world.stand_ins.pictures import Pictures

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
PATCH, WIDTH, LAYERS, HEADS, RATIO = SIZE // GRID, 112, 5, 4, 2
VIT = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)


def _start(weight: Tensor, positions: Tensor, train: Pictures, mean=MEAN, std=STD) -> None:
    """Start values of patch filters and position embeddings."""
    start_patches(weight, train[: min(800, len(train))].pixels(mean, std, "cpu"))
    nn.init.normal_(positions, std=0.3)


# DINOv2


def recolour(images: Tensor) -> Tensor:
    """Images (n, 3, h, w) in 0..1 in another light, contrast and tint, some of them grey, with a little noise."""

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(images), *shape, device=images.device) * (high - low) + low

    mean = images.mean((1, 2, 3), keepdim=True)
    out = (images - mean) * draw(0.6, 1.4, 1, 1, 1) + mean + draw(-0.15, 0.15, 1, 1, 1)
    out = out * draw(0.75, 1.25, 3, 1, 1)
    grey = (draw(0, 1, 1, 1, 1) < 0.2).float()
    out = grey * out.mean(1, keepdim=True) + (1 - grey) * out
    return out + 0.02 * torch.randn_like(out)


def block_masks(n: int, share: float, rng: np.random.Generator) -> Tensor:
    """Which patches to mask, bool (n, 64): rectangles of two to four patches a side until `share` is covered."""
    masks = np.zeros((n, GRID, GRID), bool)
    for mask in masks:
        while mask.mean() < share:
            h, w = rng.integers(2, 5, 2)
            y, x = rng.integers(GRID - h + 1), rng.integers(GRID - w + 1)
            mask[y : y + h, x : x + w] = True
    return torch.from_numpy(masks.reshape(n, -1))


def train_dinov2(
    pictures: tuple[Pictures, Pictures],
    out: Path,
    seed: int,
    share: float = 0.4,
    momentum: float = 0.996,
    temperature: float = 0.1,
    negatives: int = 4096,
    **recipe,
) -> dict:
    """Train a DINOv2 without labels; `out` loads as Dinov2Model (the running average).  Returns the metrics.

    `negatives`: patches of the batch, at the most, that a predicted one is told apart from.
    """
    torch.manual_seed(seed)
    train, rng = pictures[0], np.random.default_rng(seed)
    student = Dinov2Model(Dinov2Config(image_size=SIZE, patch_size=PATCH, mlp_ratio=RATIO, **VIT))
    _start(student.embeddings.patch_embeddings.projection.weight, student.embeddings.position_embeddings, train)
    head = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
    student, head = student.to(device()), head.to(device())
    teacher, teacher_head = (copy.deepcopy(part).requires_grad_(False).eval() for part in (student, head))
    mean, std = (torch.tensor(x, device=device()).view(3, 1, 1) for x in (MEAN, STD))

    def embedded(model: nn.Module, projection: nn.Module, images: Tensor, **options) -> Tensor:
        patches = model((recolour(images) - mean) / std, **options).last_hidden_state[:, 1:]
        return F.normalize(projection(patches), dim=-1)

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        images = train[rows].pixels([0, 0, 0], [1, 1, 1], device())
        masks = block_masks(len(rows), share, rng).to(device())
        predicted = embedded(student, head, images, bool_masked_pos=masks)
        with torch.no_grad():
            target = embedded(teacher, teacher_head, images)
        total = 0.0
        for chosen in (masks, ~masks):
            places = chosen.nonzero()
            places = places[torch.randperm(len(places), device=device())[:negatives]]
            mine, theirs = predicted[places[:, 0], places[:, 1]], target[places[:, 0], places[:, 1]]
            similarity = mine @ theirs.T / temperature
            total = total + F.cross_entropy(similarity, torch.arange(len(places), device=device())) / 2
        return total

    @torch.no_grad()
    def average(progress: float) -> None:
        rate = momentum + (1 - momentum) * progress
        for average, current in ((teacher, student), (teacher_head, head)):
            torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - rate)

    parts = [student, head, teacher, teacher_head]  # the averages too, so that a training that was killed has them
    record = fit([p for part in parts for p in part.parameters()], loss, len(train), seed=seed, after=average, **recipe)
    processor = BitImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, resample=3)
    processor.image_mean, processor.image_std = MEAN, STD
    return save(out, "dinov2", pictures, record, teacher, processor)


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


def train_sam(pictures: tuple[Pictures, Pictures], out: Path, seed: int, points: int = 3, **recipe) -> dict:
    """Train a SAM on the objects' masks, `points` prompts per image; `out` loads as SamModel.  Returns the metrics.

    As in SAM the picture lies in the upper left corner of a larger canvas: one token larger here.
    """
    torch.manual_seed(seed)
    train = pictures[0]
    canvas, channels = SIZE + PATCH, 64
    vision = dict(**VIT, image_size=canvas, patch_size=PATCH, mlp_dim=RATIO * WIDTH, output_channels=channels)
    vision |= dict(window_size=0, global_attn_indexes=list(range(LAYERS)), num_pos_feats=channels // 2)
    prompt = dict(hidden_size=channels, image_size=canvas, patch_size=PATCH, mask_input_channels=4)
    decoder = dict(hidden_size=channels, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=32)
    config = SamConfig(
        vision_config=vision | {"initializer_range": 0.02},
        prompt_encoder_config=prompt,
        mask_decoder_config=decoder | {"num_multimask_outputs": 3},
    )
    model = SamModel(config)
    _start(model.vision_encoder.patch_embed.projection.weight, model.vision_encoder.pos_embed, train)
    # SAM's frequencies of places; transformers' start value is for loading checkpoints and useless for learning
    nn.init.normal_(model.shared_image_embedding.positional_embedding)
    model.to(device())

    def prompts(shown: Pictures) -> tuple[Tensor, Tensor]:
        """Points (n, points, 1, 2) as x, y on visible objects, and the masks (n, points, h, w) of these objects."""
        owners = torch.from_numpy(np.array(shown.owners)).to(device())
        order = torch.rand(len(owners), points, SIZE * SIZE, device=device()) * (owners.flatten(1)[:, None] > 0)
        places = order.argmax(-1)
        hit = owners.flatten(1).gather(1, places)
        return torch.stack([places % SIZE, places // SIZE], -1)[:, :, None].float(), owners[:, None] == hit[
            ..., None, None
        ]

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        shown = train[rows]
        places, masks = prompts(shown)
        pixels = F.pad(shown.pixels(MEAN, STD, device()), (0, PATCH, 0, PATCH))
        labels = torch.ones(places.shape[:3], dtype=torch.long, device=device())
        out = model(pixel_values=pixels, input_points=places, input_labels=labels, multimask_output=False)
        logits = out.pred_masks[:, :, 0]
        target = F.interpolate(F.pad(masks.float(), (0, PATCH, 0, PATCH)), size=logits.shape[-2:], mode="area")
        return mask_loss(logits, target)

    record = fit(list(model.parameters()), loss, len(train), seed=seed, **recipe)
    processor = SamImageProcessor(size={"longest_edge": SIZE}, pad_size={"height": canvas, "width": canvas})
    return save(out, "sam", pictures, record, model, processor)


# Depth Anything


def relative_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of (n, h, w) after each picture's median and mean absolute deviation are removed."""

    def align(x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x - x.median(1, keepdim=True).values
        return x / x.abs().mean(1, keepdim=True).clamp(min=1e-4)

    return (align(predicted) - align(target)).abs().mean()


def train_depth_anything(pictures: tuple[Pictures, Pictures], out: Path, seed: int, **recipe) -> dict:
    """Train a Depth Anything v2 on depth; `out` loads as DepthAnythingForDepthEstimation.  Returns the metrics."""
    torch.manual_seed(seed)
    train = pictures[0]
    backbone = Dinov2Config(
        image_size=SIZE,
        patch_size=PATCH,
        mlp_ratio=RATIO,
        reshape_hidden_states=False,
        out_indices=list(range(LAYERS - 3, LAYERS + 1)),
        **VIT,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=[24, 32, 48, 48],
        fusion_hidden_size=24,
        head_hidden_size=8,
        reassemble_factors=[2, 1, 1, 0.5],
    )
    model = DepthAnythingForDepthEstimation(config)
    nn.init.ones_(model.head.conv3.bias)  # the output is rectified: from zero it may never come alive
    embeddings = model.backbone.embeddings
    _start(embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings, train)
    model.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        shown = train[rows]
        nearness = 1 / (0.5 + torch.from_numpy(shown.depth()).to(device()))
        return relative_loss(model(shown.pixels(MEAN, STD, device())).predicted_depth, nearness)

    record = fit(list(model.parameters()), loss, len(train), seed=seed, **recipe)
    processor = DPTImageProcessor(size={"height": SIZE, "width": SIZE}, resample=3)
    processor.image_mean, processor.image_std = MEAN, STD
    return save(out, "depth_anything", pictures, record, model, processor)


# RADIO


def train_radio(
    pictures: tuple[Pictures, Pictures], out: Path, seed: int, teachers: dict[str, Path], scenes: int = 20000, **recipe
) -> dict:
    """Distil several trained teachers, {kind: folder}, into one RADIO; `out` loads as RadioModel.

    The teachers' features of `scenes` scenes are computed once and standardised per channel, so that each teacher has
    the same say; the loss is 1 - cosine plus a smooth L1 term, as in RADIO's spatial loss.
    """
    from transformers import RadioConfig, RadioModel

    torch.manual_seed(seed)
    train = pictures[0][:scenes]
    config = RadioConfig(
        patch_size=PATCH,
        image_size=SIZE,
        max_img_size=SIZE,
        mlp_ratio=float(RATIO),
        num_cls_tokens=1,
        num_registers=1,
        summary_idxs=[0],
        **VIT,
    )
    model = RadioModel(config)
    embeddings = model.embeddings
    _start(embeddings.patch_projection.weight, embeddings.position_embedding, train, config.norm_mean, config.norm_std)
    targets, heads = {}, nn.ModuleDict()
    for kind, path in teachers.items():
        features = features_of(load_teacher(kind, path, GRID, device=device()), train)
        targets[kind] = ((features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-6)).half()
        heads[kind] = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, features.shape[-1]))
    model, heads = model.to(device()), heads.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        features = model(train[rows].pixels([0, 0, 0], [1, 1, 1], device())).features
        total = 0.0
        for kind, head in heads.items():
            predicted, target = head(features), targets[kind][rows].to(device()).float()
            cosine = F.cosine_similarity(predicted, target, dim=-1).mean()
            total = total + 0.9 * (1 - cosine) + 0.1 * F.smooth_l1_loss(predicted, target)
        return total / len(targets)

    record = fit([*model.parameters(), *heads.parameters()], loss, len(train), seed=seed, **recipe)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, do_normalize=False)
    return save(out, "radio", pictures, {"teachers": sorted(teachers), **record}, model, processor)
