"""The rehearsal's cheapest part: models and data fetched from the hub on this machine, then a cache and a stage 1.

Two processes with DeepSpeed's ZeRO-2, bfloat16 and gradient checkpointing train the projector, are killed after a few
steps, and go on from there.  The whole is `python tests/rehearsal.py make fetch repro PROFILE=rehearsal`.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import rehearsal

from workbook.paths import ROOT


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository, with a hub that has the models of one run."""
    folder = tmp_path_factory.mktemp("rehearsal")
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "cache", "tmp", "*.egg-info")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=skipped)
    hub = folder / rehearsal.HUB
    for name in ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "facebook/dinov2-base"):
        rehearsal.write_model(hub / "models" / name, name)
    profile = folder / "profiles/rehearsal.yaml"
    text = profile.read_text(encoding="utf-8").replace("steps: 2,", "steps: 12,", 1)  # time to be killed in
    profile.write_text(text[: text.index("\nruns:\n")] + "\nruns: {viral: [0]}\n", encoding="utf-8")
    return folder


def workbook(folder, *command, online=False, wait=True):
    """A command of the workbook; `online`: with the hub served beside it."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment |= {"HF_HOME": str(folder / rehearsal.HUB.parent / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    start = [sys.executable, "tests/rehearsal.py"] if online else []
    process = subprocess.Popen(
        [*start, sys.executable, "-m", "workbook", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait:
        return process
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-5000:]
    return output


def test_fetched_checked_killed_and_trained(copy):
    assert workbook(copy, "fetch", "rehearsal", online=True).endswith("all there\n")
    said = workbook(copy, "doctor", "rehearsal")  # offline from here on
    assert said.count("on this machine") == 3
    assert "conversations: 1 conversations with a first turn from gpt" in said
    length = "clip: cut at 2048 tokens: 1 conversations, 0 images, 1 without a supervised token"
    assert said.count(length) == workbook(copy, "doctor", "rehearsal").count(length) == 1  # kept, not counted again
    workbook(copy, "profile", "rehearsal")

    out = copy / "runs/rehearsal/stage1/vicuna-7b-clip"
    state = out.with_name("vicuna-7b-clip.work") / "state"
    process = workbook(copy, "stage1", "rehearsal-vicuna-7b-clip", wait=False)
    end = time.monotonic() + 500
    while not list(state.glob("checkpoint-1/complete")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    launcher = psutil.Process(process.pid)
    for member in [*launcher.children(recursive=True), launcher]:  # torchrun's workers have sessions of their own
        member.kill()
    process.communicate()
    assert not out.exists(), "it ended before it could be killed"
    workbook(copy, "stage1", "rehearsal-vicuna-7b-clip")
    starts = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    assert starts[0]["from_step"] == 0
    assert 1 <= starts[1]["from_step"] < 12
    assert {start["processes"] for start in starts} == {2}
    assert (out / "projector.safetensors").is_file()
