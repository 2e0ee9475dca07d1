"""LLaVA's json formats (LCS-558K, 665K): read as LLaVA reads them, with all that is wrong listed together."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from viral_core.files import read_entries
from viral_core.images import find_image, image_size, open_rgb
from viral_core.templates import IMAGE_MARKER

_LISTED = 20  # faults shown in full by one error message
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One conversation."""

    id: str
    turns: tuple[dict, ...]
    images: tuple[str, ...]  # names as in the json file: the keys of cached teacher features
    folder: Path
    targets: tuple[str, ...] | None = None  # for each image another one, to whose teacher features it is aligned

    def open_images(self, names: Sequence[str] | None = None) -> list[Image.Image]:
        """The sample's images, or those of `names`, as RGB; ValueError names the sample and an unreadable file."""
        return [self._read(name, open_rgb) for name in (self.images if names is None else names)]

    def image_sizes(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """(height, width) of images of the sample, of which only the headers are read."""
        return [self._read(name, image_size) for name in names]

    def _read(self, name: str, read):
        try:
            return read(find_image(self.folder, name) or self.folder / name)
        except ValueError as error:
            raise ValueError(f"sample {self.id}: {error}") from error


@dataclass
class Conversations:
    """What a json file holds."""

    samples: list[Sample] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)  # what is wrong with the other entries, by their position
    adapted: Counter = field(default_factory=Counter)  # what is read otherwise than it is written


def load_conversations(path: str | Path, image_folder: str | Path) -> list[Sample]:
    """As `check_conversations`, but ValueError lists the faults together; what was adapted is logged."""
    conversations = check_conversations(path, image_folder)
    if conversations.faults:
        raise ValueError(describe_faults(path, list(conversations.faults.values())))
    for what, count in conversations.adapted.items():
        _log.warning("%s: %d conversations with %s", path, count, what)
    return conversations.samples


def describe_faults(path: str | Path, faults: Sequence[str]) -> str:
    """One message for all that is wrong with the entries of a json file and their images."""
    more = f"\n  ... and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    listed = "\n  ".join(faults[:_LISTED])
    return f"{len(faults)} faults in {path}; correct or remove these entries:\n  {listed}{more}"


def check_conversations(path: str | Path, image_folder: str | Path) -> Conversations:
    """Read LLaVA json: a list of `{"id", "image", "conversations": [{"from", "value"}, ...]}`.

    `image` is a name, a list of names, or absent. Faults: a missing image, turns that do not alternate, image markers
    that do not match the images, empty answers, text that is not Unicode. A file that is no such list is a ValueError.
    """
    path, folder = Path(path), Path(image_folder)
    if not path.is_file():
        raise FileNotFoundError(f"no conversations at {path}: create or download that file first")
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder at {folder}, needed by {path}")
    entries = read_entries(path)
    if not entries:
        raise ValueError(f"{path} must hold a non-empty json list of conversations")
    names = {name for entry in entries if isinstance(entry, dict) for name in _image_names(entry) or ()}

    out = Conversations()
    for position, entry in enumerate(entries):
        name = f"at position {position}"
        if isinstance(entry, dict) and "id" in entry:
            name = str(entry["id"]).encode(errors="backslashreplace").decode()
        faults = _structural_faults(entry)
        if not faults:
            images = _image_names(entry)
            turns, adapted = _as_llava_reads(entry["conversations"], bool(images))
            faults = _image_faults(images, folder, names) + _turn_faults(turns, images)
        if faults:
            out.faults[position] = f"sample {name}: {'; '.join(faults)}"
        else:
            out.samples.append(Sample(name, tuple(turns), images, folder))
            out.adapted.update(adapted)
    return out


def _image_names(entry: dict) -> tuple[str, ...] | None:
    """Names of an entry's images; None if they are not text."""
    image = entry.get("image")
    images = [] if image is None else image if isinstance(image, list) else [image]
    return tuple(images) if all(isinstance(name, str) and name for name in images) else None


def _structural_faults(entry: object) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list) or not entry["conversations"]:
        return ["no list of conversations"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in entry["conversations"]):
        return ["a turn without a text value"]
    if _image_names(entry) is None:
        return [f"image is {entry['image']!r}: expected a file name or a list of file names"]
    texts = [turn["value"] for turn in entry["conversations"]] + list(_image_names(entry))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return [f"half a character (a lone surrogate) at place {error.start} of {ascii(text)[:60]}"]
    return []


def _as_llava_reads(turns: list[dict], has_images: bool) -> tuple[list[dict], list[str]]:
    """The turns that LLaVA trains on, and what it leaves out or reads differently."""
    adapted = []
    if turns[0].get("from") == "gpt" and len(turns) > 1:
        adapted.append("a first turn from gpt, which is left out")
        turns = turns[1:]
    if turns[-1].get("from") == "human" and len(turns) > 1 and not (has_images and IMAGE_MARKER in turns[-1]["value"]):
        adapted.append("a last question without an answer, which is left out")
        turns = turns[:-1]
    if not has_images and any(IMAGE_MARKER in turn["value"] for turn in turns):
        adapted.append(f"{IMAGE_MARKER} and no image: read as text")
    return turns, adapted


def _image_faults(images: Sequence[str], folder: Path, names: set[str]) -> list[str]:
    """Images that lie outside of the folder or are missing; a file that another entry names stands for no other."""
    faults = []
    for name in images:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"image {name} lies outside of {folder}")
            continue
        file = find_image(folder, name)
        other = None if file is None else file.relative_to(folder).as_posix()
        if file is None or (other != Path(name).as_posix() and other in names):
            faults.append(f"image {name if len(name) < 100 else name[:100] + '...'} not found in {folder}")
    return faults


def _turn_faults(turns: Sequence[dict], images: Sequence[str]) -> list[str]:
    faults, roles = [], [turn.get("from") for turn in turns]
    if roles != ["human", "gpt"] * (len(roles) // 2):
        faults.append(f"turns do not alternate human, gpt: {roles}")
    questions = [turn["value"] for turn in turns if turn.get("from") == "human"]
    answers = [turn["value"] for turn in turns if turn.get("from") == "gpt"]
    markers = sum(question.count(IMAGE_MARKER) for question in questions)
    if images and markers != len(images):
        faults.append(f"{markers} {IMAGE_MARKER} markers in human turns for {len(images)} images")
    if images and any(IMAGE_MARKER in answer for answer in answers):
        faults.append(f"an answer contains {IMAGE_MARKER}")
    if not all(answer.strip() for answer in answers):
        faults.append("an empty answer")
    return faults


def shuffle_targets(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The samples with every image's teacher features swapped for those of another image: right features, wrong image.

    The exchange is one cycle through all distinct images, of which there must be two, drawn from the seed.
    """
    names = sorted({name for sample in samples for name in sample.images})
    if len(names) < 2:
        raise ValueError(f"{len(names)} images cannot be exchanged: shuffled targets need two or more")
    order = np.random.default_rng(seed).permutation(len(names))
    other = {names[i]: names[j] for i, j in zip(order, np.roll(order, 1), strict=True)}
    return [replace(sample, targets=tuple(other[name] for name in sample.images)) for sample in samples]
