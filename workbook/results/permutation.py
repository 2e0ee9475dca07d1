"""Table 3: what shuffling the visual features costs a run, the mean over permutations, with intervals over questions
and, where there are several, over seeds."""

from collections.abc import Iterable

import pandas as pd

from workbook import paper
from workbook.benchmarks.answers import read_answers
from workbook.benchmarks.registry import read
from workbook.paths import Paths
from workbook.results.curves import interval
from workbook.results.reading import names, settings_of


def losses(profile: str, run: str, category: str | None = None) -> pd.DataFrame:
    """What shuffling makes of each question, the mean over the permutations: 1 a right answer lost, -1 one won.

    Returns:
        (seeds, questions), to be resampled as such; empty if the run has not been measured.
    """
    rows, settings = {}, settings_of(profile).permutation
    for _, seed in names(profile, [run]) if settings else ():
        folder = Paths(profile).measurement(run, seed) / "permutation"
        if not (folder / "original.jsonl").is_file():
            continue
        permuted = [_right(folder / f"permuted-{number}.jsonl", category) for number in range(settings.permutations)]
        rows[seed] = _right(folder / "original.jsonl", category) - sum(permuted) / len(permuted)
    return pd.DataFrame(rows).T


def _right(file, category: str | None) -> pd.Series:
    settings, runs = read_answers(file)
    rows = [row for row in sum(runs, []) if category in (None, row["category"])]
    named = read(settings["benchmark"], rows, "official")
    right = [int(answer == row["answer"]) for answer, row in zip(named, rows, strict=True)]
    return pd.Series(right, index=[row["id"] for row in rows])


def permutation_table(profile: str, category: str | None = None) -> pd.DataFrame:
    """Table 3 for one category of questions, or for all.

    Returns:
        One row per row of the paper's table: row, run, category, n (questions), seeds, permutations, original and
        shuffled (mean number of correct answers), drop with low and high (95 %), drop_percent (of the original), and
        paper_original, paper_shuffled, paper_drop.  NaN and n = 0 where the run has not been measured.
    """
    cells = paper.table(3)
    printed = cells.pivot_table(index="run", columns="benchmark", values="value")
    rows = []
    for run, label in dict(zip(cells["run"], cells["row"], strict=True)).items():
        facts = {"row": label, "run": run, "category": category or "all"}
        of_paper = {"paper_original": printed.loc[run, "original"], "paper_shuffled": printed.loc[run, "patch_shuffle"],
                    "paper_drop": printed.loc[run, "drop"]}  # fmt: skip
        lost = losses(profile, run, category)
        if lost.empty:
            rows.append(facts | {"n": 0, "seeds": 0, "permutations": 0} | of_paper)
            continue
        n, seeds = lost.shape[1], lost.index
        drop, low, high = (n * value for value in interval(lost.to_numpy(float)))
        files = [Paths(profile).measurement(run, seed) / "permutation" / "original.jsonl" for seed in seeds]
        original = sum(_right(file, category).sum() for file in files) / len(seeds)
        rows.append(facts | {
            "n": n, "seeds": len(seeds), "permutations": settings_of(profile).permutation.permutations,
            "original": original, "shuffled": original - drop, "drop": drop, "low": low, "high": high,
            "drop_percent": 100 * drop / original if original else float("nan"),
        } | of_paper)  # fmt: skip
    columns = ["row", "run", "category", "n", "seeds", "permutations", "original", "shuffled", "drop", "low", "high",
               "drop_percent", "paper_original", "paper_shuffled", "paper_drop"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def drop_differences(profile: str, pairs: Iterable[tuple[str, str]], category: str | None = None) -> pd.DataFrame:
    """Whether the first run of each pair loses more answers than the second: same questions, permutations and seeds.

    Questions and seeds are resampled; permutations are averaged.

    Returns:
        run, reference, category, n, seeds, difference (answers out of n), low, high; no row for a pair not measured.
    """
    rows = []
    for run, reference in pairs:
        both = [losses(profile, name, category) for name in (run, reference)]
        if any(lost.empty for lost in both):
            continue
        difference = both[0].sub(both[1]).dropna(how="all").dropna(axis=1)
        if difference.empty:
            continue
        n = difference.shape[1]
        value, low, high = (n * number for number in interval(difference.to_numpy()))
        rows.append((run, reference, category or "all", n, len(difference), value, low, high))
    columns = ["run", "reference", "category", "n", "seeds", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
