"""The benchmarks that give options to choose from: CV-Bench, MMVP, What's Up and MMStar."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, AliasPath, Field

from viral_core.files import read_entries, read_text
from workbook.benchmarks.benchmark import LETTER_INSTRUCTION, Benchmark, Members
from workbook.benchmarks.parse import key
from workbook.benchmarks.sources import Id, Row, Text, require


def _after_cue(row: Mapping) -> str:
    """What follows "answer is" or "answer:" in a response, in lower case."""
    text = row["response"].lower().strip()
    for cue in ("answer is", "answer is:", "answer:"):
        text = text.split(cue)[-1]
    return text.strip()


class CVBenchRow(Row):
    id: Id = Field(alias="idx")
    prompt: Text  # the question and its options
    options: list[Id] = Field(alias="choices", min_length=2, max_length=6)
    group: Text = Field(alias="source_filename")
    category: Text = Field(alias="task")
    source: Text


class CVBench(Benchmark):
    """CV-Bench 2D (Tong et al. 2024): how many, and where; four to six options, or two.

    Official rule: the letter reading of the authors.  `official` is the accuracy over all rows, as in the VIRAL paper;
    `source_mean`, the mean of the ADE20K and COCO accuracies, is the number that the benchmark itself proposes.
    """

    expected = {"cv_bench": {"rows": 1438, "categories": {"Count": 788, "Relation": 650}}}
    columns = CVBenchRow
    parquet = "test_2d.parquet"
    categories = ("Count", "Relation")
    groups = ("source",)

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        return {"prompt": f"{row['prompt']}\n{LETTER_INSTRUCTION}"}

    def official(self, row: Mapping) -> str:
        """First character of what follows "answer is" or "answer:", brackets and final full stop off, as a letter."""
        return _after_cue(row).rstrip(".").lstrip("(").rstrip(")")[:1].upper()

    def scores(self, means: Mapping) -> dict:
        """`official` (micro), `source_mean`, and the accuracies `count`, `relation`, `ade20k`, `coco` where present."""
        means = means[""]
        sources = sorted(means.keys() - {"official", *self.categories})
        named = {name.lower(): means[name] for name in (*self.categories, *sources) if name in means}
        mean = sum(means[source] for source in sources) / len(sources)
        return {"official": means["official"], "source_mean": mean} | named


_MMVP_MARK = re.compile(r"\s*\([ab]\)\s*")


def _two_options(text: str) -> str:
    if len(_MMVP_MARK.split(text.strip())) != 3:
        raise ValueError(f"{text!r} are not (a) and (b)")
    return text.strip()


class MMVPRow(Row):
    """Some copies spell the first column lndex."""

    id: int = Field(validation_alias=AliasChoices("Index", "lndex"))
    question: Text = Field(alias="Question")
    options: Annotated[str, AfterValidator(_two_options)] = Field(alias="Options")  # "(a) Open (b) Closed"
    answer: Text = Field(alias="Correct Answer")
    more: None = Field(None, exclude=True)  # fields beyond the header's


class MMVP(Benchmark):
    """MMVP (Tong et al. 2024): 150 pairs of photos that CLIP confuses, one question with two options to each pair.

    A pair is two consecutive rows and counts when both are right.  The authors grade with GPT-4; `official` uses the
    letter reading of the same authors' later evaluation code.  Two pairs of the original file have their keys swapped:
    `official` is pair accuracy with the original key, `pair_corrected` the one with the corrected key.
    """

    expected = {"mmvp": {"rows": 300, "swapped_keys": [99, 100, 279, 280]}}
    columns = MMVPRow
    first_id = 1

    def read(self, name: str, folder: Path, photos: bool) -> tuple[Path, Iterable]:
        file = require(folder / "Questions.csv", f"download MMVP/MMVP to {folder}")
        text = read_text(file, fallback="cp1252")  # which spreadsheets write
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = csv.DictReader(io.StringIO(text, newline=""), restkey="more", delimiter=delimiter, strict=True)
        entries, faults = [], []
        while True:
            try:
                entries.append(next(lines))
            except StopIteration:
                break
            except csv.Error as error:
                faults.append(f"line {lines.reader.line_num}: broken quoting ({error})")
        if faults:
            raise ValueError(f"{file}: {', '.join(faults)}: put each such field in quotes, those inside it doubled")
        return file, entries

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        number, question, answer = row["id"], row["question"].strip(), key(name, row["answer"], ["a", "b"])
        swapped = number in expected.get("swapped_keys", ())
        return {
            "id": str(number),
            "image": str(folder / "MMVP Images" / f"{number}.jpg"),
            "question": question,
            "prompt": f"{question}\n{row['options']}\n{LETTER_INSTRUCTION}",
            "options": _MMVP_MARK.split(row["options"])[1:],
            "group": f"pair {(number + 1) // 2}",
            "corrected_answer": {"(a)": "(b)", "(b)": "(a)"}.get(answer) if swapped else answer,
        }

    def faults(self, rows: Sequence[dict]) -> Iterator[str]:
        """Two consecutive rows are a pair."""
        numbers = [int(row["id"]) for row in rows]
        if numbers != sorted(numbers):
            yield "rows are not in the order of their numbers, so pairs are not consecutive; sort the rows"

    def official(self, row: Mapping) -> str | None:
        """The letter, or the option's whole text, after "answer is" or "answer:", brackets and punctuation off."""
        text = _after_cue(row).rstrip(".:,").lstrip("(").rstrip(")")
        texts = [option.lower() for option in row["options"]]
        named = [f"({letter})" for letter, option in zip("ab", texts, strict=True) if text in (letter, option)]
        return row["answer"] if row["answer"] in named else next(iter(named), None)

    def values(self, members: Members) -> list[dict]:
        if len(members) != 2:
            ids = ", ".join(row["id"] for row, _ in members)
            raise ValueError(f"mmvp: {members[0][0]['group']} has rows {ids} only: score both questions of a pair")
        right = [answer == row["answer"] for row, answer in members]
        corrected = [answer == row.get("corrected_answer", row["answer"]) for row, answer in members]
        pair = {"pair": all(right), "pair_corrected": all(corrected)}
        return [pair | {"single": sum(right) / 2, "single_corrected": sum(corrected) / 2}]

    def scores(self, means: Mapping) -> dict:
        """`official` = `pair`, `single`, and both with the corrected key."""
        return {"official": means[""]["pair"], **means[""]}


class WhatsUpRow(Row):
    """A line of the prompts' file, and what the captions' file has at its position."""

    id: Id = Field(validation_alias=AliasPath("question", "id"))
    image: tuple[int, str, str] = Field(alias="captions")  # its id, and the captions
    question: Text = Field(validation_alias=AliasPath("question", "question"))
    answer: list[Text] = Field(validation_alias=AliasPath("question", "answer"), min_length=1)


class WhatsUp(Benchmark):
    """What's Up, COCO-one and COCO-two (Kamath et al. 2023): where is an object, four words to choose from.

    The captions' file has [image id, true caption, false caption] in the order of the questions.  Official rule of the
    AdaptVis release: right when the gold word occurs in the answer; so an answer that names all four is always right,
    which the strict score does not grant.
    """

    expected = {"whats_up_one": {"rows": 2247}, "whats_up_two": {"rows": 440}}
    columns = WhatsUpRow
    categories = ("one", "two")
    first_id = 0
    options = {"one": ["left", "right", "top", "bottom"], "two": ["left", "right", "above", "below"]}

    def read(self, name: str, folder: Path, photos: bool) -> tuple[str, Iterable]:
        subset, remedy = name.removeprefix("whats_up_"), f"put the AdaptVis release into {folder}"
        file = require(folder / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", remedy)
        captions_file = require(folder / "data" / f"coco_qa_{subset}_obj.json", remedy)
        questions, captions = read_entries(file), read_entries(captions_file)
        if len(captions) != len(questions):
            lengths = f"{len(captions)} entries for {len(questions)} questions in {file}"
            raise ValueError(f"{captions_file}: {lengths}; download both again")
        entries = [{"question": q, "captions": c} for q, c in zip(questions, captions, strict=True)]
        return f"{file} with {captions_file}", entries

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        subset, number = name.removeprefix("whats_up_"), row["image"][0]
        question = re.sub(r"^<image>\s*USER:|ASSISTANT:\s*$", "", row["question"].strip()).strip()
        return {
            "image": str(folder / "data" / "val2017" / f"{number:012d}.jpg"),
            "question": question,
            "prompt": question,
            "options": self.options[subset],
            "answer": row["answer"][0],
            "group": str(number),
            "category": subset,
        }

    def official(self, row: Mapping) -> str | None:
        """The gold word if the answer contains it, in any case of letters; None otherwise."""
        return row["answer"] if row["answer"] in row["response"].lower() else None

    def values(self, members: Members) -> list[dict]:
        return [{row["category"]: answer == row["answer"]} for row, answer in members]

    def scores(self, means: Mapping) -> dict:
        """`official`: mean of the subsets' accuracies, which are given as `one` and `two`."""
        return {"official": sum(means[""].values()) / len(means[""]), **means[""]}


_MMSTAR_LISTS = (  # what opens a list, and what stands before each further option
    (r"Options:\s*A:\s*", r",\s*{}:\s*"),  # Options: A: one, B: two, C: three, D: four
    (r"Choices:\s*\(A\)\s*", r"\s*\({}\)\s*"),  # Choices:\n(A) one\n(B) two ...
    (r"(?<!\w)\(A\)\s*(?=.*\(B\))", r"\s*\({}\)\s*"),  # (A) one (B) two ...
    (r"(?<!\w)A:\s*(?=.*\bB:)", r"[\s,;]+{}:\s*"),  # A: one, B: two ...
    (r"(?<!\w)A[.)]\s*(?=.*\bB[.)])", r"[\s,;]+{}[.)]\s*"),  # A. one\nB. two ...
)


def mmstar_options(question: str) -> list[str]:
    """Texts of the options A to D listed in a question; empty texts (letters only) where no list is recognised."""
    for opening, following in _MMSTAR_LISTS:
        pieces = re.split(opening, question, maxsplit=1, flags=re.S)
        if len(pieces) < 2:
            continue
        texts, rest = [], pieces[1]
        for letter in "BCD":
            head, *tail = re.split(following.format(letter), rest, maxsplit=1)
            if not tail:
                break
            texts.append(head)
            rest = tail[0]
        texts = [text.strip() for text in (*texts, rest)]
        return texts + [""] * (4 - len(texts))
    return [""] * 4


class MMStarRow(Row):
    id: Id = Field(alias="index")
    category: Text
    subcategory: Text = Field(alias="l2_category")


class MMStar(Benchmark):
    """MMStar (Chen et al. 2024): 1500 questions that need the image, 6 categories of 250, 18 sub-categories.

    The options stand inside the question.  Official rule: the authors'; their fixed denominators, 250 and 1500, are the
    row counts that the loader insists on.
    """

    columns = MMStarRow
    parquet = "mmstar.parquet"
    categories = (
        *("coarse perception", "fine-grained perception", "instance reasoning"),
        *("logical reasoning", "science & technology", "math"),
    )
    expected = {"mmstar": {"rows": 1500, "categories": dict.fromkeys(categories, 250)}}
    groups = ("subcategory",)
    first_id = 0

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        question = row["question"].replace("<image>", "").strip()
        options, prompt = mmstar_options(question), f"{question}\n{LETTER_INSTRUCTION}"
        return {"question": question, "prompt": prompt, "options": options, "group": row["id"]}

    def official(self, row: Mapping) -> str | None:
        """Character 0, or 1 after "(", or what follows "option " or "the answer is ", lower-cased, as a letter."""
        text = row["response"].lower().strip().replace("\n", " ")
        start = next((len(s) for s in ("(", "option ", "the answer is ") if text.startswith(s)), 0)
        letter = text[start : start + 1].upper()
        return letter if letter and letter in "ABCD" else None
