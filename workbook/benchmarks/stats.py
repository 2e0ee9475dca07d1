"""Uncertainty: bootstrap over questions, in clusters where questions belong together, and over seeds.

Clusters are what a row's `group` names: an MMVP pair, the image of MME, POPE and What's Up, the photo of CV-Bench, the
question of MMStar.  MME's subtasks are strata.  Runs answer the same questions, so clusters and seeds are resampled
independently of each other, and two models are compared on the same resamples (paired).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas

from workbook.benchmarks.registry import MODULES, family, read


@dataclass(frozen=True)
class Interval:
    """A score with its percentile bootstrap interval; `low` and `high` are NaN where there is nothing to resample."""

    value: float
    low: float
    high: float
    n: int  # questions
    clusters: int
    seeds: int


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


def intervals(
    benchmark: str,
    runs: Sequence[Sequence[Mapping]],
    *,
    rule: str = "official",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Interval of every score of a benchmark.

    Args:
        runs: answered rows of each seed (or sampled run); all of the same questions.  The value is the mean over them.

    Raises:
        ValueError: runs of different questions.
    """
    return resample(benchmark, [runs], [1.0], rule, confidence, resamples, seed)


def differences(
    benchmark: str,
    runs_a: Sequence[Sequence[Mapping]],
    runs_b: Sequence[Sequence[Mapping]],
    *,
    rule: str = "official",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Paired difference a - b of every score: same questions, and seed i of a against seed i of b.

    Raises:
        ValueError: runs of different questions, or different numbers of seeds.
    """
    if len(runs_a) != len(runs_b):
        raise ValueError(f"{len(runs_a)} runs against {len(runs_b)}: seeds are compared in pairs")
    return resample(benchmark, [runs_a, runs_b], [1.0, -1.0], rule, confidence, resamples, seed)


def resample(benchmark, models, signs, rule, confidence, resamples, seed) -> dict[str, Interval]:
    from scipy.stats import bootstrap  # slow to import, and only needed here

    module = MODULES[family(benchmark)]
    asked = [sorted((row["category"], row["id"]) for row in run) for runs in models for run in runs]
    if not asked or any(questions != asked[0] for questions in asked):
        raise ValueError(f"{benchmark}: the runs to compare must answer the same questions; evaluate the missing ones")
    tallies = [[tally(module, run, read(benchmark, run, rule)) for run in runs] for runs in models]
    strata = {name: frame.columns for name, frame in tallies[0][0].items()}
    # counts[stratum]: (models, seeds, clusters, columns)
    counts = {s: np.array([[t[s][columns] for t in runs] for runs in tallies], float) for s, columns in strata.items()}
    seeds, sizes = len(models[0]), [c.shape[2] for c in counts.values()]

    def scores(weights: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Scores (models, seeds, B) with clusters weighted by (B, clusters) in every stratum."""
        sums = {}
        for (name, columns), weight in zip(strata.items(), weights, strict=True):
            total = np.moveaxis(weight @ counts[name], -1, 0)
            sums[name] = dict(zip(columns, total, strict=True))
        return module.scores(sums)

    def combine(values: np.ndarray) -> np.ndarray:
        return np.tensordot(signs, values, axes=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        point = {k: combine(v).mean() for k, v in scores([np.ones((1, n)) for n in sizes]).items()}
        if min(sizes) < 2:
            found = dict.fromkeys(point, (np.nan, np.nan))
        else:

            def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
                weights = [_weights(np.atleast_2d(d)) for d in drawn[: len(sizes)]]
                values = np.stack([combine(v) for v in scores(weights).values()])  # (scores, seeds, B)
                if seeds > 1:  # each resample with its own seeds
                    values = np.take_along_axis(values, np.atleast_2d(drawn[-1]).T[None], axis=1)
                return values.mean(axis=1)

            samples = [np.arange(n) for n in sizes] + ([np.arange(seeds)] if seeds > 1 else [])
            result = bootstrap(
                samples, statistic, vectorized=True, method="percentile", n_resamples=resamples, batch=200,
                confidence_level=confidence, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
            bounds = zip(np.ravel(result.low), np.ravel(result.high), strict=True)
            found = dict(zip(point, bounds, strict=True))
    n = len(asked[0])
    return {k: Interval(float(v), *map(float, found[k]), n, sum(sizes), seeds) for k, v in point.items()}


def _weights(drawn: np.ndarray) -> np.ndarray:
    """How often each of n clusters was drawn: (B, n) from indices (B, n)."""
    b, n = drawn.shape
    flat = np.bincount((drawn + n * np.arange(b)[:, None]).ravel(), minlength=b * n)
    return flat.reshape(b, n).astype(float)
