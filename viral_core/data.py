"""Conversations to batches: tokens and supervision masks, images, grouped batches.

The whole text is tokenised once, before training; offsets decide which tokens are supervised, so that training sees
exactly the tokens that the prompt of an evaluation produces. What is longer than `max_length` is cut there, as LLaVA
does, but an image that does not fit as a whole is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from viral_core import distributed
from viral_core.conversations import Sample
from viral_core.templates import IMAGE_MARKER, Template, segments
from viral_core.tiles import View, view_of

IGNORE = -100  # label of a token that is not supervised, as in transformers


@dataclass(frozen=True)
class Encoding:
    """A tokenised conversation, cut to what fits."""

    ids: np.ndarray  # (U,) int32 tokens, one for each image
    supervised: np.ndarray  # (U,) bool: the answers and their stop strings
    image_tokens: tuple[int, ...]  # the visual tokens that each image token stands for
    cut: bool  # whether text, or an image, was left out

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


def encode(sample: Sample, processor, template: Template, max_length: int, image_tokens: Sequence[int]) -> Encoding:
    """Tokenise a conversation, mark what is supervised, and cut it to `max_length` tokens.

    ValueError, naming the sample, when a token straddles an answer's border, the stop string yields no token, or the
    image tokens are not those of the images.
    """
    pieces = segments(template, sample.turns, images=bool(sample.images))
    ids, start, end = _tokens(pieces, processor.tokenizer, template, bool(sample.images))
    supervised = np.zeros(len(ids), dtype=bool)
    low = 0
    for text, is_answer in pieces:
        high = low + len(text)
        where = f"sample {sample.id}, near {text[-20:]!r}, template {template.name!r}"
        if ((start < high) & (end > high)).any():
            raise ValueError(f"{where}: a token crosses the border of an answer: the template is not this tokenizer's")
        if is_answer:
            inside = (start >= low) & (end <= high) & (start < end)
            if not (end[inside] == high).any():
                raise ValueError(f"{where}: the tokenizer drops the end, the stop string {template.stop!r}")
            supervised |= inside
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
    answer_ends = set(np.cumsum([len(piece) for piece, _ in pieces])[1::2].tolist())
    special = {str(added): i for i, added in tokenizer.added_tokens_decoder.items() if added.special}

    out_ids, out_places = [], []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
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
    if not view.tiled:
        return [[view.tokens()] * len(sample.images) for sample in samples]
    own = [list(map(view.tokens, sample.image_sizes(sample.images))) for sample in distributed.share(samples)]
    parts = distributed.gather(own, everywhere=True)
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(samples))]  # as `share` has divided them


class ConversationDataset(Dataset):
    """Samples as `{"sample", "input_ids" (S,), "labels" (S,), "image_tokens"}`, S <= max_length; tokenised up front.

    `sample.images` are the images that fit, `image_tokens` their visual tokens. `cut` counts what was left out.
    """

    def __init__(self, samples: Sequence[Sample], processor, template: Template, max_length: int):
        self.samples, self.image_token_id = list(samples), processor.image_token_id
        counts = count_image_tokens(self.samples, view_of(processor))
        self.encodings = [
            encode(sample, processor, template, max_length, image_tokens)
            for sample, image_tokens in zip(self.samples, counts, strict=True)
        ]
        supervised = sum(bool(encoding.supervised.any()) for encoding in self.encodings)
        if not supervised:
            raise ValueError(f"no sample has a supervised token within max_length {max_length}: raise it")
        left_out = sum(map(len, counts)) - sum(len(encoding.image_tokens) for encoding in self.encodings)
        self.cut = {
            "conversations": sum(encoding.cut for encoding in self.encodings),
            "images": left_out,
            "without a supervised token": len(self.samples) - supervised,
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample, encoding = self.samples[index], self.encodings[index]
        fitting = len(encoding.image_tokens)
        targets = sample.targets and sample.targets[:fitting]
        sample = replace(sample, images=sample.images[:fitting], targets=targets)
        ids, labels = encoding.tensors(self.image_token_id)
        return {"sample": sample, "input_ids": ids, "labels": labels, "image_tokens": list(encoding.image_tokens)}


Features = Callable[[Sequence[str]], Tensor]  # names of n images (or tiles) -> (n, N, d), such as a FeatureCache


@dataclass
class Collator:
    """Batch samples of B conversations with n images in total (n may be 0), padded on the right.

    `features`, `latents` and `encoder` give cached features of a teacher, a VAE and, in place of pixels, the vision
    tower; `pictures` passes on the squares that an online teacher sees. Of LLaVA-NeXT these are tiles.
    """

    processor: object
    features: Features | None = None
    pictures: bool = False
    latents: Features | None = None
    encoder: Features | None = None

    def __post_init__(self):
        self.view = view_of(self.processor)
        if self.encoder is not None and self.view.tiled:
            raise ValueError("LLaVA-NeXT's tiles go through the vision tower in every step: give it no encoder cache")

    def __call__(self, items: list[dict]) -> dict:
        """The arguments of `AlignedModel.forward` but `totals`; of images only where there are any; and `pictures`."""
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
            images = [image for sample in samples for image in sample.open_images(sample.targets)]
            batch["pictures"] = [picture for image in images for picture in self.view.pictures(image)]
        return batch

    def _keys(self, sample: Sample) -> list[str]:
        names = sample.targets or sample.images
        sizes = sample.image_sizes(names) if self.view.tiled else [None] * len(names)
        return [key for name, size in zip(names, sizes, strict=True) for key in self.view.keys(name, size)]


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


class GroupedSampler(Sampler[int]):
    """Indices for a whole training run of `steps` global batches, each of one modality and sorted by length.

    Every epoch is a new permutation drawn from (seed, epoch). What is left of the two modalities after whole batches
    makes mixed batches, the last of them filled up with other samples: an epoch has ceil(n / batch_size) batches and
    leaves nobody out. The batch with the longest sample comes first.
    """

    def __init__(self, encodings: Sequence[Encoding], batch_size: int, steps: int, seed: int):
        self.lengths = [encoding.length for encoding in encodings]
        with_images = [i for i, encoding in enumerate(encodings) if encoding.image_tokens]
        self.groups = [with_images, [i for i, encoding in enumerate(encodings) if not encoding.image_tokens]]
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        batches = chain.from_iterable(map(self._epoch, count()))  # of one epoch after the other
        return chain.from_iterable(islice(batches, self.steps))

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
