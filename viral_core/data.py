"""Conversations to batches: LLaVA's json formats, supervision masks, square padding, grouped batches.

Design choices:
- The whole text is tokenised once; offsets decide which tokens are supervised, so that training sees exactly the
  tokens that the prompt of an evaluation produces. Nothing is re-tokenised piece by piece.
- Any number of images per sample, none included. Images are opened when a sample is drawn, not before.
- Faults are found up front and listed together (`load_conversations`) or raise with the sample's name (`encode`).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from viral_core.templates import IMAGE_MARKER, Template, segments
from viral_core.tiles import cut, is_tiled, patch_index, tile_keys

IGNORE = -100  # label of a token that is not supervised, as in transformers
MEAN_COLOR = (122, 116, 104)  # 255 times CLIP's mean pixel, which LLaVA pads with
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")  # of image files that a name may stand for
_LISTED = 20  # faults shown in full by one error message


@dataclass(frozen=True)
class Sample:
    """One conversation. `images` are the names written in the json file: the keys of cached teacher features.

    `targets`, where given, names for each image another one, whose teacher features it is aligned to instead.
    """

    id: str
    turns: tuple[dict, ...]
    images: tuple[str, ...]
    folder: Path
    targets: tuple[str, ...] | None = None

    def open_images(self, square: bool = True) -> list[Image.Image]:
        """Open the images as RGB, padded to squares with the mean colour (LLaVA-NeXT takes them as they are).

        Raises:
            ValueError: a file that is no readable image; names the sample and the file.
        """
        return [pad_to_square(image) if square else image for image in map(self._open, self.images)]

    def open_targets(self, square: bool = True) -> list[Image.Image]:
        """Open the images that a teacher sees, as `open_images` does."""
        return [pad_to_square(image) if square else image for image in map(self._open, self.targets or self.images)]

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the images, of which only the headers are read."""
        return [self._open(name, lambda image: (image.height, image.width)) for name in self.images]

    def _open(self, name: str, read: Callable = lambda image: image.convert("RGB")):
        try:
            with Image.open(find_image(self.folder, name) or self.folder / name) as image:
                return read(image)
        except OSError as error:
            raise ValueError(
                f"sample {self.id}: cannot read image {self.folder / name} ({error}): restore it"
            ) from error


def pad_to_square(image: Image.Image, color: tuple[int, int, int] = MEAN_COLOR) -> Image.Image:
    """Centre an RGB image (W, H) on a square canvas of side max(W, H), as LLaVA does."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), color)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def find_image(folder: str | Path, name: str) -> Path | None:
    """The file of an image: the named one, else the one of its stem with another suffix; None if there is neither.

    LLaVA's 665K json says .jpg for every image of OCR-VQA, of which some are .gif and .png files.
    """
    file = Path(folder) / name
    others = (file.with_suffix(suffix) for suffix in SUFFIXES)
    return next((found for found in (file, *others) if found.is_file()), None)


def load_conversations(path: str | Path, image_folder: str | Path) -> list[Sample]:
    """Read LLaVA json (LCS-558K or 665K format) and check every sample.

    Raises:
        FileNotFoundError: no such json file or image folder.
        ValueError: the file is not such a list, or samples are faulty (`check_conversations`), listed together.
    """
    samples, faults = check_conversations(path, image_folder)
    if faults:
        raise ValueError(describe_faults(path, list(faults.values())))
    return samples


def describe_faults(path: str | Path, faults: Sequence[str]) -> str:
    """One message for all that is wrong with the entries of a json file and their images."""
    more = f"\n  ... and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    listed = "\n  ".join(faults[:_LISTED])
    return f"{len(faults)} faults in {path}; correct or remove these entries:\n  {listed}{more}"


def check_conversations(path: str | Path, image_folder: str | Path) -> tuple[list[Sample], dict[int, str]]:
    """The good samples of LLaVA json, and what is wrong with the others by their position in the file.

    A sample is `{"id", "image" (a name, a list of names, or absent), "conversations": [{"from", "value"}, ...]}`.
    Faults: a missing image, turns that do not alternate from a human one, image markers that do not match the images,
    empty answers.

    Raises:
        FileNotFoundError: no such json file or image folder.
        ValueError: the file is not a list of entries.
    """
    path, folder = Path(path), Path(image_folder)
    if not path.is_file():
        raise FileNotFoundError(f"no conversations at {path}: create or download that file first")
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder at {folder}, needed by {path}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json ({error}): create or download it again") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a non-empty json list of conversations")

    samples, faults = [], {}
    for position, entry in enumerate(entries):
        name = str(entry.get("id", f"at position {position}")) if isinstance(entry, dict) else f"at position {position}"
        if found := _faults(entry, folder):
            faults[position] = f"sample {name}: {'; '.join(found)}"
        else:
            samples.append(Sample(name, tuple(entry["conversations"]), _image_names(entry), folder))
    return samples, faults


def shuffle_targets(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The samples with every image's teacher features swapped for those of another image: right features, wrong image.

    The exchange is one cycle through all distinct images, drawn from the seed: nobody keeps its own, each is used once,
    and epochs, ranks, caches and online teachers agree.

    Raises:
        ValueError: there are fewer than two images.
    """
    names = sorted({name for sample in samples for name in sample.images})
    if len(names) < 2:
        raise ValueError(f"{len(names)} images cannot be exchanged: shuffled targets need two or more")
    order = np.random.default_rng(seed).permutation(len(names))
    other = {names[i]: names[j] for i, j in zip(order, np.roll(order, 1), strict=True)}
    return [replace(sample, targets=tuple(other[name] for name in sample.images)) for sample in samples]


def _image_names(entry: dict) -> tuple[str, ...]:
    image = entry.get("image") or ()
    return (image,) if isinstance(image, str) else tuple(image)


def _faults(entry: object, folder: Path) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list) or not entry["conversations"]:
        return ["no list of conversations"]
    turns, images = entry["conversations"], _image_names(entry)
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        return ["a turn without a text value"]
    faults = [f"image {name} not found in {folder}" for name in images if find_image(folder, name) is None]
    roles = [turn.get("from") for turn in turns]
    if roles[0] != "human":
        faults.append(f"the first turn is from {roles[0]!r}, not 'human'")
    elif roles != ["human", "gpt"] * (len(roles) // 2):
        faults.append(f"turns do not alternate human, gpt: {roles}")
    markers = sum(turn["value"].count(IMAGE_MARKER) for turn in turns if turn.get("from") == "human")
    if markers != len(images):
        faults.append(f"{markers} {IMAGE_MARKER} markers in human turns for {len(images)} images")
    for turn in turns:
        if turn.get("from") == "gpt" and IMAGE_MARKER in turn["value"]:
            faults.append(f"an answer contains {IMAGE_MARKER}")
        if turn.get("from") == "gpt" and not turn["value"].strip():
            faults.append("an empty answer")
    return faults


def image_token_count(processor, size: tuple[int, int] | None = None) -> int:
    """Visual tokens N of one image: the patches of the processor's fixed input size, as LlavaProcessor counts them.

    Of LLaVA-NeXT, which needs the image's `size` (height, width): those of all its tiles, and the newlines.
    """
    images = processor.image_processor
    if is_tiled(images):
        return len(patch_index(size, images.image_grid_pinpoints, images.crop_size["height"], processor.patch_size))
    size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    return patches + processor.num_additional_image_tokens - (processor.vision_feature_select_strategy == "default")


def visual_tokens(sample: Sample, processor) -> list[int]:
    """Visual tokens of each of a sample's images; their files are read only where that depends on their sizes."""
    if is_tiled(processor):
        return [image_token_count(processor, size) for size in sample.image_sizes()]
    return [image_token_count(processor)] * len(sample.images)


def expand_image_tokens(text: str, n: int | Iterator[int]) -> str:
    """Replace every `<image>` marker by `n` image tokens, or by the next number of an iterator."""
    if isinstance(n, int):
        return text.replace(IMAGE_MARKER, IMAGE_MARKER * n)
    return re.sub(re.escape(IMAGE_MARKER), lambda _: IMAGE_MARKER * next(n, 1), text)


def encode(sample: Sample, processor, template: Template, max_length: int) -> dict[str, torch.Tensor]:
    """Tokenise a conversation and mark what is supervised: the answers and the stop strings only.

    Returns:
        `input_ids` and `labels`, both (S,) int64 with S <= max_length; unsupervised labels are `IGNORE`.

    Raises:
        ValueError: naming the sample, when a token straddles an answer's border, the stop string yields no token, no
            supervised token is left, or truncation would cut visual tokens.
    """
    counts = visual_tokens(sample, processor)
    left = iter(counts)
    pieces = [(expand_image_tokens(text, left), supervised) for text, supervised in segments(template, sample.turns)]
    encoded = processor.tokenizer("".join(text for text, _ in pieces), return_offsets_mapping=True, verbose=False)
    ids = torch.tensor(encoded["input_ids"])
    start, end = np.array(encoded["offset_mapping"]).T
    answer = torch.zeros(len(ids), dtype=torch.bool)
    low = 0
    for text, supervised in pieces:
        high = low + len(text)
        inside = (start >= low) & (end <= high) & (start < end)
        if ((start < high) & (end > high)).any():
            raise ValueError(
                f"sample {sample.id}: a token crosses the border of an answer near {text[-20:]!r}; "
                f"template {template.name!r} does not fit this tokenizer"
            )
        if supervised and (not inside.any() or end[inside].max() != high):
            raise ValueError(
                f"sample {sample.id}: the tokenizer drops the end of {text[-20:]!r}; template {template.name!r} needs "
                f"a tokenizer that encodes its stop string {template.stop!r}"
            )
        answer |= torch.from_numpy(inside & supervised)
        low = high
    labels = ids.masked_fill(~answer, IGNORE)

    expected = sum(counts)
    visual = ids == processor.image_token_id
    if visual.sum() != expected:
        raise ValueError(f"sample {sample.id}: {int(visual.sum())} image tokens for images of {counts}")
    if visual[:max_length].sum() != expected:
        raise ValueError(f"sample {sample.id}: cutting {len(ids)} tokens to {max_length} loses visual tokens: raise it")
    if (labels[:max_length] == IGNORE).all():
        raise ValueError(
            f"sample {sample.id}: no supervised token in the first {max_length} of {len(ids)}: raise max_length"
        )
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def check_supervision(samples: Sequence[Sample], processor, template: Template, max_length: int) -> None:
    """Refuse samples that truncation would leave without a supervised token or a whole image, before any training.

    Only samples whose images or first answer may lie beyond `max_length` are tokenised: a token is a byte or more.

    Raises:
        ValueError: with what `encode` says about each such sample.
    """
    faults = []
    for sample in samples:
        last = max((i for i, turn in enumerate(sample.turns) if IMAGE_MARKER in turn["value"]), default=0)
        text = sum(len(turn["value"].encode()) for turn in sample.turns[: last + 1])
        roles = len(template.system) + 32 * (last + 2)  # 32 bytes for a turn's role, stop string and spaces
        if text + roles + sum(visual_tokens(sample, processor)) >= max_length:
            try:
                encode(sample, processor, template, max_length)
            except ValueError as error:
                faults.append(str(error))
    if faults:
        more = f"\n  ... and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ValueError(f"{len(faults)} samples cannot be trained on:\n  " + "\n  ".join(faults[:_LISTED]) + more)


class ConversationDataset(Dataset):
    """Samples as `{"id", "input_ids" (S,), "labels" (S,), "images", "keys", "teacher_images"}`.

    `images` and `teacher_images` are squared PIL images (LLaVA-NeXT: as they are), `keys` the names of the latter: they
    differ if targets do.
    """

    def __init__(self, samples: Sequence[Sample], processor, template: Template, max_length: int):
        self.samples, self.processor, self.template, self.max_length = samples, processor, template, max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        encoded = encode(sample, self.processor, self.template, self.max_length)
        square = not is_tiled(self.processor)
        images = sample.open_images(square)
        shown = sample.open_targets(square) if sample.targets else images
        keys = sample.targets or sample.images
        return {"id": sample.id, "images": images, "keys": keys, "teacher_images": shown, **encoded}


@dataclass
class Collator:
    """Batch samples of B conversations with n images in total (n may be 0), padded on the right.

    `features` maps image names to cached teacher features (n, N, d), `latents` to cached VAE latents (n, N, c);
    `keep_images` passes the squared PIL images on, for a teacher that runs online. Of LLaVA-NeXT a teacher sees the
    tiles, tile by tile, and cached features are named by them.
    """

    processor: object
    features: Callable[[list[str]], torch.Tensor] | None = None
    keep_images: bool = False
    latents: Callable[[list[str]], torch.Tensor] | None = None

    def __call__(self, items: list[dict]) -> dict:
        """Returns `input_ids`, `attention_mask`, `labels` (B, S) and `image_tokens`, the visual tokens of each image.

        With n > 0 also `pixel_values` (n, 3, H, W), images in reading order, and `teacher_features` (n, N, d),
        `latents` (n, N, c) or `images` where asked for. LLaVA-NeXT: `pixel_values` (n, tiles, 3, H, W), filled up with
        blank tiles, `image_sizes` (n, 2), and as many `images` or `teacher_features` as there are tiles.
        """
        ids = [item["input_ids"] for item in items]
        images = [image for item in items for image in item["images"]]
        keys = [key for item in items for key in item["keys"]]
        shown = [image for item in items for image in item["teacher_images"]]
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": _pad(ids, pad),
            "labels": _pad([item["labels"] for item in items], IGNORE),
            "attention_mask": _pad([torch.ones_like(x) for x in ids], 0),
            "image_tokens": [image_token_count(self.processor, (image.height, image.width)) for image in images],
        }
        if images:
            pixels = self.processor.image_processor
            batch.update(pixels(images, return_tensors="pt"))
            if is_tiled(pixels):
                pairs = zip(keys, shown, strict=True)
                keys = [tile for key, image in pairs for tile in tile_keys(pixels, key, (image.height, image.width))]
            if self.features is not None:
                batch["teacher_features"] = self.features(keys)
            if self.latents is not None:
                batch["latents"] = self.latents(keys)
            if self.keep_images:
                batch["images"] = [t for image in shown for t in cut(pixels, image)] if is_tiled(pixels) else shown
        return batch


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


class GroupedSampler(Sampler[int]):
    """Indices for a whole training run of `steps` global batches, each of one modality and sorted by length.

    Every epoch is a new permutation drawn from (seed, epoch). What is left of the two modalities after whole batches
    makes mixed batches, the last of them filled up with other samples, so that an epoch has ceil(n / batch_size)
    batches and leaves nobody out. The batch with the longest sample comes first of all: if memory does not suffice,
    the run ends at once. The order depends on the arguments alone, hence a resumed run only has to skip batches.
    """

    def __init__(
        self, samples: Sequence[Sample], image_tokens: int | Sequence[int], batch_size: int, steps: int, seed: int
    ):
        """`image_tokens`: visual tokens of any image, or of each sample where images differ."""
        if isinstance(image_tokens, int):
            image_tokens = [image_tokens * len(sample.images) for sample in samples]
        self.lengths = [approximate_length(*pair) for pair in zip(samples, image_tokens, strict=True)]
        self.groups = [
            [i for i, sample in enumerate(samples) if bool(sample.images) is modality] for modality in (True, False)
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


def approximate_length(sample: Sample, image_tokens: int) -> int:
    """Words of the conversation plus all its visual tokens: cheap, and close enough to group by.

    What is long without a space, such as code, counts by its length, and other scripts by their characters.
    """
    return sum(_words(turn["value"]) for turn in sample.turns) + image_tokens


def _words(text: str) -> int:
    other = 0 if text.isascii() else sum(not character.isascii() for character in text)
    return other + sum(1 + len(word) // 16 for word in text.split())
