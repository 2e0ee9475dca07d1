"""Conversation templates: one definition for training and evaluation.

A template turns LLaVA's turns into text segments, each either context or supervised. A model is evaluated with
exactly the prefix it was trained to answer (`prompt`), and the stop string is part of the supervised text, so that
every sample, single-turn ones included, teaches the model to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

IMAGE_MARKER = "<image>"

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """How a conversation is written as text.

    `user` and `assistant` are the role names (None: the template has no roles, and of a question only its images are
    kept); `stop` ends every answer and is supervised with it.
    """

    name: str
    system: str
    user: str | None
    assistant: str | None
    stop: str

    def question(self, text: str, first: bool, images: bool = True) -> str:
        """Everything between the previous answer's stop and the answer to `text`.

        In a conversation without `images` an `<image>` is text, and stays where it is.
        """
        if self.user is None:
            return IMAGE_MARKER * text.count(IMAGE_MARKER) if images else ""
        text = _place_marker(text) if images else text.strip()
        return f"{self.system + ' ' if first else ''}{self.user}: {text} {self.assistant}:"

    def answer(self, text: str) -> str:
        """The supervised text: the answer, with the space that separates it from the role, and the stop string."""
        return ("" if self.assistant is None else " ") + text.strip() + self.stop


def _place_marker(text: str) -> str:
    """Move a single image marker to the start of its turn, as LLaVA does; several markers stay where they are."""
    if text.count(IMAGE_MARKER) != 1:
        return text.strip()
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()


VICUNA_V1 = Template("vicuna_v1", SYSTEM, "USER", "ASSISTANT", "</s>")

TEMPLATES = {
    "vicuna_v1": VICUNA_V1,
    "qwen": replace(VICUNA_V1, name="qwen", stop="<|im_end|>"),
    "plain": Template("plain", "", None, None, "\n"),
}


def segments(template: Template, turns: Sequence[dict], images: bool = True) -> list[tuple[str, bool]]:
    """Split a conversation into (text, supervised) pieces whose concatenation is the training text.

    Args:
        turns: LLaVA's `{"from": "human" | "gpt", "value": str}`, alternating and starting with a human turn.
        images: whether the conversation has images, which `<image>` stands for.

    Returns:
        Alternating context (False) and answer (True) pieces; only answers and stop strings are supervised.

    Raises:
        ValueError: the turns do not alternate human, gpt, human, gpt, ...
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
    """The text a model trained with `template` expects before its answer to a first `question`.

    `question` carries one `<image>` marker per image. Same text as the first piece of `segments`.
    """
    return template.question(question, first=True)


def stop_token_id(tokenizer, template: Template) -> int | None:
    """Id of the stop string, for `eos_token_id` in generation; None for a template that stops at ordinary text.

    Raises:
        ValueError: a template with roles whose stop string is not one token of this tokenizer.
    """
    if template.user is None:
        return None
    token = tokenizer.convert_tokens_to_ids(template.stop)
    if token is None or token == tokenizer.unk_token_id:
        raise ValueError(
            f"template {template.name!r} ends answers with {template.stop!r}, which the tokenizer of "
            f"{tokenizer.name_or_path!r} does not know: choose the template that belongs to this language model"
        )
    return token
