"""Importing LLaVA-1.5's projector file: mapped, checked, and never more than weights."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from viral_core.llava import assemble, save_projector
from workbook import config as profiles
from workbook import pipeline, stages
from workbook.scale.projector import import_projector, read_projector


def llava_file(path, encoder_width=24, width=32):
    """A file as LLaVA's training writes it: half precision, the names of its `nn.Sequential` of two layers."""
    torch.manual_seed(3)
    mlp = nn.Sequential(nn.Linear(encoder_width, width), nn.GELU(), nn.Linear(width, width)).half()
    torch.save({f"model.mm_projector.{name}": value for name, value in mlp.state_dict().items()}, path)
    return mlp.float()


def test_llavas_projector_computes_the_same_in_ours(tiny, tmp_path):
    mlp = llava_file(tmp_path / "mm_projector.bin")
    import_projector(tmp_path / "mm_projector.bin", tmp_path / "stage1", 24, 32)
    llava, _ = assemble(tiny / "clip", tiny / "llama", projector=tmp_path / "stage1" / "projector.safetensors")
    features = torch.randn(2, 4, 24)
    torch.testing.assert_close(llava.model.multi_modal_projector(features), mlp(features))
    assert len(json.loads((tmp_path / "stage1" / "source.json").read_text())["sha256"]) == 64


def test_our_own_files_are_taken_too(tiny, tmp_path):
    llava, _ = assemble(tiny / "clip", tiny / "llama")
    save_projector(llava, tmp_path / "projector.safetensors")
    read = read_projector(tmp_path / "projector.safetensors")
    assert all(torch.equal(read[name], value) for name, value in load_file(tmp_path / "projector.safetensors").items())


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    trap = Trap(tmp_path / "sprung")
    torch.save({"model.mm_projector.0.weight": trap}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="no file of weights alone"):
        read_projector(tmp_path / "mm_projector.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="no file of weights alone"):
        read_projector(tmp_path / "plain.bin")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged" * 9)
    with pytest.raises(ValueError, match="no file of weights alone"):
        read_projector(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.mm_projector.query_tokens"], "resampler or Q-Former .*no visual token belongs to one patch"),
        (["model.vision_resampler.0.weight", "x.Qformer.layer"], "resampler or Q-Former"),
        (["model.mm_projector.weight", "model.mm_projector.bias"], "not LLaVA-1.5's two-layer MLP"),
        (["model.mm_projector.0.weight", "model.mm_projector.0.bias"], "linear_2.weight is absent"),
    ],
)
def test_other_projectors_are_refused_with_the_reason(names, message, tmp_path):
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=message):
        import_projector(tmp_path / "p.safetensors", tmp_path / "out", 2, 2)
    assert not (tmp_path / "out").exists()


def test_shapes_of_other_models_are_refused(tmp_path):
    llava_file(tmp_path / "p.bin")
    with pytest.raises(ValueError, match=r"linear_1.weight is \(32, 24\), .* need \(32, 1024\)"):
        import_projector(tmp_path / "p.bin", tmp_path / "out", 1024, 32)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="take `projectors` out of the profile"):
        read_projector(tmp_path / "none.bin")


def test_models_with_a_resampler_are_refused_with_the_reason(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "instructblip"}))
    with pytest.raises(ValueError, match="resampler or Q-Former: .*no visual token belongs to one patch"):
        assemble(tmp_path, tiny / "llama")


def test_a_profile_with_a_projector_skips_stage_1(tiny, tmp_path, monkeypatch):
    for file in profiles.PROFILES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    llava_file(tmp_path / "mm_projector.bin")
    change = {"extends": "laptop", "projectors": {"vicuna-7b-clip": str(tmp_path / "mm_projector.bin")}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    made = pipeline.stages(profiles.load("mine"))
    assert "mine-vicuna-7b-clip" not in made["stage1"]
    entry = made["projector"]["mine-vicuna-7b-clip"]
    assert entry["out"] == made["stage2"]["mine-baseline-s0"]["projector"]

    models = {
        "languages": {"vicuna-7b": SimpleNamespace(path=tiny / "llama", revision=None)},
        "visions": {"clip": SimpleNamespace(path=tiny / "clip", revision=None)},
    }
    stages.projector(SimpleNamespace(**models), {**entry, "out": str(tmp_path / "stage1")})
    assert (tmp_path / "stage1" / "projector.safetensors").is_file()
