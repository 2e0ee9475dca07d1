"""An exported run is a plain LLaVA: transformers alone loads it, and it computes the same."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from viral_core.aligned import AlignedModel
from viral_core.images import pad_to_square
from viral_core.llava import add_lora, assemble
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align, Residual
from viral_core.templates import TEMPLATES, prompt
from viral_core.tiles import view_of
from workbook.scale.export import export


def trained(tiny, folder, vision="clip", language="llama", template="vicuna_v1", residuals=()):
    """A saved run with LoRA, projector and head that are not at their start."""
    torch.manual_seed(1)
    llava = add_lora(assemble(tiny / vision, tiny / language)[0], r=4, alpha=8)
    aligned = AlignedModel(llava, Align(layers=(2,), dim=16, hidden=8), residuals)
    for p in aligned.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    save_run(folder, aligned, TEMPLATES[template], seed=0)
    return folder


@pytest.mark.parametrize(
    ("vision", "language", "template"), [("clip", "llama", "vicuna_v1"), ("siglip", "qwen", "qwen")]
)
def test_the_same_logits_from_transformers_alone(vision, language, template, tiny, tmp_path):
    export(trained(tiny, tmp_path / "run", vision, language, template), tmp_path / "out")
    run = load_run(tmp_path / "run")
    image = Image.effect_noise((41, 27), 80).convert("RGB")  # not square: the padding counts
    image = pad_to_square(image) if vision == "siglip" else image  # its own padding would be grey
    text = prompt(run.template, "<image>\nWhat is in the photo?")
    n = view_of(run.processor).tokens()
    ours = run.processor.tokenizer(text.replace("<image>", "<image>" * n), return_tensors="pt")
    pixels = run.processor.image_processor([pad_to_square(image)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = run.model(**ours, pixel_values=pixels).logits

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the photo?"}]}
    assert processor.apply_chat_template([turn]) == text
    theirs = processor(images=image, text=text, return_tensors="pt")
    assert torch.equal(theirs["input_ids"], ours["input_ids"])
    torch.testing.assert_close(theirs["pixel_values"], pixels, atol=0.02, rtol=0)  # the colour of the padding, rounded
    with torch.no_grad():
        torch.testing.assert_close(model(**ours, pixel_values=pixels).logits, expected, atol=1e-5, rtol=1e-5)
        close = model(**theirs).logits
    torch.testing.assert_close(close, expected, atol=0.02, rtol=0.02)
    assert not any("lora" in name for name, _ in model.named_parameters())
    facts = json.loads((tmp_path / "out" / "exported_from.json").read_text())
    assert facts["template"] == template


def test_half_precision_is_saved_as_such(tiny, tmp_path):
    export(trained(tiny, tmp_path / "run"), tmp_path / "out", "bfloat16")
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_the_chat_template_is_the_one_of_training():
    from jinja2 import Template as Jinja

    from viral_core.templates import segments
    from workbook.scale.export import chat_template

    turns = [
        {"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "On the left."},
        {"from": "human", "value": "And now?"}, {"from": "gpt", "value": "Gone."},
    ]  # fmt: skip
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
    for name in ("vicuna_v1", "qwen"):
        template = TEMPLATES[name]
        expected = "".join(text for text, _ in segments(template, turns))
        assert Jinja(chat_template(template)).render(messages=messages) == expected


def test_what_cannot_be_exported_says_why(tiny, tmp_path):
    trained(tiny, tmp_path / "residual", residuals=(Residual(layer=2),))
    with pytest.raises(ValueError, match="residual.*no place for that"):
        export(tmp_path / "residual", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        export(trained(tiny, tmp_path / "run"), tmp_path / "full")
    command = [sys.executable, "-m", "workbook", "export", str(tmp_path / "residual"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "residual" in done.stderr
