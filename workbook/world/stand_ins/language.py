"""Language models of the embedded world: trained from scratch, from text, to answer when a scene is spelled out.

A stand-in for Vicuna or Qwen has to bring what those bring: it knows the words, reads a scene from the positions where
the visual tokens will stand, and answers every kind of question.  At a visual position it gets the weighted sum of the
embeddings of the words that describe it, with noise; later a projector has to map visual features there.  What an
encoder sees is never as clear as words, and a model that has read only clear ones believes nothing that is less: over
the second half of the training the words are put in doubt.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from viral_core.data import IGNORE
from viral_core.distributed import device
from viral_core.templates import IMAGE_MARKER, TEMPLATES
from workbook.world import questions
from workbook.world.scenes import CATEGORIES, GRID, draw_scenes
from workbook.world.stand_ins.fitting import fit, untrained, write_metrics
from workbook.world.stand_ins.lessons import Corpus, questions_in

FIRST_VISUAL = 3  # place of the first visual token, behind <s>, the system's sentence and " USER: "
DETAIL = 0.6  # weight of row, column and facing next to what is there
NOISE = 0.7  # at a visual position at the most (`Speller`); it grows over the first half of the training
DOUBT = 1.8  # the same, over the second half
MIXED = 0.95  # of a place's words at the most are others than its own


class Speller(nn.Module):
    """Embeddings of spelled-out scenes, from the word embeddings of a language model."""

    def __init__(self, table: nn.Embedding, tokenizer):
        super().__init__()
        self.table = table

        def word(text: str) -> int:
            (token,) = tokenizer(f" {text}", add_special_tokens=False).input_ids
            return token

        what = [word("nothing"), *(word(c.name) for c in CATEGORIES)]
        places = [[word(f"{axis} {i + 1}") for i in range(GRID)] for axis in ("row", "column")]
        row, column = np.divmod(np.arange(GRID * GRID), GRID)
        self.register_buffer("what", torch.tensor(what), persistent=False)
        self.register_buffer("facing", torch.tensor([word("left"), word("right")]), persistent=False)
        self.register_buffer("rows", torch.tensor(places[0])[row], persistent=False)
        self.register_buffer("columns", torch.tensor(places[1])[column], persistent=False)

    def forward(self, layout: Tensor, spill: Tensor, noise: Tensor, doubt: Tensor) -> Tensor:
        """Layouts (B, 3, 64) -> (B, 64, D).

        spill: (B, 1), how much of an object's words stands where it lies, but not its centre.  noise: (B, 1, 1), length
        of random noise in lengths of the vector it is added to.  doubt: (B, 1, 1), how much of a place's words, at the
        most, are those of places beside it and any others.
        """
        what, facing, centre = layout.long().unbind(1)
        share = torch.where(centre > 0, 1.0, spill).unsqueeze(-1) * (what > 0).unsqueeze(-1)
        seen = share * F.one_hot(what, len(self.what))
        seen[..., 0] += 1 - share[..., 0]
        seen = seen + 0.5 * doubt * torch.rand_like(doubt) * (_around(seen) - seen)
        seen = _mixed(seen, doubt, 0.15)
        facings = _mixed(F.one_hot(facing, 3).float(), doubt, 0.5)[..., 1:] * (1 - seen[..., :1])
        words = seen @ self.table(self.what) + DETAIL * (facings @ self.table(self.facing))
        words = words + DETAIL * (self.table(self.rows) + self.table(self.columns))
        return words + noise * words.norm(dim=-1, keepdim=True) * torch.randn_like(words) / words.shape[-1] ** 0.5


def _around(shares: Tensor) -> Tensor:
    """The means (B, 64, K) of shares over each place and the up to eight beside it."""
    grid = shares.transpose(1, 2).unflatten(-1, (GRID, GRID))
    return F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)


def _mixed(shares: Tensor, most: Tensor, concentration: float) -> Tensor:
    """Shares (B, 64, K) mixed with random ones, drawn from a symmetric Dirichlet distribution for each place."""
    others = torch.full_like(shares, concentration)
    others = torch.distributions.Dirichlet(others).sample()
    part = (most * torch.rand_like(shares[..., :1])).clamp(max=MIXED)
    return (1 - part) * shares + part * others


class Pupil:
    """A language model and the samples that it learns from, on the device and in its own template's tokens."""

    def __init__(self, model, tokenizer, template: str):
        self.model, self.speller = model, Speller(model.get_input_embeddings(), tokenizer).to(device())
        self.image = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
        self.stop = tokenizer.convert_tokens_to_ids("</s>"), tokenizer.convert_tokens_to_ids(TEMPLATES[template].stop)
        self.first = 0 if template == "vicuna_v1" else 1  # Qwen's sequences begin without <s>

    def tensors(self, corpus: Corpus) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (n, S), labels (n, S) with `IGNORE` where nothing is supervised, layouts (n, 3, 64)."""
        ids = torch.from_numpy(corpus.ids[:, self.first :].astype(np.int16))
        ids[ids == self.stop[0]] = self.stop[1]
        labels = ids.masked_fill(~torch.tensor(corpus.supervised[:, self.first :]), IGNORE)
        return ids.to(device()), labels.to(device()), torch.tensor(corpus.layouts, device=device())

    def logits(self, ids: Tensor, layout: Tensor, noise: float = 0.0, doubt: float = 0.0) -> Tensor:
        """Logits (B, S, V) of the next token; `noise` and `doubt` at the most, and spill four fifths of the noise."""
        embeddings = self.model.get_input_embeddings()(ids)
        drawn = torch.rand(3, len(ids), 1, 1, device=ids.device)
        words = self.speller(layout, 0.8 * noise * drawn[0, :, 0], noise * drawn[1], doubt * drawn[2])
        places = slice(FIRST_VISUAL - self.first, FIRST_VISUAL - self.first + GRID * GRID)
        visual = (ids[:, places] == self.image).unsqueeze(-1)
        words = torch.where(visual, words, embeddings[:, places])
        embeddings = torch.cat([embeddings[:, : places.start], words, embeddings[:, places.stop :]], 1)
        return self.model(inputs_embeds=embeddings).logits

    @torch.no_grad()
    def accuracy(self, corpus: Corpus) -> float:
        """Share of samples whose supervised tokens are all predicted."""
        ids, labels, layout = self.tensors(corpus)
        right = self.logits(ids.long(), layout)[:, :-1].argmax(-1) == labels[:, 1:]
        return round(float((right | (labels[:, 1:] == IGNORE)).all(1).float().mean()), 4)


def train_language(corpora: Path, out: Path, seed: int, template: str, rows: int = 400, **recipe) -> dict:
    """Train a stand-in that answers in a template, and save it, its tokenizer and `metrics.json` in `out`.

    Returns the metrics: accuracy per kind of question with the scene spelled out at the visual positions (`spelled`)
    and described in the question (`described`), on `rows` questions of each kind about validation scenes.
    """
    rng = np.random.default_rng(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(corpora / "tokenizer")
    model_class = Qwen2ForCausalLM if template == "qwen" else LlamaForCausalLM
    model = untrained(model_class, out.name).to(device())
    pupil = Pupil(model, tokenizer, template)
    corpus = [Corpus.load(corpora / kind) for kind in ("lessons", "conversations")]
    data = tuple(torch.cat(pair) for pair in zip(*map(pupil.tensors, corpus), strict=True))
    samples, lengths = len(corpus[0]), np.concatenate([(part.ids > 0).sum(1) for part in corpus])

    def loss(drawn: np.ndarray, progress: float) -> Tensor:
        """Lessons are four in five samples at first, from a quarter of the training on three in ten."""
        conversing = rng.random(len(drawn)) > (0.8 if progress < 0.25 else 0.3)
        drawn = drawn + samples * conversing
        ids, labels, layout = (tensor[torch.from_numpy(drawn).to(device())] for tensor in data)
        length, noise, doubt = lengths[drawn].max(), NOISE * min(1.0, 2 * progress), DOUBT * (progress >= 0.5)
        logits = pupil.logits(ids[:, :length].long(), layout, noise, doubt)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:length].flatten().long())

    record = fit(list(model.parameters()), loss, samples, seed=seed, **recipe)
    model.eval()
    scenes = list(draw_scenes(2 * rows, (seed, 20), "val"))
    accuracies = {
        name: {
            kind: pupil.accuracy(questions_in(tokenizer, scenes, asker, name == "described", rows))
            for kind, asker in questions.ASKERS.items()
        }
        for name in ("spelled", "described")
    }
    model.to("cpu", torch.float16).save_pretrained(out)
    if template == "qwen":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A", special_tokens=[])  # without <s>
        tokenizer.eos_token, tokenizer.bos_token = TEMPLATES[template].stop, None
    tokenizer.save_pretrained(out)
    return write_metrics(out, model, {**record, "samples": 2 * samples, "text_accuracy": accuracies})
