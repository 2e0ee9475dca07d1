"""MMVP (Tong et al. 2024): 150 pairs of photos that CLIP confuses, one question with two options to each pair.

Local folder: the snapshot of `MMVP/MMVP`, `Questions.csv` and `MMVP Images/{1..300}.jpg`.  A pair is two consecutive
rows and counts when both are right.  The authors grade with GPT-4; `official` uses the letter reading of the same
authors' later evaluation code.  Two pairs of the original file have their keys swapped: `official` is pair accuracy
with the original key, `pair_corrected` the one with the corrected key.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, Field

from viral_core.files import read_text
from workbook.benchmarks.parse import key
from workbook.benchmarks.sources import LETTER_INSTRUCTION, Faults, Text, new_row, require

EXPECTED = {"mmvp": {"rows": 300, "swapped_keys": [99, 100, 279, 280]}}
FIRST_ID = 1
_MARK = re.compile(r"\s*\([ab]\)\s*")


def _two_options(text: str) -> str:
    if len(_MARK.split(text.strip())) != 3:
        raise ValueError(f"{text!r} are not (a) and (b)")
    return text.strip()


class Item(BaseModel):
    """A row of the official file; some copies spell its first column lndex."""

    index: int = Field(validation_alias=AliasChoices("Index", "lndex"))
    question: Text = Field(alias="Question")
    options: Annotated[str, AfterValidator(_two_options)] = Field(alias="Options")  # "(a) Open (b) Closed"
    answer: Text = Field(alias="Correct Answer")  # "(a)"
    more: None = None  # fields beyond the header's


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[Path, Iterable]:
    file = require(folder / "Questions.csv", f"download MMVP/MMVP to {folder}")
    text = read_text(file, fallback="cp1252")  # which spreadsheets write
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    lines = csv.DictReader(io.StringIO(text, newline=""), restkey="more", delimiter=delimiter, strict=True)
    entries: list[dict] = []
    while True:
        try:
            entries.append(next(lines))
        except StopIteration:
            return file, entries
        except csv.Error as error:
            remedy = "put the field in quotes, those inside it doubled"
            faults.add(file, f"line {lines.reader.line_num}: broken quoting ({error})", remedy)


def row(name: str, item: Item, folder: Path, swapped: Sequence[int] = ()) -> dict:
    question, answer = item.question.strip(), key(name, item.answer, ["a", "b"])
    photo = str(folder / "MMVP Images" / f"{item.index}.jpg")
    corrected = {"(a)": "(b)", "(b)": "(a)"}.get(answer) if item.index in swapped else answer
    place = {"group": f"pair {(item.index + 1) // 2}", "category": "", "corrected_answer": corrected}
    prompt = f"{question}\n{item.options}\n{LETTER_INSTRUCTION}"
    return new_row(str(item.index), photo, question, _MARK.split(item.options)[1:], answer, prompt=prompt, **place)


def check(rows: Sequence[dict], file: object, faults: Faults) -> None:
    """Pairs are whole, and their rows in order."""
    numbers = [int(row["id"]) for row in rows]
    if numbers != sorted(numbers):
        faults.add(file, "rows are not in the order of their numbers, so pairs are not consecutive", "sort the rows")
    pairs = defaultdict(list)
    for number in sorted(numbers):
        pairs[(number + 1) // 2].append(number)
    for pair, members in pairs.items():
        if len(members) != 2:
            ids = ", ".join(map(str, members))
            faults.add(file, f"pair {pair} is odd: it has rows {ids} only", "restore the missing row")


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
