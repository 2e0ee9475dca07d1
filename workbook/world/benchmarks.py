"""Write the embedded world's benchmarks in the official on-disk formats.

Layout: that of `workbook.benchmarks`, with a `manifest.json` of the totals and `descriptions.json`, every question's
scene in words, {benchmark: [description of each row]}: asked with these in place of the image, a model shows what it
could answer if it saw everything.  As in the originals, an MMVP pair is two pictures that differ in one object, a
POPE picture has as many Yes as No questions, the same pictures for random and popular, and an MME picture one of each.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viral_core.files import write_text
from workbook.world import questions, render
from workbook.world.questions import LETTER, Rows
from workbook.world.scenes import Scene, draw_scenes

# Configurations as the data cards of the originals have them, for `datasets`.
CARD = "---\nconfigs:\n- config_name: {config}\n  data_files: [{{split: {split}, path: '{path}'}}]\n---\n"
MME = (questions.mme_existence, questions.mme_count, questions.mme_position, questions.mme_commonsense)
SUBCATEGORIES = {
    "coarse perception": "image scene and topic",
    "fine-grained perception": "localization",
    "instance reasoning": "cross-instance relation reasoning",
    "logical reasoning": "common reasoning",
    "science & technology": "biology & chemistry & physics",
    "math": "numeric commonsense and calculation",
}
PAIRED = ("mmvp", "pope_random", "pope_popular", "mme")


def write_benchmarks(root: str | Path, counts: Mapping[str, int], seed: int) -> dict[str, Rows]:
    """Write the benchmarks named in `counts` (names as in `workbook.benchmarks.BENCHMARKS`) with that many rows.

    Returns scene and question of every row of each benchmark.  ValueError: an unknown benchmark, no rows, or an odd
    number where questions come in twos.
    """
    for name, n in counts.items():
        if name not in WRITERS:
            raise ValueError(f"unknown benchmark {name!r}: one of {', '.join(WRITERS)}")
        if n < 2 or (n % 2 and name in PAIRED):
            raise ValueError(f"{name} needs an even number of rows, at least two, not {n}")
    root, written, totals = Path(root), {}, {}
    for name, n in tqdm(counts.items(), "benchmarks"):
        stream = list(WRITERS).index(name.replace("popular", "random"))
        batches = (draw_scenes(64, (seed, 5, stream, batch), "test") for batch in count())
        scenes = (scene for batch in batches for scene in batch)
        folder = root / re.sub("_(one|two|random|popular)$", "", name)
        written[name] = WRITERS[name](folder, n, scenes, np.random.default_rng((seed, 6, stream)))
        totals[name] = {"rows": n}
        if name in ("cv_bench", "mmstar", "mme"):
            totals[name]["categories"] = Counter(qa.category for _, qa in written[name])
    descriptions = {name: [questions.described(scene) for scene, _ in rows] for name, rows in written.items()}
    for name, content in (("manifest", totals), ("descriptions", descriptions)):
        write_text(root / f"{name}.json", json.dumps(content, indent=1) + "\n")
    return written


def _shares(n: int, parts: int) -> list[int]:
    """Equal shares, the first ones one more where they do not come out even."""
    return [len(part) for part in np.array_split(range(n), parts)]


def _picture(scene: Scene) -> dict:
    """The cell of a parquet image column."""
    buffer = io.BytesIO()
    render.render(scene).save(buffer, "JPEG", quality=render.JPEG_QUALITY)
    return {"bytes": buffer.getvalue(), "path": None}


def _save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_picture(scene)["bytes"])


def _parquet(folder: Path, path: str, items: Sequence[dict], config: str, split: str) -> None:
    import datasets

    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(list(items)).cast_column("image", datasets.Image()).to_parquet(folder / path)
    write_text(folder / "README.md", CARD.format(config=config, split=split, path=path))


def _lines(path: Path, items: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(item) + "\n" for item in items))


def _cv_bench(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator) -> Rows:
    """Count and Relation in the original's proportion, 788 to 650."""
    counted = round(n * 788 / 1438)
    rows = questions.ask(scenes, questions.cv_bench_count, counted, rng)
    rows += questions.ask(scenes, questions.cv_bench_relation, n - counted, rng)
    items = [
        {
            "idx": i,
            "type": "2D",
            "task": qa.category,
            "image": _picture(scene),
            "question": qa.stem,
            "choices": list(qa.options),
            "answer": f"({qa.answer})",
            "prompt": qa.text.removesuffix(f"\n{LETTER}"),
            "filename": f"img/2D/{qa.category.lower()}/world_{i}.jpg",
            "source": "world",
            "source_dataset": "embedded world",
            "source_filename": f"world_{i}.jpg",
        }
        for i, (scene, qa) in enumerate(rows)
    ]
    _parquet(folder, "test_2d.parquet", items, "2D", "test")
    return rows


def _mmvp(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator) -> Rows:
    """Pairs of pictures that differ in one object, in turn in its facing, its side and whether it is there at all."""
    rows: Rows = []
    for kind in islice(cycle(questions.CHANGES), n // 2):
        rows += next(filter(None, (_pair(scene, kind, rng) for scene in scenes)))
    table = []
    for number, (scene, qa) in enumerate(rows, 1):
        options = " ".join(f"({x}) {o}" for x, o in zip("ab", qa.options, strict=True))
        table.append([number, qa.stem, options, qa.answer])
        _save(scene, folder / "MMVP Images" / f"{number}.jpg")
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Index", "Question", "Options", "Correct Answer"], *table])
    return rows


def _pair(scene: Scene, kind: str, rng: np.random.Generator) -> Rows:
    """The question about a scene and its twin, either of which may come first; none without one of the same split."""
    changes = list(questions.CHANGES[kind](scene))
    if not changes:
        return []
    stem, right, wrong, twin = questions.pick(rng, changes)
    if twin is None or twin.split != scene.split:
        return []
    first = bool(rng.random() < 0.5)
    pair = [(scene, questions.mmvp_about(kind, stem, right, wrong, first))]
    pair.append((twin, questions.mmvp_about(kind, stem, wrong, right, not first)))
    return pair if rng.random() < 0.5 else pair[::-1]


def _whats_up(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator, subset: str) -> Rows:
    asker, first_id = {"one": (questions.whats_up_one, 200_000), "two": (questions.whats_up_two, 300_000)}[subset]
    rows = questions.ask(scenes, asker, n, rng)
    items, captions = [], []
    for i, (scene, qa) in enumerate(rows):
        items.append({"id": i, "question": f"<image>\nUSER: {qa.text}\nASSISTANT:", "answer": [qa.answer]})
        wrong = next(word for word in qa.options if word != qa.answer.lower())
        subject = qa.stem.removeprefix("Where is the ").split("?")[0]
        captions.append([first_id + i, *(f"The {subject}: {word}" for word in (qa.answer.lower(), wrong))])
        _save(scene, folder / "data" / "val2017" / f"{first_id + i:012d}.jpg")
    _lines(folder / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", items)
    write_text(folder / "data" / f"coco_qa_{subset}_obj.json", json.dumps(captions))
    return rows


def _pope(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator, subset: str) -> Rows:
    """Every kind in a picture, and as many that are absent: drawn at random, or the most popular ones."""
    shown = list(islice(scenes, n // 2))  # enough, for every picture has an object
    popular = Counter(name for scene in shown for name in scene.counts())
    rows: Rows = []
    for scene in shown:
        absent = [str(name) for name in rng.permutation(questions.absent(scene))]
        if subset == "popular":
            absent = [name for name, _ in popular.most_common() if name in absent]
        for present, missing in zip(scene.counts(), absent, strict=False):
            rows += [(scene, questions.pope_about(present, True)), (scene, questions.pope_about(missing, False))]
    rows, items, images = rows[:n], [], {}
    for i, (scene, qa) in enumerate(rows, 1):
        if id(scene) not in images:
            images[id(scene)] = f"world_{len(images):06d}.jpg"
            _save(scene, folder / "val2014" / images[id(scene)])
        image = images[id(scene)]
        items.append({"question_id": i, "image": image, "text": qa.stem, "label": qa.answer.lower()})
    _lines(folder / f"coco_pope_{subset}.json", items)
    return rows


def _mmstar(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator) -> Rows:
    """The six categories in equal shares."""
    rows: Rows = []
    for kind, share in zip(questions.MMSTAR, _shares(n, 6), strict=True):
        rows += questions.ask(scenes, partial(questions.mmstar, kind=kind), share, rng)
    items = [
        {
            "index": i,
            "question": qa.text.removesuffix(f"\n{LETTER}"),
            "image": _picture(scene),
            "answer": qa.answer,
            "category": qa.category,
            "l2_category": SUBCATEGORIES[qa.category],
            "meta_info": {"source": "embedded world", "split": "test", "image_path": f"world_{i}.jpg"},
        }
        for i, (scene, qa) in enumerate(rows)
    ]
    _parquet(folder, "mmstar.parquet", items, "val", "val")
    return rows


def _mme(folder: Path, n: int, scenes: Iterator[Scene], rng: np.random.Generator) -> Rows:
    """Four subtasks in equal shares; a Yes and a No question to every picture."""
    rows, items = [], []
    for asker, images in zip(MME, _shares(n // 2, len(MME)), strict=True):
        number = 0
        while number < images:
            scene = next(scenes)
            asked = [asker(scene, rng) for _ in range(12)]
            answers = {qa.answer: qa for qa in asked if qa}
            if len(answers) < 2:  # a dozen tries did not give both
                continue
            for qa in (answers["Yes"], answers["No"]):
                rows.append((scene, qa))
                name = f"{qa.category}/{number:04d}.jpg"
                item = {"question_id": name, "image": _picture(scene), "question": qa.text, "answer": qa.answer}
                items.append(item | {"category": qa.category})
            number += 1
    _parquet(folder, "data/test-00000-of-00001.parquet", items, "default", "test")
    return rows


WRITERS = {
    "cv_bench": _cv_bench,
    "mmvp": _mmvp,
    "whats_up_one": partial(_whats_up, subset="one"),
    "whats_up_two": partial(_whats_up, subset="two"),
    "pope_random": partial(_pope, subset="random"),
    "pope_popular": partial(_pope, subset="popular"),
    "mmstar": _mmstar,
    "mme": _mme,
}
