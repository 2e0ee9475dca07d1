"""Scores of a benchmark with intervals: over questions, in clusters where questions belong together, and over seeds.

Clusters are what a row's `group` names: an MMVP pair, the image of MME, POPE and What's Up, the photo of CV-Bench, the
question of MMStar.  MME's subtasks are strata.  Two models are compared on the same questions and seeds (paired).
"""

import functools
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas

from viral_core.measure.intervals import Effects, Interval, jackknife, stack
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


@dataclass(frozen=True)
class Scored:
    """What intervals need of one seed's answers: the mean over its sampled runs, which are no seeds."""

    questions: int  # hash of which questions were answered
    samples: int
    effects: dict[str, Effects]  # of every score, of one seed


def reduce(benchmark: str, samples: Sequence[Sequence[Mapping]], rule: str = "official") -> Scored:
    """Score the answered rows of one seed.

    Raises:
        ValueError: sampled runs of different questions.
    """
    questions = {hash(tuple(sorted((row["category"], row["id"]) for row in rows))) for rows in samples}
    if len(questions) != 1:
        raise ValueError(f"{benchmark}: the sampled runs of a seed must answer the same questions; evaluate again")
    module, total = MODULES[family(benchmark)], {}
    for rows in samples:
        strata = tally(module, rows, read(benchmark, rows, rule))
        columns = {name: list(frame.columns) for name, frame in strata.items()}

        def scores(sums: Mapping[str, np.ndarray], columns=columns) -> Mapping[str, np.ndarray]:
            named = {name: zip(columns[name], np.moveaxis(part, -1, 0), strict=True) for name, part in sums.items()}
            return module.scores({name: dict(pairs) for name, pairs in named.items()})

        arrays = {name: frame.to_numpy(float)[None] for name, frame in strata.items()}
        for name, effects in jackknife(scores, arrays, len(rows)).items():
            part = effects * (1 / len(samples))
            total[name] = total[name] + part if name in total else part
    return Scored(questions.pop(), len(samples), total)


def contrast(benchmark: str, models: Sequence[Sequence[Scored]], weights: Sequence[float]) -> dict[str, Effects]:
    """Weighted sum over models of every score; seed i of one model goes with seed i of the others.

    Raises:
        ValueError: different questions, or unlike numbers of seeds or of sampled runs.
    """
    seeds = sorted({len(model) for model in models})
    if len(seeds) > 1 or not seeds[0]:
        raise ValueError(f"{benchmark}: {' against '.join(map(str, seeds))} seeds: seeds are compared in pairs")
    samples = sorted({seed.samples for model in models for seed in model})
    if len(samples) > 1:
        raise ValueError(
            f"{benchmark} has been answered {' and '.join(map(str, samples))} times a seed, greedily (once) here and "
            "by sampled runs there, or by unlike numbers of them: evaluate all in the same way"
        )
    if len({seed.questions for model in models for seed in model}) > 1:
        raise ValueError(f"{benchmark}: the runs to compare must answer the same questions; evaluate the missing ones")
    total = {}
    for name in models[0][0].effects:
        parts = [stack([seed.effects[name] for seed in model]) * w for model, w in zip(models, weights, strict=True)]
        total[name] = functools.reduce(operator.add, parts)
    return total


def intervals(benchmark: str, seeds: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of every score, the mean over seeds: of accuracies as fractions, of MME in its points."""
    model = [reduce(benchmark, samples, rule) for samples in seeds]
    return {name: one.interval() for name, one in contrast(benchmark, [model], [1]).items()}


def differences(benchmark: str, ours: Seeds, theirs: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of the paired difference of every score."""
    models = [[reduce(benchmark, samples, rule) for samples in seeds] for seeds in (ours, theirs)]
    return {name: one.interval() for name, one in contrast(benchmark, models, [1, -1]).items()}
