"""Benchmarks in their official formats, a few rows each; and where the real files are, if they are here."""

import csv
import io
import json
from pathlib import Path

import pandas
import pytest
from PIL import Image

from workbook.benchmarks import BENCHMARKS

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real files is not here")
PHOTO = "pope/val2014/COCO_val2014_000000310196.jpg"


def picture(path=None, colour="red"):
    image = Image.new("RGB", (8, 6), colour)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_csv(path, rows, header):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_lines(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def edit_lines(path, change):
    write_lines(path, change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))


MMVP_HEADER = ["Index", "Question", "Options", "Correct Answer"]
MMVP = [[n, "Are the wings open or closed?", "(a) Open (b) Closed", ("(a)", "(b)")[n % 2 == 0]] for n in range(1, 5)]


def write_official(root):
    """A folder of benchmarks in the official formats, a few rows each."""
    question = "How many wine glasss are in the image?"
    count = {
        "idx": 787, "type": "2D", "task": "Count", "image": picture(), "question": question,
        "choices": ["0", "3", "2", "1"], "answer": "(D)",
        "prompt": f"{question} Select from the following choices.\n(A) 0\n(B) 3\n(C) 2\n(D) 1",
        "filename": "img/2D/count/coco_287.png", "source": "COCO", "source_dataset": "COCO 2017 Validation Set",
        "source_filename": "/coco/val2017/000000412362.jpg", "target_class": "wine glass", "target_size": 1732,
    }  # fmt: skip
    where = "where is the cat located with respect to the dog?"
    relation = count | {
        "idx": 788, "task": "Relation", "question": where, "choices": ["left", "right"], "answer": "(B)",
        "prompt": f"{where} Select from the following choices.\n(A) left\n(B) right", "source": "ADE20K",
        "source_filename": "/ade/1.jpg",
    }  # fmt: skip
    (root / "cv_bench").mkdir()
    pandas.DataFrame([count, relation]).to_parquet(root / "cv_bench" / "test_2d.parquet")
    pandas.DataFrame([count | {"type": "3D"}] * 3).to_parquet(root / "cv_bench" / "test_3d.parquet")

    for n in range(1, 5):
        picture(root / "mmvp" / "MMVP Images" / f"{n}.jpg")
    write_csv(root / "mmvp" / "Questions.csv", MMVP, MMVP_HEADER)

    for subset, words in (("one", "in the photo? Answer with left, right, top or bottom."),
                          ("two", "in relation to the bed? Answer with left, right, above or below.")):  # fmt: skip
        items = [
            {"id": i, "question": f"<image>\nUSER: {' ' * i}Where is the cat {words}\nASSISTANT:", "answer": [gold]}
            for i, gold in enumerate(("Left", "Right"))
        ]
        write_lines(root / "whats_up" / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", items)
        (root / "whats_up" / "data").mkdir(exist_ok=True)
        captions = [[397133, "A photo of a cat on the left", "A photo of a cat on the right"]] * 2
        (root / "whats_up" / "data" / f"coco_qa_{subset}_obj.json").write_text(json.dumps(captions))
    picture(root / "whats_up" / "data" / "val2017" / "000000397133.jpg")

    for subset in ("random", "popular", "adversarial"):
        write_lines(
            root / "pope" / f"coco_pope_{subset}.json",
            [
                {"question_id": i + 1, "image": Path(PHOTO).name, "text": f"Is there a {thing} in the image?",
                 "label": label}
                for i, (thing, label) in enumerate((("snowboard", "yes"), ("dining table", "no")))
            ],
        )  # fmt: skip
    picture(root / PHOTO)

    first = "Which option is right?\nOptions: A: It is red, or so, B: two: yes, C: three, D: four"
    second = (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: What is it?\nChoices:\n(A) one\n(B) two\n(C) three\n(D) four"
    )
    info = {"source": "x", "split": "val", "image_path": "y"}
    star = [
        {"index": i, "question": text, "image": picture(), "answer": "B", "category": "math",
         "l2_category": "geometry", "meta_info": info}
        for i, text in enumerate((first, second))
    ]  # fmt: skip
    (root / "mmstar").mkdir()
    pandas.DataFrame(star).to_parquet(root / "mmstar" / "mmstar.parquet")

    mme = [
        {"question_id": f"{task}/0001.jpg", "image": picture(), "category": task, "answer": answer,
         "question": f"Is there a {thing} in this image? Please answer yes or no."}
        for task in ("existence", "count")
        for thing, answer in (("train", "Yes"), ("bed", "No"))
    ]  # fmt: skip
    (root / "mme" / "data").mkdir(parents=True)
    pandas.DataFrame(mme[:2]).to_parquet(root / "mme" / "data" / "test-00000-of-00002-ab.parquet")
    pandas.DataFrame(mme[2:]).to_parquet(root / "mme" / "data" / "test-00001-of-00002-cd.parquet")

    totals = dict.fromkeys(BENCHMARKS, {"rows": 2}) | {"mmvp": {"rows": 4}, "mme": {"rows": 4}}
    totals["cv_bench"] = {"rows": 2, "categories": {"Count": 1, "Relation": 1}}
    (root / "manifest.json").write_text(json.dumps(totals))
    return root
