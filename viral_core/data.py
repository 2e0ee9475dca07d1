"""Conversations to batches: tokens and supervision masks, images, grouped batches.

Design choices:
- The whole text is tokenised once, before training; offsets decide which tokens are supervised, so that training sees
  exactly the tokens that the prompt of an evaluation produces. Nothing is re-tokenised piece by piece.
- What is longer than `max_length` is cut there, as LLaVA does, but an image is a unit: one that does not fit as a whole
  is left out, with the text behind it.
- Text stays text: a special string such as `</s>` in a question or an answer never becomes a special token.
- Any number of images per sample, none included. They are opened when a batch is made, and only if something sees them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from viral_core import distributed
from viral_core.conversations import Sample
from viral_core.templates import IMAGE_MARKER, Template, segments
from viral_core.tiles import View, view_of

IGNORE = -100  # label of a token that is not supervised, as in transformers


def expand_image_tokens(text: str, n: int) -> str:
    """Replace every `<image>` marker by `n` image tokens."""
    return text.replace(IMAGE_MARKER, IMAGE_MARKER * n)


@dataclass(frozen=True)
class Encoding:
    """A tokenised conversation, cut to what fits.

    Attributes:
        ids: (U,) int32 tokens, one for each image.
        supervised: (U,) bool: the answers and their stop strings.
        image_tokens: the visual tokens that each image token stands for.
        cut: whether text, or an image, was left out.
    """

    ids: np.ndarray
    supervised: np.ndarray
    image_tokens: tuple[int, ...]
    cut: bool

    @property
    def length(self) -> int:
        """Tokens, visual ones included."""
        return len(self.ids) + sum(self.image_tokens) - len(self.image_tokens)

    def tensors(self, image_token_id: int) -> tuple[Tensor, Tensor]:
        """`input_ids` and `labels`, (length,) int64, with every image at its full number of tokens."""
        repeats = np.ones(len(self.ids), dtype=np.int64)
        repeats[self.ids == image_token_id] = self.image_tokens
        ids = self.ids.astype(np.int64).repeat(repeats)
        labels = np.where(self.supervised.repeat(repeats), ids, IGNORE)
        return torch.from_numpy(ids), torch.from_numpy(labels)


def encode(
    sample: Sample, processor, template: Template, max_length: int, image_tokens: Sequence[int] | None = None
) -> Encoding:
    """Tokenise a conversation, mark what is supervised, and cut it to `max_length` tokens.

    Args:
        image_tokens: visual tokens of each image, where they are known already.

    Raises:
        ValueError: naming the sample, when a token straddles an answer's border, the stop string yields no token, or
            the image tokens are not those of the images.
    """
    if image_tokens is None:
        view = view_of(processor)
        sizes = sample.image_sizes() if view.reads_sizes else [None] * len(sample.images)
        image_tokens = [view.tokens(size) for size in sizes]
    pieces = segments(template, sample.turns, images=bool(sample.images))
    ids, start, end = _tokens(pieces, processor.tokenizer, template, bool(sample.images))
    supervised = np.zeros(len(ids), dtype=bool)
    low = 0
    for text, is_answer in pieces:
        high = low + len(text)
        inside = (start >= low) & (end <= high) & (start < end)
        if ((start < high) & (end > high)).any():
            raise ValueError(
                f"sample {sample.id}: a token crosses the border of an answer near {text[-20:]!r}; "
                f"template {template.name!r} does not fit this tokenizer"
            )
        if is_answer and (not inside.any() or end[inside].max() != high):
            raise ValueError(
                f"sample {sample.id}: the tokenizer drops the end of {text[-20:]!r}; template {template.name!r} needs "
                f"a tokenizer that encodes its stop string {template.stop!r}"
            )
        supervised |= inside & is_answer
        low = high

    visual = ids == processor.image_token_id
    if visual.sum() != len(image_tokens):
        raise ValueError(f"sample {sample.id}: {visual.sum()} image tokens for {len(image_tokens)} images")
    lengths = np.ones(len(ids), dtype=np.int64)
    lengths[visual] = image_tokens
    fitting = int(np.searchsorted(lengths.cumsum(), max_length, side="right"))
    images = int(visual[:fitting].sum())
    return Encoding(ids[:fitting], supervised[:fitting], tuple(image_tokens)[:images], fitting < len(ids))


def _tokens(
    pieces: Sequence[tuple[str, bool]], tokenizer, template: Template, has_images: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of a text and the places (start, end) of their characters; special strings that are content are split up."""
    text = "".join(text for text, _ in pieces)
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    answer_ends, ends = set(), np.cumsum([len(piece) for piece, _ in pieces])
    for (_, is_answer), end in zip(pieces, ends, strict=True):
        if is_answer:
            answer_ends.add(int(end))
    special = {str(added): i for i, added in tokenizer.added_tokens_decoder.items() if added.special}

    out_ids, out_places = [], []
    for token, (start, end) in zip(ids, places, strict=True):
        string = text[start:end].strip()
        is_stop = string == template.stop and end in answer_ends
        is_image = string == IMAGE_MARKER and has_images  # answers that hold a marker are refused when they are read
        if special.get(string) != token or is_stop or is_image:
            plain = [token]
        else:
            plain = tokenizer(string, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        out_ids += plain
        out_places += [(start, end)] * len(plain)
    start, end = np.array(out_places, dtype=np.int64).reshape(-1, 2).T
    return np.array(out_ids, dtype=np.int32), start, end


def count_image_tokens(samples: Sequence[Sample], view: View) -> list[list[int]]:
    """Visual tokens of each image of each sample; where files must be read, launched processes divide them."""
    if not view.reads_sizes:
        return [[view.tokens()] * len(sample.images) for sample in samples]
    mine = {i: [view.tokens(size) for size in samples[i].image_sizes()] for i in distributed.share(range(len(samples)))}
    counts = {i: tokens for part in distributed.gather_everywhere(mine) for i, tokens in part.items()}
    return [counts[i] for i in range(len(samples))]


@dataclass(frozen=True)
class Lengths:
    """What `max_length` did to a set of conversations."""

    samples: int
    cut: int  # conversations that go on beyond it
    images_left_out: int
    unsupervised: tuple[str, ...]  # ids of those without any supervised token: only their images are learnt from


class ConversationDataset(Dataset):
    """Samples as `{"sample", "input_ids" (S,), "labels" (S,), "image_tokens"}`, S <= max_length; tokenised up front.

    `sample.images` are the images that fit, `image_tokens` their visual tokens.

    Raises:
        ValueError: as `encode`; no sample has a supervised token.
    """

    def __init__(self, samples: Sequence[Sample], processor, template: Template, max_length: int):
        self.samples, self.image_token_id = list(samples), processor.image_token_id
        counts = count_image_tokens(self.samples, view_of(processor))
        self.encodings = [
            encode(sample, processor, template, max_length, image_tokens)
            for sample, image_tokens in zip(self.samples, counts, strict=True)
        ]
        if not any(encoding.supervised.any() for encoding in self.encodings):
            raise ValueError(f"no sample has a supervised token within max_length {max_length}: raise it")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample, encoding = self.samples[index], self.encodings[index]
        fitting = len(encoding.image_tokens)
        if fitting < len(sample.images):
            targets = sample.targets and sample.targets[:fitting]
            sample = replace(sample, images=sample.images[:fitting], targets=targets)
        ids, labels = encoding.tensors(self.image_token_id)
        return {"sample": sample, "input_ids": ids, "labels": labels, "image_tokens": list(encoding.image_tokens)}

    @property
    def lengths(self) -> Lengths:
        """What was cut."""
        pairs = list(zip(self.samples, self.encodings, strict=True))
        return Lengths(
            len(pairs),
            cut=sum(encoding.cut for _, encoding in pairs),
            images_left_out=sum(len(sample.images) - len(encoding.image_tokens) for sample, encoding in pairs),
            unsupervised=tuple(sample.id for sample, encoding in pairs if not encoding.supervised.any()),
        )


Features = Callable[[Sequence[str]], Tensor]  # names of n images (or tiles) -> (n, N, d), such as a FeatureCache


@dataclass
class Collator:
    """Batch samples of B conversations with n images in total (n may be 0), padded on the right.

    `features` gives cached teacher features, `latents` cached VAE latents, `encoder` cached features of the frozen
    vision tower, in place of pixels; `pictures` passes on the squares that a teacher sees which runs online. Of
    LLaVA-NeXT a teacher sees the tiles, tile by tile, and cached features are named by them.
    """

    processor: object
    features: Features | None = None
    pictures: bool = False
    latents: Features | None = None
    encoder: Features | None = None

    def __post_init__(self):
        self.view = view_of(self.processor)
        if self.encoder is not None and self.view.reads_sizes:
            raise ValueError("LLaVA-NeXT's tiles go through the vision tower in every step: give it no encoder cache")

    def __call__(self, items: list[dict]) -> dict:
        """Returns `input_ids`, `attention_mask`, `labels` (B, S) and `image_tokens`, the visual tokens of each image.

        With n > 0 also `pixel_values` (n, 3, H, W), images in reading order, and `teacher_features` (n, N, d),
        `latents` (n, N, c) or `pictures`, where asked for. With `encoder` there is `encoder_features`
        (n, N, Dz) in place of pixels, n = 0 included. LLaVA-NeXT: `pixel_values` (n, tiles, 3, H, W), filled up with
        blank tiles, `image_sizes` (n, 2), and as many `pictures` or `teacher_features` as there are tiles.
        """
        samples, ids = [item["sample"] for item in items], [item["input_ids"] for item in items]
        batch = {
            "input_ids": _pad(ids, self.processor.tokenizer.pad_token_id),
            "labels": _pad([item["labels"] for item in items], IGNORE),
            "attention_mask": _pad([torch.ones_like(x) for x in ids], 0),
            "image_tokens": [n for item in items for n in item["image_tokens"]],
        }
        if self.encoder is not None:
            batch["encoder_features"] = self.encoder([name for sample in samples for name in sample.images])
        if not batch["image_tokens"]:
            return batch
        if self.encoder is None:
            images = [self.view.prepare(image) for sample in samples for image in sample.open_images()]
            batch.update(self.view.image_processor(images, return_tensors="pt"))
        for name, source in (("teacher_features", self.features), ("latents", self.latents)):
            if source is not None:
                batch[name] = source([key for sample in samples for key in self._keys(sample)])
        if self.pictures:
            shown = [image for sample in samples for image in sample.open_targets()]
            batch["pictures"] = [picture for image in shown for picture in self.view.pictures(image)]
        return batch

    def _keys(self, sample: Sample) -> list[str]:
        names = sample.targets or sample.images
        sizes = sample.image_sizes(names) if self.view.reads_sizes else [None] * len(names)
        return [key for name, size in zip(names, sizes, strict=True) for key in self.view.keys(name, size)]


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


class GroupedSampler(Sampler[int]):
    """Indices for a whole training run of `steps` global batches, each of one modality and sorted by length.

    Every epoch is a new permutation drawn from (seed, epoch). What is left of the two modalities after whole batches
    makes mixed batches, the last of them filled up with other samples, so that an epoch has ceil(n / batch_size)
    batches and leaves nobody out. The batch with the longest sample comes first of all: if memory does not suffice,
    the run ends at once. The order depends on the arguments alone, hence a resumed run only has to skip batches.
    """

    def __init__(self, encodings: Sequence[Encoding], batch_size: int, steps: int, seed: int):
        self.lengths = [encoding.length for encoding in encodings]
        self.groups = [
            [i for i, encoding in enumerate(encodings) if bool(encoding.image_tokens) is with_images]
            for with_images in (True, False)
        ]
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        left, epoch = self.steps, 0
        while left > 0:
            batches = self._epoch(epoch)[:left]
            left, epoch = left - len(batches), epoch + 1
            for batch in batches:
                yield from batch

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        size, batches, rest = self.batch_size, [], []
        for group in self.groups:
            order = rng.permutation(group).tolist()
            whole = len(order) - len(order) % size
            batches += [order[i : i + size] for i in range(0, whole, size)]
            rest += order[whole:]
        rest += rng.integers(len(self.lengths), size=-len(rest) % size).tolist()
        batches += [rest[i : i + size] for i in range(0, len(rest), size)]
        batches = [sorted(batches[i], key=lambda j: -self.lengths[j]) for i in rng.permutation(len(batches))]
        if epoch == 0:
            longest = max(range(len(batches)), key=lambda i: self.lengths[batches[i][0]])
            batches.insert(0, batches.pop(longest))
        return batches
