"""What a training that was interrupted finds when it starts again."""

from dataclasses import replace

import pytest
import torch
from test_trainer import ALIGN, RECIPE, TEMPLATE, Killed, build, features, killing, log

from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.trainer import Target, _KeepTargets, train_stage2

EVERY_STEP = replace(RECIPE, steps=5, save_every=1)


@pytest.fixture(scope="module")
def images(conversations):
    """Every global batch reads features once."""
    return [sample for sample in load_conversations(*conversations) if sample.images]


def train(tiny, images, folder, recipe, source, align=ALIGN):
    model, processor = build(tiny, align)
    train_stage2(model, processor, images, recipe, folder, template=TEMPLATE, features=source)
    return model.state_dict()


@pytest.fixture
def killed(tiny, images, tmp_path):
    """A training that died after its third step, with states of the second and the third."""
    with pytest.raises(Killed):
        train(tiny, images, tmp_path / "run", EVERY_STEP, killing(after=5))
    states = sorted(path.name for path in (tmp_path / "run.work/state").iterdir())
    assert states == ["checkpoint-2", "checkpoint-3"]
    return tmp_path


@pytest.fixture(scope="module")
def whole(tiny, images, tmp_path_factory):
    return train(tiny, images, tmp_path_factory.mktemp("whole") / "run", EVERY_STEP, features)


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
        resumed = train(tiny, images, killed / "run", EVERY_STEP, killing(after=1 + 3))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert [entry["step"] for entry in log(killed / "run")] == [1, 2, 3, 4, 5]
    aside = [path for path in killed.iterdir() if path.name.endswith(".damaged")]
    assert [path.name.split(".")[2] for path in aside] == ["checkpoint-3"]


def test_half_a_log_line_is_dropped(tiny, images, killed, whole):
    file = killed / "run.work/run/log.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')
    resumed = train(tiny, images, killed / "run", EVERY_STEP, killing(after=1 + 2))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert [entry["step"] for entry in log(killed / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change",
    [{"workers": 1}, {"log_every": 3}, {"save_every": 2}, {"gradient_checkpointing": True}, {"micro_batch": 2}],
    ids=lambda change: next(iter(change)),
)
def test_how_a_training_is_carried_out_may_change(tiny, images, killed, whole, change):
    recipe = replace(EVERY_STEP, **change)
    limit = 100 if "workers" in change else 1 + 2 * 4 // (recipe.micro_batch or 4)  # workers count for themselves
    resumed = train(tiny, images, killed / "run", recipe, killing(after=limit))
    if "micro_batch" not in change:  # its dropout is drawn for other batches
        for name, value in whole.items():
            torch.testing.assert_close(resumed[name], value)


def test_a_run_of_other_settings_is_kept_aside(tiny, images, killed):
    with pytest.warns(UserWarning, match=r"other settings \(align\): it lies in .*run.work.20.*other-settings"):
        train(tiny, images, killed / "run", EVERY_STEP, features, replace(ALIGN, weight=0.1))
    (aside,) = [path for path in killed.iterdir() if path.name.endswith(".other-settings")]
    assert (aside / "state/checkpoint-3/complete").is_file()


def test_targets_are_no_tensors_to_the_trainer(tiny, images):
    """transformers' Trainer casts tensors to DeepSpeed's half precision; cached targets stay in float32."""
    _, processor = build(tiny)
    items = [ConversationDataset(images, processor, TEMPLATE, 512)[0]]
    batch = _KeepTargets(Collator(processor, features, latents=features))(items)
    for name in ("teacher_features", "latents"):
        assert isinstance(batch[name], Target)
        assert batch[name].to("cpu").tensor.dtype == torch.float32
