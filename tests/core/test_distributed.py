"""Two processes (gloo, CPU) train and answer as one does: ZeRO-2, ZeRO-3, DDP, a kill and a resume, shared answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from distributed_worker import RECIPE, ask, train
from safetensors.torch import load_file

from viral_core.conversations import load_conversations
from viral_core.data import ConversationDataset, GroupedSampler
from viral_core.files import read_lines
from viral_core.llava import assemble
from viral_core.templates import TEMPLATES
from workbook.evaluate import sampled
from workbook.paths import ROOT

pytest.importorskip("deepspeed")
WORKER = Path(__file__).parents[1] / "distributed_worker.py"
LIMIT = 240  # seconds of one launch, which takes about 15


def together(folder: Path, *tasks: str, dies: bool = False) -> None:
    """Run the tasks in two processes.  Two that wait for each other forever are a failure, by the time limit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", WORKER, folder]
    started = subprocess.Popen([*command, *tasks], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        said, _ = started.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGTERM)  # torchrun ends its processes
        raise
    assert (started.returncode != 0) == dies, f"{tasks}\n{said[-8000:]}"


def keep_states(folder: Path, engine: str) -> None:
    """Keep the model's part of the resume states of a killed training, one of each process."""
    assert not (folder / f"{engine}-killed").exists()
    for file in folder.glob(f"{engine}-killed.work/state/checkpoint-*/global_step*/*model_states.pt"):
        shutil.copyfile(file, folder / f"{engine}-{file.name}")


def log(folder: Path) -> list[dict]:
    return read_lines(folder / "log.jsonl", "")


def weights(folder: Path) -> dict:
    return {f"{file.name}:{name}": value for file in folder.rglob("*.safetensors")
            for name, value in load_file(file).items()}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny, conversations, tmp_path_factory):
    """Where one process has trained and answered, and two have, and were killed, and went on."""
    folder = tmp_path_factory.mktemp("distributed")
    data, images = conversations
    places = {"models": str(tiny), "data": str(data), "images": str(images)}
    (folder / "places.json").write_text(json.dumps(places))
    train(folder, "single")
    for kind, protocol in (("greedy", None), ("sampled", sampled(runs=2, temperature=1.0))):
        ask(folder, folder / f"single-{kind}.jsonl", protocol)
    together(folder, "evaluate", "whole:ddp")  # in one process DeepSpeed cannot follow what is not DeepSpeed
    together(folder, "half:zero2", "whole:zero2", "die:zero2", dies=True)
    keep_states(folder, "zero2")
    together(folder, "resume:zero2", "whole:zero3")  # after a training with ZeRO-3 a process assembles no other model
    together(folder, "half:zero3")
    together(folder, "frozen:zero3")
    together(folder, "die:zero3", dies=True)
    keep_states(folder, "zero3")
    together(folder, "resume:zero3")
    return folder


def test_the_data_leave_a_process_without_images(tiny, conversations):
    """The trainings below meet a global batch of which the second process has no image and the first has some."""
    samples = load_conversations(*conversations)
    _, processor = assemble(tiny / "clip", tiny / "llama")
    data = ConversationDataset(samples, processor, TEMPLATES["vicuna_v1"], RECIPE.max_length)
    order = list(GroupedSampler(data.encodings, RECIPE.batch_size, RECIPE.steps, RECIPE.seed))
    batches = [order[i : i + 4] for i in range(0, len(order), 4)]
    shares = [[any(samples[i].images for i in part) for part in (batch[:2], batch[2:])] for batch in batches]
    assert [True, False] in shares


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_processes_train_as_one(folder, engine):
    single, shared = log(folder / "single"), log(folder / f"{engine}-whole")
    assert len(single) == len(shared) == RECIPE.steps
    for one, two in zip(single, shared, strict=True):
        assert (one["vra_loss"] is None) == (two["vra_loss"] is None)
        for key in ("loss", "lm_loss", "vra_loss"):
            assert two[key] == pytest.approx(one[key], abs=1e-4)
    one, two = weights(folder / "single"), weights(folder / f"{engine}-whole")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_half_precision_and_checkpointing_follow_the_same_course(folder, engine):
    """The paper's mode of training; bfloat16 has eight bits of precision."""
    single, half = log(folder / "single"), log(folder / f"{engine}-half")
    assert len(half) == 3
    for one, two in zip(single, half, strict=False):
        assert two["lm_loss"] == pytest.approx(one["lm_loss"], rel=0.03)
        assert (one["vra_loss"] is None) == (two["vra_loss"] is None)
        assert two["vra_loss"] is None or two["vra_loss"] == pytest.approx(one["vra_loss"], abs=0.05)


@pytest.mark.parametrize("name", ["zero2-half", "zero3-half", "ddp-whole"])
def test_cached_targets_reach_the_model_in_float32(folder, name):
    """DeepSpeed's bfloat16 would cast the tensors of a batch; an online teacher's features are float32."""
    assert json.loads((folder / f"{name}-targets.json").read_text()) == ["torch.float32"]


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_killed_training_resumes_exactly(folder, engine):
    whole, killed = weights(folder / f"{engine}-whole"), weights(folder / f"{engine}-killed")
    began = json.loads((folder / f"{engine}-killed" / "environment.json").read_text())
    assert [entry["from_step"] for entry in began] == [0, 2]
    assert whole.keys() == killed.keys()
    assert all((whole[name] == killed[name]).all() for name in whole)
    for one, two in zip(log(folder / f"{engine}-whole"), log(folder / f"{engine}-killed"), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_resume_states_hold_what_trains_alone(folder, engine):
    states = [torch.load(file, weights_only=False) for file in folder.glob(f"{engine}-*model_states.pt")]
    assert states
    for state in states:
        assert not state["frozen_param_fragments"]
        assert all("lora_" in name or "heads." in name or "projector" in name for name in state["module"])


def test_a_head_that_does_not_train_is_saved_whole(folder):
    """ZeRO-3 partitions it like the rest."""
    heads = load_file(folder / "zero3-frozen" / "heads.safetensors")
    assert heads
    assert all(weight.numel() for weight in heads.values())


def test_a_stage_starts_itself_on_two_processes(tiny, conversations, tmp_path):
    """`python -m workbook stage1 KEY`, as DVC calls it, of a profile that wants two processes and ZeRO-2."""
    skipped = shutil.ignore_patterns("__pycache__")
    for part in ("viral_core", "workbook", "profiles"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skipped)
    data, images = map(str, conversations)
    change = {
        "extends": "smoke",
        "label": "two processes",
        "data": {"captions": data, "caption_images": images, "conversations": data, "conversation_images": images},
        "languages": {"vicuna-7b": {"path": str(tiny / "llama"), "blocks": 4}},
        "visions": {"clip": {"path": str(tiny / "clip"), "cache": None}},
        "stage1": {"batch_size": 4, "micro_batch": 2, "steps": 2, "max_length": 512},
        "launch": {"gpus": 2, "deepspeed": "zero2", "cpu": True},
        "runs": {"baseline": [0]},
        **dict.fromkeys(("learning_curve", "attention", "permutation", "probes")),
    }
    (tmp_path / "profiles/two.yaml").write_text(yaml.safe_dump(change))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_WAIT_POLICY": "passive", "DS_ACCELERATOR": "cpu"}
    for command in (("profile", "two"), ("stage1", "two-vicuna-7b-clip")):
        done = subprocess.run([sys.executable, "-m", "workbook", *command], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=LIMIT)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert "torch.distributed.run --nproc-per-node 2" in done.stdout
    out = tmp_path / "runs/two/stage1/vicuna-7b-clip"
    assert [entry["step"] for entry in log(out)] == [1, 2]  # the first and the last
    assert (out / "projector.safetensors").is_file()
    described = json.loads((out / "environment.json").read_text())
    assert [entry["processes"] for entry in described] == [2]


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_shared_answers_are_those_of_one_process(folder, kind):
    assert (folder / f"shared-{kind}.jsonl").read_bytes() == (folder / f"single-{kind}.jsonl").read_bytes()
