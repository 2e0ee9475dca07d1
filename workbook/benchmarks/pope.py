"""POPE on COCO (Li et al. 2023): is there a ... in the image; the paper reports random and popular.

Local folder: RUCAIBox/POPE's `coco_pope_{random,popular,adversarial}.json` (one json object a line) and the photos
`val2014/COCO_val2014_*.jpg`.  LLaVA's shorter copy of `random`, 2910 rows, is admitted too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from viral_core.files import read_entries
from workbook.benchmarks.sources import Faults, Id, Text, new_row, require

CATEGORIES = ("random", "popular", "adversarial")
EXPECTED = {
    "pope_random": {"rows": (3000, 2910)},
    "pope_popular": {"rows": 3000},
    "pope_adversarial": {"rows": 3000},
}
PAPER = ("pope_random", "pope_popular")
FIRST_ID = 1
INSTRUCTION = "Answer the question using a single word or phrase."


class Item(BaseModel):
    """A line of the official file."""

    question_id: Id
    image: Text
    text: Text
    label: Text


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[Path, Iterable]:
    file = folder / f"coco_{name}.json"
    return file, read_entries(require(file, f"download it from RUCAIBox/POPE to {folder}"))


def row(name: str, item: Item, folder: Path) -> dict:
    photo = str(folder / "val2014" / item.image)
    place = {"group": item.image, "category": name.removeprefix("pope_")}
    prompt = f"{item.text}\n{INSTRUCTION}"
    return new_row(item.question_id, photo, item.text, ["yes", "no"], item.label, prompt=prompt, **place)


def official(row: Mapping) -> str:
    """No if a word before the first full stop, commas left out, is No, no or not; else yes."""
    words = row["response"].split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def counts(members: Sequence[tuple[Mapping, str | None]]) -> Counter:
    kinds = {("yes", "yes"): "tp", ("no", "yes"): "fp", ("no", "no"): "tn", ("yes", "no"): "fn"}
    total = Counter()
    for row, answer in members:
        kind = kinds.get((row["answer"], answer), f"unread_{row['answer']}")
        names = (*kinds.values(), "unread_yes", "unread_no")
        total.update({f"{row['category']}/{name}": int(name == kind) for name in names})
    return total


def scores(sums: Mapping) -> dict:
    """`official` = `accuracy`, and `precision`, `recall`, `f1`, `yes_ratio`: means over the subsets at hand.

    An unparsed answer is wrong: it is never a hit, and for an object that is there it is a miss.
    """
    sums = sums[""]
    parts = []
    for subset in CATEGORIES:
        if f"{subset}/tp" not in sums:
            continue
        tp, fp, tn, fn, unread_yes, unread_no = (
            sums[f"{subset}/{key}"] for key in ("tp", "fp", "tn", "fn", "unread_yes", "unread_no")
        )
        n = tp + fp + tn + fn + unread_yes + unread_no
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = tp / (tp + fp), tp / (tp + fn + unread_yes)
            f1 = 2 * precision * recall / (precision + recall)
        parts.append([(tp + tn) / n, precision, recall, f1, (tp + fp) / n])
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    means = {name: sum(values) / len(parts) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
    return {"official": means["accuracy"], **means}
