"""What a training that was interrupted finds when it starts again."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from trainings import ALIGN, RECIPE, TEMPLATE, Killed, build, features, killing, log
from transformers import Trainer

from viral_core.resume import settings
from viral_core.run_folder import load_run
from viral_core.trainer import AlignmentTrainer, train_stage2

EVERY_STEP = replace(RECIPE, steps=5, save_every=1)


@pytest.fixture(scope="module")
def images(samples):
    """Samples with images: every global batch reads features once."""
    return [sample for sample in samples if sample.images]


def train(tiny, images, folder, recipe, source, align=ALIGN):
    model, processor = build(tiny, align)
    train_stage2(model, processor, images, recipe, folder, template=TEMPLATE, features=source)
    return model.state_dict()


@pytest.fixture(scope="module")
def dead(tiny, images, tmp_path_factory):
    """A training that died after its third step, with states of the second and the third."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        train(tiny, images, folder / "run", EVERY_STEP, killing(after=4))
    states = sorted(path.name for path in (folder / "run.work/state").iterdir())
    assert states == ["checkpoint-2", "checkpoint-3"]
    return folder


@pytest.fixture
def killed(dead, tmp_path):
    """A copy of it."""
    return shutil.copytree(dead, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def whole(tiny, images, tmp_path_factory):
    return train(tiny, images, tmp_path_factory.mktemp("whole") / "run", EVERY_STEP, features)


def starts(folder):
    """The steps from which a training went on."""
    return [entry["from_step"] for entry in json.loads((folder / "environment.json").read_text())]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "no trainer state": lambda state: (state / "trainer_state.json").unlink(),
    "cut weights": lambda state: cut(state / "model.safetensors"),
    "one bit of the optimiser": lambda state: flip(state / "optimizer.pt"),
    "one bit of the random states": lambda state: flip(state / "rng_state.pth"),
    "an empty mark": lambda state: (state / "complete").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_set_aside_and_the_older_one_goes_on(tiny, images, killed, whole, damage):
    DAMAGE[damage](killed / "run.work/state/checkpoint-3")
    with pytest.warns(UserWarning, match="checkpoint-3: .* an older state is used"):
        resumed = train(tiny, images, killed / "run", EVERY_STEP, features)
    assert starts(killed / "run") == [0, 2]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert [entry["step"] for entry in log(killed / "run")] == [1, 2, 3, 4, 5]
    (aside,) = killed.glob("run.work.*.damaged")
    assert [path.name for path in aside.iterdir()] == ["checkpoint-3"]


def test_half_a_log_line_is_dropped(tiny, images, killed, whole):
    file = killed / "run.work/run/log.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')
    resumed = train(tiny, images, killed / "run", EVERY_STEP, features)
    assert starts(killed / "run") == [0, 3]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert [entry["step"] for entry in log(killed / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change",
    [{"workers": 1}, {"log_every": 3}, {"save_every": 2}, {"gradient_checkpointing": True}, {"micro_batch": 2}],
    ids=lambda change: next(iter(change)),
)
def test_how_a_training_is_carried_out_may_change(tiny, images, killed, whole, change):
    resumed = train(tiny, images, killed / "run", replace(EVERY_STEP, **change), features)
    assert starts(killed / "run") == [0, 3]
    if "micro_batch" not in change:  # its dropout is drawn for other batches
        for name, value in whole.items():
            torch.testing.assert_close(resumed[name], value)


def test_a_run_of_other_settings_is_kept_aside_and_the_new_one_starts_over(tiny, images, killed, tmp_path):
    align = replace(ALIGN, weight=0.1)
    with pytest.warns(UserWarning, match=r"other settings \(align\): it lies in .*run.work.20.*other-settings"):
        found = train(tiny, images, killed / "run", EVERY_STEP, features, align)
    (aside,) = killed.glob("*.other-settings")
    assert (aside / "state/checkpoint-3/complete").is_file()
    assert starts(killed / "run") == [0]
    fresh = train(tiny, images, tmp_path / "fresh", EVERY_STEP, features, align)
    assert all(torch.equal(found[name], fresh[name]) for name in fresh)


def test_other_lora_settings_are_other_settings(tiny, images):
    model, _ = build(tiny, ALIGN)
    before = settings(model, images, RECIPE, TEMPLATE, {})
    model.llava.peft_config["default"].lora_alpha *= 2
    assert settings(model, images, RECIPE, TEMPLATE, {}) != before


def test_a_run_in_the_place_of_another_sets_it_aside(tiny, images, tmp_path):
    for weight, kept in ((0.5, (0.5,)), (0.1, ())):
        recipe = replace(EVERY_STEP, steps=2, checkpoints=kept)
        train(tiny, images, tmp_path / "run", recipe, features, replace(ALIGN, weight=weight))
    (aside,) = tmp_path.glob("run.20*.replaced")
    files = {"adapter", "environment.json", "heads.safetensors", "log.jsonl", "projector.safetensors", "run.json"}
    assert {path.name for path in aside.iterdir()} == files | {"checkpoint-1"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files
    assert load_run(tmp_path / "run").aligned.align.weight == 0.1


def test_cached_targets_are_not_cast(monkeypatch):
    """transformers' Trainer casts the tensors of a batch to DeepSpeed's half precision."""
    trainer = AlignmentTrainer.__new__(AlignmentTrainer)
    trainer.args = SimpleNamespace(device="cpu")
    monkeypatch.setattr(Trainer, "_prepare_inputs", lambda _, batch: {key: x.half() for key, x in batch.items()})
    batch = {name: torch.ones(1) for name in ("pixel_values", "teacher_features", "latents")}
    assert {name: value.dtype for name, value in trainer._prepare_inputs(batch).items()} == {
        "pixel_values": torch.float16,
        "teacher_features": torch.float32,
        "latents": torch.float32,
    }
