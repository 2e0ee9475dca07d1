"""Answers that other programs wrote, joined to the official rows and scored.

Read are the answer files of LLaVA's evaluation scripts (jsonl: question_id, prompt, text), of lmms-eval's
`--log_samples` (jsonl: doc or input, resps or filtered_resps), of VLMEvalKit (xlsx or tsv: index, question,
prediction), and the workbook's own.  Ids are no key: LLaVA numbers POPE's questions through its three files.  Answers
are joined by image and question where they name their images, else by the questions' order, and their questions are
compared either way.  A row without an answer, or with two, is an error: scores of parts are no scores.
"""

import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from viral_core.files import read_entries
from workbook.benchmarks import load_rows, score
from workbook.benchmarks.answers import read_answers
from workbook.benchmarks.benchmark import LETTER_INSTRUCTION, WORD_INSTRUCTION
from workbook.benchmarks.registry import PAPER
from workbook.benchmarks.stats import intervals

# How the programs name what a model said, and what it was asked.
RESPONSES = ("text", "prediction", "response", "resps", "filtered_resps")
QUESTIONS = ("question", "Question", "prompt", "input", "arguments")


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, and what the file tells of the question; None and empty: nothing."""

    place: str  # in the file
    response: object  # a text, or what stands in its place
    question: object
    number: int | None  # the order of the questions
    image: str | None  # the name of the image's file, without its ending
    categories: frozenset[str]


def score_files(benchmark: str, files: Sequence[str | Path], folder: str | Path) -> pandas.DataFrame:
    """Scores with 95 % intervals of an answer file; of two, the paired difference, first minus second.

    `folder` has the official files, of all benchmarks or of this one; images are not needed.  LLaVA's question files,
    if they lie there too, say which image an answer is about.

    Returns a row for each of the benchmark's scores, the first being its number; columns `official`, `low`, `high`,
    `strict`, `strict low`, `strict high`.  `attrs`: `questions`, and `unparsed` of each file, the share of answers that
    the strict rule cannot read.  FileNotFoundError: no such file, or no official rows.  ValueError: a file of another
    kind, or answers that do not belong to the rows, or not one to each.
    """
    parts = [load_rows(part, folder, photos=False) for part in PAPER.get(benchmark, (benchmark,))]
    sides = []
    for file in map(Path, files):
        answers = load_answers(file, Path(folder))
        sides.append([row for rows in parts for row in join(rows, answers, file)])
    table: dict[str, dict] = {}
    for rule, prefix in (("official", ""), ("strict", "strict ")):
        bounds = intervals(benchmark, *([[rows]] for rows in sides), rule=rule)
        for column, part in ((rule, "value"), (f"{prefix}low", "low"), (f"{prefix}high", "high")):
            table[column] = {name: getattr(interval, part) for name, interval in bounds.items()}
    frame = pandas.DataFrame(table)
    frame.attrs = {"questions": len(sides[0]), "unparsed": [score(benchmark, rows)["unparsed"] for rows in sides]}
    return frame


def load_answers(file: Path, folder: Path) -> list[Answer]:
    """The answers of a file, with what LLaVA's question file, if there is one in `folder`, says of each question."""
    entries = _entries(file)
    if not entries or not all(isinstance(entry, dict) and entry.keys() & set(RESPONSES) for entry in entries):
        programs = "LLaVA's scripts, lmms-eval, VLMEvalKit or the workbook"
        raise ValueError(f"{file}: not every entry is an answer as {programs} write them ({', '.join(RESPONSES)})")
    for questions in sorted(folder.rglob("*.jsonl")):
        lines = [line for line in read_entries(questions) if isinstance(line, dict)]
        lines = {line["question_id"]: line for line in lines if {"question_id", "image", "text"} <= line.keys()}
        pairs = [(entry, lines.get(entry.get("question_id"))) for entry in entries]
        if all(line and line["text"] == entry.get("prompt") for entry, line in pairs):
            entries = [e | {"image_path": line["image"], "category": line.get("category", "")} for e, line in pairs]
            break
    return [_answer(entry, f"entry {number}") for number, entry in enumerate(entries, 1)]


def _entries(file: Path) -> list:
    if not file.is_file():
        raise FileNotFoundError(f"no answers at {file}")
    if file.suffix in (".xlsx", ".tsv"):
        as_text = {"dtype": str, "keep_default_na": False}  # so that an answer "None" or "N/A" stays what it is
        excel = file.suffix == ".xlsx"
        try:
            table = pandas.read_excel(file, **as_text) if excel else pandas.read_csv(file, sep="\t", **as_text)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} cannot be read as {file.suffix[1:]} ({error}): write it again") from error
        return table.to_dict("records")
    entries = read_entries(file)
    if entries and isinstance(entries[0], dict) and "settings" in entries[0]:
        _, runs = read_answers(file)
        if len(runs) > 1:
            raise ValueError(f"{file} holds {len(runs)} sampled runs: compare greedy answers")
        entries = [row | {"question_id": row["id"] if row["id"].isdigit() else row["group"]} for row in runs[0]]
    return entries


def _answer(entry: Mapping, place: str) -> Answer:
    """What an entry tells, itself or in a part (lmms-eval's `doc`; where it has none, a metric): MME's ids, such as
    "artwork/images/1.jpg", tell category and image.
    """
    parts = [part for part in entry.values() if isinstance(part, dict)]
    details = {name: value for part in (*reversed(parts), entry) for name, value in part.items()}
    path = Path(str(details.get("question_id", "")))
    image = details.get("image_path") or details.get("image_source") or (path if len(path.parts) > 1 else None)
    categories = details.get("category") or details.get("task") or ("" if len(path.parts) < 2 else path.parts[0])
    number = str(next((entry[name] for name in ("doc_id", "index", "question_id") if name in entry), ""))
    return Answer(
        place=place,
        response=_first_text(next(entry[name] for name in RESPONSES if name in entry)),
        question=_first_text(next((details[name] for name in QUESTIONS if name in details), None)),
        number=int(number) if number.isdigit() else None,
        image=Path(image).stem if image else None,
        categories=frozenset(name.strip() for name in str(categories).split(",") if name),
    )


def _first_text(value: object) -> object:
    """The first text in nested lists and dicts, or what stands in its place."""
    while isinstance(value, list | dict) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


def join(rows: Sequence[Mapping], answers: Sequence[Answer], file: Path) -> list[dict]:
    """The rows with the `response` to each."""
    known = {row["category"] for row in rows}
    if any(answer.categories & known for answer in answers):
        answers = [answer for answer in answers if answer.categories & known]
    by_image = defaultdict(list)
    for answer in answers:
        by_image[answer.image].append(answer)
    images = [Path(row["group"]).stem for row in rows]
    if by_image.keys() >= set(images):
        pairs = [_candidates(row, by_image[image]) for row, image in zip(rows, images, strict=True)]
    else:
        pairs = _in_order(rows, answers, file)
    for what, wrong in (("no answer", [not p for p in pairs]), ("several answers", [len(p) > 1 for p in pairs])):
        if any(wrong):
            first = wrong.index(True)
            places = f" ({', '.join(answer.place for answer in pairs[first])})" if pairs[first] else ""
            raise ValueError(
                f"{file}: {what} to {sum(wrong)} of {len(rows)} questions, first to row {rows[first]['id']}"
                f"{places}, {rows[first]['question']!r}: give each question one answer"
            )
    silent = [answer.place for (answer,) in pairs if not isinstance(answer.response, str)]
    if silent:
        raise ValueError(f"{file}: {silent[0]} and {len(silent) - 1} more hold no text: write an empty one for silence")
    return [{**row, "response": answer.response} for row, (answer,) in zip(rows, pairs, strict=True)]


def _candidates(row: Mapping, answers: Sequence[Answer]) -> list[Answer]:
    """The answers about the row's image that are to its question, word for word if there are such."""
    fitting = [a for a in answers if _same(row, a) and (not a.categories or row["category"] in a.categories)]
    return [a for a in fitting if _plain(a.question) == _plain(row["question"])] or fitting


def _in_order(rows: Sequence[Mapping], answers: Sequence[Answer], file: Path) -> list[list[Answer]]:
    """The one stretch of the answers whose questions are those of the rows, one by one."""
    numbers = [answer.number for answer in answers]
    if None not in numbers:
        answers = sorted(answers, key=lambda answer: answer.number)
        twice = [a.place for a, b in zip(answers, answers[1:], strict=False) if a.number == b.number]
        if twice:
            raise ValueError(
                f"{file}: {len(twice)} questions are answered twice, first at {twice[0]}: keep one of each"
            )
    if len(answers) < len(rows):
        raise ValueError(f"{file} has {len(answers)} answers to {len(rows)} questions: answer all of them")
    starts = [
        start
        for start in range(len(answers) - len(rows) + 1)
        if all(_same(row, answers[start + i]) for i, row in enumerate(rows))
    ]
    if len(starts) == 1:
        return [[answers[starts[0] + i]] for i in range(len(rows))]
    first = next((i for i, row in enumerate(rows) if not _same(row, answers[i])), 0)
    asked = f"{answers[first].place} asks {answers[first].question!r}, row {rows[first]['id']}"
    raise ValueError(
        f"{file} does not name the images, and holds the questions of the rows, in their order, {len(starts)} times "
        f"({asked} {rows[first]['question']!r}): put LLaVA's question file beside the rows, or name the right benchmark"
    )


def _same(row: Mapping, answer: Answer) -> bool:
    """Whether an answer is to the row's question: one of the two texts holds the other (instructions, options)."""
    ours, theirs = _plain(row["question"]), _plain(answer.question)
    return bool(theirs) and (ours in theirs or theirs in ours)


def _plain(text: object) -> str:
    text = text if isinstance(text, str) else ""
    for instruction in ("<image>", WORD_INSTRUCTION, LETTER_INSTRUCTION):
        text = text.replace(instruction, " ")
    return " ".join(text.lower().split())
