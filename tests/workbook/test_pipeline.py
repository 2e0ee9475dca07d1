"""The smoke profile, from nothing to its notebook, in a copy of the repository: the real pipeline, very small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import environment, run

from workbook.benchmarks.answers import read_answers


def status(folder: Path) -> set[str]:
    """Stages that a `dvc repro` would run."""
    return set(json.loads(run(folder, "dvc", "status", "--json")))


@pytest.fixture
def smoke(smoke_copy):
    return smoke_copy


def test_every_stage_leaves_its_output(smoke):
    stages = yaml.safe_load((smoke / "params.yaml").read_text())["stages"]
    outs = [item["out"] for entries in stages.values() for item in entries.values()]
    outs += [f"runs/smoke/evaluate/{item['run']}/s{item['seed']}" for item in stages["stage2"].values()]
    assert len(outs) == 27
    assert all((smoke / out).exists() for out in outs)
    results = smoke / "runs/smoke/results/pilot_study"
    assert {file.suffix for file in results.iterdir()} >= {".png", ".svg", ".csv"}


@pytest.mark.parametrize("name", ["pilot_study", "residual_variants", "main_table", "ablations", "ross", "llava_next"])
def test_a_notebook_names_what_has_not_been_run(smoke, name):
    """Smoke trains a part of the systems that these notebooks are about."""
    cells = json.loads((smoke / f"runs/smoke/notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = json.dumps([cell["outputs"] for cell in cells if cell["cell_type"] == "code"])
    assert "ot run" in shown
    assert '"ename"' not in shown


def test_both_losses_are_logged_for_every_arm(smoke):
    for run_name, aligned in (("baseline", False), ("viral", True)):
        lines = (smoke / f"runs/smoke/stage2/{run_name}/s0/log.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert all(entry["lm_loss"] > 0 for entry in entries)
        assert all((entry["vra_loss"] is not None) == aligned for entry in entries)


def test_a_second_repro_does_nothing_and_says_so(smoke):
    said = run(smoke, "dvc", "repro")
    assert "Data and pipelines are up to date." in said
    assert "Running stage" not in said
    said = run(smoke, sys.executable, "-m", "workbook", "repro", "smoke")
    assert "0 stages run in" in said
    assert "open first    runs/smoke/report/index.html" in said


def test_dvc_shows_metrics_plots_and_what_differs(smoke):
    metrics = json.loads(run(smoke, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert [path.split("/")[3] for path in metrics] == ["baseline", "viral"]
    assert all("cv_bench" in file["data"] for file in metrics.values())
    run(smoke, "dvc", "plots", "show")
    page = (smoke / "dvc_plots/index.html").read_text()
    assert "language_loss" in page
    assert "viral/s0/log.csv" in page


def test_a_notebook_is_executed_by_this_python_with_its_profile(smoke):
    """Whatever kernels of the name python3 there are elsewhere."""
    spec = smoke / "foreign/kernels/python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    file = smoke / "runs/smoke/notebooks/paper_arithmetic.ipynb"
    before = file.read_bytes()
    variables = {**environment(smoke), "JUPYTER_PATH": str(smoke / "foreign")}
    command = [sys.executable, "-m", "workbook", "notebook", "paper_arithmetic", "smoke"]
    try:
        subprocess.run(command, cwd=smoke, env=variables, check=True, capture_output=True)
        notebook = json.loads(file.read_text())
    finally:
        file.write_bytes(before)
    assert notebook["metadata"]["papermill"]["parameters"] == {"profile": "smoke"}
    assert notebook["metadata"]["papermill"]["exception"] is None


def test_changing_one_run_reruns_that_run_and_what_depends_on_it(smoke):
    registry, lock = smoke / "profiles/runs.yaml", smoke / "dvc.lock"
    before, recorded = registry.read_text(), lock.read_bytes()
    runs = yaml.safe_load(before)
    runs["as-released"]["align"]["weight"] = 0.25
    registry.write_text(yaml.safe_dump(runs))
    run(smoke, sys.executable, "-m", "workbook", "profile", "smoke")
    # Its evaluation follows once its output has changed.
    assert status(smoke) == {"stage2@smoke-as-released-s0"}
    answers = smoke / "runs/smoke/evaluate/as-released/s0/pope_random.jsonl"
    old = read_answers(answers)[0]["model"]
    run(smoke, "dvc", "repro", "evaluate@smoke-as-released-s0")  # other weights: what was answered is asked again
    assert read_answers(answers)[0]["model"] != old
    registry.write_text(before)
    lock.write_bytes(recorded)
    run(smoke, sys.executable, "-m", "workbook", "profile", "smoke")
    run(smoke, "dvc", "checkout", "--force")  # as a checkout of an earlier commit is followed by
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
    assert (smoke / "runs/other/data/llava_pretrain").is_dir()


def test_a_saved_run_answers_as_it_was_evaluated(smoke):
    """Load the run from its folder and ask again: the same answers as in its evaluation."""
    from viral_core.run_folder import load_run
    from workbook.benchmarks import load_rows
    from workbook.evaluate import evaluate

    here = Path.cwd()
    os.chdir(smoke)
    try:
        run_folder = "runs/smoke/stage2/viral/s0"
        loaded = load_run(run_folder)
        rows = load_rows("pope_popular", "runs/smoke/data/benchmarks")
        said = evaluate(
            loaded, rows, "again.jsonl", benchmark="pope_popular",
            model_id="again", batch_size=5, max_new_tokens=8,
        )  # fmt: skip
        _, kept = read_answers("runs/smoke/evaluate/viral/s0/pope_popular.jsonl")
    finally:
        os.chdir(here)
    assert {row["id"]: row["response"] for row in said[0]} == {row["id"]: row["response"] for row in kept[0]}
