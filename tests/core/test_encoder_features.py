"""Cached features of the frozen encoder take the place of its forward pass, bit for bit."""

import pytest
import torch
import trainings
from trainings import MIXED, TEMPLATE, perturb

from viral_core.aligned import AlignedModel
from viral_core.cache import FeatureCache, write_cache
from viral_core.data import Collator, ConversationDataset
from viral_core.images import find_image, open_rgb
from viral_core.llava import add_lora, assemble, load_processor
from viral_core.recipe import Recipe
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import base_llava
from viral_core.teachers import load_encoder
from viral_core.trainer import train_stage1, train_stage2


def build(tiny, vision="clip", align=None, residuals=(), reconstruct=None):
    model, processor = trainings.build(tiny, align, residuals, reconstruct, vision, dropout=0.0)
    return perturb(model).train(), processor


def losses_and_gradients(model, batch, **sources):
    torch.manual_seed(5)  # dropout, noise
    losses = model(**batch, **sources)
    model.zero_grad()
    losses["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    return losses, gradients


SYSTEMS = {
    "baseline": {},
    "teacher": {"align": Align(layers=(2,), hidden=16, dim=6)},
    "encoder": {"align": Align("encoder", layers=(1, 3), hidden=16)},
    "projector": {"align": Align("projector", layers=(2,), hidden=16)},
    "residual-post": {"residuals": (Residual(layer=2),)},
    "residual-pre": {"residuals": (Residual("encoder", layer=2),)},
    "ross": {"reconstruct": Reconstruct(layer=2, dim=6, grid=2, blocks=1, width=16, heads=4)},
}


@pytest.mark.parametrize(
    ("vision", "system", "indices"),
    [
        *(("clip", system, MIXED) for system in SYSTEMS),
        *(("clip", system, (7, 9)) for system in SYSTEMS),  # no images
        ("siglip", "baseline", MIXED),
    ],
)
def test_a_step_with_cached_features_is_the_step_without(tiny, samples, vision, system, indices):
    model, processor = build(tiny, vision, **SYSTEMS[system])
    encoder = load_encoder(tiny / vision)
    data = ConversationDataset(samples, processor, TEMPLATE, 512)
    items = [data[i] for i in indices]
    pixels = Collator(processor)(items)
    images = {name: find_image(sample.folder, name) for sample in samples for name in sample.images}

    def features(names):  # of the same batch, as the tower makes them
        opened = [open_rgb(images[name]) for name in names]
        return encoder(opened) if names else torch.zeros(0, 4, encoder.dim)

    cached = Collator(processor, encoder=features)(items)
    assert "pixel_values" not in cached
    n = len(pixels["image_tokens"])
    sources = {"teacher": {"teacher_features": torch.randn(n, 4, 6)}, "ross": {"latents": torch.randn(n, 4, 6)}}
    given = sources.get(system, {}) if n else {}
    calls = []
    hook = base_llava(model.llava).model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    expected, gradients = losses_and_gradients(model, pixels, **given)
    assert calls.pop() == 1
    found, others = losses_and_gradients(model, cached, **given)
    assert not calls  # the vision tower is not run
    hook.remove()
    assert {name: float(value) for name, value in found.items()} == {k: float(v) for k, v in expected.items()}
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_trainings_read_the_cache(tiny, samples, tmp_path):
    images = {name: find_image(sample.folder, name) for sample in samples for name in sample.images}
    write_cache(load_encoder(tiny / "clip"), images, tmp_path / "cache", "float32", batch_size=4)
    cache = FeatureCache(tmp_path / "cache")
    assert cache.teacher["feature_layer"] == -2
    recipe = Recipe(batch_size=4, lr=1e-3, steps=2, max_length=512, log_every=1, workers=0)
    states = {}
    for name, options in (("pixels", {}), ("cached", {"encoder_features": cache})):
        torch.manual_seed(1)
        llava, processor = assemble(tiny / "clip", tiny / "llama")
        if name == "cached":
            llava.model.vision_tower.forward = None  # nobody needs it
        train_stage1(llava, processor, [s for s in samples if len(s.images) == 1], recipe, tmp_path / name, **options)
        model = AlignedModel(add_lora(llava, r=4, alpha=8))
        train_stage2(model, processor, samples, recipe, tmp_path / f"{name}-2", template=TEMPLATE, **options)
        states[name] = model.state_dict()
    for name, value in states["pixels"].items():
        torch.testing.assert_close(states["cached"][name], value, atol=1e-5, rtol=1e-5)

    write_cache(load_encoder(tiny / "clip", -1), images, tmp_path / "deeper", dtype="float32")
    model, processor = build(tiny)
    options = {"template": TEMPLATE, "encoder_features": FeatureCache(tmp_path / "deeper")}
    with pytest.raises(ValueError, match="those of another encoder or layer"):
        train_stage2(model, processor, samples, recipe, tmp_path / "other", **options)


def test_features_of_another_grid_are_refused(tiny, samples):
    model, processor = build(tiny)
    batch = Collator(processor, encoder=lambda names: torch.zeros(len(names), 9, 24))(
        [ConversationDataset(samples, processor, TEMPLATE, 512)[0]]
    )
    with pytest.raises(ValueError, match="encoder features .* do not match 4 visual tokens"):
        model(**batch)
    batch = Collator(processor)([ConversationDataset(samples, processor, TEMPLATE, 512)[0]])
    seen = base_llava(model.llava)(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits
    block = base_llava(model.llava).model.language_model.layers[0]
    fault = block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what a failing step leaves behind changes no later answer
        model(**batch, encoder_features=torch.zeros(1, 4, 24))
    fault.remove()
    again = base_llava(model.llava)(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits
    assert torch.equal(seen, again)
    tiled = load_processor(tiny / "clip", tiny / "llama", tile_grids=[(1, 2)])
    with pytest.raises(ValueError, match="LLaVA-NeXT's tiles go through the vision tower"):
        Collator(tiled, encoder=lambda names: None)
