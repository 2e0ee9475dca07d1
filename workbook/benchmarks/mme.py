"""MME (Fu et al. 2023): two yes/no questions to an image, one of either answer, in 14 subtasks.

Local folder: the snapshot of `lmms-lab/MME` (`data/*.parquet`), or the release itself: a folder for each subtask with
images and, beside them or split into `images/` and `questions_answers_YN/`, a text file for each image of two lines
"question<tab>Yes".  A subtask scores 100 acc + 100 acc+, where acc+ counts images with both questions right.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from viral_core.files import read_text
from workbook.benchmarks.sources import AGAIN, Faults, Photo, Text, new_row, parquet_rows

PERCEPTION = {
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
}
COGNITION = {
    "commonsense_reasoning": 140,
    "numerical_calculation": 40,
    "text_translation": 40,
    "code_reasoning": 40,
}
CATEGORIES = tuple(PERCEPTION | COGNITION)
EXPECTED = {"mme": {"rows": 2374, "categories": PERCEPTION | COGNITION}}


class Item(BaseModel):
    """A row of the snapshot, or a line of the release's text files."""

    question_id: Text  # "artwork/1.jpg", the image's name
    image: Photo = None
    question: Text
    answer: Text
    category: Text


def read(name: str, folder: Path, faults: Faults, photos: bool) -> tuple[Path, Iterable]:
    if any(folder.glob("data/*.parquet")):
        return folder, parquet_rows(folder, "data/*.parquet", photos)
    return folder, _release(folder, faults, photos)


def _release(folder: Path, faults: Faults, photos: bool) -> Iterator[dict]:
    """Rows of the release's folders.  Raises FileNotFoundError where there are none."""
    texts = [(task, text) for task in CATEGORIES for text in sorted((folder / task).rglob("*.txt"))]
    if not texts:
        raise FileNotFoundError(f"{folder}: neither data/*.parquet nor the release's folders; put one of them there")
    for task, text in texts:
        images = folder / task / "images" if (folder / task / "images").is_dir() else text.parent
        files = [images / f"{text.stem}.{suffix}" for suffix in ("jpg", "png", "jpeg")]
        image = next((file for file in files if file.is_file()), None)
        if image is None and photos:
            faults.add(text, f"no image {files[0]} or .png", "restore the image")
        for number, line in enumerate(filter(str.strip, read_text(text).split("\n")), 1):
            question, _, answer = line.strip().rpartition("\t")
            if not question:
                faults.add(text, f"line {number} is not question, tab, answer", AGAIN)
                continue
            yield {
                "question_id": image.name if image else text.stem,
                "image": str(image or files[0]),
                "question": question,
                "answer": answer,
                "category": task,
            }


def row(name: str, item: Item, folder: Path) -> dict:
    image = f"{item.category}/{item.question_id.rsplit('/', 1)[-1]}"  # `check` adds the question's number to the id
    question = item.question.strip()
    place = {"group": image, "category": item.category}
    return new_row(image, item.image, question, ["yes", "no"], item.answer, prompt=question, **place)


def check(rows: Sequence[dict], file: object, faults: Faults) -> None:
    """Each image has one Yes and one No; ids become the image's with the number of the question."""
    answers = defaultdict(list)
    for row in rows:
        answers[row["group"]].append(str(row["answer"]))
        row["id"] = f"{row['group']}#{len(answers[row['group']])}"
    for group, given in answers.items():
        if sorted(given) != ["no", "yes"]:
            text = f"{len(given)} questions answered {', '.join(given)}"
            faults.add(file, f"{group} has {text}, not one Yes and one No", "download the image's rows again")


def official(row: Mapping) -> str:
    """Lower-cased yes or no; else "yes", then "no", within the first four characters; else other."""
    text = row["response"].lower()
    return text if text in ("yes", "no") else next((word for word in ("yes", "no") if word in text[:4]), "other")


def stratum(row: Mapping) -> str:
    return row["category"]


def counts(members: Sequence[tuple[Mapping, str | None]]) -> dict[str, int]:
    if len(members) != 2:
        raise ValueError(f"mme: {members[0][0]['group']} has {len(members)} rows: score both questions of an image")
    right = [answer == row["answer"] for row, answer in members]
    return {"images": 1, "right": sum(right), "both": all(right)}


def scores(sums: Mapping) -> dict:
    """`official` = `perception` + `cognition`, and the subtasks' scores under their names."""
    tasks = {t: s["right"] / (s["images"] * 2) * 100 + s["both"] / s["images"] * 100 for t, s in sums.items()}
    kinds = {"perception": PERCEPTION, "cognition": COGNITION}
    none = 0.0 * next(iter(tasks.values()))  # in the shape of a score
    totals = {kind: sum((tasks[t] for t in names if t in tasks), none) for kind, names in kinds.items()}
    return {"official": totals["perception"] + totals["cognition"], **totals, **tasks}
