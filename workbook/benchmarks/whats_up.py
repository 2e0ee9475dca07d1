"""What's Up, COCO-one and COCO-two (Kamath et al. 2023): where is an object, four words to choose from.

Local folder, as in the AdaptVis release: `prompts/COCO_QA_{one,two}_obj_with_answer_four_options.jsonl`,
`data/coco_qa_{one,two}_obj.json` with [image id, true caption, false caption] in the same order, and the photos
`data/val2017/{image id:012d}.jpg`.  Official rule of that release: right when the gold word occurs in the answer;
so an answer that names all four is always right, which the strict score does not grant.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from viral_core.files import read_entries
from workbook.benchmarks.sources import Faults, Id, Text, new_row, require, tally

CATEGORIES = ("one", "two")
EXPECTED = {"whats_up_one": {"rows": 2247}, "whats_up_two": {"rows": 440}}
OPTIONS = {"whats_up_one": ["left", "right", "top", "bottom"], "whats_up_two": ["left", "right", "above", "below"]}
FIRST_ID = 0


class Question(BaseModel):
    """A line of the prompts' file."""

    id: Id
    question: Text
    answer: Annotated[list[Text], Field(min_length=1)]


class Item(BaseModel):
    """A question and what the captions' file has at its position: the image's id, the captions."""

    question: Question
    captions: tuple[int, str, str]


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[str, Iterable]:
    subset, remedy = name.removeprefix("whats_up_"), f"put the AdaptVis release into {folder}"
    file = require(folder / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", remedy)
    captions_file = require(folder / "data" / f"coco_qa_{subset}_obj.json", remedy)
    questions, captions = read_entries(file), read_entries(captions_file)
    if len(captions) != len(questions):
        text = f"{len(captions)} entries for {len(questions)} questions in {file}"
        faults.add(captions_file, text, "download both again")
        faults.raise_if_any()
    entries = [{"question": q, "captions": c} for q, c in zip(questions, captions, strict=True)]
    return f"{file} with {captions_file}", entries


def row(name: str, item: Item, folder: Path) -> dict:
    question = re.sub(r"^<image>\s*USER:|ASSISTANT:\s*$", "", item.question.question.strip()).strip()
    image_id = item.captions[0]
    photo = str(folder / "data" / "val2017" / f"{image_id:012d}.jpg")
    place = {"group": str(image_id), "category": name.removeprefix("whats_up_")}
    answer = item.question.answer[0]
    return new_row(item.question.id, photo, question, OPTIONS[name], answer, prompt=question, **place)


def official(row: Mapping) -> str | None:
    """The gold word if the answer contains it, in any case of letters; None otherwise."""
    return row["answer"] if row["answer"] in row["response"].lower() else None


def counts(members: Sequence[tuple[Mapping, str | None]]) -> Counter:
    return tally(members, lambda row: [row["category"]])


def scores(sums: Mapping) -> dict:
    """`official`: mean of the subsets' accuracies, which are given as `one` and `two`."""
    sums = sums[""]
    part = {s: sums[f"{s}/right"] / sums[f"{s}/n"] for s in CATEGORIES if f"{s}/n" in sums}
    return {"official": sum(part.values()) / len(part), **part}
