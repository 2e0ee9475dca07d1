"""CV-Bench 2D (Tong et al. 2024): how many, and where; four to six options, or two.

Local folder: the snapshot of `nyu-visionx/CV-Bench`, of which `test_2d.parquet` is read.  Official rule: the
authors' own letter reading (below).  `official` is the accuracy over all rows, which the VIRAL paper reports;
`source_mean`, the mean of the ADE20K and COCO accuracies, is the number that the benchmark itself proposes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, Id, Photo, Text, new_row, parquet_rows, tally

CATEGORIES = ("Count", "Relation")
COLUMNS = ("source",)  # of a row, beyond those that all benchmarks have
EXPECTED = {"cv_bench": {"rows": 1438, "categories": {"Count": 788, "Relation": 650}}}


class Item(BaseModel):
    """A row of the official file."""

    idx: Id
    task: Text
    image: Photo = None
    question: Text
    choices: Annotated[list[Id], Field(min_length=2, max_length=6)]
    answer: Text  # "(C)"
    prompt: Text  # the question and its options
    source: Text
    source_filename: Text


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[Path, Iterable]:
    return folder / "test_2d.parquet", parquet_rows(folder, "test_2d.parquet", photos)


def row(name: str, item: Item, folder: Path) -> dict:
    place = {"group": item.source_filename, "category": item.task, "source": item.source}
    prompt = f"{item.prompt}\n{LETTER_INSTRUCTION}"
    return new_row(item.idx, item.image, item.question, item.choices, item.answer, prompt=prompt, **place)


def official(row: Mapping) -> str:
    """First character of what follows "answer is" or "answer:", brackets and final full stop off, as a letter."""
    text = row["response"].lower().strip()
    for cue in ("answer is", "answer is:", "answer:"):
        text = text.split(cue)[-1]
    return text.strip().rstrip(".").lstrip("(").rstrip(")")[:1].upper()


def counts(members: Sequence[tuple[Mapping, str | None]]) -> Counter:
    return tally(members, lambda row: (row["category"], row["source"]))


def scores(sums: Mapping) -> dict:
    """`official` (micro), `source_mean`, and the accuracies `count`, `relation`, `ade20k`, `coco` where present."""
    sums = sums[""]
    part = {key[:-2]: sums[f"{key[:-2]}/right"] / sums[key] for key in sums if key.endswith("/n")}
    tasks = [task for task in CATEGORIES if task in part]
    sources = sorted(part.keys() - set(tasks))
    micro = sum(sums[f"{task}/right"] for task in tasks) / sum(sums[f"{task}/n"] for task in tasks)
    mean = sum(part[source] for source in sources) / len(sources)
    return {"official": micro, "source_mean": mean} | {name.lower(): part[name] for name in (*tasks, *sources)}
