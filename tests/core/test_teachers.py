"""Teachers: preprocessing, grids on the paper's geometry, frozen and equal to the checkpoint, and the known defect."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    DPTImageProcessorPil,
    RadioConfig,
    RadioModel,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
)

from viral_core.images import pad_to_square
from viral_core.teachers import load_encoder, load_teacher, randomise_linears, resample_grid

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
WIDTHS = {"dinov2": 16, "clip": 16, "sam": 12, "depth_anything": 16, "radio": 16}
SIZES = {"dinov2": 336, "clip": 336, "sam": 384, "depth_anything": 336, "radio": 384}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Thin copies of the paper's teachers: their real patches, resolutions and preprocessing, few and narrow layers."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    thin = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    imagenet = dict(image_mean=IMAGENET[0], image_std=IMAGENET[1])

    Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **thin)).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 256}, resample=3, **imagenet).save_pretrained(folder / "dinov2")

    clip = CLIPVisionConfig(image_size=336, patch_size=14, intermediate_size=32, **thin)
    CLIPVisionModel(clip).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(folder / "clip")

    vision = dict(**thin, output_channels=12, mlp_dim=32, global_attn_indexes=[1], initializer_range=0.02)
    decoder = dict(hidden_size=12, num_attention_heads=2, mlp_dim=16, iou_head_hidden_dim=8)
    sam = SamConfig(vision_config=vision, prompt_encoder_config=dict(hidden_size=12), mask_decoder_config=decoder)
    SamModel(sam).save_pretrained(folder / "sam")
    SamImageProcessorPil().save_pretrained(folder / "sam")

    backbone = Dinov2Config(image_size=518, patch_size=14, out_indices=[1, 2], reshape_hidden_states=False, **thin)
    neck = dict(neck_hidden_sizes=[8, 8], reassemble_hidden_size=16, reassemble_factors=[1, 0.5], fusion_hidden_size=8)
    depth = DepthAnythingConfig(backbone_config=backbone, head_hidden_size=4, **neck)
    DepthAnythingForDepthEstimation(depth).save_pretrained(folder / "depth_anything")
    DPTImageProcessorPil(size=518, resample=3, **imagenet).save_pretrained(folder / "depth_anything")

    radio = RadioConfig(patch_size=16, max_img_size=512, num_cls_tokens=2, num_registers=6, **thin)
    RadioModel(radio).save_pretrained(folder / "radio")
    CLIPImageProcessorPil(do_normalize=False, resample=3).save_pretrained(folder / "radio")
    return folder


@pytest.fixture(scope="module", params=WIDTHS)
def teacher(request, checkpoints):
    """One kind after the other."""
    return load_teacher(request.param, checkpoints / request.param, grid=24)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in ((50, 70, 3), (64, 64, 3))]


def test_grid_of_the_paper_and_a_model_that_stays_as_its_checkpoint(teacher, checkpoints, images):
    kind = teacher.kind
    features = teacher(images)
    assert teacher.size == SIZES[kind]
    assert features.shape == (2, 576, WIDTHS[kind]) == (2, 576, teacher.dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert features.std(1).min() > 0
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    saved = {tensor.numpy().tobytes() for tensor in load_file(checkpoints / kind / "model.safetensors").values()}
    if kind == "radio":  # the file keeps query, key and value in one matrix
        expected = RadioModel.from_pretrained(checkpoints / kind).state_dict()
        assert all(torch.equal(expected[name], value) for name, value in teacher.model.state_dict().items())
    else:
        assert all(tensor.numpy().tobytes() in saved for tensor in teacher.model.parameters())


def test_preprocessing_is_its_own(teacher, images):
    kind = teacher.kind
    pixels = teacher.preprocess(images)
    square = pad_to_square(images[0])
    assert square.size == (70, 70)
    filters = {"sam": Image.Resampling.BILINEAR}
    plain = np.asarray(square.resize((SIZES[kind],) * 2, filters.get(kind, Image.Resampling.BICUBIC)), np.float64) / 255
    mean, std = {
        "radio": (0, 1),
        "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    }.get(kind, IMAGENET)
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), (plain - mean) / std, atol=1e-5)


def test_clip_teacher_sees_what_the_student_sees(checkpoints, images):
    teacher = load_teacher("clip", checkpoints / "clip", grid=24)
    processor = CLIPImageProcessorPil.from_pretrained(checkpoints / "clip")
    expected = processor([pad_to_square(image) for image in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(teacher.preprocess(images), expected, atol=1e-5, rtol=0)
    encoder = load_encoder(checkpoints / "clip")  # so that Table 2's row of CLIP is Eq. 4
    torch.testing.assert_close(teacher.encode(expected), encoder.encode(expected))


def test_sam_content_is_in_the_upper_left_corner(checkpoints, images):
    teacher = load_teacher("sam", checkpoints / "sam", grid=24)
    pixels = teacher.preprocess(images)
    canvas = torch.zeros(2, 3, 1024, 1024)
    canvas[..., :384, :384] = pixels
    maps = SamModel.from_pretrained(checkpoints / "sam").vision_encoder(canvas).last_hidden_state
    assert maps.shape[-2:] == (64, 64)
    expected = maps[..., :24, :24].permute(0, 2, 3, 1).reshape(2, 576, -1)
    torch.testing.assert_close(teacher.encode(pixels), expected)


def test_depth_anything_reads_the_last_normed_tokens(checkpoints, images):
    teacher = load_teacher("depth_anything", checkpoints / "depth_anything", grid=24)
    pixels = teacher.preprocess(images)
    backbone = DepthAnythingForDepthEstimation.from_pretrained(checkpoints / "depth_anything").backbone
    hidden = backbone.layernorm(backbone(pixels, output_hidden_states=True).hidden_states[-1])[:, 1:]
    torch.testing.assert_close(teacher.encode(pixels), hidden)


def test_radio_in_nvidias_own_format(checkpoints, images, tmp_path, monkeypatch):
    monkeypatch.setattr("viral_core.teachers.RADIO_HEADS", {16: 2})
    weights = load_file(checkpoints / "radio" / "model.safetensors")
    assert any(name.startswith("radio_model.model.blocks.0.attn.qkv") for name in weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["RADIOModel"], "args": {"amp": True}}))
    CLIPImageProcessorPil(do_normalize=False, resample=3).save_pretrained(tmp_path)
    ours = load_teacher("radio", tmp_path, grid=24)(images)
    torch.testing.assert_close(ours, load_teacher("radio", checkpoints / "radio", grid=24)(images))


def test_other_grids_are_resampled():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    np.testing.assert_allclose(resample_grid(tokens, 2)[0, :, 0], [2.5, 4.5, 10.5, 12.5])
    finer = resample_grid(tokens, 8)
    assert finer.shape == (1, 64, 1)
    np.testing.assert_allclose(resample_grid(finer, 4).mean(), tokens.mean(), rtol=1e-6)
    assert resample_grid(tokens, 4) is tokens
    with pytest.raises(ValueError, match="no square grid"):
        resample_grid(tokens[:, :15], 2)


def test_errors_say_what_to_do(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="there are: dinov2, clip"):
        load_teacher("dino", checkpoints / "dinov2", grid=4)
    with pytest.raises(ValueError, match="1024 px canvas"):
        load_teacher("sam", checkpoints / "sam", grid=65)
    broken = tmp_path / "broken"
    Dinov2Model.from_pretrained(checkpoints / "dinov2").save_pretrained(broken)
    weights = load_file(broken / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks .* weights"):
        load_teacher("dinov2", broken, grid=4)


def test_controls_of_the_released_code(checkpoints, images):
    teacher = load_teacher("dinov2", checkpoints / "dinov2", grid=24)
    wrong = load_teacher("dinov2", checkpoints / "dinov2", grid=24, clip_pixels=True)
    assert wrong.mean[0] == pytest.approx(0.48145466)
    assert wrong.identity() != teacher.identity()
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    randomise_linears(teacher, seed=1)
    linear = {n for n, m in teacher.model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, value in teacher.model.state_dict().items():
        parent, kind = name.rsplit(".", 1)
        if parent not in linear:
            assert torch.equal(value, before[name])
        elif kind == "bias":
            assert not value.any()
        else:
            assert not torch.equal(value, before[name])
            assert value.std() == pytest.approx(0.02, rel=0.2)
    randomise_linears(wrong, seed=1)
    assert torch.equal(wrong.model.encoder.layer[0].mlp.fc1.weight, teacher.model.encoder.layer[0].mlp.fc1.weight)
