"""MMStar (Chen et al. 2024): 1500 questions that need the image, 6 categories of 250, 18 sub-categories.

Local folder: the snapshot of `Lin-Chen/MMStar`, of which `mmstar.parquet` is read.  The options stand inside the
question, as "Options: A: ..., B: ..." or "Choices:\n(A) ...", in a few without a heading.  Official rule: the authors'
(below); their fixed denominators, 250 and 1500, are the row counts that the loader insists on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, Id, Photo, Text, new_row, parquet_rows, tally

CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "science & technology",
    "math",
)
EXPECTED = {"mmstar": {"rows": 1500, "categories": dict.fromkeys(CATEGORIES, 250)}}
COLUMNS = ("subcategory",)
FIRST_ID = 0
LETTERS = "ABCD"
_LISTS = (  # what opens a list, and what stands before each further option
    (r"Options:\s*A:\s*", r",\s*{}:\s*"),  # Options: A: one, B: two, C: three, D: four
    (r"Choices:\s*\(A\)\s*", r"\s*\({}\)\s*"),  # Choices:\n(A) one\n(B) two ...
    (r"(?<!\w)\(A\)\s*(?=.*\(B\))", r"\s*\({}\)\s*"),  # (A) one (B) two ...
    (r"(?<!\w)A:\s*(?=.*\bB:)", r"[\s,;]+{}:\s*"),  # A: one, B: two ...
    (r"(?<!\w)A[.)]\s*(?=.*\bB[.)])", r"[\s,;]+{}[.)]\s*"),  # A. one\nB. two ...
)


class Item(BaseModel):
    """A row of the official file."""

    index: Id
    question: Text
    image: Photo = None
    answer: Text
    category: Text
    l2_category: Text


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[Path, Iterable]:
    return folder / "mmstar.parquet", parquet_rows(folder, "mmstar.parquet", photos)


def row(name: str, item: Item, folder: Path) -> dict:
    question = item.question.replace("<image>", "").strip()
    place = {"group": item.index, "category": item.category, "subcategory": item.l2_category}
    prompt = f"{question}\n{LETTER_INSTRUCTION}"
    return new_row(item.index, item.image, question, options(question), item.answer, prompt=prompt, **place)


def options(question: str) -> list[str]:
    """Texts of the options A to D listed in a question; empty texts (letters only) where no list is recognised."""
    for opening, following in _LISTS:
        pieces = re.split(opening, question, maxsplit=1, flags=re.S)
        if len(pieces) < 2:
            continue
        texts, rest = [], pieces[1]
        for letter in LETTERS[1:]:
            head, *tail = re.split(following.format(letter), rest, maxsplit=1)
            if not tail:
                break
            texts.append(head)
            rest = tail[0]
        texts = [text.strip() for text in (*texts, rest)]
        return texts + [""] * (len(LETTERS) - len(texts))
    return [""] * len(LETTERS)


def official(row: Mapping) -> str | None:
    """Character 0, or 1 after "(", or what follows "option " or "the answer is ", lower-cased, as a letter."""
    text = row["response"].lower().strip().replace("\n", " ")
    start = next((len(s) for s in ("(", "option ", "the answer is ") if text.startswith(s)), 0)
    letter = text[start : start + 1].upper()
    return letter if letter and letter in LETTERS else None


def counts(members: Sequence[tuple[Mapping, str | None]]) -> Counter:
    return tally(members, lambda row: [f"{row['category']}/{row['subcategory']}"])


def scores(sums: Mapping) -> dict:
    """`official` (all rows) and the accuracy of each category and sub-category under its name."""
    right, n = ({key.rsplit("/", 1)[0]: v for key, v in sums[""].items() if key.endswith(e)} for e in ("/right", "/n"))
    accuracy = {"official": sum(right.values()) / sum(n.values())}
    for category in CATEGORIES:
        paths = [path for path in n if path.split("/")[0] == category]
        if paths:
            accuracy[category] = sum(right[p] for p in paths) / sum(n[p] for p in paths)
            accuracy |= {path.split("/", 1)[1]: right[path] / n[path] for path in paths}
    return accuracy
