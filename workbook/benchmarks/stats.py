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


def effects(benchmark: str, seeds: Seeds, rule: str = "official") -> dict[str, Effects]:
    """Every score of a benchmark, as what differences and intervals are computed from.

    The scores of a seed's sampled runs are averaged: they are no seeds.

    Raises:
        ValueError: no runs, unlike numbers of them, or runs of different questions.
    """
    if len({len(runs) for runs in seeds}) != 1:
        numbers = " and ".join(str(n) for n in sorted({len(runs) for runs in seeds})) or "no"
        raise ValueError(f"{benchmark}: {numbers} runs a seed: answer it with every seed greedily, or by as many runs")
    questions = _questions(seeds[0][0])
    if any(_questions(run) != questions for runs in seeds for run in runs):
        raise ValueError(f"{benchmark}: the runs to compare must answer the same questions; evaluate the missing ones")
    module = MODULES[family(benchmark)]
    sampled = []
    for runs in zip(*seeds, strict=True):
        tallies = [tally(module, run, read(benchmark, run, rule)) for run in runs]
        columns = {name: list(frame.columns) for name, frame in tallies[0].items()}
        arrays = {name: np.stack([one[name][columns[name]].to_numpy(float) for one in tallies]) for name in columns}

        def scores(sums: Mapping[str, np.ndarray], columns=columns) -> Mapping[str, np.ndarray]:
            return module.scores(
                {name: dict(zip(columns[name], np.moveaxis(total, -1, 0), strict=True)) for name, total in sums.items()}
            )

        sampled.append(jackknife(scores, arrays, len(questions)))
    return {name: _mean([one[name] for one in sampled]) for name in sampled[0]}


def _questions(rows: Sequence[Mapping]) -> list[tuple[str, str]]:
    return sorted((row["category"], row["id"]) for row in rows)


def _mean(effects: Sequence[Effects]) -> Effects:
    strata = zip(*(one.influence for one in effects), strict=True)
    influence = tuple(np.mean(parts, axis=0) for parts in strata)
    return Effects(np.mean([one.seeds for one in effects], axis=0), influence, effects[0].n)


def intervals(benchmark: str, seeds: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of every score, the mean over seeds: of accuracies as fractions, of MME in its points."""
    return {name: one.interval() for name, one in effects(benchmark, seeds, rule).items()}


def paired(benchmark: str, ours: Seeds, theirs: Seeds, rule: str = "official") -> dict[str, Effects]:
    """Paired difference of every score: the same questions, and seed i of one side against seed i of the other.

    Raises:
        ValueError: as `effects`, and unlike numbers of seeds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{benchmark}: {len(ours)} seeds against {len(theirs)}: seeds are compared in pairs")
    if _questions(ours[0][0]) != _questions(theirs[0][0]):
        raise ValueError(f"{benchmark}: the runs to compare must answer the same questions; evaluate the missing ones")
    if len(ours[0]) != len(theirs[0]):
        raise ValueError(
            f"{benchmark} has been answered by {len(ours[0])} and by {len(theirs[0])} runs a seed (1: greedily): "
            "evaluate both in the same way"
        )
    sides = [effects(benchmark, side, rule) for side in (ours, theirs)]
    return {name: sides[0][name] - sides[1][name] for name in sides[0]}


def differences(benchmark: str, ours: Seeds, theirs: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of the paired difference of every score."""
    return {name: one.interval() for name, one in paired(benchmark, ours, theirs, rule).items()}
