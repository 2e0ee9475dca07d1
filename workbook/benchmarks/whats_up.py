"""What's Up, COCO-one and COCO-two (Kamath et al. 2023): where is an object, four words to choose from.

Local folder, as in the AdaptVis release: `prompts/COCO_QA_{one,two}_obj_with_answer_four_options.jsonl`,
`data/coco_qa_{one,two}_obj.json` with [image id, true caption, false caption] in the same order, and the photos
`data/val2017/{image id:012d}.jpg`.  Official rule of that release: right when the gold word occurs in the answer;
so an answer that names all four is always right, which the strict score does not grant.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import Faults, check, json_lines, require

EXPECTED = {"whats_up_one": {"rows": 2247}, "whats_up_two": {"rows": 440}}
OPTIONS = {"whats_up_one": ["left", "right", "top", "bottom"], "whats_up_two": ["left", "right", "above", "below"]}


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    if hub:
        raise ValueError(f"{name} is not on the hub: clone the AdaptVis repository and give its folder as {folder}")
    subset = name.rsplit("_", 1)[1]
    remedy = f"put the AdaptVis release into {folder}"
    file = require(folder / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", remedy)
    captions = require(folder / "data" / f"coco_qa_{subset}_obj.json", remedy)
    photos = json.loads(captions.read_text(encoding="utf-8"))
    items = list(json_lines(file))
    if len(photos) != len(items):
        faults.add(captions, f"{len(photos)} entries for {len(items)} questions in {file}", "download both again")
        faults.raise_if_any()
    rows = []
    for (image_id, *_), item in zip(photos, items, strict=True):
        question = re.sub(r"^<image>\s*USER:|ASSISTANT:\s*$", "", item["question"].strip()).strip()
        answer = str(item["answer"][0]).lower()
        rows.append(
            {
                "id": str(item["id"]),
                "image": str(folder / "data" / "val2017" / f"{int(image_id):012d}.jpg"),
                "question": question,
                "prompt": question,
                "options": OPTIONS[name],
                "answer": answer if answer in OPTIONS[name] else None,
                "group": str(image_id),
                "category": subset,
            }
        )
    check(rows, expected, file, faults, first=0)
    return rows


def official(row: Mapping) -> str | None:
    """The gold word if the answer contains it, in any case of letters; None otherwise."""
    return row["answer"] if row["answer"] in row["response"].lower() else None


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row, answer in members:
        for key, one in (("n", 1), ("right", int(answer == row["answer"]))):
            total[f"{row['category']}/{key}"] = total.get(f"{row['category']}/{key}", 0) + one
    return total


def scores(sums: Mapping) -> dict:
    """`official`: mean of the subsets' accuracies, which are given as `one` and `two`."""
    sums = sums[""]
    part = {s: sums[f"{s}/right"] / sums[f"{s}/n"] for s in ("one", "two") if f"{s}/n" in sums}
    return {"official": sum(part.values()) / len(part), **part}
