"""What the paper's numbers say about themselves, recomputed from its tables (`workbook.paper`).

Every function returns a tidy table; nothing here comes from a run of ours.
"""

import math

import pandas as pd

from workbook import paper
from workbook.benchmarks import EXPECTED

QUESTIONS = {"cv_bench": EXPECTED["cv_bench"]["rows"], "mmstar": EXPECTED["mmstar"]["rows"]}
PAIRS = EXPECTED["mmvp"]["rows"] // 2
RUNS = int(paper.text().set_index("quantity").loc["mmvp_runs", "value"])  # that MMVP is averaged over


def gains() -> pd.DataFrame:
    """Table 1's gains, one row per system and benchmark: baseline, viral, gain (as printed) and relative (percent)."""
    cells = paper.table("1")
    rows = []
    for cell in cells[cells["run"].str.endswith("viral")].itertuples():
        baseline = paper.score(cell.run.replace("viral", "baseline"), cell.benchmark)
        facts = {"run": cell.run, "benchmark": cell.benchmark, "baseline": baseline, "viral": cell.value}
        rows.append({**facts, "gain": cell.printed_gain, "relative": 100 * (cell.value - baseline) / baseline})
    return pd.DataFrame(rows)


def average_gains() -> pd.DataFrame:
    """Mean relative gain under the readings that "an average improvement of 9.4 %" allows: reading, percent, cells."""
    table = gains()
    accuracies = table[table["benchmark"] != "mme"]
    readings = {
        "four systems, six benchmarks": table,
        "four systems, without MME": accuracies,
        "Vicuna 7B with CLIP, six benchmarks": table[table["run"] == "viral"],
        "Vicuna 7B with CLIP, without MME": accuracies[accuracies["run"] == "viral"],
    }
    return pd.DataFrame([
        {"reading": name, "percent": part["relative"].mean(), "cells": len(part)} for name, part in readings.items()
    ])  # fmt: skip


def largest_gains() -> pd.DataFrame:
    """Table 1's relative gains of at least the stated largest one, the largest first."""
    stated = float(paper.text().set_index("quantity").loc["largest_gain", "value"])
    table = gains().sort_values("relative", ascending=False)
    return table[table["relative"].round(1) >= stated].reset_index(drop=True)


def not_improved() -> pd.DataFrame:
    """Cells of Table 1 in which the aligned model is not better, against "all tasks"."""
    table = gains()
    return table[table["gain"] <= 0].reset_index(drop=True)


def spread(n: int, *shares: float) -> float:
    """Standard error, in questions, of a sum or difference of independent numbers of right answers out of n."""
    return math.sqrt(n * sum(share * (1 - share) for share in shares))


def permutation_errors() -> pd.DataFrame:
    """Table 3's drops with the error bars that it lacks, for both numbers of questions that it may have counted.

    CV-Bench2D has 788 Count and 650 Relation questions; the table speaks of 788 spatial ones.  Independent answers are
    assumed, as the table does not say which questions changed; the same questions asked twice spread less.

    Returns:
        One row per encoder and n: encoder, n, task, baseline_drop, viral_drop, error (of one drop), difference (of the
        drops), difference_error, z.
    """
    cells, rows = paper.wide("3").droplevel("row"), []
    for encoder, base, aligned in (("CLIP", "baseline", "viral"), ("SigLIPv2", "siglip2-baseline", "siglip2-viral")):
        for task, n in EXPECTED["cv_bench"]["categories"].items():
            errors = [
                spread(n, cells.loc[r, "original"] / n, cells.loc[r, "patch_shuffle"] / n) for r in (base, aligned)
            ]
            difference, error = cells.loc[aligned, "drop"] - cells.loc[base, "drop"], math.hypot(*errors)
            rows.append({
                "encoder": encoder, "n": n, "task": task, "baseline_drop": cells.loc[base, "drop"],
                "viral_drop": cells.loc[aligned, "drop"], "error": errors[0], "difference": difference,
                "difference_error": error, "z": difference / error,
            })  # fmt: skip
    return pd.DataFrame(rows)


def attainable(percent: float, n: int) -> bool:
    """Whether a percentage with two decimals is k / n for a whole k."""
    near = math.floor(percent * n / 100)
    return any(abs(100 * k / n - percent) <= 0.005 + 1e-9 for k in (near, near + 1))


def unattainable() -> pd.DataFrame:
    """Accuracies that are no k / n: CV-Bench of 1438 and MMStar of 1500 questions, MMVP of 150 pairs in 10 runs.

    Returns:
        benchmark, n, value, below and above (the nearest that exist), tables.
    """
    cells, rows = paper.tables(), []
    sizes = {**QUESTIONS, "mmvp": PAIRS * RUNS}
    cells = cells[cells["benchmark"].isin(sizes)]
    for (benchmark, value), group in cells.groupby(["benchmark", "value"], sort=False):
        n = sizes[benchmark]
        if not attainable(value, n):
            k = math.floor(value * n / 100)
            rows.append({
                "benchmark": benchmark, "n": n, "value": value, "below": 100 * k / n, "above": 100 * (k + 1) / n,
                "tables": ", ".join(sorted(set(group["table"]))),
            })  # fmt: skip
    return pd.DataFrame(rows)


def ranks(number: str | int, run: str = "viral") -> pd.DataFrame:
    """Where a run is not the best of its table: benchmark, run, value, best, best_value, difference.

    Table 2 holds two sweeps, teachers and layers; the run is compared within each.
    """
    cells = paper.table(number)
    parts = {"": cells}
    if str(number) == "2":
        layers = cells["run"].str.startswith("layer-") | (cells["run"] == run)
        parts = {
            "layers": cells[layers],
            "teachers": cells[cells["run"].str.startswith("teacher-") | (cells["run"] == run)],
        }
    rows = []
    for sweep, part in parts.items():
        for benchmark, group in part.drop_duplicates(["run", "benchmark"]).groupby("benchmark", sort=False):
            scores = group.set_index("run")["value"]
            if scores.idxmax() != run and scores.max() > scores[run]:
                rows.append({
                    "sweep": sweep, "benchmark": benchmark, "run": run, "value": scores[run], "best": scores.idxmax(),
                    "best_value": scores.max(), "difference": scores[run] - scores.max(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def compare(run: str, over: str, benchmarks: list[str]) -> pd.DataFrame:
    """Two runs' printed scores side by side, with their difference."""
    rows = [{"benchmark": b, run: paper.score(run, b), over: paper.score(over, b)} for b in benchmarks]
    table = pd.DataFrame(rows)
    return table.assign(difference=table[run] - table[over])


def standard_errors() -> pd.DataFrame:
    """Standard error, in points, of one run's accuracy, from the number of questions alone.

    Returns:
        benchmark, n, accuracy (the baseline's), error, viral_gain (Table 1's first row).
    """
    sizes = {**QUESTIONS, "mmvp": PAIRS}
    rows = []
    for benchmark, n in sizes.items():
        share = paper.score("baseline", benchmark) / 100
        gain = paper.score("viral", benchmark) - paper.score("baseline", benchmark)
        error = 100 * math.sqrt(share * (1 - share) / n)
        rows.append({"benchmark": benchmark, "n": n, "accuracy": 100 * share, "error": error, "viral_gain": gain})
    return pd.DataFrame(rows)
