"""Write the embedded world's benchmarks in the official on-disk formats, with fewer rows.

Layout: that of `workbook.benchmarks`, with a `manifest.json` of the totals.  All scenes are test scenes
(`write.is_test`), the questions those of `questions`.  As in the originals, an MMVP pair is two pictures that differ in
one attribute, a POPE picture has as many Yes as No questions, the same pictures for random and popular, and an MME
picture one of each.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from workbook.world import questions, write
from workbook.world.questions import LETTER, QA
from workbook.world.scenes import CATEGORIES, Scene

# Configurations as the data cards of the originals have them, for `datasets`.
CARD = "---\nconfigs:\n- config_name: {config}\n  data_files: [{{split: {split}, path: '{path}'}}]\n---\n"
MME_TASKS = {
    "existence": questions.mme_existence,
    "count": questions.mme_count,
    "position": questions.mme_position,
    "commonsense_reasoning": questions.mme_commonsense,
}
SUBCATEGORIES = {
    "coarse perception": "image scene and topic",
    "fine-grained perception": "localization",
    "instance reasoning": "cross-instance relation reasoning",
    "logical reasoning": "common reasoning",
    "science & technology": "biology & chemistry & physics",
    "math": "numeric commonsense and calculation",
}
Written = tuple[list[QA], dict]  # the questions in the file's order, and their totals for the manifest


def write_benchmarks(root: str | Path, counts: Mapping[str, int], seed: int) -> dict[str, list[QA]]:
    """Write the benchmarks named in `counts` (names as in `workbook.benchmarks.BENCHMARKS`) with that many rows.

    Returns:
        the questions of each benchmark in the order of its rows.

    Raises:
        ValueError: an unknown benchmark, no rows, or an odd number where questions come in twos.
    """
    writers: dict[str, Callable[[Path, int, int], Written]] = {
        "cv_bench": _cv_bench,
        "mmvp": _mmvp,
        "whats_up_one": _whats_up,
        "whats_up_two": _whats_up,
        "pope_random": _pope,
        "pope_popular": _pope,
        "mmstar": _mmstar,
        "mme": _mme,
    }
    for name, n in counts.items():
        if name not in writers:
            raise ValueError(f"unknown benchmark {name!r}: one of {', '.join(writers)}")
        if n < 2 or (n % 2 and writers[name] in (_mmvp, _pope, _mme)):
            raise ValueError(f"{name} needs an even number of rows, at least two, not {n}")
    root, asked, totals = Path(root), {}, {}
    for name, n in tqdm(counts.items(), "benchmarks"):
        family = name.rsplit("_", 1)[0] if writers[name] in (_whats_up, _pope) else name
        folder = root / family
        folder.mkdir(parents=True, exist_ok=True)
        extra = {name.rsplit("_", 1)[1]} if family != name else ()
        asked[name], totals[name] = writers[name](folder, n, seed, *extra)
    (root / "manifest.json").write_text(json.dumps(totals, indent=1) + "\n", encoding="utf-8")
    return asked


def _scenes(seed: int, stream: int) -> Iterator[Scene]:
    """Test scenes without end, of a stream of their own for each benchmark."""
    batch = 0
    while True:
        yield from write.scenes(64, (seed, 5, stream, batch), test=True)
        batch += 1


def _asked(scenes: Iterator[Scene], asker: questions.Asker, n: int, rng: np.random.Generator) -> list[tuple[Scene, QA]]:
    """`n` scenes with a clear answer, and the question."""
    found = ((scene, asker(scene, rng)) for scene in scenes)
    return list(islice(((scene, qa) for scene, qa in found if qa), n))


def _picture(scene: Scene) -> dict:
    """The cell of a parquet image column."""
    from workbook.world.render import render

    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=write.JPEG_QUALITY)
    return {"bytes": buffer.getvalue(), "path": None}


def _save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_picture(scene)["bytes"])


def _parquet(folder: Path, path: str, items: Sequence[dict], config: str, split: str) -> None:
    import datasets

    (folder / path).parent.mkdir(exist_ok=True)
    datasets.Dataset.from_list(list(items)).cast_column("image", datasets.Image()).to_parquet(folder / path)
    (folder / "README.md").write_text(CARD.format(config=config, split=split, path=path), encoding="utf-8")


def _lines(path: Path, items: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def _totals(asked: Sequence[QA]) -> dict:
    return {"rows": len(asked), "categories": dict(Counter(qa.category for qa in asked))}


def _cv_bench(folder: Path, n: int, seed: int) -> Written:
    """Count and Relation in the original's proportion, 788 to 650."""
    rng, scenes, count = np.random.default_rng((seed, 6, 0)), _scenes(seed, 0), round(n * 788 / 1438)
    found = _asked(scenes, questions.cv_bench_count, count, rng)
    found += _asked(scenes, questions.cv_bench_relation, n - count, rng)
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
        for i, (scene, qa) in enumerate(found)
    ]
    _parquet(folder, "test_2d.parquet", items, "2D", "test")
    asked = [qa for _, qa in found]
    return asked, _totals(asked)


def _mmvp(folder: Path, n: int, seed: int) -> Written:
    """Pairs of pictures that differ in the facing of one object, both of them test scenes."""
    rng, asked, rows = np.random.default_rng((seed, 6, 1)), [], []
    pairs = (pair for scene in _scenes(seed, 1) if (pair := _turned(scene, rng)))
    for pair in islice(pairs, n // 2):
        left_first = bool(rng.random() < 0.5)
        for scene, item in pair:
            qa = questions.mmvp_about(item, left_first)
            asked.append(qa)
            number = len(asked)
            options = " ".join(f"({x}) {o}" for x, o in zip("ab", qa.options, strict=True))
            rows.append([number, qa.stem, options, qa.answer])
            _save(scene, folder / "MMVP Images" / f"{number}.jpg")
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Index", "Question", "Options", "Correct Answer"], *rows])
    return asked, {"rows": n}


def _turned(scene: Scene, rng: np.random.Generator):
    """Twice (scene, object), facing one way and the other, in random order; None unless both are test scenes."""
    facing = [o for o in questions.singles(scene) if o.facing]
    if not facing:
        return None
    item = questions.pick(rng, facing)
    turned = replace(item, facing={"left": "right", "right": "left"}[item.facing])
    other = replace(scene, objects=tuple(turned if o is item else o for o in scene.objects))
    if not write.is_test(other):
        return None
    pair = ((scene, item), (other, turned))
    return pair if rng.random() < 0.5 else pair[::-1]


def _whats_up(folder: Path, n: int, seed: int, subset: str) -> Written:
    stream = {"one": 2, "two": 3}[subset]
    asker = {"one": questions.whats_up_one, "two": questions.whats_up_two}[subset]
    found = _asked(_scenes(seed, stream), asker, n, np.random.default_rng((seed, 6, stream)))
    items, captions = [], []
    for i, (scene, qa) in enumerate(found):
        image_id = 100_000 * stream + i
        items.append({"id": i, "question": f"<image>\nUSER: {qa.text}\nASSISTANT:", "answer": [qa.answer]})
        wrong = next(word for word in qa.options if word != qa.answer.lower())
        subject = qa.stem.removeprefix("Where is the ").split("?")[0]
        captions.append([image_id, *(f"The {subject}: {word}" for word in (qa.answer.lower(), wrong))])
        _save(scene, folder / "data" / "val2017" / f"{image_id:012d}.jpg")
    _lines(folder / "prompts" / f"COCO_QA_{subset}_obj_with_answer_four_options.jsonl", items)
    (folder / "data" / f"coco_qa_{subset}_obj.json").write_text(json.dumps(captions), encoding="utf-8")
    return [qa for _, qa in found], {"rows": n}


def _pope(folder: Path, n: int, seed: int, subset: str) -> Written:
    """Every object of a picture, and as many that are absent: drawn at random, or the most popular ones."""
    rng = np.random.default_rng((seed, 6, 4))
    scenes = list(islice(_scenes(seed, 4), n // 2))  # enough, for every picture has an object
    popular = [name for name, _ in Counter(name for scene in scenes for name in scene.counts()).most_common()]
    asked, items = [], []
    for i, scene in enumerate(scenes):
        present = list(scene.counts())
        absent = [c.name for c in CATEGORIES if c.name not in present]
        if subset == "popular":
            absent = sorted(absent, key=lambda name: popular.index(name) if name in popular else len(popular))
        else:
            absent = [absent[j] for j in rng.permutation(len(absent))]
        found = [
            questions.pope_about(name, yes)
            for pair in zip(present, absent, strict=False)
            for name, yes in zip(pair, (True, False), strict=True)
        ][: n - len(asked)]
        if not found:
            break
        image = f"world_{i:06d}.jpg"
        _save(scene, folder / "val2014" / image)
        for qa in found:
            asked.append(qa)
            label = qa.answer.lower()
            items.append({"question_id": len(asked), "image": image, "text": qa.stem, "label": label})
    _lines(folder / f"coco_pope_{subset}.json", items)
    return asked, {"rows": n}


def _mmstar(folder: Path, n: int, seed: int) -> Written:
    """The six categories in equal shares, the first ones one more where they do not come out even."""
    rng, scenes, found = np.random.default_rng((seed, 6, 5)), _scenes(seed, 5), []
    for i, asker in enumerate(questions.MMSTAR.values()):
        found += _asked(scenes, asker, n // len(questions.MMSTAR) + (i < n % len(questions.MMSTAR)), rng)
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
        for i, (scene, qa) in enumerate(found)
    ]
    _parquet(folder, "mmstar.parquet", items, "val", "val")
    asked = [qa for _, qa in found]
    return asked, _totals(asked)


def _mme(folder: Path, n: int, seed: int) -> Written:
    """Four subtasks in equal shares; a Yes and a No question to every picture."""
    rng, scenes, asked, items = np.random.default_rng((seed, 6, 6)), _scenes(seed, 6), [], []
    for i, (task, asker) in enumerate(MME_TASKS.items()):
        wanted = n // 2 // len(MME_TASKS) + (i < n // 2 % len(MME_TASKS))
        pairs = ((scene, both) for scene in scenes if (both := _yes_and_no(scene, asker, rng)))
        for j, (scene, both) in enumerate(islice(pairs, wanted)):
            picture = _picture(scene)
            for qa in both:
                asked.append(qa)
                name = f"{task}/{j:04d}.jpg"
                items.append({"question_id": name, "image": picture, "question": qa.text, "answer": qa.answer,
                              "category": task})  # fmt: skip
    _parquet(folder, "data/test-00000-of-00001.parquet", items, "default", "test")
    return asked, _totals(asked)


def _yes_and_no(scene: Scene, asker: questions.Asker, rng: np.random.Generator) -> tuple[QA, QA] | None:
    """A Yes and a No question about a scene, None if a dozen tries do not give both."""
    found = {qa.answer: qa for _ in range(12) if (qa := asker(scene, rng))}
    return (found["Yes"], found["No"]) if len(found) == 2 else None
