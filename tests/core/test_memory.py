"""Loaded models are freed when they are dropped, without waiting for the garbage collector."""

import gc

import pytest
import torch

from viral_core.aligned import AlignedModel
from viral_core.llava import add_lora, assemble
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.templates import TEMPLATES

ROSS = Reconstruct(layer=4, dim=6, grid=2, blocks=1, width=16, heads=4)


def parameters() -> int:
    return sum(isinstance(thing, torch.nn.Parameter) for thing in gc.get_objects())


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"align": Align(layers=(2,), hidden=16, dim=6)},
        {"residuals": (Residual(layer=2), Residual("encoder", layer=3))},
        {"reconstruct": ROSS},
    ],
    ids=["baseline", "align", "residuals", "ross"],
)
def test_a_loop_of_loads_holds_one_run(tiny, tmp_path, parts):
    llava, processor = assemble(tiny / "clip", tiny / "llama")
    save_run(tmp_path / "run", AlignedModel(add_lora(llava, r=2, alpha=4), **parts), TEMPLATES["vicuna_v1"], seed=0)
    del llava
    ids = torch.tensor([processor.tokenizer("Two dogs")["input_ids"]])

    def use():
        run = load_run(tmp_path / "run")
        with torch.no_grad():
            run.model(input_ids=ids, output_hidden_states=True)
        return run

    gc.collect()
    before = parameters()  # of tests that ran in this process
    run = use()
    gc.collect()
    gc.disable()
    try:
        one = parameters()
        for _ in range(3):
            del run  # what a caller does before it loads the next
            run = use()
            assert parameters() == one
        del run
        assert parameters() == before < one
    finally:
        gc.enable()
