"""The explorer's looks and figure on a tiny run, and what it says without one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from viral_core.aligned import AlignedModel
from viral_core.llava import add_lora, assemble
from viral_core.run_folder import Run
from viral_core.templates import TEMPLATES
from workbook import explorer


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


def test_a_run_without_the_layer_or_head_says_so(run, picture):
    seen = explorer.look("tiny", run, picture, "What?", k=2)
    for layer, head, said in (
        (9, None, ["no layer 9:\nthis run ends at 4"] * 2),
        (2, 7, ["no head 7:\nthis run has 0 to 3"]),
    ):
        drawn = explorer.figure(picture, [seen], layer, head, "label")
        assert [text.get_text() for axis in drawn.axes for text in axis.texts] == said
        explorer.png(drawn)


@pytest.fixture
def offered(monkeypatch, tmp_path, picture):
    """An explorer of two runs, of 4 blocks and heads and of 6, and what was asked of `load_run`."""
    sizes, loaded = {"baseline-s0": 4, "13b-viral-s0": 6}, []
    picture.save(tmp_path / "a.png")

    def load_run(folder, **how):
        loaded.append(how)
        size = sizes[f"{folder.parent.name}-{folder.name}"]
        config = SimpleNamespace(num_hidden_layers=size, num_attention_heads=size)
        return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(text_config=config)))

    def look(name, *_, **__):
        size, rng = sizes[name], np.random.default_rng(0)
        return explorer.Look(name, "A", rng.random((size + 1, 4, 8)), rng.random((size, size, 2, 2)), np.ones(size + 1))

    row = {"id": "q", "question": "Where?", "prompt": "Where?", "answer": "left", "image": tmp_path / "a.png"}
    monkeypatch.setattr(explorer, "available", lambda _: list(sizes))
    monkeypatch.setattr(explorer, "load_rows", lambda *_: [row])
    monkeypatch.setattr(explorer, "load_run", load_run)
    monkeypatch.setattr(explorer, "look", look)
    return explorer.Explorer("smoke"), loaded


def test_layers_and_heads_are_those_of_the_largest_chosen_run(offered):
    shown, _ = offered
    assert (shown.layer.value, shown.layer.max, len(shown.head.options)) == (2, 6, 7)
    shown.layer.value, shown.head.value = 6, 5
    shown.second.value = "none"
    assert (shown.layer.value, shown.layer.max, shown.head.value, len(shown.head.options)) == (4, 4, None, 5)
    shown.second.value = "13b-viral-s0"
    assert (shown.layer.max, len(shown.head.options)) == (6, 7)


def test_it_says_how_long_it_took(offered):
    assert offered[0].took.value.endswith(" s</span>")
    offered[0].path.value = "no such image"
    assert offered[0].took.value == ""


def test_runs_are_loaded_as_the_measurements_load_them(offered):
    compute = explorer.settings_of("smoke").compute
    how = {"dtype": getattr(torch, compute.dtype), "device": explorer.distributed.device(),
           "attn_implementation": compute.attention}  # fmt: skip
    assert offered[1] == [how, how]


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explorer.available("smoke") == []
    with pytest.raises(FileNotFoundError, match="make repro PROFILE=smoke"):
        explorer.Explorer("smoke")
