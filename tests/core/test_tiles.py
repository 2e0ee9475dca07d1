"""LLaVA-NeXT: tiles, tokens, alignment, runs and measurements, on tiny models with 4 visual tokens a tile."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference_losses
import torch
import trainings
from PIL import Image
from trainings import TEMPLATE, inputs, perturb
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from viral_core.aligned import AlignedModel
from viral_core.cache import FeatureCache, write_cache
from viral_core.conversations import Sample
from viral_core.data import Collator, ConversationDataset, GroupedSampler, count_image_tokens
from viral_core.llava import assemble, connector, load_processor, save_projector, scale_projector
from viral_core.measure.cknna import cknna, clamp_outliers
from viral_core.measure.permutation import patch_order
from viral_core.measure.states import layerwise_cknna, stream_states
from viral_core.recipe import Recipe
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align, Residual
from viral_core.tap import VisualTap, base_llava
from viral_core.templates import prompt
from viral_core.tiles import NEWLINE, batch_patch_index, patch_index, view_of
from viral_core.trainer import train_stage1, train_stage2
from workbook.evaluate import generate

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
SIZES = [(28, 28), (100, 100), (28, 60), (90, 30), (33, 90), (61, 40), (40, 61), (300, 20)]  # height, width
TEACHER_DIM = 6


def build(tiny, align=None, vision="clip", language="llama", grids=GRIDS):
    parts = {"vision": vision, "language": language, "dropout": 0.0, "tile_grids": grids}
    model, processor = trainings.build(tiny, align, **parts)
    return perturb(model).eval(), processor


@pytest.fixture(scope="module")
def processor(tiny):
    return load_processor(tiny / "clip", tiny / "llama", tile_grids=GRIDS)


@pytest.fixture(scope="module")
def packing(tiny):
    """How transformers packs the features of an image."""
    return assemble(tiny / "clip", tiny / "llama", tile_grids=GRIDS)[0].model.pack_image_features


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One sample per size, a text-only one (8) and one with two images of different sizes (9)."""
    folder, rng = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    answer = {"from": "gpt", "value": "Two dogs."}
    made = [
        Sample(f"s{i}", ({"from": "human", "value": "<image>\nWhat is it?"}, answer), (f"{i}.png",), folder)
        for i in range(len(SIZES))
    ]
    made.append(Sample("text", ({"from": "human", "value": "What is a dog?"}, answer), (), folder))
    both = {"from": "human", "value": "Compare <image> and <image>, please."}
    made.append(Sample("both", (both, answer), ("2.png", "1.png"), folder))
    return made


def batch_of(samples, processor, chosen, **options):
    data = ConversationDataset(samples, processor, TEMPLATE, 512)
    return Collator(processor, **options)([data[i] for i in chosen])


def plain_index(size, grids=GRIDS, side=28, patch=14):
    """`patch_index` by loops over pixels' shares of the canvas, from the description of the method."""
    best = None
    for rows, columns in grids:
        h, w = rows * side, columns * side
        scale = min(w / size[1], h / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        if best is None or (kept, -(h * w - kept)) > best[0]:
            best = ((kept, -(h * w - kept)), rows, columns)
    _, rows, columns = best
    edge, tokens = side // patch, (side // patch) ** 2
    high, wide = rows * edge, columns * edge
    top = left = 0
    if size[1] / size[0] > wide / high:
        top = (high - int(round(size[0] * (wide / size[1]), 7))) // 2
    else:
        left = (wide - int(round(size[1] * (high / size[0]), 7))) // 2
    found = list(range(tokens))
    for y in range(top, high - top):
        for x in range(left, wide - left):
            tile = 1 + (y // edge) * columns + x // edge
            found.append(tile * tokens + (y % edge) * edge + x % edge)
        found.append(NEWLINE)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_positions_are_those_of_transformers_own_packing(packing, processor, size):
    pinpoints = processor.image_processor.image_grid_pinpoints
    index = patch_index(size, pinpoints, 28, 14)
    tiles = len(view_of(processor).keys("x", size))
    numbered = torch.arange(tiles * 4.0).view(tiles, 4, 1)
    (packed,), lengths = packing(
        [numbered], torch.tensor([size]), "default", image_newline=torch.tensor([float(NEWLINE)])
    )
    assert index.tolist() == packed[:, 0].tolist() == plain_index(size)
    image = Image.new("RGB", size[::-1])
    pixels = processor.image_processor(image, return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, tiles, 3, 28, 28)
    ids = processor(images=image, text="<image>", return_tensors="pt")["input_ids"]
    assert (ids == processor.image_token_id).sum() == view_of(processor).tokens(size) == len(index) == lengths[0]


def test_tiles_are_the_encoders_pixels(processor):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 61, 3), dtype=np.uint8))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    own = processor.image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (own.image_mean, own.image_std))
    tiles = view_of(processor).pictures(image)
    assert len(tiles) == len(pixels) == 5  # 2 x 2 and the whole
    for tile, expected in zip(tiles, pixels, strict=True):
        found = torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255
        torch.testing.assert_close((found - mean) / std, expected, atol=1e-5, rtol=1e-5)


def test_samples_are_encoded_by_the_sizes_of_their_images(processor, samples):
    per_image = count_image_tokens(samples, view_of(processor))
    counts = [sum(tokens) for tokens in per_image]
    assert len(set(counts)) > 4
    assert counts[8] == 0
    assert per_image[9] == [counts[2], counts[1]]
    batch = batch_of(samples, processor, range(10))
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == counts
    assert batch["image_tokens"] == [*counts[:8], counts[2], counts[1]]
    assert batch["image_sizes"].tolist() == [list(size) for size in [*SIZES, SIZES[2], SIZES[1]]]
    assert batch["pixel_values"].shape == (10, 5, 3, 28, 28)
    assert not {"pixel_values", "image_sizes"} & batch_of(samples, processor, [8]).keys()
    data = ConversationDataset(samples, processor, TEMPLATE, 512)
    assert GroupedSampler(data.encodings, 2, 5, 0).lengths == [len(item["input_ids"]) for item in data]


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "qwen")])
def test_tapped_states_and_what_they_show(tiny, samples, vision, language):
    model, processor = build(tiny, vision=vision, language=language)
    batch, llava = batch_of(samples, processor, (0, 9, 8, 4)), base_llava(model.llava)
    with VisualTap(llava, range(5)) as tap, torch.no_grad():
        hidden = model.llava(**inputs(batch), output_hidden_states=True).hidden_states
        mask = (batch["input_ids"] == processor.image_token_id).flatten()
        for layer in range(4):
            assert torch.equal(tap.states[layer], hidden[layer].flatten(0, 1)[mask])
        index = torch.cat(batch_patch_index(llava.config, batch["image_sizes"]))
        assert len(index) == len(tap.states[0]) == sum(batch["image_tokens"])
        projected = llava.model.multi_modal_projector(tap.features).flatten(0, 1)
        shown = index != NEWLINE
        torch.testing.assert_close(tap.states[0][shown], projected[index[shown]])
        newline = llava.model.image_newline.expand(int((~shown).sum()), -1)
        assert torch.equal(tap.states[0][~shown], newline)


@pytest.mark.parametrize("target", ["teacher", "encoder", "projector"])
def test_alignment_loss_against_a_plain_loop(tiny, samples, target):
    dim = TEACHER_DIM if target == "teacher" else None
    model, processor = build(tiny, Align(target, layers=(1, 3), weight=0.25, hidden=16, dim=dim))
    batch, llava = batch_of(samples, processor, (9, 8, 4)), base_llava(model.llava)
    index = batch_patch_index(llava.config, batch["image_sizes"])
    sizes, index = [int((one != NEWLINE).sum()) for one in index], torch.cat(index)
    shown = index != NEWLINE
    tiles = sum(len(view_of(processor).keys("", SIZES[i])) for i in (2, 1, 4))
    teacher = torch.randn(tiles, 4, TEACHER_DIM)
    with torch.no_grad():
        out = model(**batch, teacher_features=teacher if target == "teacher" else None)
        states = model.tap.states
        wanted = {
            "teacher": teacher,
            "encoder": model.tap.features,
            "projector": llava.model.multi_modal_projector(model.tap.features),
        }[target].flatten(0, 1)
        expected = [
            reference_losses.cosine(model.heads[str(layer)](states[layer][shown]), wanted[index[shown]], sizes)
            for layer in (1, 3)
        ]
        reference = model.llava(**inputs(batch), labels=batch["labels"])
    assert float(out["vra_loss"]) == pytest.approx(sum(expected) / 2, abs=1e-6)
    torch.testing.assert_close(out["lm_loss"], reference.loss)
    torch.testing.assert_close(out["loss"], out["lm_loss"] + 0.25 * out["vra_loss"])


def test_newlines_and_unpadded_patches_have_no_part_in_the_alignment(tiny, samples):
    model, processor = build(tiny, Align(layers=(2,), hidden=16, dim=TEACHER_DIM))
    batch = batch_of(samples, processor, (0,))
    tiles = len(view_of(processor).keys("", SIZES[0]))
    teacher = torch.randn(tiles, 4, TEACHER_DIM)
    loss = model(**batch, teacher_features=teacher)["vra_loss"]
    state = model.tap.states[2]
    grad = torch.autograd.grad(loss, state, retain_graph=True)[0].abs().sum(1)
    index = batch_patch_index(model.config, batch["image_sizes"])[0]
    assert (grad[index == NEWLINE] == 0).all()
    assert (grad[index != NEWLINE] > 0).all()
    gone = torch.ones(tiles * 4, dtype=torch.bool)
    gone[index[index != NEWLINE]] = False
    assert gone.any()
    changed = teacher.clone()
    changed.view(-1, TEACHER_DIM)[gone] = 100
    assert torch.equal(model(**batch, teacher_features=changed)["vra_loss"], loss)
    with pytest.raises(ValueError, match="does not match"):
        model(**batch, teacher_features=teacher[:-1])
    with pytest.raises(ValueError, match="one map of tokens"):
        AlignedModel(assemble(tiny / "clip", tiny / "llama", tile_grids=GRIDS)[0], residuals=(Residual(layer=2),))


@pytest.mark.parametrize("chosen", [(0, 4), (8,)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_what_trains_and_nothing_else(tiny, samples, chosen, checkpointing):
    model, processor = build(tiny, Align("encoder", layers=(2,), hidden=16))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**batch_of(samples, processor, chosen))["loss"].backward()
    pictured = chosen != (8,)
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.requires_grad and ("image_newline" in name or "projector" in name or "heads" in name):
            assert bool(p.grad.any()) == pictured, name
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert "image_newline" in trained
    assert not any(p.requires_grad for p in base_llava(model.llava).model.vision_tower.parameters())
    groups = model.parameter_groups()
    assert {id(p) for p in groups["projector"]} == {id(p) for p in connector(model.llava)}
    assert len(groups["projector"]) == 5
    lora = {name for name, _ in model.named_parameters() if "lora" in name}
    assert len(lora) == 4 * 7 * 2
    assert all(".language_model.layers." in name for name in lora)


def test_a_loaded_run_is_identical(tiny, samples, tmp_path):
    model, processor = build(tiny, Align(layers=(2,), hidden=16, dim=TEACHER_DIM))
    save_run(tmp_path / "run", model, TEMPLATE, seed=7)
    torch.manual_seed(99)
    run = load_run(tmp_path / "run")
    assert run.base.tile_grids == [list(grid) for grid in GRIDS]
    assert '"architecture": "llava_next"' in (tmp_path / "run" / "run.json").read_text()
    batch = inputs(batch_of(samples, processor, (9, 4)))
    with torch.no_grad():
        assert torch.equal(run.model(**batch).logits, model.llava(**batch).logits)
    saved, loaded = model.state_dict(), run.aligned.state_dict()
    assert any("image_newline" in name for name in saved)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    (tmp_path / "run" / "heads.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"heads\.safetensors"):
        load_run(tmp_path / "run")


def test_the_projector_of_stage_1_is_llavas(tiny, samples, tmp_path):
    plain = assemble(tiny / "clip", tiny / "llama")[0]
    save_projector(plain, tmp_path / "projector.safetensors")
    tiled, processor = assemble(
        tiny / "clip", tiny / "llama", tile_grids=GRIDS, projector=tmp_path / "projector.safetensors"
    )
    for one, two in zip(connector(plain), connector(tiled)[:-1], strict=True):
        assert torch.equal(one, two)
    before = tiled.model.multi_modal_projector(torch.ones(1, 24))
    scale_projector(tiled, 0.5)
    torch.testing.assert_close(tiled.model.multi_modal_projector(torch.ones(1, 24)), before / 2)
    with pytest.raises(ValueError, match="shares the stage-1 projector"):
        train_stage1(tiled, processor, samples, Recipe(batch_size=2, lr=1e-3, steps=1), tmp_path / "out")


def test_batched_answers_are_the_single_ones(tiny, samples):
    model, processor = build(tiny)
    images = [image for i in (1, 3, 4, 5) for image in samples[i].open_images()]
    prompts = [prompt(TEMPLATE, f"<image>\n{question}") for question in ("What?", "Where is it?", "Dogs?", "Two dogs?")]
    run, options = SimpleNamespace(model=model.llava, processor=processor, template=TEMPLATE), {"max_new_tokens": 6}
    together = generate(run, images, prompts, **options)
    alone = [generate(run, [image], [text], **options)[0] for image, text in zip(images, prompts, strict=True)]
    assert together == alone
    assert len(set(alone)) > 1
    by_hand = processor(images=images[1], text=prompts[1], return_tensors="pt")
    new = model.llava.generate(**by_hand, **options, do_sample=False)[0, by_hand["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == alone[1]


class MeanColour:
    """A teacher whose features are a patch's mean colour, so that it is known what it saw."""

    kind, grid, dim = "colour", 2, 3

    def identity(self):
        return {"kind": self.kind}

    def preprocess(self, images):
        return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images]).permute(0, 3, 1, 2)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels.float(), 14).flatten(2).transpose(1, 2) / 255

    def __call__(self, images):
        return self.encode(self.preprocess(images))


def test_cached_features_of_tiles_are_the_online_ones(processor, samples, tmp_path):
    teacher = MeanColour()
    images = {name: sample.folder / name for sample in samples for name in sample.images}
    write_cache(teacher, images, tmp_path, shard_size=7, tiles=view_of(processor))
    cached = FeatureCache(tmp_path)
    assert len(cached) == sum(len(view_of(processor).keys("", size)) for size in SIZES)
    batch = batch_of(samples, processor, (9, 8, 4), features=cached, pictures=True)
    online = teacher(batch["pictures"])
    assert batch["teacher_features"].shape == online.shape
    torch.testing.assert_close(batch["teacher_features"], online, atol=1e-3, rtol=1e-3)  # float16
    assert batch["pictures"][0].size == (28, 28)


def test_training_with_either_source(tiny, samples, tmp_path):
    """The teacher online and its cache give the same run; what trains has changed, all else has not."""
    teacher, finished = MeanColour(), {}
    images = {name: sample.folder / name for sample in samples for name in sample.images}
    recipe = Recipe(batch_size=3, lr=1e-3, steps=2, max_length=512)
    for source in ("teacher", "features"):
        model, processor = build(tiny, Align(layers=(2,), hidden=16, dim=3))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        if source == "features":
            write_cache(teacher, images, tmp_path / "cache", tiles=view_of(processor))
        given = teacher if source == "teacher" else FeatureCache(tmp_path / "cache")
        train_stage2(model, processor, samples, recipe, tmp_path / source, template=TEMPLATE, **{source: given})
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]) != p.requires_grad, name
        finished[source] = load_run(tmp_path / source).aligned.state_dict()
    for name, value in finished["teacher"].items():
        torch.testing.assert_close(value, finished["features"][name], atol=1e-3, rtol=1e-2)


def test_cknna_per_tile_against_a_direct_computation(tiny, samples, tmp_path):
    """Tiles of 4 x 4 patches, so that a part of one can be measured; k = 3 needs 5 of them."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    CLIPVisionModel(CLIPVisionConfig(patch_size=7, image_size=28, **sizes)).save_pretrained(tmp_path / "clip")
    square = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square).save_pretrained(tmp_path / "clip")
    model, processor = build(tiny, vision=tmp_path / "clip", grids=[(1, 3), (2, 2)])
    images = [image for i in (1, 2, 7) for image in samples[i].open_images()]
    images.append(images[0].resize((20, 80)))  # two columns of patches, one in each tile
    asked, k = prompt(TEMPLATE, "<image>"), 3
    table = layerwise_cknna(model.llava, processor, images, asked, ids=list("abcd"), k=k, batch_size=3)
    left_out = 0
    for name, image in zip("abcd", images, strict=True):
        one = processor(images=image, text=asked, return_tensors="pt")
        with VisualTap(model.llava, range(5)) as tap, torch.no_grad():
            model.llava(**one)
        index = patch_index((image.height, image.width), processor.image_processor.image_grid_pinpoints, 28, 7)
        rows = table.query("image == @name")
        tiles = sorted({patch // 16 for patch in index.tolist() if patch != NEWLINE})
        assert sorted(rows["tile"].unique()) == tiles
        for tile in tiles:
            places = [i for i, patch in enumerate(index.tolist()) if patch != NEWLINE and patch // 16 == tile]
            features = tap.features[tile][[int(index[i]) % 16 for i in places]]
            order = patch_order(0, f"chance:{name}#{tile}", len(places))
            left_out += len(places) < k + 2
            for clamp in (1.0, 0.95):
                found = rows.query("tile == @tile and clamp == @clamp").set_index("layer")
                assert (found["n"] == len(places)).all()
                target = clamp_outliers(features, clamp)
                for layer in range(5):
                    state = clamp_outliers(tap.states[layer][places], clamp)
                    if len(places) < k + 2:
                        expected = chance = math.nan
                    else:
                        expected, chance = (float(cknna(state, side, k)) for side in (target, target[order]))
                    assert found["cknna"][layer] == pytest.approx(expected, abs=1e-4, nan_ok=True)
                    assert found["chance"][layer] == pytest.approx(chance, abs=1e-4, nan_ok=True)
    assert left_out
    (first,) = stream_states(model.llava, processor, images[:1], asked, [2], 1, "states")
    assert first.tiles.tolist() == [0] * 16 + [t for half in ((1, 2), (3, 4)) for t in np.repeat(half, 4).tolist() * 4]
    assert len(first.states[0]) == len(first.features) == 80
