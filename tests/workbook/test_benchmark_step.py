"""The benchmark of a training step, at its tiny size: four arms, equal losses, and the labels of the result."""

import json
import sys
from dataclasses import replace

import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch

from workbook.scale import benchmark_step
from workbook.scale.benchmark_step import ARMS, SHAPES, Bench, benchmark


def test_the_arms_take_turns_and_the_result_says_what_was_measured(tmp_path, monkeypatch):
    out = tmp_path / "step.json"
    arguments = ["--shape", "tiny", "--rounds", "2", "--steps", "2", "--dtype", "float32", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark_step", *arguments, "--out", str(out)])
    benchmark_step.main()
    found = json.loads(out.read_text())
    assert set(found["arms"]) == set(ARMS)
    assert [block["arm"] for block in found["raw"]] == [*ARMS, *ARMS[1:], ARMS[0]]
    for arm, values in found["arms"].items():
        assert 0 < values["seconds"]["low"] <= values["seconds"]["median"] <= values["seconds"]["high"]
        assert values["seconds"]["n"] == 2
        assert ("overhead" in values) == (arm != "baseline")
    assert found["settings"]["device"] == "cpu"
    assert found["environment"]["packages"]["torch"] == torch.__version__
    losses = {block["arm"]: block["losses"] for block in found["raw"]}
    for arm in ("online", "transcription"):
        assert losses[arm] == pytest.approx(losses["cached"], abs=1e-5)
    assert losses["cached"]["vra_loss"] != 0
    assert losses["baseline"]["lm_loss"] == pytest.approx(losses["cached"]["lm_loss"], abs=1e-5)


def test_a_transcription_with_another_loss_is_refused(monkeypatch):
    original = benchmark_step.transcription_loss
    doubled = lambda *given: {name: 2 * value for name, value in original(*given).items()}  # noqa: E731
    monkeypatch.setattr(benchmark_step, "transcription_loss", doubled)
    with pytest.raises(ValueError, match="the transcription"):
        benchmark(SHAPES["tiny"], rounds=1, steps=1, dtype=torch.float32, arms=("cached", "transcription"))


def test_an_arm_leaves_the_base_as_it_was():
    bench = Bench(replace(SHAPES["tiny"], blocks=2), torch.float32, "cpu")
    before = {name: p.clone() for name, p in bench.llava.named_parameters()}
    hooks = []
    for _ in range(2):  # transformers puts its own on a model that is first asked for hidden states
        for arm in ARMS:
            bench.run(arm, 1)
        hooks.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.llava.modules()))
    assert hooks[0] == hooks[1]
    assert all(torch.equal(p, before[name]) for name, p in bench.llava.named_parameters())


def test_the_paper_shape_has_the_sizes_of_the_paper():
    shape = SHAPES["7b"]
    assert (shape.width, shape.blocks, shape.grid**2, shape.lora) == (4096, 32, 576, 128)
    assert (shape.samples, shape.tokens, shape.teacher_width) == (8, 2048, 768)
