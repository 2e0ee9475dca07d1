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
    mme/data/*.parquet                                       snapshot of lmms-lab/MME
    manifest.json                                            optional: {"cv_bench": {"rows": 300}, ...}, the totals
                                                             to insist on where they are not the official ones

The paper reports six numbers: What's Up is the mean of its two files, POPE of random and popular (`PAPER`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from viral_core.files import read_json
from workbook.benchmarks.parse import key, parse_answer
from workbook.benchmarks.registry import BENCHMARKS, EXPECTED, FAMILIES, PAPER, checked, family
from workbook.benchmarks.sources import open_image, photo_faults, row_faults, validate
from workbook.benchmarks.stats import reduce

LISTED = 50  # faults shown in full by one error message
__all__ = ["BENCHMARKS", "PAPER", "load_rows", "open_image", "parse_answer", "score"]


def load_rows(benchmark: str, root: str | Path, *, photos: bool = True) -> list[dict]:
    """Rows of one of `BENCHMARKS`, checked, from the folder of benchmarks described above.

    Without `photos`, images are neither read nor looked for, and `root` may be the benchmark's own folder.

    FileNotFoundError: a file of questions is missing.  ValueError: an unknown benchmark, a file of another kind; or the
    list of all faults (columns missing or odd, images missing or unreadable, rows repeated or missing, wrong totals,
    keys that are no option, odd MMVP pairs, MME images without one Yes and one No), each with its remedy.
    """
    name = family(benchmark)
    if benchmark not in EXPECTED:
        raise ValueError(f"{benchmark} has several files: load {' and '.join(PAPER[name])}")
    spec, folder, manifest = FAMILIES[name], Path(root) / name, Path(root) / "manifest.json"
    if not photos and not folder.is_dir():
        folder = Path(root)
    stated = read_json(manifest) if manifest.is_file() else {}
    expected = stated.get(benchmark) or EXPECTED[benchmark]
    file, entries = spec.read(benchmark, folder, photos)
    rows, faults = validate(spec.columns, entries)
    for row in rows:
        row |= spec.row(benchmark, row, folder, expected)
        row["answer"] = key(benchmark, row["answer"], row["options"])
    faults += spec.faults(rows)
    totals = expected["rows"] if isinstance(expected["rows"], tuple) else (expected["rows"],)  # of today's file first
    faults += row_faults(rows, totals[:1] if photos else totals, expected, spec.categories, spec.first_id)
    if photos:
        faults += photo_faults(rows)
    if faults:
        listed = "".join(f"\n  {file}: {fault}" for fault in faults[:LISTED])
        rest = f"\n  ... and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise ValueError(f"benchmark {benchmark}: {len(faults)} faults{listed}{rest}")
    return rows


def score(benchmark: str, rows: Sequence[Mapping]) -> dict:
    """Scores of answered rows; accuracies are fractions, MME's are its points.

    `benchmark` may also be one of `PAPER` with the rows of all its files: the mean of the files' scores.  Returns
    `official`, `strict` (the same number from `parse_answer`; unparsed is wrong), `unparsed` (share of rows), `n`, and
    the official sub-scores under their names.  ValueError: no rows, an unknown benchmark, half of an MMVP pair or of an
    MME image, or a row that cannot be scored, by its id.
    """
    if not rows:
        raise ValueError(f"no answers to score for {benchmark}")
    rows = checked(benchmark, rows)
    official, strict = (reduce(benchmark, [rows], rule) for rule in ("official", "strict"))
    scores = {name: effects.seeds.item() for name, effects in official.effects.items()}
    strict_score = strict.effects["official"].seeds.item()
    return scores | {"benchmark": benchmark, "n": len(rows), "strict": strict_score, "unparsed": strict.unparsed}
