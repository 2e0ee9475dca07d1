"""The text of conversations in each template, as LLaVA writes it."""

import pytest
from transformers import AutoTokenizer

from viral_core.templates import SYSTEM, TEMPLATES, prompt, segments, stop_token_id

TURNS = [
    {"from": "human", "value": "What is it?\n<image>"},
    {"from": "gpt", "value": " A dog. "},
    {"from": "human", "value": "Where?"},
    {"from": "gpt", "value": "Left."},
]


@pytest.mark.parametrize(("name", "stop"), [("vicuna_v1", "</s>"), ("qwen", "<|im_end|>")])
def test_chat_text_is_llavas(name, stop):
    pieces = segments(TEMPLATES[name], TURNS)
    assert "".join(text for text, _ in pieces) == (
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A dog.{stop}USER: Where? ASSISTANT: Left.{stop}"
    )
    assert [text for text, supervised in pieces if supervised] == [f" A dog.{stop}", f" Left.{stop}"]


def test_plain_is_image_caption_newline():
    pieces = segments(TEMPLATES["plain"], [{"from": "human", "value": "Describe.\n<image>"}, TURNS[1]])
    assert pieces == [("<image>", False), ("A dog.\n", True)]


def test_several_markers_stay_in_place():
    assert "USER: Is <image> like <image> ? ASSISTANT:" in prompt(TEMPLATES["qwen"], "Is <image> like <image> ?")


@pytest.mark.parametrize("turns", [[], TURNS[1:], TURNS[:3], TURNS[:1] * 2])
def test_turns_must_alternate(turns):
    with pytest.raises(ValueError, match="alternate"):
        segments(TEMPLATES["plain"], turns)


def test_stop_token(tiny):
    llama, qwen = (AutoTokenizer.from_pretrained(tiny / name) for name in ("llama", "qwen"))
    assert stop_token_id(llama, TEMPLATES["vicuna_v1"]) == llama.eos_token_id
    assert stop_token_id(qwen, TEMPLATES["qwen"]) == qwen.eos_token_id
    assert stop_token_id(llama, TEMPLATES["plain"]) is None
    with pytest.raises(ValueError, match="im_end"):
        stop_token_id(llama, TEMPLATES["qwen"])
