"""MME (Fu et al. 2023): two yes/no questions to an image, one of either answer, in 14 subtasks.

Local folder: the snapshot of `lmms-lab/MME` (`data/*.parquet`), or the release itself: a folder for each subtask with
images and, beside them or split into `images/` and `questions_answers_YN/`, a text file for each image of two lines
"question<tab>Yes".  A subtask scores 100 acc + 100 acc+, where acc+ counts images with both questions right.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import Faults, check, embedded_bytes, parquet_rows

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
EXPECTED = {"mme": {"rows": 2374, "categories": PERCEPTION | COGNITION}}
HUB = "lmms-lab/MME"


def load(name: str, folder: Path, expected: Mapping, faults: Faults, hub: str | None = None) -> list[dict]:
    """Rows in the files' order; `group` is the image within its subtask."""
    if hub or any(folder.glob("data/*.parquet")):
        items = parquet_rows(folder, "data/*.parquet", hub, None, "test")
        items = [item | {"image": embedded_bytes(item["image"])} for item in items]
    else:
        items = list(_release(folder, faults))
    rows, asked = [], defaultdict(list)
    for item in items:
        group = f"{item['category']}/{str(item['question_id']).rsplit('/', 1)[-1]}"
        answer = str(item["answer"]).strip().lower()
        if item["category"] not in PERCEPTION | COGNITION:
            faults.add(hub or folder, f"{group}: unknown subtask", "download the benchmark again")
        asked[group].append(answer)
        rows.append(
            {
                "id": f"{group}#{len(asked[group])}",
                "image": item["image"],
                "question": item["question"].strip(),
                "prompt": item["question"].strip(),
                "options": ["yes", "no"],
                "answer": answer if answer in ("yes", "no") else None,
                "group": group,
                "category": item["category"],
            }
        )
    for group, answers in asked.items():
        if sorted(answers) != ["no", "yes"]:
            found = f"{len(answers)} questions answered {', '.join(answers)}"
            faults.add(hub or folder, f"{group} has {found}, not one Yes and one No", "download the image's rows again")
    check(rows, expected, hub or folder, faults)
    return rows


def _release(folder: Path, faults: Faults) -> Iterator[dict]:
    """Rows of the release's folders.  Raises FileNotFoundError where there are none."""
    texts = [(task, text) for task in PERCEPTION | COGNITION for text in sorted((folder / task).rglob("*.txt"))]
    if not texts:
        raise FileNotFoundError(f"{folder}: neither data/*.parquet nor the release's folders; put one of them there")
    for task, text in texts:
        images = folder / task / "images" if (folder / task / "images").is_dir() else text.parent
        image = next((p for e in ("jpg", "png", "jpeg") if (p := images / f"{text.stem}.{e}").is_file()), None)
        if image is None:
            faults.add(text, f"no image {images / text.stem}.jpg or .png", "restore the image")
        for number, line in enumerate(filter(str.strip, text.read_text(encoding="utf-8").splitlines()), 1):
            question, _, answer = line.strip().rpartition("\t")
            if not question:
                faults.add(text, f"line {number} is not question, tab, answer", "download the file again")
                continue
            yield {
                "question_id": image.name if image else text.stem,
                "image": str(image or images / f"{text.stem}.jpg"),
                "question": question,
                "answer": answer,
                "category": task,
            }


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
    totals = {kind: sum((tasks[t] for t in names if t in tasks), 0.0) for kind, names in kinds.items()}
    return {"official": totals["perception"] + totals["cognition"], **totals, **tasks}
