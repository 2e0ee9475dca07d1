"""Six benchmarks: rows from their official files, prompts, official and strict scores, intervals.  No torch.

A row is a dict: `id`, `image` (path or encoded bytes), `question`, `prompt` (the user turn without image marker),
`options` (texts), `answer` (the key, in `parse_answer`'s form), `group` (the cluster: pair, image or question),
`category`, and what a benchmark adds.  An answered row also has `response`.

A folder of benchmarks holds each of them as released:

    cv_bench/test_2d.parquet                                 snapshot of nyu-visionx/CV-Bench
    mmvp/Questions.csv, mmvp/MMVP Images/{1..300}.jpg         snapshot of MMVP/MMVP
    whats_up/prompts/COCO_QA_{one,two}_obj_with_answer_four_options.jsonl,
    whats_up/data/coco_qa_{one,two}_obj.json, whats_up/data/val2017/*.jpg     AdaptVis release, COCO
    pope/coco_pope_{random,popular,adversarial}.json, pope/val2014/*.jpg  RUCAIBox/POPE, COCO
    mmstar/mmstar.parquet                                    snapshot of Lin-Chen/MMStar
    mme/data/*.parquet, or mme/<subtask>/ with images and texts     snapshot of lmms-lab/MME, or MME's release
    manifest.json                                            optional: {"cv_bench": {"rows": 300}, ...}, the totals
                                                             to insist on where they are not the official ones

The paper reports six numbers: What's Up is the mean of its two files, POPE of random and popular (`PAPER`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from viral_core.files import read_json
from workbook.benchmarks.parse import key, parse_answer
from workbook.benchmarks.registry import BENCHMARKS, EXPECTED, MODULES, PAPER, checked, family, read
from workbook.benchmarks.sources import Faults, check_photos, check_rows, open_image, validate
from workbook.benchmarks.stats import differences, intervals, point_scores

__all__ = [
    "BENCHMARKS",
    "PAPER",
    "differences",
    "intervals",
    "load_rows",
    "open_image",
    "parse_answer",
    "score",
]


def load_rows(benchmark: str, root: str | Path, *, expected: Mapping | None = None, photos: bool = True) -> list[dict]:
    """Rows of one of `BENCHMARKS`, checked.

    Args:
        root: the folder of benchmarks described above; without photos, it may be the benchmark's own folder.
        expected: totals, `{"rows": n, "categories": {name: n}}`; else those of `root/manifest.json`, else the official.
        photos: False where only questions and keys are needed: images are neither read nor looked for.

    Raises:
        FileNotFoundError: a file of questions is missing.
        ValueError: unknown benchmark, a file of another kind; or the list of all faults (columns missing or odd, images
            missing or unreadable, rows repeated or missing, wrong totals, keys that are no option, odd MMVP pairs, MME
            images without one Yes and one No), each with its remedy.
    """
    name = family(benchmark)
    if benchmark not in EXPECTED:
        raise ValueError(f"{benchmark} has several files: load {' and '.join(PAPER[name])}")
    module, folder, faults = MODULES[name], Path(root) / name, Faults(benchmark)
    if not photos and not folder.is_dir():
        folder = Path(root)
    manifest = Path(root) / "manifest.json"
    if expected is None and manifest.is_file():
        expected = read_json(manifest).get(benchmark)
    expected = expected or EXPECTED[benchmark]
    file, entries = module.read(benchmark, folder, faults, photos)
    more = {"swapped": expected["swapped_keys"]} if "swapped_keys" in expected else {}
    rows = [module.row(benchmark, item, folder, **more) for item in validate(module.Item, entries, file, faults)]
    for row in rows:
        row["answer"] = key(benchmark, row["answer"], row["options"])
        if row["category"] not in getattr(module, "CATEGORIES", ("",)):
            faults.add(file, f"row {row['id']}: unknown category {row['category']!r}", "download the file again")
    if hasattr(module, "check"):
        module.check(rows, file, faults)
    check_rows(rows, expected, file, faults, getattr(module, "FIRST_ID", None))
    if photos:
        check_photos(rows, file, faults)
    faults.raise_if_any()
    return rows


def score(benchmark: str, rows: Sequence[Mapping]) -> dict:
    """Scores of answered rows; accuracies are fractions, MME's are its points.

    `benchmark` may also be one of `PAPER` with the rows of all its files: the mean of the files' scores.

    Returns:
        `official`, `strict` (the same number from `parse_answer`; unparsed is wrong), `unparsed` (share of rows),
        `n`, the official sub-scores under their names (each module's `scores`), and `strict_scores`, the strict ones.

    Raises:
        ValueError: no rows, an unknown benchmark, half of an MMVP pair or of an MME image, or a row that cannot be
            scored, by its id.
    """
    if not rows:
        raise ValueError(f"no answers to score for {benchmark}")
    rows = checked(benchmark, rows)
    answers = {rule: read(benchmark, rows, rule) for rule in ("official", "strict")}
    official, strict = (point_scores(benchmark, rows, named) for named in answers.values())
    return official | {
        "benchmark": benchmark,
        "n": len(rows),
        "strict": strict["official"],
        "unparsed": answers["strict"].count(None) / len(rows),
        "strict_scores": strict,
    }
