"""Scores and paired gains of a profile's runs on the paper's six benchmarks, with intervals.

Units are the paper's: percent, MME in points.  A benchmark of two files is their mean.  An interval is a percentile
bootstrap over questions (in clusters where questions share an image) and, where there are several, over seeds: with a
single seed it says nothing about how much another seed would move the score.  Sampled answers are no seeds: the scores
of a seed's sampled runs are averaged.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from viral_core.measure.intervals import Interval
from workbook import config
from workbook.benchmarks import PAPER, score, stats
from workbook.benchmarks.registry import read
from workbook.results.reading import answers, names, settings_of

COLUMNS = ["run", "benchmark", "score_name", "n", "seeds"]
TITLES = {"cv_bench": "CV-Bench2D", "mmvp": "MMVP", "whats_up": "What's Up", "pope": "POPE", "mmstar": "MMStar",
          "mme": "MME"}  # fmt: skip


def unit(benchmark: str) -> float:
    """What an accuracy is multiplied with: percent; MME has points."""
    return 1.0 if benchmark == "mme" else 100.0


def reference(run: str) -> str:
    """The run that a run is compared with: the registry's first of the same language model, encoder and architecture
    that has neither alignment nor residual nor reconstruction; the run itself where there is none."""
    return _references(config.PROFILES).get(run, run)


@functools.cache
def _references(_folder: Path) -> dict[str, str]:
    runs = config.systems()
    models = {name: (run.language, run.vision, run.architecture) for name, run in runs.items()}
    baselines: dict[tuple, str] = {}
    for name, run in runs.items():
        if not (run.align or run.residual or run.reconstruct):
            baselines.setdefault(models[name], name)
    return {name: baselines.get(models[name], name) for name in runs}


def resampled(benchmark: str, *sides) -> dict[str, Interval]:
    """Every score of a benchmark, or how much the first of two sides is above the second, with its interval."""
    return (stats.intervals if len(sides) == 1 else stats.differences)(benchmark, *sides)


def asked(profile: str) -> list[str]:
    """The paper's benchmarks of which a profile asks all files, in the paper's order."""
    split = settings_of(profile).evaluation.benchmarks
    return [name for name, parts in PAPER.items() if set(parts) <= set(split)]


def constant_score(benchmark: str, rows: Sequence[dict]) -> float:
    """Official score, in the paper's unit, of the best constant answer: what a model scores that does not look."""
    options = {row["answer"] for row in rows}
    best = max(score(benchmark, [row | {"response": answer} for row in rows])["official"] for answer in options)
    return best * unit(benchmark)


def scores(profile: str, runs: Iterable[str] | None = None, benchmarks: Iterable[str] | None = None) -> pd.DataFrame:
    """Scores of runs that have been evaluated.

    Args:
        runs: all of the profile by default; one without results has no rows.
        benchmarks: all that the profile asks in full by default.

    Returns:
        One row per run, benchmark and score name ("official", and the benchmark's sub-scores): run, benchmark,
        score_name, score, low, high, strict (the same by the strict reading of answers), n (questions), seeds, and
        constant, the official score of the best constant answer.
    """
    rows, constants = [], {}
    benchmarks = asked(profile) if benchmarks is None else list(benchmarks)
    for run in dict(names(profile, runs)):
        for benchmark in benchmarks:
            if not (found := answers(profile, run, benchmark)):
                continue
            answered, scale = list(found.values()), unit(benchmark)
            strict = [score(benchmark, one)["strict_scores"] for seed in answered for one in seed]
            if benchmark not in constants:
                constants[benchmark] = constant_score(benchmark, answered[0][0])
            for name, interval in resampled(benchmark, answered).items():
                rows.append({
                    "run": run, "benchmark": benchmark, "score_name": name, "score": scale * interval.value,
                    "low": scale * interval.low, "high": scale * interval.high,
                    "strict": scale * np.mean([one[name] for one in strict]), "n": interval.n, "seeds": len(found),
                    "constant": constants[benchmark],
                })  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS[:3], "score", "low", "high", "strict", *COLUMNS[3:], "constant"])


def gains(
    profile: str,
    runs: Iterable[str] | None = None,
    reference: str | dict[str, str] = "baseline",
    benchmarks: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Paired differences of runs to a reference run, on the same questions and with the seeds that both have.

    Args:
        reference: one run for all, or {run: its reference}.

    Returns:
        As `scores`: run, reference, benchmark, score_name, gain, low, high, n, seeds.
    """
    rows, kept = [], {}
    benchmarks = asked(profile) if benchmarks is None else list(benchmarks)
    for run in dict(names(profile, runs)):
        base = reference if isinstance(reference, str) else reference.get(run)
        for benchmark in benchmarks if base not in (None, run) else ():
            found = answers(profile, run, benchmark)
            if (base, benchmark) not in kept:
                kept[base, benchmark] = answers(profile, base, benchmark)
            against = kept[base, benchmark]
            seeds, scale = [seed for seed in found if seed in against], unit(benchmark)
            if not seeds:
                continue
            sides = [[side[seed] for seed in seeds] for side in (found, against)]
            for name, interval in resampled(benchmark, *sides).items():
                rows.append({
                    "run": run, "reference": base, "benchmark": benchmark, "score_name": name,
                    "gain": scale * interval.value, "low": scale * interval.low, "high": scale * interval.high,
                    "n": interval.n, "seeds": len(seeds),
                })  # fmt: skip
    return pd.DataFrame(rows, columns=["run", "reference", *COLUMNS[1:3], "gain", "low", "high", *COLUMNS[3:]])


def seed_noise(profile: str, run: str = "baseline", benchmarks: Iterable[str] | None = None) -> pd.DataFrame:
    """How much the seed alone moves a run's official score: benchmark, seeds, std, range; NaN for a single seed."""
    rows = []
    for benchmark in asked(profile) if benchmarks is None else benchmarks:
        found = answers(profile, run, benchmark)
        values = [
            unit(benchmark) * np.mean([score(benchmark, one)["official"] for one in found[seed]]) for seed in found
        ]
        several = len(values) > 1
        rows.append({
            "benchmark": benchmark, "seeds": len(values), "std": np.std(values, ddof=1) if several else np.nan,
            "range": np.ptp(values) if several else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def disagreements(profile: str, run: str, reference: str, benchmark: str, each: int | None = None) -> pd.DataFrame:
    """Questions that one of two runs answers right and the other wrong, of the first seed that both have.

    Args:
        each: the first so many of each kind; all by default.

    Returns:
        id, question, answer, and what each of the two said, in columns with their names, and right, the one that was.
    """
    both = [answers(profile, name, benchmark) for name in (run, reference)]
    seeds = [seed for seed in both[0] if seed in both[1]]
    rows: dict[str, list] = {run: [], reference: []}
    for mine, theirs in zip(*(found[seeds[0]][0] for found in both), strict=True) if seeds else ():
        right = [named[0] == row["answer"] for row in (mine, theirs) for named in [read(benchmark, [row], "official")]]
        if right[0] != right[1]:
            rows[run if right[0] else reference].append({
                "id": mine["id"], "question": mine["question"], "answer": mine["answer"], run: mine["response"],
                reference: theirs["response"], "right": run if right[0] else reference,
            })  # fmt: skip
    return pd.DataFrame(
        rows[run][:each] + rows[reference][:each], columns=["id", "question", "answer", run, reference, "right"]
    )
