"""The explorer's looks and figure on a tiny run, and what it says without one."""

import numpy as np
import pytest
import torch
from PIL import Image

from viral_core import explorer
from viral_core.model import AlignedModel, Run, add_lora, assemble
from viral_core.templates import TEMPLATES


@pytest.fixture(scope="module")
def run(tiny):
    torch.manual_seed(0)
    llava, processor = assemble(tiny / "clip", tiny / "llama")
    aligned = AlignedModel(add_lora(llava, r=2, alpha=4)).eval()
    return Run(aligned, processor, TEMPLATES["vicuna_v1"], llava.base, 0, {})


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_look_holds_every_layer_and_head(run, picture):
    seen = explorer.look("tiny", run, picture, "What is in the photo?", k=2)
    blocks, heads = 4, 4
    assert seen.states.shape[:2] == (blocks + 1, 4)
    assert seen.attention.shape == (blocks, heads, 2, 2)
    assert seen.cknna.shape == (blocks + 1,)
    assert np.isfinite(seen.states).all()


def test_shuffling_changes_the_tokens_and_is_the_same_each_time(run, picture):
    plain, once, again = (explorer.look("tiny", run, picture, "What?", k=2, permuted=p) for p in (False, True, True))
    assert not np.allclose(plain.states, once.states)
    assert np.array_equal(once.states, again.states)
    # Layer 0 is the projected features, in another order.
    assert np.allclose(np.sort(plain.states[0], axis=0), np.sort(once.states[0], axis=0), atol=1e-5)


def test_the_figure_depends_on_layer_and_head(run, picture):
    seen = explorer.look("tiny", run, picture, "What?", k=2)
    drawn = {
        explorer.png(explorer.figure(picture, [seen, seen], layer, head, "label"))
        for layer, head in ((0, None), (2, None), (2, 1))
    }
    assert len(drawn) == 3
    assert all(data.startswith(b"\x89PNG") for data in drawn)


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "ROOT", tmp_path)
    assert explorer.available("smoke") == []
    with pytest.raises(FileNotFoundError, match="make repro PROFILE=smoke"):
        explorer.Explorer("smoke")
