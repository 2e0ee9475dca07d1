"""The short form of tests/soak.py: a training and a cache of tiny models, killed, and on a disk that becomes full."""

import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import soak
from trainings import RECIPE, TEMPLATE, build, features

from viral_core.cache import write_cache
from viral_core.conversations import load_conversations
from viral_core.teachers import load_teacher
from viral_core.trainer import train_stage2


@pytest.fixture
def stages(tiny, conversations, tmp_path):
    """What stages do, by the folder that they write, and a size that one of their files exceeds."""
    samples, images = load_conversations(*conversations), {f"{i}.png": conversations[1] / f"{i}.png" for i in range(12)}

    def train() -> None:
        model, processor = build(tiny)
        recipe = replace(RECIPE, steps=4, save_every=1, checkpoints=(0.5,))
        train_stage2(model, processor, samples, recipe, tmp_path / "run", template=TEMPLATE, features=features)

    def cache() -> None:
        write_cache(load_teacher("clip", tiny / "clip", 2), images, tmp_path / "cache", shard_size=3)

    return {"run": (train, 20_000), "cache": (cache, 500)}


def on_a_small_disk(work: Callable[[], None], limit: int) -> Callable[[], None]:
    """The work where no file may be larger; exits with 3 if it says which file cannot be written, without a word."""

    def run() -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except OSError as error:
            os._exit(3 if str(error).startswith("cannot write") else 4)

    return run


def test_killed_and_called_again_a_stage_writes_the_same(stages, tmp_path):
    draw, log = random.Random(0), tmp_path / "log"
    for name, (work, limit) in stages.items():
        folder, began = tmp_path / name, time.monotonic()
        assert soak.wait(soak.start(work, log)) == 0, log.read_text()
        seconds, whole = time.monotonic() - began, soak.contents(folder)
        for _ in range(3):
            shutil.rmtree(folder)
            soak.kill(soak.start(work, log), draw.uniform(0, seconds))
            assert soak.wait(soak.start(work, log)) == 0, log.read_text()
            assert soak.contents(folder) == whole
        shutil.rmtree(folder)
        assert soak.wait(soak.start(on_a_small_disk(work, limit), log)) == 3
        assert soak.contents(folder).items() <= whole.items()
        assert soak.wait(soak.start(work, log)) == 0, log.read_text()
        assert soak.contents(folder) == whole
        assert {path.suffix for path in tmp_path.rglob("*")}.isdisjoint({".part", ".work", ".damaged"})
