"""Language models of the embedded world: trained from scratch to answer when a scene is spelled out in words.

A stand-in for Vicuna or Qwen has to bring what those bring: it knows the words, reads a scene from the positions where
the visual tokens will stand, and answers every kind of question.  It is taught from text alone.  At the 16 visual
positions it gets the weighted sum of the embeddings of the words that describe a cell ("dog top far-left left",
"nothing"); later a projector has to map visual features there.

What was found on the way, at the size of the laptop profile:
- Conversations alone teach nothing in the first 1000 steps.  Short lessons do ("number dogs 2 facing cat left ..."), 18
  to a scene, provided that the noun stands *last* in what is asked: the noun's own position can then look its cells
  up in one step.  With the noun first ("dogs number"), counting stayed near 0.5 where it otherwise passed 0.8.
- How the heads start decides how soon a look-up works (`start_as_look_up`): places were told right in 48 % of the
  lessons after 100 steps, and in 3 % with values, outputs and predictions started at random.
- Lessons first, alone; then conversations, and lessons whose answer is asked for one token later ("side dog = left"),
  from which an answer at the end of a question is a small step: the side of the photo went from 21 % to 95 % of the
  questions in 200 steps.  Lessons that come so from the start are learned at half the speed; replies that say the nouns
  again before the answer have to be copied right first, and were at 3 % by then.
- What comes late has to be asked more often (`OFTEN`): relations among four words went from 0.72 to 1.00, kinds of
  things ("an animal") with lessons of their own from 0.76 to 1.00.  Whether one thing is left of another, yes or no,
  stayed at 0.5 to 0.7 in every form; whether a thing is at a border was at 0.99 after 975 steps and is what is asked.
- Numbers are the hardest: a head that looks a word's like up copies the same from one cell and from three.  With up to
  five of a kind 0.17 of the counts with options were right, with up to three 0.57; asked more often, 0.65 at the cost
  of relations.  Asked after every cell how many of its kind there were up to there (`running_counts`) 0.76, and 0.81 of
  the yes/no counts in place of 0.70: what tells one from three then is in the cells, where 98 % are right.  Asked so of
  the third block in place of the last, it was behind after 1950 steps (0.51, not 0.59); asked so only from a model
  without running counts on, it brought nothing.
- The rate falls from the start: relations, numbers and what is asked in conversations come while it does.  Where it
  fell over the last 0.4 of 2600 steps, counts with options ended at 0.76 (with twice as many lessons about numbers
  too, and then relations at 0.75); over the last 0.75, and asked a little more often, at 0.88 (yes or no 0.92).
- When they come differs from run to run, and between machines for one seed: over all of 2600 steps counts ended at
  0.955 (0.95) and relations at 1.00 on one, at 0.81 (0.87) and 0.90 on another.  With 3200 steps two seeds had
  0.955 and 0.97 (0.95, 0.965), MMStar's mix 0.98 and all else 1.00.
- What is wrong then are numbers in scenes of many kinds: the noun finds its cells in the first block, before these know
  their running count.  Positions that turn faster (`rope_theta` 1e4 in place of 1e6), so that the last cell is found
  more easily: 0.82 and 0.88 after 2600 steps.
- Growth keeps counting if it starts where little is lost and goes slowly.  Of eight blocks the third is needed least:
  without it, and before any step, counts with options are at 0.84 (yes or no 0.91), without the fourth at 0.66 (0.65).
  Qwen's stand-in without the fourth, 500 steps: 0.81 (0.84) at the rates of a start from nothing, 0.865 (0.92) at two
  fifths of them; without the third 0.96 (0.95) at two fifths, 0.96 (0.96) at a fifth, and so already after 250 steps,
  of which three seeds had 0.95 to 0.96 (0.96 to 0.98).
- Muon for the matrices and AdamW for the rest learns faster than AdamW for all.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from viral_core.data import IGNORE
from viral_core.templates import IMAGE_MARKER, SYSTEM, TEMPLATES, Template, prompt, segments
from workbook.world import questions
from workbook.world.scenes import BY_NAME, CATEGORIES, GRID, MAX_COUNT, Scene
from workbook.world.write import captioning, in_words, scenes, turns

CELLS = GRID * GRID
WORDS = 4  # per cell: what, row, column, facing
DETAIL = 0.6  # weight of the words after the first: a cell is first of all what it shows
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}

# How often a conversation asks what is learned late, next to once for the rest.
OFTEN = {"cv_bench_count": 4, "mme_count": 3, "mme_position": 2, "cv_bench_relation": 3, "whats_up_two": 2,
         "mme_commonsense": 2, "mmstar": 3}  # fmt: skip

# Strings that every conversation repeats are one token each, so that a sequence spends its length on the question.
FIXED = (
    SYSTEM, " USER:", "USER:", " ASSISTANT:", f"\n{questions.SINGLE_WORD}", f" {questions.YES_OR_NO}",
    f"\n{questions.LETTER}", " Select from the following choices.", " Answer with left, right, top or bottom.",
    " Answer with left, right, above or below.", "Considering the relative positions of the",
    " in the image provided, where is the", " located with respect to the",
    questions.THE_ANSWER,
)  # fmt: skip


# One token each too, although Qwen2's rule cuts them.
WHOLE = (
    *(f" {word}" for word in (*questions.COLUMNS, *"012345")), *(f" {letter}:" for letter in "ABCDEF"),
    *(f"{before}({letter})" for before in ("", " ", "\n") for letter in "ABCDEFab"),
)  # fmt: skip


def build_tokenizer(bos: bool, eos: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's own sentences: any text can be encoded, the world's words are one token each.

    Text is cut by Qwen2's rule: `AutoTokenizer` applies it to every tokenizer that lies beside a Qwen2 model.
    """
    rng, words = np.random.default_rng(0), []
    for scene in scenes(1500, 0, test=False):
        items = questions.conversation(scene, rng, len(questions.ASKERS), list(questions.ASKERS.values()))
        words += [f" {qa.text} {qa.told}" for qa in items]
        words += [f" {questions.caption(scene)} {questions.described(scene)}"]
        words += ["".join(f" {word}" for cell in questions.spelled_out(scene) for word in cell)]
        words += ["".join(text for text, _ in lesson(scene, rng, 8, choice=0.5, later=0.0))]
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_end|>", IMAGE_MARKER]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*FIXED, *WHOLE)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos, **names)


def lesson(scene: Scene, rng: np.random.Generator, items: int, choice: float, later: float) -> list[tuple[str, bool]]:
    """`items` short facts about a scene, drawn with repetitions, as (text, supervised) pieces.

    A share of `choice` offers options, as CV-Bench does, and asks for the letter too; in a share of `later` the answer
    is due one token after the noun.
    """
    counts, single = scene.counts(), questions.singles(scene)
    absent = [c.name for c in CATEGORIES if c.name not in counts]
    pairs = [(a, b, questions.relation_of(a, b)) for a in single for b in single if a is not b]
    side = {o.category: questions.side_of(o) for o in single}
    numbers, sides = tuple("012345"), ("left", "right", "top", "bottom")

    def word(name: str) -> str:
        return BY_NAME[name].plural if rng.random() < 0.7 else name

    def near(n: int) -> int:
        return int(rng.choice([m for m in (n - 1, n + 1) if 1 <= m <= MAX_COUNT]))

    numbered = [(n, k, k if rng.random() < 0.5 else near(k)) for n, k in counts.items()]
    stated = [
        (f"{name} {said}", "Yes" if said == on else "No", ())
        for name, on in side.items()
        if on and (said := on if rng.random() < 0.5 else questions.ACROSS[on])
    ]
    seen = {BY_NAME[name].kind for name in counts}
    kinds = {  # share, then what is asked, what is told, and what else could have been
        "number": (0.22, [(word(n), str(k), numbers) for n, k in counts.items()]),
        "none": (0.06, [(word(n), "0", numbers) for n in absent]),
        "facing": (0.1, [(o.category, o.facing, ("left", "right")) for o in single if o.facing]),
        "at": (0.1, [(o.category, f"{questions.ROWS[o.row]} {questions.COLUMNS[o.col]}", ()) for o in single]),
        "side": (0.06, [(name, on, sides) for name, on in side.items() if on]),
        "where": (0.24, [(f"{a.category} {b.category}", r, tuple(questions.OPPOSITE)) for a, b, r in pairs if r]),
        "are": (0.12, [(f"{questions.NUMBERS[m]} {word(n)}", "Yes" if m == k else "No", ()) for n, k, m in numbered]),
        "is": (0.1, stated),
        "any": (0.08, [(kind, "Yes" if kind in seen else "No", ()) for kind in ("animal", "vehicle", "food")]),
    }
    kinds = {name: facts for name, facts in kinds.items() if facts[1]}
    shares = np.array([share for share, _ in kinds.values()])
    pieces = []
    for kind in rng.choice(list(kinds), items, p=shares / shares.sum()):
        asked, told, others = questions.pick(rng, kinds[kind][1])
        ask = f" {'number' if kind == 'none' else kind} {asked}"
        drawn = rng.random()
        if others and drawn < choice:
            options = [told, *(o for o in rng.permutation(others) if o != told)][: int(rng.integers(2, 5))]
            options = [options[i] for i in rng.permutation(len(options))]
            listed = "".join(f" ({x}) {o}" for x, o in zip("ABCDEF", options, strict=False))
            letter = "ABCDEF"[options.index(told)]
            pieces += [(f"{ask}{listed} =", False), (questions.reasoned(f" {told}", letter), True)]
        elif drawn < choice + later:
            pieces += [(f"{ask} =", False), (f" {told}", True)]
        else:
            pieces += [(ask, False), (f" {told}", True)]
    return pieces


class Lessons(IterableDataset):
    """Endless samples `(input_ids, labels, cells)`: lessons, captions, conversations about a spelled-out scene.

    In the first part of the `steps` batches (`alone`) eight in ten samples are lessons, without options; then three in
    ten are, in all forms.  `cells` (16, 4) are the tokens of each cell's words.
    """

    def __init__(self, tokenizer, template: Template, *, seed, batch_size, steps, turns, items, alone, captions):
        self.tokenizer, self.template, self.seed = tokenizer, template, seed
        self.batch_size, self.steps, self.turns = batch_size, steps, turns
        self.items, self.alone, self.captions = items, alone, captions
        self.askers = [ask for name, ask in questions.ASKERS.items() for _ in range(OFTEN.get(name, 1))]

    def __iter__(self) -> Iterator[tuple]:
        rng, endless = np.random.default_rng((self.seed, 11)), 2**62
        for i, scene in enumerate(scenes(endless, (self.seed, 10), test=False)):
            yield self.sample(scene, rng, i / (self.steps * self.batch_size))

    def sample(self, scene: Scene, rng: np.random.Generator, progress: float) -> tuple:
        share, choice, later = (0.8, 0.0, 0.0) if progress < self.alone else (0.3, 0.5, 0.3)
        cells = spell_out(self.tokenizer, scene)
        drawn, items = rng.random(), questions.conversation(scene, rng, self.turns, self.askers)
        if drawn < share:
            pieces = [(opening(self.template), False), *lesson(scene, rng, self.items, choice, later)]
        elif drawn < share + self.captions:
            pieces = converse(self.template, captioning(scene))
        else:
            pieces = converse(self.template, in_words(scene, items) if drawn > 0.97 else turns(items, image=True))
        ids, labels = tokenise(self.tokenizer, pieces)
        return ids, running_counts(self.tokenizer, scene, ids, labels), cells


def converse(template: Template, said: list[dict]) -> list[tuple[str, bool]]:
    """Pieces of a conversation, with as many image tokens as there are cells."""
    return [(text.replace(IMAGE_MARKER, IMAGE_MARKER * CELLS), answer) for text, answer in segments(template, said)]


def opening(template: Template) -> str:
    """What stands before the first question, up to the image: cells are at the same positions in everything taught."""
    text = prompt(template, IMAGE_MARKER)
    return text[: text.index(IMAGE_MARKER)] + IMAGE_MARKER * CELLS


def spell_out(tokenizer, scene: Scene) -> torch.Tensor:
    """Tokens of the words of each cell, (16, 4) int64; -1 where a cell has fewer words."""
    return _cells(tokenizer, questions.spelled_out(scene))


def _cells(tokenizer, cells: list[tuple[str, ...]]) -> torch.Tensor:
    rows = [[_word_id(tokenizer, word) for word in words] for words in cells]
    return torch.tensor([row + [-1] * (WORDS - len(row)) for row in rows])


def _word_id(tokenizer, word: str) -> int:
    """The token of a word of the world, with the space before it; "Ġ" is a space in a byte-level vocabulary."""
    return tokenizer.convert_tokens_to_ids(f" {word}" if f" {word}" in WHOLE else f"Ġ{word}")


def tokenise(tokenizer, pieces: list[tuple[str, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (S,) of supervised and other pieces, tokenised one by one."""
    ids, labels = [], []
    for i, (text, supervised) in enumerate(pieces):
        piece = tokenizer(text, add_special_tokens=i == 0).input_ids
        ids += piece
        labels += piece if supervised else [IGNORE] * len(piece)
    return torch.tensor(ids), torch.tensor(labels)


def collate(samples: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad on the right: ids (B, S), labels (B, S), cells (B, 16, 4)."""
    ids, labels, cells = zip(*samples, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE), torch.stack(cells)


def collate_by_length(samples: list[tuple], size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A batch in parts of `size`, short samples first: padded as one, a quarter of the work is on padding."""
    samples = sorted(samples, key=lambda sample: len(sample[0]))
    return [collate(samples[i : i + size]) for i in range(0, len(samples), size)]


def supervised_loss(model, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy over what is supervised of `labels` (B, S), a fifth; only that is predicted."""
    supervised = labels[:, 1:] != IGNORE
    states = model.model(inputs_embeds=embeddings).last_hidden_state[:, :-1]
    return torch.nn.functional.cross_entropy(
        model.lm_head(states[supervised]), labels[:, 1:][supervised], reduction="sum"
    )


def running_counts(tokenizer, scene: Scene, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`labels` (S,) that also ask, after each cell with an object, how many of its category there were up to there."""
    labels, met = labels.clone(), Counter()
    places = (ids == tokenizer.convert_tokens_to_ids(IMAGE_MARKER)).nonzero().flatten()
    for o in scene.objects if len(places) else ():
        met[o.category] += 1
        labels[places[o.cell] + 1] = _word_id(tokenizer, str(met[o.category]))
    return labels


def _sum_of_words(table: torch.nn.Embedding, cells: torch.Tensor) -> torch.Tensor:
    """(B, 16, 4) tokens -> (B, 16, D)."""
    weight = (cells >= 0) * torch.tensor([1.0, DETAIL, DETAIL, DETAIL])
    return (table(cells.clamp(min=0)) * weight.unsqueeze(-1)).sum(2)


def cell_embeddings(model, tokenizer, scenes: list[list[tuple[str, ...]]]) -> torch.Tensor:
    """What a language model finds at the visual positions of spelled-out scenes: (n, 16, D)."""
    return _sum_of_words(model.get_input_embeddings(), torch.stack([_cells(tokenizer, words) for words in scenes]))


def embed(
    model, image_token: int, ids: torch.Tensor, cells: torch.Tensor, noise: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Input embeddings (B, S, D) with the sum of a cell's words at its visual position.

    `noise`, a scalar or (B, 1, 1), is the length of random noise added to a cell, in lengths of the cell's own vector.
    """
    table = model.get_input_embeddings()
    words = _sum_of_words(table, cells)
    words = words + noise * words.norm(dim=-1, keepdim=True) * torch.randn_like(words) / words.shape[-1] ** 0.5
    visual = (ids == image_token).unsqueeze(-1)
    seen = visual.flatten(1).any(1)
    return table(ids).masked_scatter(visual, words[seen].flatten())


@torch.no_grad()
def start_as_look_up(model, heads: int, std: float) -> None:
    """Start half of each block's heads so that a word attends to its like and copies what it finds.

    Query and key maps are nearly equal, output maps nearly the transpose of value maps, and the prediction's rows are
    the words' embeddings (Trockman and Kolter, 2023, find such maps in trained attention and start from them).
    """
    for block in model.model.layers:
        maps = block.self_attn
        rows = maps.q_proj.out_features // heads * (heads // 2)
        query = maps.q_proj.weight[:rows].normal_(std=std)
        maps.k_proj.weight[:rows] = query + 0.3 * std * torch.randn_like(query)
        value = maps.v_proj.weight[:rows].normal_(std=std)
        maps.o_proj.weight[:, :rows] = value.T + 0.3 * std * torch.randn_like(value.T)
    model.lm_head.weight.copy_(model.get_input_embeddings().weight)


@torch.no_grad()
def grow_from(model, path: str | Path) -> None:
    """Start from another stand-in of the same width and words: its blocks, embeddings and norm.

    What is unlike comes after a third of the blocks: where `model` has more, they start there without effect; where it
    has fewer, the others' fall out there.
    """
    source = AutoModelForCausalLM.from_pretrained(path)
    mine, theirs = model.model.layers, source.model.layers
    first = min(len(mine), len(theirs)) // 3
    last = min(len(mine), len(theirs)) - first
    for i, block in enumerate(mine):
        if first <= i < len(mine) - last:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        else:  # strict=False: Qwen2 has biases where Llama has none
            block.load_state_dict(theirs[i if i < first else i - len(mine)].state_dict(), strict=False)
    for name in ("embed_tokens", "norm"):
        getattr(model.model, name).load_state_dict(getattr(source.model, name).state_dict())
    model.lm_head.load_state_dict(source.lm_head.state_dict())


@torch.no_grad()
def text_accuracy(model, tokenizer, template: Template, seed: int, rows: int) -> dict[str, float]:
    """Share of held-out questions of each kind answered exactly, the scene being spelled out in words."""
    image_token, out = tokenizer.convert_tokens_to_ids(IMAGE_MARKER), {}
    model.eval()
    for name, asker in questions.ASKERS.items():
        rng, samples = np.random.default_rng((seed, 21)), []
        for scene in scenes(2**62, (seed, 20), test=True):
            if len(samples) == rows:
                break
            if qa := asker(scene, rng):
                pieces = converse(template, turns([qa], image=True))
                samples.append((*tokenise(tokenizer, pieces), spell_out(tokenizer, scene)))
        ids, labels, cells = collate(samples)
        logits = model(inputs_embeds=embed(model, image_token, ids, cells)).logits
        right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORE)
        out[name] = float(right.all(1).double().mean())
    model.train()
    return out


def train_language(
    out: str | Path,
    template: str,
    seed: int,
    *,
    family: str,
    blocks: int,
    steps: int,
    start: str | None = None,
    width: int = 96,
    heads: int = 4,
    mlp: int = 256,
    batch_size: int = 16,
    turns: int = 5,
    items: int = 18,
    alone: float = 0.2,
    captions: float = 0.12,
    rope_theta: float = 1e6,
    start_std: float = 0.1,
    noise: float = 0.6,
    muon_lr: float = 0.02,
    lr: float = 3e-3,
    rows: int = 400,
    report_every: int = 0,
) -> dict:
    """Train a stand-in for a language model and save it, its tokenizer and `metrics.json` in `out`.

    Args:
        family: "llama" or "qwen2", the transformers class.
        template: the conversation template it is to answer in.
        start: another stand-in to grow from (`grow_from`), in place of a start at random.
        alone: part of the training in which lessons are nearly alone; afterwards conversations are most of it.
        captions: share of captions.
        noise: most noise on a cell (`embed`), so that features which are not quite words can be read later; it comes
            in after the first part, which it would slow down.

    Returns:
        The metrics: accuracy per kind of question when the scene is spelled out, of how many `rows`, steps, seconds.
    """  # fmt: skip
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(bos=family == "llama", eos=TEMPLATES[template].stop)
    config, model_class = FAMILIES[family]
    model = model_class(
        config(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=mlp, num_hidden_layers=blocks,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512,
            initializer_range=0.05, rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, attn_implementation="sdpa",
        )
    )  # fmt: skip
    if start:
        grow_from(model, start)
    else:
        start_as_look_up(model, heads, start_std)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    rate = lambda step: min(1.0, (step + 1) / 40) * max(0.02, 1 - step / steps)  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    data = Lessons(
        tokenizer, TEMPLATES[template], seed=seed, batch_size=batch_size, steps=steps, turns=turns, items=items,
        alone=alone, captions=captions,
    )  # fmt: skip
    batches = iter(DataLoader(data, batch_size, num_workers=1, collate_fn=collate_by_length, prefetch_factor=8))
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    start, bar = time.perf_counter(), tqdm(range(steps), f"language model {Path(out).name}")
    for step in bar:
        most = noise * min(1.0, max(0.0, step / steps - alone) / 0.25)
        parts, total = next(batches), 0.0
        supervised = sum(int((labels[:, 1:] != IGNORE).sum()) for _, labels, _ in parts)
        for ids, labels, cells in parts:
            embeddings = embed(model, image_token, ids, cells, most * torch.rand(len(ids), 1, 1))
            loss = supervised_loss(model, embeddings, labels) / supervised
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{total:.3f}")
        if report_every and (step + 1) % report_every == 0:
            right = text_accuracy(model, tokenizer, TEMPLATES[template], seed, rows // 4)
            tqdm.write(f"step {step + 1}: " + " ".join(f"{k} {v:.2f}" for k, v in right.items()))
    metrics = {"steps": steps, "seconds": round(time.perf_counter() - start, 1), "rows": rows, "text_accuracy":
               text_accuracy(model, tokenizer, TEMPLATES[template], seed, rows)}  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (Path(out) / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics
