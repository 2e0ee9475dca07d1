"""The smoke profile, from nothing to its notebook, in a copy of the repository: the real pipeline, very small."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from commands import run

from workbook.benchmarks.answers import read_answers


def status(folder: Path) -> set[str]:
    """Stages that a `dvc repro` would run."""
    return set(json.loads(run(folder, "dvc", "status", "--json")))


@pytest.fixture
def smoke(smoke_copy):
    return smoke_copy


def test_every_stage_leaves_its_output(smoke):
    params = json.loads((smoke / "params.json").read_text())
    entries = [entry for name, stage in params.items() if name != "profile" for entry in stage.values()]
    assert len(entries) > 15
    assert all((smoke / entry["out"]).exists() for entry in entries)
    results = smoke / "runs/smoke/results/pilot_study"
    assert {"figure_2d.png", "figure_2d.svg", "figure_2d.csv", "figure_2e.csv", "gains.csv"} <= {
        file.name for file in results.iterdir()
    }


def test_both_losses_are_logged_for_every_arm(smoke):
    for run_name, aligned in (("baseline-s0", False), ("viral-s0", True)):
        lines = (smoke / f"runs/smoke/stage2/{run_name}/log.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert all(entry["lm_loss"] > 0 for entry in entries)
        assert all((entry["vra_loss"] is not None) == aligned for entry in entries)


def test_a_second_repro_does_nothing_and_says_so(smoke):
    said = run(smoke, "dvc", "repro")
    assert "Data and pipelines are up to date." in said
    assert "Running stage" not in said


def test_changing_one_run_reruns_that_run_and_what_depends_on_it(smoke):
    registry = smoke / "profiles/runs.yaml"
    before = registry.read_text()
    runs = yaml.safe_load(before)
    runs["layers-15-17"]["align"]["weight"] = 0.25
    registry.write_text(yaml.safe_dump(runs))
    run(smoke, sys.executable, "-m", "workbook", "profile", "smoke")
    try:
        # Its evaluation follows once its output has changed; the arithmetic of the paper's tables reads the registry.
        assert status(smoke) == {"stage2@smoke-layers-15-17-s0", "notebook@smoke-paper_arithmetic"}
        answers = smoke / "runs/smoke/evaluation/layers-15-17-s0/pope_random.jsonl"
        old = read_answers(answers)[0]["model"]
        run(smoke, "dvc", "repro", "evaluate@smoke-layers-15-17-s0")  # other weights: what was answered is asked again
        assert read_answers(answers)[0]["model"] != old
    finally:
        registry.write_text(before)
        run(smoke, sys.executable, "-m", "workbook", "profile", "smoke")
        run(smoke, "dvc", "repro")
    assert read_answers(answers)[0]["model"] == old
    assert status(smoke) == set()


def test_switching_profiles_loses_nothing(smoke):
    """Select another profile, run one of its stages, come back: the first profile's results are still up to date."""
    (smoke / "profiles/other.yaml").write_text(
        yaml.safe_dump({"extends": "smoke", "label": "other", "world": {"captions": 8}})
    )
    run(smoke, sys.executable, "-m", "workbook", "profile", "other")
    run(smoke, "dvc", "repro", "world@other-world")
    run(smoke, sys.executable, "-m", "workbook", "profile", "smoke")
    assert status(smoke) == set()
    assert "Running stage" not in run(smoke, "dvc", "repro")
    assert (smoke / "runs/other/data/llava_pretrain").is_dir()


def test_a_saved_run_answers_as_it_was_evaluated(smoke):
    """Load the run from its folder and ask again: the same answers as in its evaluation."""
    from viral_core.run_folder import load_run
    from workbook.benchmarks import load_rows
    from workbook.benchmarks.answers import read_answers
    from workbook.evaluate import evaluate

    here = Path.cwd()
    os.chdir(smoke)
    try:
        run_folder = "runs/smoke/stage2/viral-s0"
        loaded = load_run(run_folder)
        rows = load_rows("pope_popular", "runs/smoke/data/benchmarks")
        said = evaluate(
            loaded.model, loaded.processor, loaded.template, rows, "again.jsonl", benchmark="pope_popular",
            model_id="again", batch_size=5, max_new_tokens=8, progress=False,
        )  # fmt: skip
        _, kept = read_answers("runs/smoke/evaluation/viral-s0/pope_popular.jsonl")
    finally:
        os.chdir(here)
    assert {row["id"]: row["response"] for row in said[0]} == {row["id"]: row["response"] for row in kept[0]}
