"""Models of the hub, through the hub's own client, from a hub on this machine: fetched, recognised, then offline."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import serve

from workbook.paths import ROOT
from workbook.scale import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What real repositories hold beside what is needed: other formats, pictures, a README.
CLUTTER = ("README.md", ".gitattributes", "tf_model.h5", "flax_model.msgpack", "assets/teaser.png")
REPOSITORIES = {
    "lab/sharded": ["config.json", "tokenizer.model", "model.safetensors.index.json", "model-1-of-2.safetensors",
                    "model-2-of-2.safetensors", "pytorch_model.bin"],
    "lab/pickled": ["config.json", "pytorch_model.bin.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin"],
    "lab/vae": ["model_index.json", "flux.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
                "vae/config.json", "vae/diffusion_pytorch_model.safetensors"],
}  # fmt: skip
MODEL = f"""
from types import SimpleNamespace
from workbook.scale import hub

def model(name, subfolder=""):
    return SimpleNamespace(path=name, revision="{COMMIT}", subfolder=subfolder)
"""
MISSING = {"lab/sharded": "pytorch_model.bin", "lab/vae": "flux.safetensors"}  # never downloaded


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name, files in REPOSITORIES.items():
        for file in (*files, *CLUTTER):
            path = folder / "models" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {file}")
        index = {"weight_map": {str(i): f for i, f in enumerate(files) if "-1" in f or "-2" in f}}
        for file in (folder / "models" / name).glob("*.index.json"):
            file.write_text(json.dumps(index))
    return folder


def call(home, code, **environment):
    """What a process of its own prints: the client reads its settings when it is imported."""
    script = f"{MODEL}\n{code}"
    variables = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    variables |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_what_was_fetched_is_recognised_and_asked_for_no_more(repositories, tmp_path):
    requests: list[str] = []
    models = [("lab/sharded", ""), ("lab/pickled", ""), ("lab/vae", "vae")]
    with serve(repositories, requests) as url:
        lines = call(tmp_path, f"""
for name, subfolder in {models}:
    print(hub.snapshot(model(name, subfolder)))
    hub.download(model(name, subfolder))
    print(hub.snapshot(model(name, subfolder)))
""", HF_ENDPOINT=url)  # fmt: skip
    assert lines[:6:2] == ["None"] * 3
    folders = {name: tmp_path / f"hub/models--{name.replace('/', '--')}/snapshots/{COMMIT}" for name, _ in models}
    assert lines[1:6:2] == [str(folder) for folder in folders.values()]
    for name, folder in folders.items():
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        needed = {f for f in REPOSITORIES[name] if f != MISSING.get(name) and not f.startswith("text_")}
        assert files == {f for f in needed if name != "lab/vae" or f.startswith("vae/")}

    # No server any more: all is there, and then one weight file is not.
    requests.clear()
    ask = "\n".join(f"print(hub.snapshot(model({name!r}, {sub!r})) is not None)" for name, sub in models)
    assert call(tmp_path, ask, HF_ENDPOINT=url) == ["True"] * 3
    (folders["lab/pickled"] / "pytorch_model-2.bin").unlink()
    (folders["lab/sharded"] / "tokenizer.model").unlink()
    (folders["lab/vae"] / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert call(tmp_path, ask, HF_ENDPOINT=url) == ["False"] * 3


def test_a_process_goes_offline_when_nothing_is_missing(repositories, tmp_path):
    code = """
from huggingface_hub import is_offline_mode
one, other = map(model, ("lab/sharded", "lab/pickled"))
hub.download(one)
for models in ([], [one, other], [one]):
    hub.go_offline(models)
    print(is_offline_mode())
"""
    with serve(repositories) as url:
        assert call(tmp_path, code, HF_ENDPOINT=url) == ["False", "False", "True"]


def test_what_the_hub_does_not_have(repositories, tmp_path):
    code = "try:\n    hub.download(model('lab/none'))\nexcept OSError as error:\n    print(error)"
    with serve(repositories) as url:
        (line,) = call(tmp_path, code, HF_ENDPOINT=url)
    assert line.startswith("the hub has none in public: correct the path")


@pytest.mark.parametrize(
    ("revision", "valid"),
    [(COMMIT, True), ("main", False), (None, False), (COMMIT[:39], False), (f"{COMMIT}\n", False)],
)
def test_a_commit_is_no_branch(revision, valid):
    assert hub.is_commit(revision) is valid


@pytest.mark.parametrize(
    ("path", "valid"),
    [("owner/name", True), ("./name", False), ("../name", False), ("/name", False), ("a/b/c", False)],
)
def test_a_path_is_no_hub_id(path, valid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id(path) is valid
