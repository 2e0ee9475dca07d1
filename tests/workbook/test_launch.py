"""How stages start on several GPUs, what is tried and refused before a training, and answers of a killed group."""

import json
import os
from dataclasses import replace

import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch
from distributed_worker import ask

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.checkpoints import read_json, write_json
from viral_core.conversations import load_conversations
from viral_core.llava import add_lora, assemble
from viral_core.recipe import Recipe
from viral_core.specs import Align
from viral_core.templates import TEMPLATES
from viral_core.trainer import train_stage2
from workbook import config as profiles
from workbook.benchmarks.answers import append, read_answers
from workbook.scale import launch
from workbook.scale.launch import deepspeed_config, launcher
from workbook.sections import Launch, ProfileError, deepspeed_names

TEMPLATE = TEMPLATES["vicuna_v1"]


def test_one_node_is_torchrun_of_the_same_command():
    command = launcher(Launch(gpus=8, deepspeed="zero2"), ["stage2", "paper-viral-s0"], {})
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[-4:] == ["-m", "workbook", "stage2", "paper-viral-s0"]
    assert command[command.index("--nproc-per-node") + 1] == "8"


def test_several_nodes_are_deepspeeds_hostfile_or_slurm(tmp_path, monkeypatch):
    hosts = Launch(gpus=4, nodes=2, hostfile="hosts.txt", deepspeed="zero3")
    command = launcher(hosts, ["stage2", "k"], {})
    assert command[1:5] == ["-m", "deepspeed.launcher.runner", "--no_local_rank", "--hostfile"]
    assert command[-4:] == ["--module", "workbook", "stage2", "k"]
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n[ $1/$2/$3 = 'show/hostnames/node-[a-b]' ] && echo node-a && echo node-b\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]"}
    command = launcher(hosts.model_copy(update={"hostfile": None}), ["stage2", "k"], slurm)
    assert command[0] == "srun"
    assert "node-a:29500" in command
    assert command[command.index("--nnodes") + 1] == "2"
    for environment in ({}, slurm | {"SLURM_JOB_NUM_NODES": "1"}):
        with pytest.raises(ProfileError, match="2 nodes need a hostfile .* or a SLURM allocation"):
            launcher(hosts.model_copy(update={"hostfile": None}), ["stage2", "k"], environment)


class Replaced(Exception):
    """Stands for the process that has become another."""


def test_a_shared_stage_becomes_its_launcher_once(monkeypatch):
    started = []

    def become(program, command):
        started.append(command)
        raise Replaced

    monkeypatch.setattr(os, "execvp", become)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["workbook", "stage1", "k"])
    for stage, settings in (
        ("stage1", Launch()), ("world", Launch(gpus=2)), ("notebook", Launch(gpus=2)),
        ("evaluate", Launch(deepspeed="zero3_offload")),
    ):  # fmt: skip
        launch.spread(stage, settings)
    assert not started
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"  # one process takes one GPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for stage, settings in (
        ("stage1", Launch(gpus=2)), ("stage2", Launch(deepspeed="zero3_offload")), ("evaluate", Launch(gpus=2)),
    ):  # fmt: skip
        with pytest.raises(Replaced):
            launch.spread(stage, settings)
    joined = []
    monkeypatch.setattr(distributed, "join", lambda deepspeed: joined.append(deepspeed))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.spread("stage2", Launch(gpus=2, deepspeed="zero2"))
    launch.spread("evaluate", Launch(gpus=2, deepspeed="zero2"))
    assert joined == [True, False]
    assert len(started) == 3
    assert distributed.share("abcde") == ["b", "d"]


def test_more_gpus_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ProfileError, match="launch.gpus is 8 and this machine has 4"):
        launch.spread("stage2", Launch(gpus=8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ProfileError, match="launch.gpus is 2 and this machine has 0"):
        launch.spread("stage2", Launch(gpus=2))


def test_deepspeed_configurations_are_data():
    expected = {"zero2": 2, "zero3": 3, "zero3_offload": 3}
    assert expected.keys() <= set(deepspeed_names())
    stages = {name: deepspeed_config(Launch(deepspeed=name))["zero_optimization"]["stage"] for name in expected}
    assert stages == expected
    assert deepspeed_config(Launch()) is None


def test_the_paper_profile_is_zero_2_in_bfloat16_with_checkpointing():
    paper = profiles.load("paper")
    assert paper.launch.deepspeed == "zero2"
    assert paper.compute.dtype == "bfloat16"
    assert paper.stage2.bf16
    assert paper.stage2.gradient_checkpointing
    assert paper.stage2.batch_size == 128
    for recipe in (paper.stage1, paper.stage2):
        assert recipe.batch_size % (recipe.micro_batch * paper.launch.gpus * paper.launch.nodes) == 0


def features(keys):
    return torch.stack([torch.randn(4, 6, generator=torch.Generator().manual_seed(int(key[:-4]))) for key in keys])


def build(tiny):
    torch.manual_seed(1)
    llava, processor = assemble(tiny / "clip", tiny / "llama")
    return AlignedModel(add_lora(llava, 4, 8, 0.1), Align(layers=(2,), hidden=16, init_std=0.2, dim=6)), processor


RECIPE = Recipe(batch_size=4, micro_batch=2, lr=1e-2, steps=3, max_length=512, log_every=1)


def test_a_batch_that_does_not_fit_says_what_to_do(tiny, conversations, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    model, processor = build(tiny)
    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(RuntimeError, match="does not fit into memory: lower micro_batch"):
        train_stage2(
            model, processor, load_conversations(*conversations), RECIPE, tmp_path / "run", template=TEMPLATE,
            features=features,
        )  # fmt: skip


def test_answers_of_a_killed_group_are_kept(tiny, tmp_path):
    (tmp_path / "places.json").write_text(json.dumps({"models": str(tiny)}))
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    ask(tmp_path, whole)
    settings, *answers = whole.read_text().splitlines(keepends=True)
    killed.write_text(settings + "".join(answers[:2]))
    marked = json.loads(answers[3]) | {"response": "kept"}
    del marked["crc32"]
    append(killed, [marked])
    with killed.open("a", encoding="utf-8") as file:
        file.write(answers[5][:20])  # the last line half written
    ask(tmp_path, killed)
    said = {row["id"]: row["response"] for row in read_answers(killed)[1][0]}
    expected = {row["id"]: row["response"] for row in read_answers(whole)[1][0]}
    assert said == expected | {marked["id"]: "kept"}


def test_a_state_of_another_number_of_processes_is_refused_and_kept(tiny, conversations, tmp_path):
    samples, recipe = load_conversations(*conversations), replace(RECIPE, save_every=1)

    def dying(keys):
        if list((tmp_path / "run.work/state").glob("checkpoint-1/complete")):
            raise Replaced
        return features(keys)

    model, processor = build(tiny)
    with pytest.raises(Replaced):
        train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=dying)
    marked = tmp_path / "run.work/state/checkpoint-1/complete"
    content = read_json(marked, "")
    assert content["processes"] == 1
    write_json(marked, {**content, "processes": 8})
    model, processor = build(tiny)
    with pytest.raises(ValueError, match="state of 8 processes, and these are 1: go on with as many"):
        train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=features)
    assert marked.is_file()
