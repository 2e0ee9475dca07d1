"""Scores of a benchmark with intervals: over questions, in clusters where questions belong together, and over seeds.

Clusters are what a row's `group` names: an MMVP pair, the image of MME, POPE and What's Up, the photo of CV-Bench, the
question of MMStar.  MME's subtasks are strata.  Two models are compared on the same questions and seeds (paired).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np
import pandas

from viral_core.measure.intervals import Effects, Interval, jackknife
from workbook.benchmarks.registry import MODULES, family, read

Seeds = Sequence[Sequence[Sequence[Mapping]]]  # of each seed, the answered rows of its greedy, or its sampled, runs


def tally(module: ModuleType, rows: Sequence[Mapping], answers: Sequence[str | None]) -> dict[str, pandas.DataFrame]:
    """Counts of each cluster (rows of the frames, sorted by name) in each stratum, as the module's `scores` needs."""
    clusters = defaultdict(list)
    stratum = getattr(module, "stratum", lambda row: "")
    for row, answer in zip(rows, answers, strict=True):
        clusters[stratum(row), row["group"]].append((row, answer))
    strata = defaultdict(dict)
    for (name, group), members in sorted(clusters.items(), key=lambda item: item[0]):
        strata[name][group] = module.counts(members)
    return {name: pandas.DataFrame(list(c.values()), index=list(c)).fillna(0.0) for name, c in strata.items()}


def point_scores(benchmark: str, rows: Sequence[Mapping], answers: Sequence[str | None]) -> dict[str, float]:
    """Every score of a benchmark, given the option that each row's response names."""
    module = MODULES[family(benchmark)]
    sums = {name: dict(frame.astype(float).sum()) for name, frame in tally(module, rows, answers).items()}
    return {name: float(value) for name, value in module.scores(sums).items()}


def contrast(
    benchmark: str, models: Sequence[Seeds], weights: Sequence[float], rule: str = "official"
) -> dict[str, Effects]:
    """Weighted sum over models of every score, as what its interval is computed from.

    The models answer the same questions, and seed i of one goes with seed i of the others.  The scores of a seed's
    sampled runs are averaged: they are no seeds.

    Raises:
        ValueError: runs of different questions, or unlike numbers of seeds or of sampled runs.
    """
    numbers = sorted({len(seeds) for seeds in models})
    if len(numbers) > 1 or not numbers[0]:
        raise ValueError(f"{benchmark}: {' against '.join(map(str, numbers))} seeds: seeds are compared in pairs")
    numbers = sorted({len(runs) for seeds in models for runs in seeds})
    if len(numbers) > 1:
        raise ValueError(
            f"{benchmark} has been answered {' and '.join(map(str, numbers))} times a seed, greedily (once) here and "
            "by sampled runs there, or by unlike numbers of them: evaluate all in the same way"
        )
    questions = _questions(models[0][0][0])
    if any(_questions(run) != questions for seeds in models for runs in seeds for run in runs):
        raise ValueError(f"{benchmark}: the runs to compare must answer the same questions; evaluate the missing ones")
    total: dict[str, Effects] = {}
    for seeds, weight in zip(models, weights, strict=True):
        for runs in zip(*seeds, strict=True):
            for name, effects in _effects(benchmark, runs, rule, len(questions)).items():
                part = effects * (weight / numbers[0])
                total[name] = total[name] + part if name in total else part
    return total


def _questions(rows: Sequence[Mapping]) -> list[tuple[str, str]]:
    return sorted((row["category"], row["id"]) for row in rows)


def _effects(benchmark: str, runs: Sequence[Sequence[Mapping]], rule: str, n: int) -> dict[str, Effects]:
    """Of one answered run per seed."""
    module = MODULES[family(benchmark)]
    tallies = [tally(module, run, read(benchmark, run, rule)) for run in runs]
    columns = {name: list(frame.columns) for name, frame in tallies[0].items()}
    arrays = {name: np.stack([one[name][columns[name]].to_numpy(float) for one in tallies]) for name in columns}

    def scores(sums: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        named = {name: zip(columns[name], np.moveaxis(total, -1, 0), strict=True) for name, total in sums.items()}
        return module.scores({name: dict(pairs) for name, pairs in named.items()})

    return jackknife(scores, arrays, n)


def intervals(benchmark: str, seeds: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of every score, the mean over seeds: of accuracies as fractions, of MME in its points."""
    return {name: one.interval() for name, one in contrast(benchmark, [seeds], [1], rule).items()}


def differences(benchmark: str, ours: Seeds, theirs: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of the paired difference of every score."""
    return {name: one.interval() for name, one in contrast(benchmark, [ours, theirs], [1, -1], rule).items()}
