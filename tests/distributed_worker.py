"""What one of several processes does in tests/test_distributed.py, and what a single process does to compare with.

torchrun --nproc-per-node 2 tests/distributed_worker.py FOLDER TASK ...
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch
from PIL import Image

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.conversations import load_conversations
from viral_core.llava import add_lora, assemble
from viral_core.recipe import Recipe
from viral_core.specs import Align
from viral_core.templates import TEMPLATES
from viral_core.trainer import train_stage2
from workbook.evaluate import evaluate, sampled
from workbook.scale.launch import deepspeed_config
from workbook.sections import Launch

TEMPLATE = TEMPLATES["vicuna_v1"]
RECIPE = Recipe(batch_size=4, micro_batch=2, lr=1e-2, steps=7, max_length=512, log_every=1, save_every=2, seed=1)
ENGINES = {"zero2": "zero2", "zero3": "zero3", "ddp": None}


class Features:
    """Teacher features of images, by name; the main process dies when it is asked more than `lives` times."""

    def __init__(self, lives: float = float("inf")):
        self.lives, self.calls = lives, 0

    def __call__(self, keys: list[str]) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.lives and distributed.is_main():
            os.kill(os.getpid(), signal.SIGKILL)
        draw = [torch.randn(4, 6, generator=torch.Generator().manual_seed(int(key[:-4]))) for key in keys]
        return torch.stack(draw)


def train(
    folder: Path, name: str, engine: str | None = None, lives: float = float("inf"), head: bool = True, **changes
) -> None:
    """Train the tiny model, and its `head` or not, into `folder/name`, and note the dtypes of its targets."""
    places = json.loads((folder / "places.json").read_text())
    torch.manual_seed(1)
    llava, processor = assemble(Path(places["models"]) / "clip", Path(places["models"]) / "llama")
    model = AlignedModel(
        add_lora(llava, r=4, alpha=8), Align(layers=(2,), train_head=head, hidden=16, init_std=0.2, dim=6)
    )
    recipe = replace(RECIPE, deepspeed=deepspeed_config(Launch(deepspeed=engine)), **changes)
    samples, features = load_conversations(places["data"], places["images"]), Features(lives)
    dtypes = set()

    def note(_model, _positional, given: dict) -> None:
        dtypes.update(str(given[key].dtype) for key in given.keys() & {"teacher_features"})

    model.register_forward_pre_hook(note, with_kwargs=True)
    train_stage2(model, processor, samples, recipe, folder / name, template=TEMPLATE, features=features)
    if distributed.is_main():
        (folder / f"{name}-targets.json").write_text(json.dumps(sorted(dtypes)))


def rows(folder: Path) -> list[dict]:
    """POPE rows of very different lengths."""
    out = []
    for i in range(11):
        if not (path := folder / f"{i // 2}.png").exists():
            Image.effect_noise((20 + 4 * (i // 2), 28), 90).convert("RGB").save(path)
        question = "Is there " + "a very " * ((7 * i) % 10) + "red car?"
        about = {"question": question, "prompt": question, "options": ["yes", "no"], "answer": ("yes", "no")[i % 2]}
        out.append({"id": str(i), "image": str(path), **about, "group": str(i // 2), "category": "random"})
    return out


def ask(folder: Path, out: Path, protocol: dict | None = None) -> list[list[dict]]:
    """Answers of a tiny model with wide random weights, which differ from question to question."""
    places = json.loads((folder / "places.json").read_text())
    torch.manual_seed(0)
    llava, processor = assemble(Path(places["models"]) / "clip", Path(places["models"]) / "llama")
    for parameter in llava.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * (parameter.ndim > 1)
    run = SimpleNamespace(model=llava, processor=processor, template=TEMPLATE)
    return evaluate(
        run, rows(folder), out, benchmark="pope_random", model_id="tiny", max_new_tokens=5,
        batch_size=2, protocol=protocol,
    )  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    for task in sys.argv[2:]:
        what, _, name = task.partition(":")
        if what == "evaluate":
            distributed.join()
            for kind, protocol in (("greedy", None), ("sampled", sampled(runs=2, temperature=1.0))):
                ask(folder, folder / f"shared-{kind}.jsonl", protocol)
            continue
        distributed.join(deepspeed=ENGINES[name] is not None)
        if what == "half":
            train(folder, f"{name}-half", ENGINES[name], steps=3, bf16=True, gradient_checkpointing=True)
            continue
        if what == "frozen":
            train(folder, f"{name}-frozen", ENGINES[name], head=False, steps=1)
            continue
        lives = 4 if what == "die" else float("inf")
        label = "whole" if what == "whole" else "killed"
        train(folder, f"{name}-{label}", ENGINES[name], lives)
    distributed.leave()


if __name__ == "__main__":
    main()
