"""MMStar (Chen et al. 2024): 1500 questions that need the image, 6 categories of 250, 18 sub-categories.

Local folder: the snapshot of `Lin-Chen/MMStar`, of which `mmstar.parquet` is read.  The options stand inside the
question, as "Options: A: ..., B: ..." or "Choices:\n(A) ...".  Official rule: the authors' (below); their fixed
denominators, 250 and 1500, are the row counts that the loader insists on.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, check, embedded_bytes, parquet_rows

CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "science & technology",
    "math",
)
EXPECTED = {"mmstar": {"rows": 1500, "categories": dict.fromkeys(CATEGORIES, 250)}}
HUB = "Lin-Chen/MMStar"
LETTERS = "ABCD"
_LISTS = (
    (r"Options:\s*A:\s*", r",\s*{}:\s*"),  # Options: A: one, B: two, C: three, D: four
    (r"Choices:\s*\(A\)\s*", r"\s*\({}\)\s*"),  # Choices:\n(A) one\n(B) two ...
)


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    file = hub or folder / "mmstar.parquet"
    rows = []
    for item in parquet_rows(folder, "mmstar.parquet", hub, None, "val"):
        question = item["question"].replace("<image>", "").strip()
        rows.append(
            {
                "id": str(item["index"]),
                "image": embedded_bytes(item["image"]),
                "question": question,
                "prompt": f"{question}\n{LETTER_INSTRUCTION}",
                "options": options(question),
                "answer": item["answer"] if item["answer"] in tuple(LETTERS) else None,
                "group": str(item["index"]),
                "category": item["category"],
                "subcategory": item["l2_category"],
            }
        )
    check(rows, expected, file, faults, first=0)
    return rows


def options(question: str) -> list[str]:
    """Texts of the options A to D listed in a question; empty texts (letters only) where no list is recognised."""
    for opening, following in _LISTS:
        pieces = re.split(opening, question, maxsplit=1)
        if len(pieces) < 2:
            continue
        found, rest = [], pieces[1]
        for letter in LETTERS[1:]:
            head, *tail = re.split(following.format(letter), rest, maxsplit=1)
            if not tail:
                break
            found.append(head)
            rest = tail[0]
        found = [text.strip() for text in (*found, rest)]
        return found + [""] * (len(LETTERS) - len(found))
    return [""] * len(LETTERS)


def official(row: Mapping) -> str | None:
    """Character 0, or 1 after "(", or what follows "option " or "the answer is ", lower-cased, as a letter."""
    text = row["response"].lower().strip().replace("\n", " ")
    start = next((len(s) for s in ("(", "option ", "the answer is ") if text.startswith(s)), 0)
    letter = text[start : start + 1].upper()
    return letter if letter and letter in LETTERS else None


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    ((row, answer),) = members
    return {f"{row['category']}/{row['subcategory']}/{key}": value for key, value in
            (("n", 1), ("right", int(answer == row["answer"])))}  # fmt: skip


def scores(sums: Mapping) -> dict:
    """`official` (all rows) and the accuracy of each category and sub-category under its name."""
    right, n = ({key.rsplit("/", 1)[0]: v for key, v in sums[""].items() if key.endswith(e)} for e in ("/right", "/n"))
    groups = {
        category: [path for path in n if path.split("/")[0] == category] for category in {p.split("/")[0] for p in n}
    }
    accuracy = {"official": sum(right.values()) / sum(n.values())}
    for category in sorted(groups, key=lambda c: CATEGORIES.index(c) if c in CATEGORIES else len(CATEGORIES)):
        paths = groups[category]
        accuracy[category] = sum(right[p] for p in paths) / sum(n[p] for p in paths)
        accuracy |= {path.split("/", 1)[1]: right[path] / n[path] for path in paths}
    return accuracy
