"""Answers that other programs wrote, joined to the official rows and scored.

Read are the answer files of LLaVA's evaluation scripts (jsonl: question_id, prompt, text), of lmms-eval's
`--log_samples` (jsonl: doc or input, resps or filtered_resps), of VLMEvalKit (xlsx or tsv: index, question,
prediction), and the workbook's own.  Ids are no key: LLaVA numbers POPE's questions through its three files.  Answers
are joined by image and question where they name their images, else by the questions' order, and their questions are
compared either way.  A row without an answer, or with two, is an error: scores of parts are no scores.
"""

import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas

from viral_core.files import read_entries
from workbook.benchmarks import load_rows, score
from workbook.benchmarks.answers import read_answers
from workbook.benchmarks.pope import INSTRUCTION
from workbook.benchmarks.registry import PAPER
from workbook.benchmarks.sources import LETTER_INSTRUCTION
from workbook.benchmarks.stats import differences, intervals


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, and what the file tells of the question; None and empty: nothing."""

    place: str  # in the file
    response: str
    question: str
    number: int | None = None  # the order of the questions
    image: str | None = None  # the name of the image's file, without its ending
    categories: frozenset[str] = frozenset()


def score_files(benchmark: str, files: Sequence[str | Path], folder: str | Path) -> pandas.DataFrame:
    """Scores with 95 % intervals of an answer file; of two, the paired difference, first minus second.

    Args:
        benchmark: one of `BENCHMARKS`, or of `PAPER` (all its files' questions).
        folder: the folder of benchmarks, or the benchmark's own, with its official files; images are not needed.
            LLaVA's question files, if they lie there too, say which image an answer is about.

    Returns:
        A row for each of the benchmark's scores, the first being its number; columns `official`, `low`, `high`,
        `strict`, `strict low`, `strict high`.  `attrs`: `questions`, and for each file `unparsed`, the share of answers
        that the strict rule cannot read.

    Raises:
        FileNotFoundError: no such file, or no official rows.
        ValueError: a file of another kind, or answers that do not belong to the rows, or not one to each.
    """
    parts = [load_rows(part, folder, photos=False) for part in PAPER.get(benchmark, (benchmark,))]
    sides = []
    for file in map(Path, files):
        answers = _read(file, Path(folder))
        sides.append([row for rows in parts for row in join(rows, answers, file)])
    results = [score(benchmark, rows) for rows in sides]
    table: dict[str, dict] = {}
    for rule, prefix in (("official", ""), ("strict", "strict ")):
        values = [result["strict_scores"] if rule == "strict" else result for result in results]
        if len(sides) == 1:
            bounds = intervals(benchmark, [[sides[0]]], rule)
            table[rule] = {name: values[0][name] for name in bounds}
        else:
            bounds = differences(benchmark, [[sides[0]]], [[sides[1]]], rule)
            table[rule] = {name: values[0][name] - values[1][name] for name in bounds}
        table[f"{prefix}low"] = {name: interval.low for name, interval in bounds.items()}
        table[f"{prefix}high"] = {name: interval.high for name, interval in bounds.items()}
    frame = pandas.DataFrame(table)
    frame.attrs = {"questions": len(sides[0]), "unparsed": [result["unparsed"] for result in results]}
    return frame


def join(rows: Sequence[Mapping], answers: Sequence[Answer], file: Path) -> list[dict]:
    """The rows with the `response` to each."""
    known = {row["category"] for row in rows}
    if any(answer.categories & known for answer in answers):
        answers = [answer for answer in answers if answer.categories & known]
    by_image = defaultdict(list)
    for answer in answers:
        by_image[answer.image].append(answer)
    if all(_image(row) in by_image for row in rows):
        pairs = [_candidates(row, by_image[_image(row)]) for row in rows]
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


def _image(row: Mapping) -> str:
    return Path(row["group"]).stem


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
    for instruction in ("<image>", INSTRUCTION, LETTER_INSTRUCTION):
        text = text.replace(instruction, " ")
    return " ".join(text.lower().split())


def _table(file: Path) -> Iterator[Answer]:
    """VLMEvalKit's rows; cells are text, so that an answer "None" or "N/A" stays what it is."""
    as_text = {"dtype": str, "keep_default_na": False}
    try:
        read = pandas.read_excel if file.suffix == ".xlsx" else partial(pandas.read_csv, sep="\t")
        table = read(file, **as_text)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]} ({error}): write it again") from error
    if not {"question", "prediction"} <= set(table.columns):
        raise ValueError(f"{file} has no columns question and prediction: give VLMEvalKit's file of predictions")
    for number, row in enumerate(table.to_dict("records")):
        index, image = row.get("index", ""), row.get("image_path", "")
        yield Answer(
            place=f"row {number + 2}",
            response=row["prediction"],
            question=row["question"],
            number=int(index) if index.isdigit() else None,
            image=Path(image).stem if image else None,
            categories=frozenset(part.strip() for part in row.get("category", "").split(",")),
        )


def _read(file: Path, folder: Path) -> list[Answer]:
    if not file.is_file():
        raise FileNotFoundError(f"no answers at {file}")
    if file.suffix in (".xlsx", ".tsv"):
        return list(_table(file))
    entries = read_entries(file)
    if entries and isinstance(entries[0], dict) and "settings" in entries[0]:
        return _own(file)
    for columns, kind in (({"question_id", "prompt", "text"}, _llava), ({"resps"}, _lmms), ({"filtered_resps"}, _lmms)):
        if entries and all(isinstance(entry, dict) and columns <= entry.keys() for entry in entries):
            answers = [kind(entry, f"entry {number}") for number, entry in enumerate(entries, 1)]
            return _with_images(answers, entries, folder) if kind is _llava else answers
    raise ValueError(f"{file}: not every entry is an answer as LLaVA's scripts, lmms-eval or the workbook write them")


def _own(file: Path) -> list[Answer]:
    """The workbook's answers; MME's rows are named by image, the others numbered."""
    _, runs = read_answers(file)
    if len(runs) > 1:
        raise ValueError(f"{file} holds {len(runs)} sampled runs: compare greedy answers")
    return [
        Answer(
            place=f"row {row['id']}",
            response=row["response"],
            question=row["question"],
            number=int(row["id"]) if row["id"].isdigit() else None,
            image=None if row["id"].isdigit() else _image(row),
            categories=frozenset([row["category"]]),
        )
        for row in runs[0]
    ]


def _image_and_category(name: object) -> tuple[str | None, frozenset[str]]:
    """What an id like MME's "artwork/images/1.jpg" says."""
    path = Path(str(name))
    return (path.stem, frozenset(path.parts[:1])) if len(path.parts) > 1 else (None, frozenset())


def _llava(entry: Mapping, place: str) -> Answer:
    number = entry["question_id"] if isinstance(entry["question_id"], int) else None
    return Answer(place, entry["text"], entry["prompt"], number, *_image_and_category(entry["question_id"]))


def _with_images(answers: list[Answer], entries: Sequence[Mapping], folder: Path) -> list[Answer]:
    """LLaVA's answers with what its question file, if there is one, says of each question."""
    for file in sorted(folder.rglob("*.jsonl")):
        lines = [line for line in read_entries(file) if isinstance(line, dict)]
        asked = {line["question_id"]: line for line in lines if {"question_id", "image", "text"} <= line.keys()}
        lines = [asked.get(entry["question_id"]) for entry in entries]
        if asked and all(line and line["text"] == e["prompt"] for line, e in zip(lines, entries, strict=True)):
            return [
                replace(
                    answer, image=Path(line["image"]).stem, categories=frozenset(filter(None, [line.get("category")]))
                )
                for answer, line in zip(answers, lines, strict=True)
            ]
    return answers


def _lmms(entry: Mapping, place: str) -> Answer:
    """lmms-eval's sample; of a file without docs, the metrics tell the question's id and category."""
    details: dict = {}
    for part in entry.values():
        if isinstance(part, dict):
            details = part | details
    image, categories = _image_and_category(details.get("question_id"))
    image = Path(details["image_source"]).stem if "image_source" in details else image
    category = details.get("category") or details.get("task")
    question = details.get("question") or details.get("Question")
    return Answer(
        place=place,
        response=_first_text(entry.get("resps") or entry.get("filtered_resps")),
        question=question or _first_text(entry.get("input", entry.get("arguments"))),
        number=entry.get("doc_id"),
        image=image,
        categories=frozenset([category]) if category else categories,
    )


def _first_text(value: object) -> object:
    """The first text in nested lists and dicts, or what stands in its place."""
    while isinstance(value, list | dict) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value
