"""The text that the language models learn from: a tokenizer for the world's sentences, lessons and conversations.

A language model's stand-in is taught from text alone.  Where the visual tokens will stand, it gets the words of what is
there (`layout`, which `language.Speller` makes into embeddings); what follows are lessons, short
facts such as "number dogs 2 facing cat left", conversations and captions, or conversations about a described scene.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from viral_core.templates import IMAGE_MARKER, SYSTEM, TEMPLATES, prompt, segments
from workbook.world import questions
from workbook.world.conversations import captioning, turns
from workbook.world.scenes import BY_NAME, CATEGORIES, GRID, MAX_COUNT, Scene, draw_scenes
from workbook.world.stand_ins import samples

TOKENS = GRID * GRID
LENGTH = 256  # tokens of a sample, at the most
CHUNK = 1000  # samples that a process makes at a time
Pieces = list[tuple[str, bool]]  # of a text, and whether they are supervised

# Strings that conversations repeat are one token each, so that a sequence spends its length on what is asked.
FIXED = (
    SYSTEM, " USER: ", "USER: ", " ASSISTANT:", f"\n{questions.SINGLE_WORD} ASSISTANT:",
    f" {questions.YES_OR_NO} ASSISTANT:", f"\n{questions.LETTER} ASSISTANT:", questions.THE_ANSWER, "\n", "How many",
    " are in the image? Select from the following choices.", "Is there a", "Is there an", "Is there", "Are there",
    " in the image?", " in this image?", "Where is the", " in relation to the", "? Select from the following choices.",
    " in the photo? Answer with left, right, top or bottom. ASSISTANT:",
    "? Answer with left, right, above or below. ASSISTANT:", "Considering the relative positions of the",
    " in the image provided, where is the", " and the", " located with respect to the", "Is the",
    " facing left or right?", "Write a caption for this photo.", "A photo of", "Which of these is", "Which of these",
    "\nOptions:", " of the image?", " at the", " of this image?", " in the", " quarter", "Of which of these are there",
    " can be seen?", " facing",
)  # fmt: skip
# One token each too, although Qwen2's rule cuts them.
WHOLE = (
    *(f" {axis} {i}" for axis in ("row", "column") for i in range(1, GRID + 1)),
    *(f" {number}" for number in range(6)),
    *(f"{before}{letter}:" for before in (" ", ", ") for letter in "ABCDEF"),
    *(f"{before}({letter})" for before in ("", " ", "\n") for letter in "ABCDEFab"),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's own sentences: any text can be encoded, the world's words are one token each.

    Text is cut by Qwen2's rule: `AutoTokenizer` applies it to every tokenizer that lies beside a Qwen2 model.
    """
    rng, texts = np.random.default_rng(0), []
    for scene in draw_scenes(1000, 0):
        texts += [f" {qa.text} {qa.reply}" for qa in questions.conversation(scene, rng, len(questions.ASKERS))]
        texts += [f" {questions.caption(scene, rng)} {questions.described(scene)}"]
        texts += ["".join(text for text, _ in lesson(scene, rng, 8)), " nothing left right"]
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_end|>", IMAGE_MARKER]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*FIXED, *WHOLE)])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def lesson(scene: Scene, rng: np.random.Generator, items: int) -> Pieces:
    """`items` short facts about a scene, drawn with repetitions, as (text, supervised) pieces.

    A third offer options, as CV-Bench does, and ask for the letter too; in another third the answer is due one token
    after the noun.
    """
    counts, numbers, sides = scene.counts(), tuple("012345"), tuple(questions.ACROSS)

    def noun(name: str) -> str:
        return BY_NAME[name].plural if rng.random() < 0.7 else name

    def near(n: int) -> int:
        return n if rng.random() < 0.5 else int(rng.choice([m for m in (n - 1, n + 1) if 1 <= m <= MAX_COUNT]))

    def stated(side: str) -> str:
        return side if rng.random() < 0.5 else questions.ACROSS[side]

    numbered = [(name, n, near(n)) for name, n in counts.items()]
    sided = [(o.category, side, stated(side)) for o, side in questions.sides(scene)]
    present = {BY_NAME[name].kind for name in counts}
    facts = {  # share of the lessons, then what is asked, what is answered, and what else could be
        "number": (0.22, [(noun(name), str(n), numbers) for name, n in counts.items()]),
        "none": (0.06, [(noun(name), "0", numbers) for name in questions.absent(scene)]),
        "facing": (0.08, [(o.category, o.facing, ("left", "right")) for o in questions.fronts(scene)]),
        "at": (0.1, [(o.category, f"row {o.row + 1} column {o.col + 1}", ()) for o in scene.singles()]),
        "side": (0.08, [(name, side, sides) for name, side, _ in sided]),
        "where": (
            0.3,
            [(f"{a.category} {b.category}", r, tuple(questions.OPPOSITE)) for a, b, r in questions.relations(scene)],
        ),
        "are": (
            0.08,
            [(f"{questions.NUMBERS[m]} {noun(name)}", "Yes" if m == n else "No", ()) for name, n, m in numbered],
        ),
        "is": (0.05, [(f"{name} {said}", "Yes" if said == side else "No", ()) for name, side, said in sided]),
        "any": (0.05, [(kind, "Yes" if kind in present else "No", ()) for kind in ("animal", "vehicle", "food")]),
    }
    facts = {kind: (share, known) for kind, (share, known) in facts.items() if known}
    shares = np.array([share for share, _ in facts.values()])
    pieces = []
    for kind in rng.choice(list(facts), items, p=shares / shares.sum()):
        asked, answer, others = questions.pick(rng, facts[kind][1])
        ask, form = f" {'number' if kind == 'none' else kind} {asked}", rng.random()
        if others and form < 0.33:
            wrong = [str(option) for option in rng.permutation(others) if option != answer]
            options, letter = questions.choices(answer, wrong[: int(rng.integers(1, 5))], rng)
            listed = "".join(f" ({x}) {option}" for x, option in zip("ABCDEF", options, strict=False))
            pieces += [(f"{ask}{listed} =", False), (f" {answer}{questions.THE_ANSWER} {letter}", True)]
        else:
            pieces += [(f"{ask} =" if form > 0.67 else ask, False), (f" {answer}", True)]
    return pieces


def conversation_pieces(conversation: list[dict]) -> Pieces:
    """Pieces of a conversation in Vicuna's template, with as many image tokens as a picture has."""
    pieces = segments(TEMPLATES["vicuna_v1"], conversation)
    return [(text.replace(IMAGE_MARKER, IMAGE_MARKER * TOKENS), answer) for text, answer in pieces]


def tokenise(tokenizer, pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Token ids of pieces that are tokenised one by one, and which of them are supervised."""
    ids, supervised = [], []
    for i, (text, answer) in enumerate(pieces):
        piece = tokenizer(text, add_special_tokens=i == 0).input_ids
        ids += piece
        supervised += [answer] * len(piece)
    return ids, supervised


def layout(scene: Scene) -> np.ndarray:
    """What lies at each visual token, uint8 (3, 64): 1 + category, facing (1 left, 2 right), centre of an object."""
    what, facing, centre = layout = np.zeros((3, TOKENS), np.uint8)
    y, x = (np.stack(np.divmod(np.arange(TOKENS), GRID)) + 0.5) / GRID
    names, sides = [c.name for c in CATEGORIES], (None, "left", "right")
    for o in sorted(scene.objects, key=lambda o: -o.depth):
        covered = np.maximum(np.abs(x - o.x), np.abs(y - o.y)) < 0.45 * o.size
        what[covered], facing[covered] = names.index(o.category) + 1, sides.index(o.facing)
    for o in scene.objects:  # whose centres are not covered
        what[o.token], facing[o.token], centre[o.token] = names.index(o.category) + 1, sides.index(o.facing), 1
    return layout


@dataclass(frozen=True)
class Corpus(samples.Samples):
    """Tokens: uint16 `ids` and bool `supervised` (n, 256), and the `layouts` (n, 3, 64) of their scenes."""

    ids: np.ndarray
    supervised: np.ndarray
    layouts: np.ndarray


def corpus(tokenizer, samples: Iterable[tuple[Pieces, Scene]]) -> Corpus:
    """Samples of pieces, which are tokenised one by one, and of what their scenes look like."""
    ids, supervised, layouts = [], [], []
    for pieces, scene in samples:
        tokens, answers = tokenise(tokenizer, pieces)
        missing = [0] * (LENGTH - len(tokens))
        ids.append((tokens + missing)[:LENGTH])
        supervised.append((answers + missing)[:LENGTH])
        layouts.append(layout(scene))
    return Corpus(np.array(ids, np.uint16), np.array(supervised, bool), np.array(layouts))


def _sample(kind: str, scene: Scene, rng: np.random.Generator) -> Pieces:
    if kind == "lessons":
        before, _ = prompt(TEMPLATES["vicuna_v1"], IMAGE_MARKER).split(IMAGE_MARKER)  # visual tokens are always there
        return [(before + IMAGE_MARKER * TOKENS, False), *lesson(scene, rng, 18)]
    form = rng.random()
    if form < 0.1:
        return conversation_pieces(captioning(questions.caption(scene, rng)))
    items = questions.conversation(scene, rng, 6)
    return conversation_pieces(turns(items, questions.described(scene) if form < 0.35 else IMAGE_MARKER))


def _make(kind: str, tokenizer, seed: tuple[int, ...], n: int) -> Corpus:
    rng = np.random.default_rng((*seed, 1))
    return corpus(tokenizer, ((_sample(kind, scene, rng), scene) for scene in draw_scenes(n, seed)))


def write(folder: Path, n: int, seed: int, workers: int) -> None:
    """Write the tokenizer, and `n` samples each of lessons and of conversations; nothing where they are complete."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    for stream, kind in enumerate(("lessons", "conversations")):
        samples.write(folder / kind, partial(_make, kind, tokenizer), n, (seed, 10, stream), CHUNK, workers)


def questions_in(tokenizer, scenes: Sequence[Scene], asker: questions.Asker, described: bool, n: int) -> Corpus:
    """The first `n` questions of one kind; where the scene is `described`, in words instead of by an image."""
    samples = []
    for scene, qa in questions.ask(scenes, asker, n, np.random.default_rng(0)):
        context = questions.described(scene) if described else IMAGE_MARKER
        samples.append((conversation_pieces(turns([qa], context)), scene))
    return corpus(tokenizer, samples)
