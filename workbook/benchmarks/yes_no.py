"""The benchmarks that ask for yes or no: POPE and MME."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from viral_core.files import read_entries
from workbook.benchmarks.benchmark import WORD_INSTRUCTION, Benchmark, Members
from workbook.benchmarks.sources import Id, Row, Text, require


class POPERow(Row):
    id: Id = Field(alias="question_id")
    image: Text
    question: Text = Field(alias="text")
    answer: Text = Field(alias="label")


class POPE(Benchmark):
    """POPE on COCO (Li et al. 2023): is there a ... in the image; the paper reports random and popular.

    The earlier file of `random`, 2910 rows, which LLaVA copied, is read where answers to it are scored.
    """

    expected = {
        "pope_random": {"rows": (3000, 2910)},
        "pope_popular": {"rows": 3000},
        "pope_adversarial": {"rows": 3000},
    }
    paper = ("pope_random", "pope_popular")
    columns = POPERow
    categories = ("random", "popular", "adversarial")
    first_id = 1

    def read(self, name: str, folder: Path, photos: bool) -> tuple[Path, Iterable]:
        file = folder / f"coco_{name}.json"
        return file, read_entries(require(file, f"download it from RUCAIBox/POPE to {folder}"))

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        return {
            "image": str(folder / "val2014" / row["image"]),
            "prompt": f"{row['question']}\n{WORD_INSTRUCTION}",
            "options": ["yes", "no"],
            "group": row["image"],
            "category": name.removeprefix("pope_"),
        }

    def official(self, row: Mapping) -> str:
        """No if a word before the first full stop, commas left out, is No, no or not; else yes."""
        words = row["response"].split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"

    def values(self, members: Members) -> Iterator[dict]:
        for row, answer in members:
            right = answer == row["answer"]
            values = {"accuracy": right, "yes_ratio": answer == "yes"}
            values |= {"precision": right} if answer == "yes" else {}
            values |= {"recall": right} if row["answer"] == "yes" else {}
            yield {f"{row['category']}/{name}": value for name, value in values.items()}

    def scores(self, means: Mapping) -> dict:
        """`official` = `accuracy`, and `precision`, `recall`, `f1`, `yes_ratio`: means over the subsets at hand.

        An unparsed answer is wrong: it is never a hit, and for an object that is there it is a miss.
        """
        subsets = []
        for subset in self.categories:
            if f"{subset}/accuracy" in means[""]:
                undefined = np.nan * means[""][f"{subset}/accuracy"]
                names = ("accuracy", "precision", "recall", "yes_ratio")
                part = {name: means[""].get(f"{subset}/{name}", undefined) for name in names}
                part["f1"] = 2 * part["precision"] * part["recall"] / (part["precision"] + part["recall"])
                subsets.append(part)
        scores = {name: sum(part[name] for part in subsets) / len(subsets) for name in subsets[0]}
        return {"official": scores["accuracy"], **scores}


MME_PERCEPTION = {
    **dict.fromkeys(("existence", "count", "position", "color"), 60),
    **{"posters": 294, "celebrity": 340, "scene": 400, "landmark": 400, "artwork": 400, "OCR": 40},
}
MME_COGNITION = {
    "commonsense_reasoning": 140,
    **dict.fromkeys(("numerical_calculation", "text_translation", "code_reasoning"), 40),
}


class MMERow(Row):
    id: Text = Field(alias="question_id")  # "artwork/1.jpg", the image's name
    category: Text


class MME(Benchmark):
    """MME (Fu et al. 2023): two yes/no questions to an image, one of either answer, in 14 subtasks.

    A subtask scores 100 acc + 100 acc+, where acc+ counts images with both questions right.
    """

    expected = {"mme": {"rows": 2374, "categories": MME_PERCEPTION | MME_COGNITION}}
    columns = MMERow
    parquet = "data/*.parquet"
    categories = tuple(MME_PERCEPTION | MME_COGNITION)
    stratified = True

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        question, group = row["question"].strip(), f"{row['category']}/{row['id'].rsplit('/', 1)[-1]}"
        return {"question": question, "prompt": question, "options": ["yes", "no"], "group": group}

    def faults(self, rows: Sequence[dict]) -> Iterator[str]:
        """Each image has one Yes and one No; ids become the image's with the number of the question."""
        answers = defaultdict(list)
        for row in rows:
            answers[row["group"]].append(str(row["answer"]))
            row["id"] = f"{row['group']}#{len(answers[row['group']])}"
        for group, given in answers.items():
            if sorted(given) != ["no", "yes"]:
                text = f"{len(given)} questions answered {', '.join(given)}"
                yield f"{group} has {text}, not one Yes and one No; download the image's rows again"

    def official(self, row: Mapping) -> str:
        """Lower-cased yes or no; else "yes", then "no", within the first four characters; else other."""
        text = row["response"].lower()
        return text if text in ("yes", "no") else next((word for word in ("yes", "no") if word in text[:4]), "other")

    def values(self, members: Members) -> list[dict]:
        if len(members) != 2:
            raise ValueError(f"mme: {members[0][0]['group']} has {len(members)} rows: score both questions of an image")
        right = [answer == row["answer"] for row, answer in members]
        return [{"accuracy": sum(right) / 2, "both": all(right)}]

    def scores(self, means: Mapping) -> dict:
        """`official` = `perception` + `cognition`, and the subtasks' scores under their names."""
        tasks = {task: mean["accuracy"] * 100 + mean["both"] * 100 for task, mean in means.items()}
        kinds = {"perception": MME_PERCEPTION, "cognition": MME_COGNITION}
        none = 0.0 * next(iter(tasks.values()))  # in the shape of a score
        totals = {kind: sum((tasks[t] for t in names if t in tasks), none) for kind, names in kinds.items()}
        return {"official": totals["perception"] + totals["cognition"], **totals, **tasks}
