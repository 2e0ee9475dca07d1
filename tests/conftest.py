"""Tiny random models of the real classes, saved as the real ones are, and a tiny data set in LLaVA's format."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch
from commands import run
from PIL import Image
from reports import report_folder  # noqa: F401  (a fixture)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from viral_core.aligned import AlignedModel
from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.llava import add_lora, assemble, load_processor
from viral_core.run_folder import save_run
from viral_core.templates import SYSTEM, TEMPLATES
from workbook.paths import ROOT

torch.set_num_threads(1)
# Tests reach this machine's own servers, whatever proxy is set.
os.environ.update(no_proxy="127.0.0.1,localhost", NO_PROXY="127.0.0.1,localhost")

VISION_SIZES = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28)
TEXT_SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)


def tiny_tokenizer(stop: str = "</s>") -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few sentences; `stop` is its end-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [SYSTEM + " USER: What is in the photo? ASSISTANT: Two dogs and a red car on the left.\n"] * 5
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=stop, unk_token="<unk>", pad_token="<pad>")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that several processes end at about the same time."""
    longest = ["test_pipeline.py", "test_distributed.py", "test_rehearsal.py", "test_browser.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with the models `clip`, `siglip` (4 visual tokens each), `llama` and `qwen` (4 blocks, width 32)."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(patch_size=14, **VISION_SIZES)).save_pretrained(folder / "clip")
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder / "clip")
    SiglipVisionModel(SiglipVisionConfig(patch_size=14, **VISION_SIZES)).save_pretrained(folder / "siglip")
    SiglipImageProcessorPil(size=size).save_pretrained(folder / "siglip")
    for name, stop, config_class, model_class in (
        ("llama", "</s>", LlamaConfig, LlamaForCausalLM),
        ("qwen", "<|im_end|>", Qwen2Config, Qwen2ForCausalLM),
    ):
        tokenizer = tiny_tokenizer(stop)
        tokenizer.save_pretrained(folder / name)
        config = config_class(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            bos_token_id=None,
            **TEXT_SIZES,
        )
        model_class(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    """(json path, image folder): 12 samples, two of them text-only, one with two images."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 255, (24 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    entries = []
    for i in range(12):
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the photo?"},
            {"from": "gpt", "value": f"Number {i} and {'more ' * (i % 4)}dogs."},
        ]
        if i % 3 == 0:
            turns += [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "On the left."}]
        entries.append({"id": f"s{i}", "image": f"{i}.png", "conversations": turns})
    entries[4]["image"] = ["4.png", "5.png"]
    entries[4]["conversations"][0]["value"] = "Compare <image> and <image>, please."
    for i in (7, 9):
        del entries[i]["image"]
        entries[i]["conversations"][0]["value"] = "What is a dog?"
    path = folder / "mix.json"
    path.write_text(json.dumps(entries))
    return path, folder / "images"


@pytest.fixture(scope="session")
def samples(conversations):
    return load_conversations(*conversations)


@pytest.fixture(scope="session")
def processor(tiny):
    """Of CLIP and Llama."""
    return load_processor(tiny / "clip", tiny / "llama")


@pytest.fixture(scope="session")
def batch_of(samples, processor):
    """Batches of samples, by their numbers; options as of `Collator`."""
    data = ConversationDataset(samples, processor, TEMPLATES["vicuna_v1"], 512)
    return lambda numbers, **options: Collator(processor, **options)([data[i] for i in numbers])


@pytest.fixture(scope="session")
def run_folders(tiny, tmp_path_factory):
    """Folders of two runs of tiny random models, by their names."""
    parent, folders = tmp_path_factory.mktemp("runs"), {}
    for seed, name in enumerate(["baseline-s0", "viral-s0"]):
        torch.manual_seed(seed)
        llava, _ = assemble(tiny / "clip", tiny / "llama")
        folders[name] = parent / name
        save_run(folders[name], AlignedModel(add_lora(llava, r=2, alpha=4)), TEMPLATES["vicuna_v1"], seed)
    return folders


@pytest.fixture(scope="session")
def smoke_copy(tmp_path_factory):
    """A copy of the repository in which the smoke profile has been reproduced; minutes, once for all tests."""
    pytest.importorskip("dvc")
    folder = tmp_path_factory.mktemp("workbook")
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "cache", "tmp", "*.egg-info", "dvc.lock")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=skipped)
    run(folder, "git", "init", "-q")
    run(folder, sys.executable, "-m", "workbook", "repro", "smoke", "--jobs", "2")
    return folder
