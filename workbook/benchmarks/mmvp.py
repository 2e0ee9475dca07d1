"""MMVP (Tong et al. 2024): 150 pairs of photos that CLIP confuses, one question with two options to each pair.

Local folder: the snapshot of `MMVP/MMVP`, `Questions.csv` and `MMVP Images/{1..300}.jpg`.  A pair is two consecutive
rows and counts when both are right.  The authors grade with GPT-4; `official` uses the letter reading of the same
authors' later evaluation code.  Two pairs of the original file have their keys swapped: `official` is pair accuracy
with the original key, `pair_corrected` the one with the corrected key.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, check, require

EXPECTED = {"mmvp": {"rows": 300, "swapped_keys": [99, 100, 279, 280]}}
HUB = "MMVP/MMVP"


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    if hub:
        folder = Path(hub)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(hub, repo_type="dataset"))
    file = require(folder / "Questions.csv", f"download {HUB} to {folder}")
    rows = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for item in csv.DictReader(lines):
            number = item.get("Index") or item.get("lndex")
            if not str(number).strip().isdigit():
                faults.add(file, f"row {len(rows) + 1} has no number in its Index column", "download the file again")
                continue
            number = int(number)
            options = re.split(r"\s*\([ab]\)\s*", item["Options"].strip())[1:]
            answer = item["Correct Answer"].strip()
            swap = number in expected.get("swapped_keys", ())
            rows.append(
                {
                    "id": str(number),
                    "image": str(folder / "MMVP Images" / f"{number}.jpg"),
                    "question": item["Question"].strip(),
                    "prompt": f"{item['Question'].strip()}\n{item['Options'].strip()}\n{LETTER_INSTRUCTION}",
                    "options": options,
                    "answer": answer if answer in ("(a)", "(b)") else None,
                    "corrected_answer": {"(a)": "(b)", "(b)": "(a)"}.get(answer) if swap else answer,
                    "group": f"pair {(number + 1) // 2}",
                    "category": "",
                }
            )
            if len(options) != 2:
                faults.add(file, f"row {number}: options {item['Options']!r} are not (a) and (b)", "correct the row")
    numbers = [int(row["id"]) for row in rows]
    if numbers != sorted(numbers):
        faults.add(file, "rows are not in the order of their numbers, so pairs are not consecutive", "sort the rows")
    check(rows, expected, file, faults, first=1)
    for pair in sorted({row["group"] for row in rows}, key=lambda group: int(group.split()[1])):
        members = [row for row in rows if row["group"] == pair]
        if len(members) != 2:
            ids = ", ".join(row["id"] for row in members)
            faults.add(file, f"{pair} is odd: it has rows {ids} only", "restore the missing row")
    return rows


def official(row: Mapping) -> str | None:
    """The letter, or the option's whole text, after "answer is" or "answer:", brackets and punctuation off."""
    text = row["response"].lower().strip()
    for cue in ("answer is", "answer is:", "answer:"):
        text = text.split(cue)[-1]
    text = text.strip().rstrip(".:,").lstrip("(").rstrip(")")
    texts = [option.lower() for option in row["options"]]
    named = [f"({letter})" for letter, option in zip("ab", texts, strict=True) if text in (letter, option)]
    return row["answer"] if row["answer"] in named else next(iter(named), None)


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    if len(members) != 2:
        ids = ", ".join(row["id"] for row, _ in members)
        raise ValueError(f"mmvp: {members[0][0]['group']} has rows {ids} only: score both questions of a pair")
    right = [answer == row["answer"] for row, answer in members]
    corrected = [answer == row.get("corrected_answer", row["answer"]) for row, answer in members]
    return {
        "pairs": 1,
        "pair": all(right),
        "single": sum(right),
        "pair_corrected": all(corrected),
        "single_corrected": sum(corrected),
    }


def scores(sums: Mapping) -> dict:
    """`official` = `pair`, `single`, and both with the corrected key."""
    sums = sums[""]
    pairs = {name: sums[name] / sums["pairs"] for name in ("pair", "pair_corrected")}
    singles = {name: sums[name] / (2 * sums["pairs"]) for name in ("single", "single_corrected")}
    return {"official": pairs["pair"], **pairs, **singles}
