"""The preflight: what is missing is named with its remedy, and nothing passes that is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from commands import PROFILES, replace
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from transformers import GPT2Config, LlamaConfig, Phi3Config

from viral_core import losses
from viral_core.teachers import KINDS
from workbook import config as profiles
from workbook.paths import ROOT
from workbook.scale import doctor, estimates, hub, plan
from workbook.scale.doctor import MISSING, OK
from workbook.sections import Launch, ProfileError

PAPER = replace(profiles.load("paper"), runs={"baseline": [0], "viral": [0]}, learning_curve=None,
                launch=Launch(gpus=2, deepspeed="zero2"))  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A repository without results, no hub cache and no GPU."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(hub, "snapshot", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def findings(check, profile, level=MISSING):
    return [finding for finding in check(profile) if finding.level == level]


def gpus(here, *sizes):
    """A machine whose nvidia-smi lists GPUs of so many MiB."""
    (here / "bin").mkdir(exist_ok=True)
    lines = "\n".join(f"echo 'NVIDIA A100, {size}'" for size in sizes)
    (here / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}\n")
    (here / "bin" / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize("name", ["laptop", "smoke"])
def test_the_embedded_profiles_pass(name, here, capsys):
    profile = profiles.load(name)
    for model in hub.used(profile):
        if getattr(model, "kind", None) != "oracle":  # which a stage makes
            shutil.copytree(ROOT / model.path, model.path, ignore=shutil.ignore_patterns("*.safetensors"))
            (Path(model.path) / "model.safetensors").touch()
    assert doctor.run(profile)
    said = capsys.readouterr().out
    assert "no GPU needed" in said
    assert said.endswith("all there\n")


def test_packages_out_of_range_or_absent(here):
    text = (here / "pyproject.toml").read_text()
    (here / "pyproject.toml").write_text(
        text.replace("tqdm>=4.67", "tqdm>=99").replace("seaborn>=", "no-such-package>=")
    )
    (wrong,) = findings(doctor.packages, PAPER)
    assert "tqdm>=99 (4." in wrong.what
    assert "no-such-package>=0.13 (not installed)" in wrong.what
    assert "make setup, or: python -m pip install 'tqdm>=99'" in wrong.remedy
    flash = replace(PAPER, compute=replace(PAPER.compute, attention="flash_attention_2"))
    (wrong,) = findings(doctor.packages, flash)
    assert "flash-attn" in wrong.what
    assert "sdpa" in wrong.remedy


def test_gpus_are_counted(here):
    assert "0 of 2 GPUs" in findings(doctor.gpus, PAPER)[0].what
    gpus(here, 40960)
    assert "1 of 2 GPUs" in findings(doctor.gpus, PAPER)[0].what
    gpus(here, 40960, 40960)
    assert "A100 40 GiB, NVIDIA A100 40 GiB" in findings(doctor.gpus, PAPER, OK)[0].what


def test_memory_against_the_estimate(here, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5000e9))
    gpus(here, 40960, 40960)
    assert not findings(doctor.resources, PAPER)
    gpus(here, 24576, 40960)
    wrong = findings(doctor.resources, PAPER)
    assert any("for stage2 of baseline, viral" in w.what and "there are 24" in w.what for w in wrong)
    assert "stage2.micro_batch" in wrong[-1].remedy
    assert "zero3" in wrong[-1].remedy
    gpus(here, 20480)
    evaluation = next(w for w in findings(doctor.resources, PAPER) if "for evaluate of baseline, viral" in w.what)
    assert evaluation.remedy.startswith("in the profile, lower evaluation.batch_size")


def test_models_of_the_hub(here):
    wrong = findings(doctor.models, PAPER)
    assert [w.what.split()[1].split("@")[0] for w in wrong] == [
        "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "facebook/dinov2-base"
    ]  # fmt: skip
    assert "make fetch PROFILE=paper" in wrong[0].remedy


def test_gated_models_ask_for_a_token(monkeypatch):
    def refuse(*_, **__):
        raise GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None, status_code=403))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(OSError, match="accept them at https://huggingface.co/owner/model, then set HF_TOKEN"):
        hub.download(SimpleNamespace(path="owner/model", revision=COMMIT))


def test_local_folders_are_looked_into(here):
    path = "models/mine"
    mine = replace(PAPER, languages={**PAPER.languages, "vicuna-7b": replace(PAPER.languages["vicuna-7b"], path=path)})
    folder = here / path
    folder.mkdir(parents=True)
    wrong = findings(doctor.models, mine)[0]
    assert wrong.what == "model folder models/mine lacks config.json, weights (*.safetensors)"
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    assert "lacks model-2.safetensors" in findings(doctor.models, mine)[0].what
    (folder / "model-2.safetensors").touch()
    assert "model folder models/mine" in [f.what for f in doctor.models(mine)]


STAND_INS = ROOT / "workbook/world/stand_ins"
THIN = dict(hidden_size=16, num_hidden_layers=8, num_attention_heads=2, intermediate_size=32)
OTHER = {
    "{gpt2}": GPT2Config(n_embd=16, n_layer=8, n_head=2),
    "{phi3}": Phi3Config(**THIN, pad_token_id=0),
    "{llama}": LlamaConfig(**THIN | dict(hidden_act="none such")),
}


@pytest.mark.parametrize(
    ("role", "model", "change", "message"),
    [
        ("visions clip", "dinov2", {}, "is a 'dinov2' model"),
        ("visions clip", "vicuna-7b", {}, "is a 'llama' model"),
        ("visions clip", "clip -preprocessor_config.json", {}, "lacks preprocessor_config.json"),
        ("visions clip", "clip -config.json", {}, "has a damaged config.json"),
        ("teachers dinov2", "dinov2 -preprocessor_config.json", {}, "lacks preprocessor_config.json"),
        ("teachers dinov2", "dinov2", {"kind": "clip"}, "is a 'dinov2' model"),
        ("teachers dinov2", "dinov2", {"kind": "dinov3"}, "teachers.dinov2: no kind 'dinov3'"),
        ("teachers dinov2", "clip", {}, "is a 'clip' model, not of kind 'dinov2'"),
        ("teachers dinov2", "dinov2", {"kind": "sam"}, "is a 'dinov2' model, not of kind 'sam'"),
        ("visions clip", "clip", {"feature_layer": -9}, "blocks, and no layer -9"),
        ("visions clip", "clip", {"feature_layer": 9}, "blocks, and no layer 9"),
        ("languages vicuna-7b", "clip", {}, "is a 'clip' model"),
        ("languages vicuna-7b", "vicuna-7b {gpt2}", {}, "is a 'gpt2' model"),
        ("languages vicuna-7b", "vicuna-7b {phi3}", {}, "is a 'phi3' model"),
        ("languages vicuna-7b", "vicuna-7b {llama}", {}, "has a config.json that transformers does not take"),
        ("languages vicuna-7b", "vicuna-7b", {"blocks": 6}, "has 8 blocks, not 6"),
        ("languages vicuna-7b", "vicuna-7b -tokenizer.json", {}, "lacks a tokenizer"),
        ("languages vicuna-7b", "vicuna-7b <|im_end|>", {"template": "qwen"}, "has no '<|im_end|>' of template 'qwen'"),
    ],
)
def test_a_model_that_is_not_what_the_profile_says(here, capsys, role, model, change, message):
    """It is found here, and neither doctor nor plan trips over it."""
    (here / "workbook").symlink_to(ROOT / "workbook")
    section, name = role.split()
    model, *less = model.split()
    shutil.copytree(STAND_INS / model, "models/mine")
    for removed in less:
        if removed.startswith("{"):
            OTHER[removed].save_pretrained("models/mine")
        elif removed == "-config.json":
            Path("models/mine/config.json").write_text("{")
        elif removed.startswith("-"):
            Path("models/mine", removed[1:]).unlink()
        else:
            for file in Path("models/mine").glob("tokenizer*.json"):
                file.write_text(file.read_text().replace(removed, "<|other|>"))
    profile = replace(profiles.load("smoke"), runs={"viral": [0]})
    models = getattr(profile, section)
    profile = replace(profile, **{section: {**models, name: replace(models[name], path="models/mine", **change)}})
    assert not doctor.run(profile)
    said = capsys.readouterr().out
    assert said.count("MISSING") == said.count(f"MISSING {section}.{name}: ") > 0
    assert message in said
    assert "memory and disk not estimated yet" in said
    if "dinov3" in message:
        assert f"-> there are: {', '.join([*KINDS, 'vae', 'oracle'])}\n" in said
    assert "viral" in plan.show(profile)


def test_an_objective_without_a_function(monkeypatch):
    monkeypatch.delattr(losses, "relation")
    profile = replace(profiles.load("smoke"), runs={"viral": [0], "relation": [0]})
    assert [wrong.what for wrong in findings(doctor.objectives, profile)] == [
        "runs.relation: no function relation in viral_core/losses.py"
    ]


def test_files_and_disk(here, monkeypatch):
    wrong = findings(doctor.files, PAPER)
    assert "no file runs/paper/data/llava_pretrain/blip_laion_cc_sbu_558k.json" in [w.what for w in wrong]
    assert sum("benchmark" in w.what for w in wrong) == 8
    assert all("fetch paper --list" in w.remedy for w in wrong)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=500e9))
    short = findings(doctor.resources, PAPER)[-1]
    assert "caches 670.3" in short.what  # 378797 images x 576 x 768 x 2 bytes, and DVC's copy
    assert "`cache: int8` the caches take 337 GB" in short.remedy
    states = 3 * 3 * 4 * estimates.stage2(PAPER, "viral").parameters  # three states of weights and two moments
    assert f"resume states {states / 1e9:.1f}" in short.what
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5000e9))
    assert not findings(doctor.resources, PAPER)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_names_what_there_is(name):
    doctor.check_benchmarks(profiles.load(name))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "evaluation",
            {"benchmarks": ["cv_benchh"]},
            "evaluation.benchmarks: no benchmark 'cv_benchh'; there are: cv",
        ),
        ("evaluation", {"sampled": {"mmpv": 3}}, "evaluation.sampled: no benchmark 'mmpv'"),
        ("learning_curve", {"benchmarks": ["mmpv"]}, "learning_curve.benchmarks: no benchmark 'mmpv'"),
        ("cknna", {"benchmark": "popee"}, "cknna.benchmark: no benchmark 'popee'"),
        ("permutation", {"benchmark": "whats_up"}, "permutation.benchmark: no benchmark 'whats_up'"),
        (
            "attention",
            {"category": "Relatoin"},
            "attention.category: no category 'Relatoin'; there are: Relation, Count",
        ),
        (
            "evaluation",
            {"sampled": {"pope_random": 3}},
            "evaluation.sampled: pope_random and pope_popular need the same",
        ),
        ("world", {"benchmarks": {"cv_bench": 4}}, "evaluation.benchmarks: no benchmark 'mmvp'; there are: cv_bench$"),
    ],
)
def test_a_name_that_there_is_not_is_said_before_anything_long(section, change, message):
    laptop = profiles.load("laptop")
    wrong = replace(laptop, **{section: replace(getattr(laptop, section), **change)})
    with pytest.raises(ProfileError, match=f"profiles/laptop.yaml: {message}"):
        list(doctor.files(wrong))


def test_a_measurement_that_asks_for_more_than_there_is(here, monkeypatch):
    asked = {
        "cv_bench": [{"group": "a.png", "category": "Count"}],
        "pope_popular": [{"group": "a.png", "category": "x"}],
    }
    monkeypatch.setattr(doctor, "load_rows", lambda name, folder: 3 * asked[name])
    found = [fault.what for fault in doctor.files(profiles.load("laptop")) if fault.level == doctor.NOTE]
    assert found == ["cknna.images is 40, and pope_popular has 1", "attention.questions is 100, and cv_bench has 0"]


def test_images_last_and_only_when_the_rest_is_there(here, monkeypatch, capsys):
    assert not doctor.run(PAPER)
    assert "training images not opened yet" in capsys.readouterr().out

    for check in ("packages", "gpus", "models", "files", "resources"):
        monkeypatch.setattr(doctor, check, lambda _: iter(()))
    monkeypatch.setattr(doctor, "lengths", lambda *_: iter(()))
    data = PAPER.data
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    for part, folder in (("captions", data.caption_images), ("conversations", data.conversation_images)):
        (here / folder / "coco").mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(here / folder / "coco/a.jpg")
        entries = [{"id": "a", "image": "coco/a.jpg", "conversations": turns}]
        (here / getattr(data, part)).write_text(json.dumps(entries))
    assert doctor.run(PAPER)
    assert "conversations: 1 samples, 1 images, all of which open" in capsys.readouterr().out
    assert (here / "runs/paper/manifest/conversations.json").is_file()

    part = PAPER.systems["viral"].model_copy(update={"images": 2})
    assert not doctor.run(replace(PAPER, systems={**PAPER.systems, "viral": part}))
    assert "run viral takes 2 images of the conversations, and there are 1" in capsys.readouterr().out

    os.truncate(here / data.conversation_images / "coco/a.jpg", 300)
    entries += [{"id": "b", "conversations": [{**turns[0], "value": "Hi"}, turns[1]]}]
    (here / data.conversations).write_text(json.dumps(entries))
    assert not doctor.run(PAPER)
    said = capsys.readouterr().out
    assert "sample a: image" in said
    assert "--drop-faulty" in said
    assert doctor.run(PAPER, drop_faulty=True)
    assert "1 faulty entries taken out of llava_v1_5_mix665k.json" in capsys.readouterr().out

    for content in ("", "[]", "[{", '{"data": []}'):  # no fault of entries
        (here / data.conversations).write_text(content)
        assert not doctor.run(PAPER, drop_faulty=True)
        said = capsys.readouterr().out
        assert "restore the json or the images (make fetch PROFILE=paper" in said
        assert "--drop-faulty" not in said
        assert (here / data.conversations).read_text() == content


FAULTY = [
    ({"id": "café", "image": 12}, r"sample caf\xe9: image is 12: expected a file name"),
    ({"id": "b", "image": ["a.jpg", None]}, "sample b: image is ['a.jpg', None]"),
    ({"id": "c", "image": "x" * 300}, "sample c: image xxx"),
    ({"id": "d", "text": "Hi \ud83d"}, "sample d: half a character (a lone surrogate)"),
    ({"id": "e", "image": "../../etc/passwd.jpg"}, "sample e: image ../../etc/passwd.jpg lies outside"),
]


def test_faults_are_listed_in_any_locale(here):
    data, entries = PAPER.data, []
    for entry, _ in FAULTY:
        turns = [{"from": "human", "value": entry.get("text", "Hi")}, {"from": "gpt", "value": "Hello."}]
        entries.append({**entry, "conversations": turns})
    for part, folder in (("captions", data.caption_images), ("conversations", data.conversation_images)):
        Path(folder).mkdir(parents=True)
        Path(getattr(data, part)).write_text(json.dumps(entries), encoding="utf-8")
    code = """
import sys
from workbook import __main__
from workbook.scale import doctor
for check in ("packages", "gpus", "models", "files", "resources"):
    setattr(doctor, check, lambda profile: iter(()))
sys.argv = ["workbook", "doctor", "paper"]
__main__.main()
"""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **plain})
    assert done.returncode == 1, done.stderr
    assert all(done.stdout.count(fault) == 2 for _, fault in FAULTY)
