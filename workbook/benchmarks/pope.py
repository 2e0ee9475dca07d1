"""POPE on COCO (Li et al. 2023): is there a ... in the image; random and popular.

Local folder: RUCAIBox/POPE's `coco_pope_{random,popular}.json` (one json object a line) and the photos
`val2014/COCO_val2014_*.jpg`.  LLaVA's shorter copy of `random`, 2910 rows, is admitted too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from workbook.benchmarks.sources import Faults, check, json_lines, require

EXPECTED = {"pope_random": {"rows": (3000, 2910)}, "pope_popular": {"rows": 3000}}
INSTRUCTION = "Answer the question using a single word or phrase."
SUBSETS = ("random", "popular")


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    if hub:
        raise ValueError(f"{name} is read from RUCAIBox/POPE's files: download them to {folder}")
    subset = name.rsplit("_", 1)[1]
    file = require(folder / f"coco_pope_{subset}.json", f"download it from RUCAIBox/POPE to {folder}")
    rows = [
        {
            "id": str(item["question_id"]),
            "image": str(folder / "val2014" / item["image"]),
            "question": item["text"],
            "prompt": f"{item['text']}\n{INSTRUCTION}",
            "options": ["yes", "no"],
            "answer": item["label"] if item["label"] in ("yes", "no") else None,
            "group": item["image"],
            "category": subset,
        }
        for item in json_lines(file)
    ]
    check(rows, expected, file, faults, first=1)
    return rows


def official(row: Mapping) -> str:
    """No if a word before the first full stop, commas left out, is No, no or not; else yes."""
    words = row["response"].split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row, answer in members:
        kind = {("yes", "yes"): "tp", ("no", "yes"): "fp", ("no", "no"): "tn", ("yes", "no"): "fn"}
        kind = kind.get((row["answer"], answer), f"unread_{row['answer']}")
        for key in ("tp", "fp", "tn", "fn", "unread_yes", "unread_no"):
            total[f"{row['category']}/{key}"] = total.get(f"{row['category']}/{key}", 0) + (key == kind)
    return total


def scores(sums: Mapping) -> dict:
    """`official` = `accuracy`, and `precision`, `recall`, `f1`, `yes_ratio`: means over the subsets at hand.

    An unparsed answer is wrong: it is never a hit, and for an object that is there it is a miss.
    """
    sums = sums[""]
    parts = []
    for subset in SUBSETS:
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
