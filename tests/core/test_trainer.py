"""Trainings of tiny models: what changes, what is logged and kept, global means, interruptions."""

from dataclasses import replace

import pytest
import torch
from trainings import ALIGN, RECIPE, TEMPLATE, Killed, build, features, killing, log
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from viral_core.data import ConversationDataset, GroupedSampler
from viral_core.llava import assemble
from viral_core.recipe import Recipe
from viral_core.run_folder import load_run
from viral_core.specs import Residual
from viral_core.tap import base_llava
from viral_core.teachers import load_teacher
from viral_core.trainer import train_stage1, train_stage2


def everything(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_stage_2_changes_what_trains_and_nothing_else(tiny, samples, tmp_path):
    model, processor = build(tiny, residuals=(Residual("encoder", layer=1),))
    before = everything(model)
    train_stage2(model, processor, samples, RECIPE, tmp_path / "run", template=TEMPLATE, features=features)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {
        name
        for name in before
        if "lora" in name or "multi_modal_projector" in name or name.startswith(("heads", "adapters"))
    }


def test_stage_1_changes_the_projector_and_nothing_else(tiny, samples, tmp_path):
    llava, processor = assemble(tiny / "clip", tiny / "llama")
    before = everything(llava)
    captions = [sample for sample in samples if len(sample.turns) == 2 and sample.images]
    train_stage1(llava, processor, captions, RECIPE, tmp_path / "stage1")
    changed = {name for name, p in llava.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    files = {path.name for path in (tmp_path / "stage1").iterdir()}
    assert files == {"projector.safetensors", "log.jsonl", "environment.json"}
    again, _ = assemble(tiny / "clip", tiny / "llama", projector=tmp_path / "stage1" / "projector.safetensors")
    for name, p in llava.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
    llava(inputs_embeds=torch.zeros(1, 2, 32))  # refused while a tap is attached


def test_log_has_both_losses_of_the_first_global_batch(tiny, samples, batch_of, tmp_path):
    model, processor = build(tiny, dropout=0.0)
    recipe = replace(RECIPE, micro_batch=2, steps=3, log_every=2)
    data = ConversationDataset(samples, processor, TEMPLATE, 512)
    order = list(GroupedSampler(data.encodings, 4, 3, recipe.seed))[:4]
    with torch.no_grad():
        first = model(**batch_of(order, features=features))
    train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=features)
    entries = log(tmp_path / "run")
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    keys = {"step", "loss", "lm_loss", "vra_loss", "learning_rate", "grad_norm", "seconds"}
    assert all(entry.keys() == keys for entry in entries)
    for key in ("loss", "lm_loss", "vra_loss"):
        assert entries[0][key] == pytest.approx(float(first[key]), abs=1e-5)


def test_text_only_steps_do_not_dilute_the_alignment_loss(tiny, samples, batch_of, tmp_path):
    texts = [sample for sample in samples if not sample.images] * 4
    model, processor = build(tiny, dropout=0.0)
    train_stage2(model, processor, texts, RECIPE, tmp_path / "text", template=TEMPLATE, features=features)
    assert all(entry["vra_loss"] is None for entry in log(tmp_path / "text"))
    model, processor = build(tiny, dropout=0.0)
    mixed = texts + [samples[i] for i in (0, 1, 2, 3)]  # two text batches, one with images
    recipe = replace(RECIPE, steps=3, log_every=3, lr=0.0)
    train_stage2(model, processor, mixed, recipe, tmp_path / "mixed", template=TEMPLATE, features=features)
    with torch.no_grad():
        value = model(**batch_of((0, 1, 2, 3), features=features))["vra_loss"]
    entries = log(tmp_path / "mixed")
    assert [entry["step"] for entry in entries] == [1, 3]
    shown = [entry["vra_loss"] for entry in entries if entry["vra_loss"] is not None]
    assert shown == [pytest.approx(float(value), abs=1e-5)]


def test_the_global_batch_counts_not_the_micro_batch(tiny, samples, tmp_path):
    results = []
    for micro in (1, 4):
        model, processor = build(tiny, dropout=0.0)
        recipe = replace(RECIPE, micro_batch=micro, lr=1e-3)
        train_stage2(model, processor, samples, recipe, tmp_path / str(micro), template=TEMPLATE, features=features)
        results.append((model.state_dict(), log(tmp_path / str(micro))))
    (one, one_log), (four, four_log) = results
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, atol=1e-4, rtol=0)
    assert [entry["loss"] for entry in one_log] == pytest.approx([entry["loss"] for entry in four_log], abs=1e-4)


def test_an_online_teacher_equals_its_cached_features_and_stays_as_its_checkpoint(tiny, samples, tmp_path):
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 28}).save_pretrained(tmp_path / "dinov2")
    teacher = load_teacher("dinov2", tmp_path / "dinov2", 2)
    opened = {name: image for s in samples for name, image in zip(s.images, s.open_images(), strict=True)}

    def one_by_one(images):  # the same bits in any batch
        return torch.cat([teacher([image]) for image in images])

    states = []
    for source in ({"teacher": one_by_one}, {"features": lambda keys: one_by_one([opened[key] for key in keys])}):
        model, processor = build(tiny, replace(ALIGN, dim=24))
        train_stage2(model, processor, samples, RECIPE, tmp_path / "run", template=TEMPLATE, **source)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    stored = Dinov2Model.from_pretrained(tmp_path / "dinov2").state_dict()
    kept = teacher.model.state_dict()
    assert kept.keys() == stored.keys()
    assert all(torch.equal(kept[name], stored[name]) for name in stored)


def test_a_killed_run_resumes_exactly(tiny, samples, tmp_path):
    images = [sample for sample in samples if sample.images]
    recipe = replace(RECIPE, steps=6, micro_batch=2, save_every=2, checkpoints=(0.3, 0.7), gradient_checkpointing=True)

    def train(folder, features):
        model, processor = build(tiny)
        torch.manual_seed(len(folder.name))  # the state of the process must not matter
        train_stage2(model, processor, images, recipe, folder, template=TEMPLATE, features=features)
        return model.state_dict()

    whole = train(tmp_path / "whole", features)
    with pytest.raises(Killed):
        train(tmp_path / "killed", killing(after=6))
    assert not (tmp_path / "killed").exists()
    resumed = train(tmp_path / "killed", killing(after=12 - 4))  # would raise if it began again
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "killed.work").exists()
    files = [
        {str(p.relative_to(folder)) for p in folder.rglob("*")} for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert files[0] == files[1]
    assert {"checkpoint-2", "checkpoint-4", "run.json", "log.jsonl"} <= files[0]
    for one, other in zip(log(tmp_path / "whole"), log(tmp_path / "killed"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    seconds = [entry["seconds"] for entry in log(tmp_path / "killed")]
    assert seconds == sorted(seconds)


def test_checkpoints_are_runs_of_the_learning_curve(tiny, samples, tmp_path):
    model, processor = build(tiny)
    recipe = replace(RECIPE, checkpoints=(0.5, 1.0))
    given = {"features": features, "training": {"note": "x"}}
    train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, **given)
    half, end = load_run(tmp_path / "run" / "checkpoint-2"), load_run(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert (half.training["step"], end.training["step"], end.training["note"]) == (2, 4, "x")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in end.aligned.state_dict().items())
    assert not any(torch.equal(state[name], value) for name, value in half.aligned.state_dict().items())


def test_projector_has_its_own_learning_rate(tiny, samples, tmp_path):
    model, processor = build(tiny)
    before = everything(model)
    recipe = replace(RECIPE, projector_lr=0.0)
    train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=features)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad and "projector" not in name}


def test_loss_that_is_not_finite_stops_the_run(tiny, samples, tmp_path):
    model, processor = build(tiny)
    source = lambda keys: features(keys) * torch.nan  # noqa: E731
    with pytest.raises(FloatingPointError, match="step 1: the loss is not finite"):
        train_stage2(model, processor, samples, RECIPE, tmp_path / "run", template=TEMPLATE, features=source)
    assert not (tmp_path / "run").exists()


def test_bfloat16_keeps_float32_weights_for_what_trains(tiny, samples, batch_of, tmp_path):
    model, processor = build(tiny, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="half precision"):
        train_stage2(model, processor, samples, RECIPE, tmp_path / "run", template=TEMPLATE, features=features)
    recipe = replace(RECIPE, bf16=True, gradient_checkpointing=True)
    train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=features)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert base_llava(model.llava).lm_head.weight.dtype == torch.bfloat16
    run = load_run(tmp_path / "run", dtype=torch.bfloat16)
    batch = batch_of([0])
    out = run.model.generate(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], max_new_tokens=2)
    assert out.shape[1] == batch["input_ids"].shape[1] + 2


def test_bad_recipes(tiny, samples, tmp_path):
    model, processor = build(tiny)
    with pytest.raises(ValueError, match="no multiple of micro_batch 3"):
        train_stage2(
            model, processor, samples, replace(RECIPE, micro_batch=3), tmp_path, template=TEMPLATE, features=features
        )
    for options in ({}, {"features": features, "teacher": features}):
        with pytest.raises(ValueError, match="either cached features or the teacher"):
            train_stage2(model, processor, samples, RECIPE, tmp_path, template=TEMPLATE, **options)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": -1}, {"micro_batch": 0}, {"epochs": 0.0}])
def test_sizes_are_above_0(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*: it has to be above 0"):
        replace(RECIPE, **change)


def test_steps_come_from_epochs():
    assert Recipe(batch_size=128, lr=1.0).total_steps(665_298) == 5198
    assert Recipe(batch_size=4, lr=1.0, epochs=0.5).total_steps(17) == 3
    assert Recipe(batch_size=4, lr=1.0, steps=7).total_steps(17) == 7
