"""Scores of a benchmark with intervals: over questions, in clusters where questions belong together, and over seeds.

Clusters are what a row's `group` names: an MMVP pair, the image of MME, POPE and What's Up, the photo of CV-Bench, the
question of MMStar.  MME's subtasks are strata.  Two models are compared on the same questions and seeds (paired).
"""

import functools
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from viral_core.measure.intervals import Effects, Interval, jackknife, stack
from workbook.benchmarks.benchmark import Benchmark
from workbook.benchmarks.registry import FAMILIES, family, read

Seeds = Sequence[Sequence[Sequence[Mapping]]]  # of each seed, the answered rows of its greedy, or its sampled, runs


@dataclass(frozen=True)
class Scored:
    """Scores of one seed's answers: the mean over its sampled runs, which are no seeds."""

    questions: int  # hash of which questions were answered
    samples: int
    unparsed: float  # share of the answers that name no option, or several, under the rule
    effects: dict[str, Effects]  # of every score, of one seed


def effects_of(spec: Benchmark, rows: Sequence[Mapping], answers: Sequence[str | None]) -> dict[str, Effects]:
    """Effects of every score of the answered rows of one run, by the options that their responses name."""
    clusters = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        clusters[row["category"] if spec.stratified else "", row["group"]].append((row, answer))
    places, values = [], []
    for place, members in sorted(clusters.items(), key=lambda item: item[0]):
        for value in spec.values(members):
            places.append(place)
            values.append(value)
    frame = pandas.DataFrame(values, pandas.MultiIndex.from_tuples(places)).astype(float)
    groups = frame.groupby(level=[0, 1])
    tallies = pandas.concat([groups.sum(), groups.count()], axis=1)

    def scores(strata: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        means = {}
        for stratum, values in strata.items():
            sums, numbers = np.split(np.moveaxis(values, -1, 0), 2)
            means[stratum] = dict(zip(frame, sums / numbers, strict=True))
        return spec.scores(means)

    return jackknife(scores, {name: part.to_numpy(float)[None] for name, part in tallies.groupby(level=0)}, len(rows))


def reduce(benchmark: str, samples: Sequence[Sequence[Mapping]], rule: str = "official") -> Scored:
    """Score the answered rows of one seed: of its greedy, or its sampled, runs, all of the same questions."""
    questions = hash(tuple(sorted((row["category"], row["id"]) for row in samples[0])))
    parts, unparsed = defaultdict(list), []
    for rows in samples:
        answers = read(benchmark, rows, rule)
        unparsed.append(answers.count(None) / len(rows))
        for name, effects in effects_of(FAMILIES[family(benchmark)], rows, answers).items():
            parts[name].append(effects * (1 / len(samples)))
    effects = {name: functools.reduce(operator.add, values) for name, values in parts.items()}
    return Scored(questions, len(samples), float(np.mean(unparsed)), effects)


def contrast(benchmark: str, models: Sequence[Sequence[Scored]], weights: Sequence[float]) -> dict[str, Effects]:
    """Weighted sum over models of every score; seed i of one model goes with seed i of the others.

    ValueError for different questions, or unlike numbers of seeds or of sampled runs.
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


def intervals(benchmark: str, *sides: Seeds, rule: str = "official") -> dict[str, Interval]:
    """Interval of every score, the mean over seeds: accuracies as fractions, MME's points; of two sides, of the paired
    difference, first minus second.
    """
    models = [[reduce(benchmark, samples, rule) for samples in seeds] for seeds in sides]
    effects = contrast(benchmark, models, (1, -1)[: len(models)])
    return {name: one.interval() for name, one in effects.items()}
