"""The benchmark of a training step, on thin models: four arms, equal losses, and the labels of the result."""

import json
from dataclasses import replace

import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import rehearsal
import speed
import torch
from speed import ARMS, Bench, time_steps

from workbook import config

THIN = config.load("rehearsal")
SMALL = THIN.model_copy(update={"stage2": replace(THIN.stage2, micro_batch=2, max_length=96)})


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Models of three blocks, on images of 4 x 4 patches."""
    thin = rehearsal.config

    def smaller(name: str, _thin: bool):
        settings = thin(name)
        settings.num_hidden_layers, settings.image_size = 3, 56
        return settings

    monkeypatch.setattr(rehearsal, "config", smaller)


def test_the_arms_take_turns_and_the_result_says_what_was_measured():
    found = time_steps(SMALL, rounds=2, steps=2, dtype=torch.float32)
    assert json.loads(json.dumps(found)) == found
    assert set(found["arms"]) == set(ARMS)
    assert [block["arm"] for block in found["raw"]] == [*ARMS, *ARMS[1:], ARMS[0]]
    for arm, values in found["arms"].items():
        assert 0 < values["seconds"]["low"] <= values["seconds"]["median"] <= values["seconds"]["high"]
        assert values["seconds"]["n"] == 2
        assert (values["overhead"]["median"] == 0) == (arm == "baseline")
    assert (found["profile"], found["samples"], found["tokens"]) == ("rehearsal", 2, 96)
    assert found["settings"]["device"] == "cpu"
    assert found["environment"]["packages"]["torch"] == torch.__version__
    losses = {block["arm"]: block["losses"] for block in found["raw"]}
    for arm in ("online", "transcription"):
        assert losses[arm] == pytest.approx(losses["cached"], abs=1e-5)
    assert losses["cached"]["vra_loss"] != 0
    assert losses["baseline"]["lm_loss"] == pytest.approx(losses["cached"]["lm_loss"], abs=1e-5)


def test_a_transcription_with_another_loss_is_refused(monkeypatch):
    original = speed.transcribed_loss
    doubled = lambda *given: {name: 2 * value for name, value in original(*given).items()}  # noqa: E731
    monkeypatch.setattr(speed, "transcribed_loss", doubled)
    with pytest.raises(ValueError, match="the transcription"):
        time_steps(SMALL, rounds=1, steps=1, dtype=torch.float32)


def test_an_arm_leaves_the_base_as_it_was():
    bench = Bench(SMALL, torch.float32)
    before = {name: p.clone() for name, p in bench.llava.named_parameters()}
    hooks = []
    for _ in range(2):  # transformers puts its own on a model that is first asked for hidden states
        for arm in ARMS:
            bench.run(arm, 1)
        hooks.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.llava.modules()))
    assert hooks[0] == hooks[1]
    assert all(torch.equal(p, before[name]) for name, p in bench.llava.named_parameters())


def test_the_paper_profile_has_the_sizes_of_the_paper():
    paper = config.load("paper")
    assert (paper.languages["vicuna-7b"].path, paper.lora.r) == (speed.LANGUAGE, 128)
    assert (paper.stage2.micro_batch, paper.stage2.max_length, paper.systems["viral"].align.hidden) == (8, 2048, 2048)
