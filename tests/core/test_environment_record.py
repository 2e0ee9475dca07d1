"""What a training notes about code, packages and machine; interrupted trainings; folders without git."""

import json
import subprocess

import pytest
import torch

from viral_core import environment


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_and_what_differs_from_it(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "viral_core").mkdir()
    (tmp_path / "viral_core/a.py").write_text("1")
    (tmp_path / "params.yaml").write_text("laptop")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    (tmp_path / "params.yaml").write_text("smoke")  # written by the pipeline itself: no change of the code
    assert environment.git_state(tmp_path) == {"commit": head, "changed": []}
    (tmp_path / "viral_core/a.py").write_text("2")
    (tmp_path / "viral_core/b.py").write_text("3")
    assert environment.git_state(tmp_path) == {"commit": head, "changed": ["viral_core/a.py", "viral_core/b.py"]}


@pytest.mark.parametrize("missing", ["repository", "commit", "program"])
def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch, missing):
    if missing == "commit":
        git(tmp_path, "init", "-q")
    if missing == "program":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state(tmp_path) == {"commit": "unknown", "changed": "unknown"}
    assert environment.describe(tmp_path)["git"]["commit"] == "unknown"


def test_every_start_is_noted_and_what_came_after_the_resumed_state_is_not(tmp_path):
    file = tmp_path / "run/environment.json"
    for step in (0, 200, 400, 200):
        environment.record(file, step)
    assert [entry["from_step"] for entry in json.loads(file.read_text())] == [0, 200]
    environment.record(file, 0)
    assert [entry["from_step"] for entry in json.loads(file.read_text())] == [0]
    file.write_text('[{"from_st')  # killed while writing
    environment.record(file, 300)
    assert [entry["from_step"] for entry in json.loads(file.read_text())] == [300]


def test_packages_and_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = environment.describe(tmp_path)
    assert found["packages"] == {"torch": torch.__version__, "no-such-package": None}
    assert found["processes"] == 2
