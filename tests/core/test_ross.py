"""ROSS: schedule, denoiser and loss against computations written out here; targets; what trains, is saved, resumes."""

import math
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import trainings
from PIL import Image
from trainings import MIXED, TEMPLATE, Killed, features, inputs, killing, log, perturb

from viral_core.cache import FeatureCache, write_cache
from viral_core.recipe import Recipe
from viral_core.ross import Denoiser, Reconstruction
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align, Reconstruct
from viral_core.teachers import load_teacher
from viral_core.trainer import train_stage2
from workbook import config, pipeline

LAST, MIDDLE = (Reconstruct(layer=layer, dim=6, grid=2, blocks=2, width=16, heads=4) for layer in (4, 2))


def spec(**sizes) -> Reconstruct:
    return Reconstruct(**{"dim": 6, "grid": 2, "width": 16, "heads": 4} | sizes)


@pytest.fixture(scope="module")
def batches(batch_of):
    """One batch with images and one without."""
    return batch_of(MIXED, latents=features), batch_of((7, 9), latents=features)


def build(tiny, reconstruct, align=None):
    model, processor = trainings.build(tiny, align, reconstruct=reconstruct, dropout=0.0)
    return perturb(model, "lora_B"), processor


def test_schedule_is_the_cosine_with_capped_betas():
    schedule = Reconstruction(8, spec(blocks=1)).schedule
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = np.maximum(f[1:] / f[:-1], 1 - 0.999)
    np.testing.assert_allclose(schedule.alphas_cumprod, kept.cumprod(), rtol=1e-3)
    assert kept[-1] == pytest.approx(0.001)  # without the cap the last step would leave nothing
    clean, noise = torch.ones(2, 1, 1), torch.full((2, 1, 1), 10.0)
    noisy = schedule.add_noise(clean, noise, torch.tensor([0, 499]))
    expected = kept.cumprod()[[0, 499]]
    np.testing.assert_allclose(noisy.flatten(), expected**0.5 + 10 * (1 - expected) ** 0.5, rtol=1e-4)


def test_the_first_loss_is_the_mean_square_of_the_noise():
    torch.manual_seed(0)
    objective = Reconstruction(12, spec(blocks=2))
    hidden, clean = torch.randn(12, 12), torch.randn(3, 4, 6)
    torch.manual_seed(5)
    loss = objective(hidden, clean)
    torch.manual_seed(5)
    torch.randint(1000, (12,))
    assert loss.item() == float(torch.randn(12, 4, 6).square().sum() / (12 * 4 * 6))


def dit(state, noisy, t, z, heads):
    """The denoiser, written out for one image (N, d), one timestep and the conditions z (N, D), in float64."""
    p = {name: value.double() for name, value in state.items()}

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def silu(x):
        return x / (1 + (-x).exp())

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    frequencies = torch.tensor([t * 10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    time = torch.cat([frequencies.cos(), frequencies.sin()])
    c = silu(linear("time.linear_2", silu(linear("time.linear_1", time))) + linear("condition", silu(z)))
    x = linear("input", noisy)
    n, width = x.shape
    side, quarter = math.isqrt(n), width // 4
    for i in range(n):
        for j in range(quarter):
            for k, place in enumerate((i % side, i // side)):  # column first
                angle = place / 10000 ** (j / quarter)
                x[i, 2 * k * quarter + j] += math.sin(angle)
                x[i, (2 * k + 1) * quarter + j] += math.cos(angle)
    for b in range(len({name.split(".")[1] for name in p if name.startswith("blocks.")})):
        m = linear(f"blocks.{b}.modulation", c).split(width, -1)
        q, k, v = linear(f"blocks.{b}.attention.qkv", norm(x) * (1 + m[1]) + m[0]).split(width, -1)
        mixed = []
        for rows in torch.arange(width).split(width // heads):
            scores = q[:, rows] @ k[:, rows].T / (width // heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[:, rows])
        x = x + m[2] * linear(f"blocks.{b}.attention.proj", torch.cat(mixed, -1))
        h = linear(f"blocks.{b}.mlp.fc1", norm(x) * (1 + m[4]) + m[3])
        h = 0.5 * h * (1 + torch.tanh((2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + m[5] * linear(f"blocks.{b}.mlp.fc2", h)
    shift, scale = linear("modulation", c).split(width, -1)
    return linear("output", norm(x) * (1 + scale) + shift)


def test_loss_against_a_plain_computation():
    torch.manual_seed(0)
    objective = Reconstruction(12, spec(grid=3, blocks=2, repeats=3))
    perturb(objective)
    hidden, clean = torch.randn(18, 12) * 3 + 1, torch.randn(2, 9, 6)
    torch.manual_seed(7)
    loss = objective(hidden, clean)
    torch.manual_seed(7)
    t, noise = torch.randint(1000, (6,)), torch.randn(6, 9, 6).double()
    kept = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    total = 0.0
    for row in range(6):
        image, step = row % 2, int(t[row])
        left = kept[step + 1] / kept[0]
        z = hidden[9 * image : 9 * image + 9].double()
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        noisy = left**0.5 * clean[image].double() + (1 - left) ** 0.5 * noise[row]
        predicted = dit(objective.denoiser.state_dict(), noisy, step, z, heads=4)
        total += (predicted - noise[row]).square().mean() / 6
    assert loss.item() == pytest.approx(float(total), rel=1e-4)


def test_the_condition_is_normalised_in_float32():
    objective = Reconstruction(12, spec(blocks=1))
    perturb(objective)
    hidden, clean = torch.randn(8, 12), torch.randn(2, 4, 6)
    losses = []
    for states in (hidden, 50 * hidden - 7, hidden.bfloat16(), hidden.bfloat16().float()):
        torch.manual_seed(0)
        losses.append(objective(states, clean).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] == losses[3] != losses[0]


def test_each_token_has_its_own_condition():
    denoiser = Denoiser(12, spec(blocks=2))
    perturb(denoiser)
    noisy, t, z = torch.randn(4, 4, 6), torch.tensor([3, 500, 3, 999]), torch.randn(2, 4, 12)
    other = z.clone()
    other[0, 1] += 1.0

    def changed():
        with torch.no_grad():
            return (denoiser(noisy, t, z) - denoiser(noisy, t, other)).abs().amax(-1) > 1e-5

    assert changed().tolist() == [[True] * 4, [False] * 4] * 2  # attention tells the image's other tokens
    for block in denoiser.blocks:
        torch.nn.init.zeros_(block.attention.proj.weight)
    assert changed().tolist() == [[False, True, False, False], [False] * 4] * 2


def test_about_65_million_parameters_for_a_7b_model():
    with torch.device("meta"):
        objective = Reconstruction(4096, Reconstruct(dim=64, grid=24))
    assert sum(p.numel() for p in objective.parameters()) == pytest.approx(65e6, rel=0.02)
    with pytest.raises(ValueError, match="multiple of 4 and of its 5 heads, not 16"):
        Denoiser(8, spec(heads=5))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A tiny AutoencoderKL with FLUX's shift, scale and number of halvings."""
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=3, norm_num_groups=4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def test_targets_are_2_by_2_latents_on_the_students_grid(vae, tmp_path):
    teacher = load_teacher("vae", vae, grid=2, subfolder="vae")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(2)]
    pixels = teacher.preprocess([*images, Image.new("RGB", (9, 9), "white")])
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.min() >= -1
    assert (pixels[2] == 1).all()
    z = teacher.model.encode(pixels).latent_dist.mode()
    expected = torch.zeros(3, 4, 12)
    for c in range(3):
        for y in range(4):
            for x in range(4):
                expected[:, (y // 2) * 2 + x // 2, c * 4 + (y % 2) * 2 + x % 2] = (z[:, c, y, x] - 0.1159) * 0.3611
    torch.testing.assert_close(teacher.encode(pixels), expected)
    files = {}
    for i, image in enumerate(images):
        files[f"{i}.png"] = tmp_path / f"{i}.png"
        image.save(files[f"{i}.png"])
    write_cache(teacher, files, tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    torch.testing.assert_close(cache(["1.png", "0.png"]), expected[[1, 0]], atol=1e-3, rtol=0)
    assert cache.teacher["checkpoint"] == load_teacher("vae", vae / "vae", grid=2).identity()["checkpoint"]


def test_input_size_follows_the_students_grid(vae):
    assert load_teacher("vae", vae, grid=24, subfolder="vae").size == 384
    assert load_teacher("vae", vae, grid=27, subfolder="vae").size == 432


@pytest.mark.parametrize("reconstruct", [LAST, MIDDLE])
def test_default_reads_after_the_final_norm_and_middle_a_block(tiny, batches, reconstruct):
    model, _ = build(tiny, reconstruct)
    perturb(model.reconstruction)
    batch = batches[0]
    with torch.no_grad():
        torch.manual_seed(0)
        losses = model.eval()(**batch)
        hidden = model.llava(**inputs(batch), output_hidden_states=True).hidden_states
        visual = hidden[reconstruct.layer]  # transformers' last one is normed
        visual = visual[batch["input_ids"] == model.config.image_token_id]
        torch.manual_seed(0)
        expected = model.reconstruction(visual, batch["latents"])
    torch.testing.assert_close(losses["ross_loss"], expected)
    torch.testing.assert_close(losses["loss"], losses["lm_loss"] + losses["ross_loss"])


def test_gradients_reach_what_lies_below_and_the_denoiser(tiny, batches):
    model, _ = build(tiny, MIDDLE)
    target = batches[0]["latents"].clone().requires_grad_()
    model(**{**batches[0], "latents": target})["ross_loss"].backward()
    felt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert felt == {"reconstruction.denoiser.output.weight", "reconstruction.denoiser.output.bias"}  # it starts at zero
    perturb(model.reconstruction)
    model(**{**batches[0], "latents": target})["ross_loss"].backward()
    assert target.grad is None
    for name, p in model.named_parameters():
        below = "lora" in name and any(f"layers.{i}." in name for i in (0, 1))
        trained = below or "multi_modal_projector" in name or name.startswith("reconstruction")
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == trained, name


def test_batch_without_images_is_zero_and_in_the_graph(tiny, batches):
    model, _ = build(tiny, LAST)
    perturb(model.reconstruction)
    losses = model.train()(**batches[1])
    assert float(losses["ross_loss"].detach()) == 0
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.grad.any() for p in model.reconstruction.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(tiny, batches):
    gradients = []
    for checkpointing in (False, True):
        model, _ = build(tiny, LAST)
        perturb(model.reconstruction)
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model.train()(**batches[0])["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_part_of_a_global_batch_has_its_share_and_both_objectives_add_up(tiny, batches):
    model, _ = build(tiny, replace(MIDDLE, weight=0.3), Align(layers=(2,), hidden=16, dim=5, weight=0.7))
    perturb(model.reconstruction)
    batch = {**batches[0], "teacher_features": torch.randn(4, 4, 5)}
    values = []
    for totals in (None, torch.tensor([1000, 10])):
        torch.manual_seed(0)
        losses = model.eval()(**batch, totals=totals)
        total = losses["lm_loss"] + 0.7 * losses["vra_loss"] + 0.3 * losses["ross_loss"]
        torch.testing.assert_close(losses["loss"], total)
        values.append(losses["ross_loss"])
    torch.testing.assert_close(values[1], values[0] * 4 / 10)


def test_latents_that_are_missing_or_of_another_grid(tiny, batches):
    model, _ = build(tiny, LAST)
    for wrong in (None, torch.zeros(4, 9, 6), torch.zeros(4, 4, 5), torch.zeros(3, 4, 6)):
        with pytest.raises(ValueError, match="cache the latents on the student's grid"):
            model(**{**batches[0], "latents": wrong})


def test_a_loaded_run_is_identical(tiny, batches, tmp_path):
    model, _ = build(tiny, LAST)
    perturb(model.reconstruction)
    save_run(tmp_path, model, TEMPLATE, seed=0)
    loaded = load_run(tmp_path).aligned
    assert loaded.reconstruct == LAST
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    losses = []
    for aligned in (model.eval(), loaded):
        torch.manual_seed(0)
        losses.append(aligned(**batches[0])["ross_loss"].item())
    assert losses[0] == losses[1]


def test_a_killed_run_resumes_exactly_and_logs_its_loss(tiny, samples, tmp_path):
    recipe = Recipe(batch_size=4, lr=1e-2, steps=4, micro_batch=2, max_length=512, log_every=1, save_every=2)

    def train(folder, source):
        model, processor = build(tiny, MIDDLE)
        torch.manual_seed(len(folder.name))  # the state of the process must not matter
        train_stage2(model, processor, samples, recipe, folder, template=TEMPLATE, latents=source)
        return model.state_dict(), log(folder)

    with pytest.raises(Killed):
        train(tmp_path / "killed", killing(after=6))
    whole, entries = train(tmp_path / "whole", features)
    resumed, others = train(tmp_path / "killed", features)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [{**entry, "seconds": 0} for entry in entries] == [{**entry, "seconds": 0} for entry in others]
    for entry in entries:
        assert entry["vra_loss"] is None
        if entry["ross_loss"] is None:
            assert entry["loss"] == entry["lm_loss"]  # no images
        else:
            assert entry["loss"] == pytest.approx(entry["lm_loss"] + entry["ross_loss"], rel=1e-5)
    assert sum(entry["ross_loss"] is not None for entry in entries) >= 3


def test_latents_belong_to_reconstruction(tiny, samples, tmp_path):
    recipe = Recipe(batch_size=4, lr=1e-2, steps=1)
    for reconstruct, source in ((LAST, None), (None, features)):
        model, processor = build(tiny, reconstruct)
        with pytest.raises(ValueError, match="reconstruction takes cached latents"):
            train_stage2(model, processor, samples, recipe, tmp_path, template=TEMPLATE, latents=source)


def test_the_runs_of_table_6_read_the_last_and_the_middle_layer():
    laptop = config.load("laptop")
    stages = pipeline.stages(laptop)
    blocks = laptop.languages["vicuna-7b"].blocks
    for run, layer in (("ross-default", blocks), ("ross-middle", blocks // 2)):
        system = laptop.systems[run]
        assert (system.reconstruct.block(blocks), system.align) == (layer, None)
        assert stages["stage2"][f"laptop-{run}-s0"]["latents"] == stages["cache"]["laptop-vae-clip"]["out"]
        assert stages["cache"]["laptop-vae-clip"]["model_files"] == laptop.teachers["vae"].path
    paper = config.load("paper")
    assert paper.systems["ross-default"].reconstruct == Reconstruct(depth=1.0)
    assert paper.systems["ross-middle"].reconstruct == Reconstruct(depth=0.5)
    assert paper.teachers["vae"].subfolder == "vae"
