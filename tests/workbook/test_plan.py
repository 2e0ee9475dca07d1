"""The plan: estimates against known sizes and times, measured ones where there are logs, and what gives which table."""

import dataclasses
import json
from datetime import datetime

import numpy as np
import pytest
from commands import PROFILES, replace

from workbook import config as profiles
from workbook import pipeline
from workbook.paths import ROOT
from workbook.scale import costs, estimates, plan
from workbook.sections import Launch

PAPER = profiles.load("paper")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty repository root: nothing has been run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("part", "name"), [("languages", "vicuna-7b"), ("visions", "clip")])
def test_parameters_of_a_model_that_is_here(part, name):
    """Those of the embedded world's: their metrics state them."""
    model = getattr(profiles.load("laptop"), part)[name]
    stated = json.loads((ROOT / model.path / "metrics.json").read_text())["parameters"]
    assert estimates.architecture(model)["parameters"] == pytest.approx(stated, rel=0.05)


def test_trained_parameters_of_the_real_recipe():
    """LoRA r 128 on a 7B: 320 million; projector 21 million; head 14 million."""
    training = estimates.stage2(PAPER, "viral")
    lora = 32 * 128 * (4 * 8192 + 3 * (4096 + 11008))
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    head = 4096 * 2048 + 2048 * 2048 + 2048 * 768
    assert training.parameters == lora + projector + head
    assert estimates.stage2(PAPER, "baseline").parameters == lora + projector
    assert estimates.stage2(PAPER, "layers-15-17").parameters == lora + projector + 3 * head
    assert estimates.stage1(PAPER, "vicuna-7b", "clip").parameters == projector


def test_checkpoints_are_counted_where_they_are_kept():
    kept, plain = estimates.stage2(PAPER, "viral"), estimates.stage2(PAPER, "relation")
    assert kept.bytes == 6 * plain.bytes == 6 * 4 * plain.parameters


def test_memory_says_what_fits():
    """7B by LoRA fits 40 GB with ZeRO-2, as in the paper; 13B does not, and does with ZeRO-3 on 8 GPUs."""
    seven, thirteen = (estimates.stage2(PAPER, run) for run in ("viral", "13b-viral"))
    assert 25 < seven.memory(Launch(gpus=4, deepspeed="zero2")) < 37
    assert thirteen.memory(Launch(gpus=4, deepspeed="zero2")) > 40
    assert thirteen.memory(Launch(gpus=8, deepspeed="zero3")) < 37
    stored = dataclasses.replace(seven, recipe=dataclasses.replace(seven.recipe, gradient_checkpointing=False))
    assert stored.memory(Launch(gpus=4, deepspeed="zero2")) > 80
    wide = dataclasses.replace(seven, language={**seven.language, "vocab_size": 32000 + 10**5})
    more = wide.memory(Launch(gpus=4, deepspeed="zero2")) - seven.memory(Launch(gpus=4, deepspeed="zero2"))
    assert more == pytest.approx(1.1 * 12 * 8 * 2048 * 10**5 / 2**30)  # 12 bytes a logit


def test_memory_of_an_evaluation():
    """Keys and values of 32 answers about tiled images (3 x 1 tiles and the whole: 2304 tokens): about 40 GB."""
    plain, tiled = (estimates.evaluation_memory(PAPER, run) for run in ("viral", "next-viral"))
    assert tiled - plain == pytest.approx(1.1 * 2 * 32 * 4096 * 2 * 4 * 576 * 32 / 2**30)
    assert 20 < plain < 30


def test_a_cache_of_dinov2_features():
    index = pipeline.stages(PAPER)["cache"]
    names = ("dinov2-clip", "dinov2-siglip2", "vae-clip")
    clip, siglip2, vae = (estimates.feature_cache(PAPER, index[f"paper-{name}"], images=1000) for name in names)
    assert clip.bytes == 1000 * 576 * 768 * 2
    assert dataclasses.replace(clip, dtype="float32").bytes == 2 * clip.bytes
    assert dataclasses.replace(clip, dtype="int8").bytes == 1000 * 576 * (768 + 4)
    assert siglip2.bytes == 1000 * 729 * 768 * 2
    assert vae.bytes == 1000 * 576 * 64 * 2


def test_steps_of_the_recipe():
    assert PAPER.stage1.total_steps(558128) == 2181
    assert PAPER.stage2.total_steps(665298) == 5198


def test_epochs_of_a_part_of_the_mix_are_as_long_as_it():
    """Of 500 images: with the same share of conversations without one 532 samples, five batches."""
    profile = replace(PAPER, runs={"baseline": [0], "baseline-500": [0]})
    found = {(job.stage, job.key): job.operations for job in plan.jobs(profile)}
    assert found["stage2", "baseline-500-s0"] == pytest.approx(5 / 5198 * found["stage2", "baseline-s0"])
    assert found["evaluate", "baseline-500-s0"] == found["evaluate", "baseline-s0"]


def test_samples_of_a_world():
    smoke = profiles.load("smoke")
    assert plan.samples_of(smoke) == {"captions": 64, "conversations": 96 + 8, "images": 96}
    caches = {job.key: job.work.images for job in plan.jobs(smoke) if job.stage == "cache" and job.work}
    assert caches["encoder-clip-captions"] == 64
    assert caches["encoder-clip-conversations"] == caches["dinov2-clip"] == 96


def test_the_stated_utilisation_follows_from_llavas_times():
    """hardware.yaml derives it from LLaVA-1.5's README: pre-training of 7B, 3.5 h on 8 x A100."""
    operations = 2181 * estimates.stage1(PAPER, "vicuna-7b", "clip").operations
    reached = operations / (8 * 312e12 * 3.5 * 3600)
    stated = estimates.reference("hardware")["gpus"]["A100"]["utilisation"]["stage1"]
    assert reached == pytest.approx(stated, abs=0.02)


def test_the_stated_utilisation_of_a_measured_step():
    """8 samples of 2048 tokens on an H200."""
    step = json.loads((ROOT / "runs/gpu/results/benchmark/step.json").read_text())
    assert "H200" in step["environment"]["gpus"][0]["model"]
    operations = 8 * estimates.stage2(PAPER, "baseline").sample_operations(images=1, length=2048)
    reached = operations / (step["arms"]["baseline"]["seconds"]["median"] * 989e12)
    stated = estimates.reference("hardware")["gpus"]["H200"]["utilisation"]["stage2"]
    assert reached == pytest.approx(stated, abs=0.005)


def test_the_paper_profile(here):
    found = plan.table(PAPER)
    assert not found["", "done"].any()
    row = found.loc["13b-viral"]
    assert row["8 x A100-80", "GPU-h"] == pytest.approx(8 * row["8 x A100-80", "h"])
    assert row["8 x A100-80", "USD"] == pytest.approx(2.0 * row["8 x A100-80", "GPU-h"])
    assert row["4 x A100-40", "*"]
    assert found.loc["viral", ("8 x H100", "h")] < found.loc["viral", ("8 x A100-80", "h")]
    text = plan.show(PAPER)
    assert "*" in next(line for line in text.splitlines() if line.startswith("13b-viral"))
    assert "still to do" in text


def test_a_stage_costs_what_its_attempts_cost(here):
    lines = [("a", 0, 60.0, False), ("a", 9, 30.0, True), ("b", 1, 5.0, True), ("b", 10, 7.0, True), ("c", 0, 1.0, 0)]
    with (here / costs.FILE).open("w") as file:
        for key, minute, seconds, done in lines:
            began = f"2025-01-01T10:{minute:02}:00+00:00"
            file.write(json.dumps({"stage": "s", "key": key, "began": began, "seconds": seconds, "done": done}) + "\n")
        file.write('{"stage": "s", "ke')  # of a full disk
    first, second = costs.read_costs(here)
    times = [
        datetime.fromisoformat(f"2025-01-01T10:{time}+00:00") for time in ("08:00", "09:30", "10:00", "10:07")
    ]  # no pause
    assert first == {"stage": "s", "key": "a", "began": times[0], "ended": times[1], "seconds": 90.0}
    assert second == {"stage": "s", "key": "b", "began": times[2], "ended": times[3], "seconds": 7.0}
    assert costs.read_costs(here / "none") == []


def test_what_is_done_and_measured_is_counted(here):
    folder = here / "runs/paper/stage2/viral/s0"
    folder.mkdir(parents=True)
    costs.note(here / "runs/paper", "stage2", "paper-viral-s0", 36000.0)
    profile = replace(PAPER, runs={"baseline": [0], "viral": [0]})
    found = {(job.stage, job.key): job for job in plan.jobs(profile)}
    assert found["stage2", "viral-s0"].done
    assert found["stage2", "viral-s0"].seconds == 36000.0
    assert not found["stage2", "baseline-s0"].done
    assert not found["evaluate", "viral-s0"].done
    assert np.isnan(plan.table(profile)["", "here"]).all()  # nothing has been asked or measured
    costs.note(here / "runs/paper", "evaluate", "paper-viral-s0", 3600.0)
    costs.note(here / "runs/paper", "measure", "paper-viral-s0", 1800.0)
    hours = plan.table(profile)["", "here"]
    assert hours["viral"] == hours["baseline"] == 11.5  # the same models, and measurements, take as long
    assert np.isnan(hours["stage1 vicuna-7b-clip"])
    assert np.isnan(hours["cache dinov2-clip"])
    unknown = plan.show(profile)
    assert "\n?: nothing of this kind has run here yet\n" in unknown
    assert unknown.splitlines()[[line.split()[:1] for line in unknown.splitlines()].index(["all"])].split()[3] == "?"
    for stage, key in (("stage1", "vicuna-7b-clip"), ("cache", "dinov2-clip")):
        costs.note(here / "runs/paper", stage, f"paper-{key}", 360.0)
    assert "nothing of this kind" not in plan.show(profile)


def test_a_measurement_that_was_cut_off_is_not_done(here):
    profile = replace(PAPER, runs={"baseline": [0]})
    out = here / "runs/paper/measure/baseline/s0"
    for name in ("cknna.csv", "attention/maps.npz", "permutation/accuracy.csv"):
        (job,) = (job for job in plan.jobs(profile) if job.stage == "measure")
        assert not job.done
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    (job,) = (job for job in plan.jobs(profile) if job.stage == "measure")
    assert job.done


def test_which_runs_give_which_table(here):
    text = plan.show(replace(PAPER, runs={"baseline": [0], "viral": [0], "relation": [0]}))
    after = text[text.index("Table 5: ") :].splitlines()
    assert after[0] == "Table 5: 0 of 5 done: baseline viral relation"
    assert after[1].split(": ")[1].split() == ["layers-15-17", "layers-14-18"]


def test_a_manifest_replaces_the_stated_counts(here):
    assert plan.samples_of(PAPER)["images"] == 378797
    mix = here / PAPER.data.conversations
    mix.parent.mkdir(parents=True)
    mix.write_text(json.dumps([{"image": "a.jpg"}, {"image": "a.jpg"}, {"image": ["b.jpg"]}, {}]))
    assert plan.samples_of(PAPER) == {"captions": 558128, "conversations": 4, "images": 2}
    file = here / "runs/paper/manifest/conversations.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"samples": 12, "images": 7}))
    assert plan.samples_of(PAPER) == {"captions": 558128, "conversations": 12, "images": 7}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_a_plan(name, here):
    profile = profiles.load(name)
    text = plan.show(profile)
    assert all(run in text for run in profile.runs)
