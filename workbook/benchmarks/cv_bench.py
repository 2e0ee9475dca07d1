"""CV-Bench 2D (Tong et al. 2024): how many, and where; four to six options, or two.

Local folder: the snapshot of `nyu-visionx/CV-Bench`, of which `test_2d.parquet` is read.  Official rule: the
authors' own letter reading (below).  `official` is the accuracy over all rows, which the VIRAL paper reports;
`source_mean`, the mean of the ADE20K and COCO accuracies, is the number that the benchmark itself proposes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, check, embedded_bytes, parquet_rows

EXPECTED = {"cv_bench": {"rows": 1438, "categories": {"Count": 788, "Relation": 650}}}
HUB = "nyu-visionx/CV-Bench"
LETTERS = "ABCDEF"


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    file = hub or folder / "test_2d.parquet"
    rows = []
    for item in parquet_rows(folder, "test_2d.parquet", hub, "2D", "test"):
        options = [str(choice) for choice in item["choices"]]
        letter = str(item["answer"]).strip().strip("()")
        rows.append(
            {
                "id": str(item["idx"]),
                "image": embedded_bytes(item["image"]),
                "question": item["question"],
                "prompt": f"{item['prompt']}\n{LETTER_INSTRUCTION}",
                "options": options,
                "answer": letter if letter and letter in LETTERS[: len(options)] else None,
                "group": item["source_filename"],
                "category": item["task"],
                "source": item["source"],
            }
        )
    check(rows, expected, file, faults)
    return rows


def official(row: Mapping) -> str:
    """First character of what follows "answer is" or "answer:", brackets and final full stop off, as a letter."""
    text = row["response"].lower().strip()
    for cue in ("answer is", "answer is:", "answer:"):
        text = text.split(cue)[-1]
    return text.strip().rstrip(".").lstrip("(").rstrip(")")[:1].upper()


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row, answer in members:
        for part in (row["category"], row["source"]):
            total[f"{part}/n"] = total.get(f"{part}/n", 0) + 1
            total[f"{part}/right"] = total.get(f"{part}/right", 0) + (answer == row["answer"])
    return total


def scores(sums: Mapping) -> dict:
    """`official` (micro), `source_mean`, and the accuracies `count`, `relation`, `ade20k`, `coco` where present."""
    sums = sums[""]
    part = {key[:-2]: sums[f"{key[:-2]}/right"] / sums[key] for key in sums if key.endswith("/n")}
    tasks = [task for task in ("Count", "Relation") if task in part]
    sources = sorted(part.keys() - set(tasks))
    micro = sum(sums[f"{task}/right"] for task in tasks) / sum(sums[f"{task}/n"] for task in tasks)
    mean = sum(part[source] for source in sources) / len(sources)
    return {"official": micro, "source_mean": mean} | {name.lower(): part[name] for name in (*tasks, *sources)}
