"""Conversation templates: a model is evaluated with exactly the prefix it was trained to answer (`prompt`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

IMAGE_MARKER = "<image>"

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """How a conversation is written as text."""

    name: str
    system: str
    user: str | None  # None: the template has no roles, and of a question only its images are kept
    assistant: str | None
    stop: str  # ends every answer and is supervised with it, so that every sample teaches the model to stop

    def question(self, text: str, first: bool, images: bool = True) -> str:
        """Everything between the previous answer's stop and the answer to `text`; without `images` `<image>` is text.

        A single image marker moves to the start of its turn, as in LLaVA; several markers stay where they are.
        """
        if self.user is None:
            return IMAGE_MARKER * text.count(IMAGE_MARKER) if images else ""
        if images and text.count(IMAGE_MARKER) == 1:
            text = f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}"
        text = text.strip()
        return f"{self.system + ' ' if first else ''}{self.user}: {text} {self.assistant}:"

    def answer(self, text: str) -> str:
        """The supervised text: the answer, with the space that separates it from the role, and the stop string."""
        return ("" if self.assistant is None else " ") + text.strip() + self.stop


VICUNA_V1 = Template("vicuna_v1", SYSTEM, "USER", "ASSISTANT", "</s>")

TEMPLATES = {
    "vicuna_v1": VICUNA_V1,
    "qwen": replace(VICUNA_V1, name="qwen", stop="<|im_end|>"),
    "plain": Template("plain", "", None, None, "\n"),
}


def segments(template: Template, turns: Sequence[dict], images: bool = True) -> list[tuple[str, bool]]:
    """Alternating pieces, context (False) and supervised answers with their stop strings (True), of LLaVA's `turns`.

    ValueError if they do not alternate; with `images`, `<image>` stands for them.
    """
    roles = [turn["from"] for turn in turns]
    if not turns or roles != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"turns must alternate human, gpt, ... and end with gpt; got {roles}")
    pieces = []
    for i in range(0, len(turns), 2):
        pieces.append((template.question(turns[i]["value"], i == 0, images), False))
        pieces.append((template.answer(turns[i + 1]["value"]), True))
    return pieces


def prompt(template: Template, question: str) -> str:
    """The first piece of `segments`: what a model expects before its answer to a `question` with its `<image>`s."""
    return template.question(question, first=True)


def stop_token_id(tokenizer, template: Template) -> int | None:
    """Id of the stop string; None for a template that stops at ordinary text; ValueError where it is not one token."""
    if template.user is None:
        return None
    token = tokenizer.convert_tokens_to_ids(template.stop)
    if token is None or token == tokenizer.unk_token_id:
        stop = f"{template.stop!r} of template {template.name!r}"
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no {stop}: choose this model's template")
    return token
