"""The teachers' stand-ins, each trained from scratch by a small version of its own family's objective.

dinov2          self-distillation without labels: from a crop of a picture, masked and recoloured, a student predicts
                what the running average of itself sees at the same places in another crop, told apart from all other
                places of the batch; the other crop shows the same objects before another photograph
sam             masks: from a point, the mask of the object under it (focal and dice loss)
depth_anything  depth: inverse depth up to scale and shift of the scene (the loss of MiDaS and Depth Anything)
radio           distillation: one model that predicts the patch features of several teachers through small heads
vae             reconstruction of pixels, for ROSS

Each `train_...` takes the pictures to train on and those held out, writes the folder `out`, which loads as the
family's class, and returns the metrics that it has written beside the weights.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import DepthAnythingForDepthEstimation, Dinov2Model, RadioModel, SamModel

from viral_core.distributed import device
from viral_core.teachers import load_teacher
from workbook.world.render import SIZE
from workbook.world.scenes import GRID
from workbook.world.stand_ins import FOLDER
from workbook.world.stand_ins.fitting import features_of, fit, save, start, untrained
from workbook.world.stand_ins.pictures import Pictures

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and deviation
UNIT = [0, 0, 0], [1, 1, 1]
PATCH = SIZE // GRID

# DINOv2

SHARE = 0.2  # of the patches that are masked
SMALLEST = 0.6  # length of a crop, of the picture's
EDGE = 0.92  # patches of one crop further out in the other are left out
TEMPERATURE = 0.1
NEGATIVES = 1024  # patches of the batch, at the most, that a predicted one is told apart from


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


def block_masks(n: int, rng: np.random.Generator) -> Tensor:
    """Which patches to mask, bool (n, 64): rectangles of two to four patches a side until `SHARE` is covered."""
    masks = np.zeros((n, GRID, GRID), bool)
    for mask in masks:
        while mask.mean() < SHARE:
            h, w = rng.integers(2, 5, 2)
            y, x = rng.integers(GRID - h + 1), rng.integers(GRID - w + 1)
            mask[y : y + h, x : x + w] = True
    return torch.from_numpy(masks.reshape(n, -1))


def cut(boxes: Tensor, within: Tensor, side: int) -> Tensor:
    """Where `side` x `side` cells of each box lie in another: (n, side, side, 2) for `grid_sample`, inside -1..1.

    Boxes (n, 3): left, top and length of squares, in lengths of the picture.
    """
    ratio = boxes[:, 2] / within[:, 2]
    affine = torch.zeros(len(boxes), 2, 3, device=boxes.device)
    affine[:, 0, 0] = affine[:, 1, 1] = ratio
    affine[:, :, 2] = 2 * (boxes[:, :2] - within[:, :2]) / within[:, 2:] + ratio[:, None] - 1
    return F.affine_grid(affine, [len(boxes), 1, side, side], align_corners=False)


def train_dinov2(pictures: tuple[Pictures, Pictures], out: Path, seed: int, **recipe) -> dict:
    """Train a DINOv2 without labels; what is saved is the running average, a Dinov2Model."""
    train, rng = pictures[0], np.random.default_rng(seed)
    student = untrained(Dinov2Model, "dinov2")
    embeddings = student.embeddings
    start(embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings, train, *IMAGENET)
    head = nn.Sequential(nn.Linear(student.config.hidden_size, 256), nn.GELU(), nn.Linear(256, 64))
    student, head = student.to(device()), head.to(device())
    teacher, teacher_head = (copy.deepcopy(part).requires_grad_(False).eval() for part in (student, head))
    mean, std = (torch.tensor(x, device=device()).view(3, 1, 1) for x in IMAGENET)

    def embedded(model: nn.Module, projection: nn.Module, images: Tensor, boxes: Tensor, **options) -> Tensor:
        """Projected patch features (n, 64, c) of what is in the boxes."""
        whole = torch.tensor([[0.0, 0.0, 1.0]], device=device()).expand_as(boxes)
        crops = F.grid_sample(images, cut(boxes, whole, SIZE), align_corners=False)
        return projection(model((recolour(crops) - mean) / std, **options).last_hidden_state[:, 1:])

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        shown = train[rows]
        views = [shown.pixels(*UNIT), dataclasses.replace(shown, images=shown.views).pixels(*UNIT)]
        first = int(rng.integers(2))
        length = SMALLEST + (1 - SMALLEST) * torch.rand(2, len(rows), 1, device=device())
        boxes = torch.cat([torch.rand(2, len(rows), 2, device=device()) * (1 - length), length], -1)
        masks = block_masks(len(rows), rng).to(device())
        predicted = F.normalize(embedded(student, head, views[first], boxes[0], bool_masked_pos=masks), dim=-1)
        places = cut(boxes[0], boxes[1], GRID)
        with torch.no_grad():
            target = embedded(teacher, teacher_head, views[1 - first], boxes[1])
            target = target.transpose(1, 2).unflatten(-1, (GRID, GRID))
            target = F.grid_sample(target, places, padding_mode="border", align_corners=False)
            target = F.normalize(target.flatten(2).transpose(1, 2), dim=-1)
        seen = (places.abs() < EDGE).all(-1).flatten(1)
        total = 0.0
        for chosen in (masks & seen, ~masks & seen):
            patches = chosen.nonzero()
            patches = patches[torch.randperm(len(patches), device=device())[:NEGATIVES]]
            mine, theirs = predicted[patches[:, 0], patches[:, 1]], target[patches[:, 0], patches[:, 1]]
            similarity = mine @ theirs.T / TEMPERATURE
            total = total + F.cross_entropy(similarity, torch.arange(len(patches), device=device())) / 2
        return total

    @torch.no_grad()
    def average(progress: float) -> None:
        rate = 0.05 if progress < 1 / 12 else max(0.001, 0.005 * (1 + math.cos(math.pi * progress)))
        for average, current in ((teacher, student), (teacher_head, head)):
            torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), rate)

    parts = [student, head, teacher, teacher_head]  # the averages too, so that a training that was killed has them
    record = fit([p for part in parts for p in part.parameters()], loss, len(train), seed=seed, after=average, **recipe)
    return save(out, "dinov2", pictures, record, teacher)


# SAM

POINTS = 3  # prompts for each picture


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


def train_sam(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train a SAM on the objects' masks; a SamModel.

    As in SAM the picture lies in the upper left corner of a larger canvas: one token larger here.
    """
    train, model = pictures[0], untrained(SamModel, "sam")
    start(model.vision_encoder.patch_embed.projection.weight, model.vision_encoder.pos_embed, train, *IMAGENET)
    # SAM's frequencies of places; transformers' start value is for loading checkpoints and useless for learning
    nn.init.normal_(model.shared_image_embedding.positional_embedding)
    model.to(device())

    def prompts(shown: Pictures) -> tuple[Tensor, Tensor]:
        """Places (n, POINTS, 1, 2) as x, y on visible objects, and the masks (n, POINTS, h, w) of these objects."""
        owners = torch.from_numpy(np.array(shown.owners)).to(device())
        order = torch.rand(len(owners), POINTS, SIZE * SIZE, device=device()) * (owners.flatten(1)[:, None] > 0)
        places = order.argmax(-1)
        hit = owners.flatten(1).gather(1, places)
        masks = owners[:, None] == hit[..., None, None]
        return torch.stack([places % SIZE, places // SIZE], -1)[:, :, None].float(), masks

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        shown = train[rows]
        places, masks = prompts(shown)
        pixels = F.pad(shown.pixels(*IMAGENET), (0, PATCH, 0, PATCH))
        labels = torch.ones(places.shape[:3], dtype=torch.long, device=device())
        out = model(pixel_values=pixels, input_points=places, input_labels=labels, multimask_output=False)
        logits = out.pred_masks[:, :, 0]
        target = F.interpolate(F.pad(masks.float(), (0, PATCH, 0, PATCH)), size=logits.shape[-2:], mode="area")
        return mask_loss(logits, target)

    return save(out, "sam", pictures, fit(list(model.parameters()), loss, len(train), **recipe), model)


# Depth Anything


def relative_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of (n, h, w) after each picture's median and mean absolute deviation are removed."""

    def align(x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x - x.median(1, keepdim=True).values
        return x / x.abs().mean(1, keepdim=True).clamp(min=1e-4)

    return (align(predicted) - align(target)).abs().mean()


def train_depth_anything(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train a Depth Anything v2 on depth; a DepthAnythingForDepthEstimation."""
    train, model = pictures[0], untrained(DepthAnythingForDepthEstimation, "depth_anything")
    nn.init.ones_(model.head.conv3.bias)  # the output is rectified: from zero it may never come alive
    embeddings = model.backbone.embeddings
    start(embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings, train, *IMAGENET)
    model.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        shown = train[rows]
        nearness = 1 / (0.5 + torch.from_numpy(shown.depth()).to(device()))
        return relative_loss(model(shown.pixels(*IMAGENET)).predicted_depth, nearness)

    return save(out, "depth_anything", pictures, fit(list(model.parameters()), loss, len(train), **recipe), model)


# RADIO

TEACHERS = ("clip", "dinov2", "sam")


def train_radio(pictures: tuple[Pictures, Pictures], out: Path, scenes: int, **recipe) -> dict:
    """Distil the stand-ins of `TEACHERS`, which lie beside `out`, into one RADIO; a RadioModel.

    The teachers' features of the first `scenes` scenes are computed once and standardised per channel, so that each
    teacher has the same say; the loss is 1 - cosine plus a smooth L1 term, as in RADIO's spatial loss.
    """
    train, model = pictures[0][:scenes], untrained(RadioModel, "radio")
    patches, positions, config = model.embeddings.patch_projection, model.embeddings.position_embedding, model.config
    start(patches.weight, positions, train, config.norm_mean, config.norm_std)
    targets, heads = {}, nn.ModuleDict()
    for kind in TEACHERS:
        features = features_of(load_teacher(kind, out.parent / kind, GRID, device=device()), train)
        targets[kind] = ((features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-6)).half()
        heads[kind] = nn.Sequential(nn.Linear(config.hidden_size, 256), nn.GELU(), nn.Linear(256, features.shape[-1]))
    model, heads = model.to(device()), heads.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        features = model(train[rows].pixels(*UNIT)).features
        total = 0.0
        for kind, head in heads.items():
            predicted, target = head(features), targets[kind][rows].to(device()).float()
            cosine = F.cosine_similarity(predicted, target, dim=-1).mean()
            total = total + 0.9 * (1 - cosine) + 0.1 * F.smooth_l1_loss(predicted, target)
        return total / len(targets)

    record = fit([*model.parameters(), *heads.parameters()], loss, len(train), **recipe)
    return save(out, "radio", pictures, {"teachers": sorted(TEACHERS), **record}, model)


# The VAE whose latents ROSS's denoiser reconstructs

CENTRE = [0.5] * 3, [0.5] * 3
KL = 1e-4  # weight of the divergence (nats per pixel value) against the squared error of pixel values in -1..1


def train_vae(pictures: tuple[Pictures, Pictures], out: Path, **recipe) -> dict:
    """Train an AutoencoderKL on pixels and a small KL term, without a perceptual loss: reconstructions are smooth.

    128 px become 16 x 16 latents of 16 channels (as FLUX's VAE turns 384 px into 48 x 48), 2 x 2 of which make one
    token on the student's grid.  Shift and scale are set so that latents have mean 0 and deviation 1, as FLUX's have.
    `reconstruction`, of held-out scenes: peak signal-to-noise ratio in dB, and the explained share of the variance.
    """
    train, held_out = pictures
    model = AutoencoderKL.from_config(AutoencoderKL.load_config(FOLDER / "vae"))
    nn.init.constant_(model.encoder.conv_out.bias[16:], -6.0)  # from unit noise it takes long to say anything
    model.to(device())

    def loss(rows: np.ndarray, progress: float) -> Tensor:
        x = train[rows].pixels(*CENTRE)
        latent = model.encode(x).latent_dist
        error = (model.decode(latent.sample()).sample - x).square().mean()
        return error + KL * latent.kl().mean() / x[0].numel()

    record = fit(list(model.parameters()), loss, len(train), **recipe)
    model.eval().requires_grad_(False)
    x = held_out.pixels(*CENTRE)
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in x.split(100)])
    y = torch.cat([model.decode(part).sample for part in latents.split(100)])
    error, spread = float((x - y).square().mean()), float((x - x.mean((2, 3), keepdim=True)).square().mean())
    psnr, explained = 10 * math.log10(4 / error), 1 - error / spread
    record["reconstruction"] = {"psnr": round(psnr, 2), "explained": round(explained, 4)}
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
    return save(out, "vae", pictures, record, model)
