"""Scores of a profile's runs on the paper's six benchmarks, and paired differences, with intervals.

Units are the paper's: percent, MME in points.  A benchmark of two files is their mean.  Intervals are those of
`viral_core.measure.intervals`, over questions (in clusters where questions share an image) and, where there are
several, over seeds.  Sampled answers are no seeds: the scores of a seed's sampled runs are averaged.

Few seeds tell badly how much a seed moves a run.  Runs that stand in one table and have one reference tell it together:
in the layout score = run + seed + rest of an analysis of variance the rest has one variance, of (runs - 1) (seeds - 1)
degrees of freedom if no seed is missing (`seed_noise`).  Differences take it in place of the spread of their own few
seeds.  Tables hold different runs, since each notebook can be made without those of the others: so the interval of one
difference is not quite the same in all of them.
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from viral_core.measure.intervals import Effects, Interval
from workbook.benchmarks import EXPECTED, PAPER, score, stats
from workbook.runs import answer_files, names, read_all, settings

TITLES = {
    "cv_bench": "CV-Bench2D",
    "mmvp": "MMVP",
    "whats_up": "What's Up",
    "pope": "POPE",
    "mmstar": "MMStar",
    "mme": "MME",
}
COLUMNS = ["low", "high", "p", "error", "df", "n", "clusters", "seeds"]


def unit(benchmark: str) -> float:
    """What an accuracy is multiplied with: percent; MME has points."""
    return 1.0 if benchmark == "mme" else 100.0


def highest_mme(profile: str) -> int:
    """The highest score of MME: 200 for each subtask that the profile's runs were asked; 2800 before any was."""
    files = next(
        (files for run in settings(profile).runs for files in answer_files(profile, run, "mme").values()), None
    )
    return 200 * len({row["category"] for row in read_all(files)[0]} if files else EXPECTED["mme"]["categories"])


def benchmarks_of(profile: str) -> list[str]:
    """The paper's benchmarks of which a profile asks all files, in the paper's order."""
    files = set(settings(profile).evaluation.benchmarks)
    return [name for name, parts in PAPER.items() if files.issuperset(parts)]


def reference(profile: str, run: str) -> str:
    """The run that a run is compared with: the first of the same language model, encoder, architecture and images of
    the instruction mix without alignment, residual or reconstruction; the run itself where there is none."""
    systems = settings(profile).systems
    for name, other in systems.items():
        same = [(one.language, one.vision, one.architecture, one.images) for one in (other, systems[run])]
        if other.plain and same[0] == same[1]:
            return name
    return run


def constant_score(benchmark: str, rows: Sequence[dict]) -> float:
    """Official score, in the paper's unit, of the best constant answer: what a model scores that does not look."""
    options = {row["answer"] for row in rows}
    best = max(score(benchmark, [row | {"response": answer} for row in rows])["official"] for answer in options)
    return best * unit(benchmark)


def _versions(profile: str, run: str, benchmark: str, checkpoint: int | None) -> dict[int, tuple]:
    """Files of answers of every seed, with the time of their last change: what the caches below are kept by."""
    seeds = answer_files(profile, run, benchmark, checkpoint)
    return {seed: tuple((file, file.stat().st_mtime_ns) for file in files) for seed, files in seeds.items()}


def _scored(profile: str, run: str, benchmark: str, checkpoint: int | None = None, rule: str = "official") -> dict:
    """{seed: `stats.Scored`} of a run; every file is read and scored once, until it changes."""
    versions = _versions(profile, run, benchmark, checkpoint)
    return {seed: _reduce(benchmark, rule, files) for seed, files in versions.items()}


@functools.lru_cache(maxsize=4096)
def _reduce(benchmark: str, rule: str, files: tuple[tuple[Path, int], ...]) -> stats.Scored:
    return stats.reduce(benchmark, read_all(file for file, _ in files), rule)


@functools.lru_cache(maxsize=256)
def _constant(benchmark: str, files: tuple[tuple[Path, int], ...]) -> float:
    return constant_score(benchmark, read_all(file for file, _ in files)[0])


def scores(
    profile: str,
    runs: Iterable[str] | None = None,
    benchmarks: Iterable[str] | None = None,
    *,
    checkpoint: int | None = None,
    parts: bool = False,
) -> pd.DataFrame:
    """Official scores of runs that have been evaluated, or of their `checkpoint`; one without answers has no rows.

    `runs` and `benchmarks` are all of the profile by default; `parts`: the sub-scores, too.  Intervals end where the
    scale does.  Columns: run, benchmark, part ("official" or a sub-score), score, low, high, strict (the same by the
    strict reading of answers), n (questions), clusters, seeds, constant (official score of the best constant answer).
    """
    rows = []
    benchmarks = benchmarks_of(profile) if benchmarks is None else list(benchmarks)
    for run in dict(names(profile, runs)):
        for benchmark in benchmarks:
            model = _scored(profile, run, benchmark, checkpoint)
            if not model:
                continue
            strict = _scored(profile, run, benchmark, checkpoint, "strict").values()
            constant = _constant(benchmark, _versions(profile, run, benchmark, checkpoint)[next(iter(model))])
            for part, one in stats.contrast(benchmark, [list(model.values())], [1]).items():
                if parts or part == "official":
                    row = {"run": run, "benchmark": benchmark, "part": part}
                    row |= one.interval().scaled(unit(benchmark)).columns()
                    top = np.inf if benchmark == "mme" else 100
                    row["low"], row["high"] = np.clip([row["low"], row["high"]], 0, top)
                    row["strict"] = unit(benchmark) * np.mean([seed.effects[part].seeds for seed in strict])
                    row["constant"] = constant
                    rows.append(row)
    columns = ["run", "benchmark", "part", "value", "low", "high", "strict", "n", "clusters", "seeds", "constant"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "score"})


def by_seed(profile: str, runs: Iterable[str], benchmarks: Iterable[str] | None = None) -> pd.DataFrame:
    """Official score of every seed, on all benchmarks of the profile by default: run, seed, benchmark, score."""
    rows = []
    benchmarks = benchmarks_of(profile) if benchmarks is None else list(benchmarks)
    for run in dict(names(profile, runs)):
        for benchmark in benchmarks:
            for seed, one in _scored(profile, run, benchmark).items():
                rows.append((run, seed, benchmark, unit(benchmark) * one.effects["official"].seeds.item()))
    return pd.DataFrame(rows, columns=["run", "seed", "benchmark", "score"])


def seed_noise(profile: str, runs: Iterable[str], benchmarks: Sequence[str]) -> tuple[np.ndarray, int]:
    """How much a seed moves a run's official scores: covariance over benchmarks (B, B), and its degrees of freedom.

    Of those of `runs` that have been evaluated.  What a seed moves alike in all that share a `reference`, such as the
    order of the data, is no part of it.  No degree of freedom: they tell nothing.
    """
    scored = by_seed(profile, runs, [name for name in benchmarks_of(profile) if name in benchmarks])
    table = scored.pivot(index=["run", "seed"], columns="benchmark", values="score")
    table = table.reindex(columns=benchmarks).dropna()
    if table.empty:
        return np.zeros((len(benchmarks),) * 2), 0
    seeds = [f"{seed} of {reference(profile, run)}" for run, seed in table.index]  # it moves other models otherwise
    layout = pd.get_dummies(table.index.to_frame(index=False)[["run"]].assign(seed=seeds)).to_numpy(float)
    rest = table.to_numpy() - layout @ np.linalg.lstsq(layout, table.to_numpy(), rcond=None)[0]
    freedom = len(table) - int(np.linalg.matrix_rank(layout))
    return rest.T @ rest / max(freedom, 1), freedom


def change(
    profile: str,
    run: str | Sequence[str],
    over: str | Sequence[str],
    weights: Mapping[str, float],
    *,
    relative: bool = False,
    checkpoint: int | None = None,
    over_checkpoint: int | None = None,
    together: Iterable[str] = (),
) -> Interval | None:
    """Paired difference of official scores, `run` minus `over`, as a weighted sum over benchmarks.

    None where no seed of all these runs has been evaluated on all benchmarks.  Several runs stand for their mean; with
    none in `over` it is the scores of `run` themselves.  `checkpoint` is of `run`, `over_checkpoint` of `over`.  A sum
    shares the noise of its seeds; the questions of its benchmarks are independent.  `relative`: the mean over the
    pairs of `run` and `over`, each in percent of its own score of `over`, and over the benchmarks by weight; where
    `over` scores 0, a pair is left out of it.
    `together`: runs of the same table; those of a `reference` with these tell the noise of a seed (`seed_noise`).
    """
    ours, theirs = ([names] if isinstance(names, str) else list(names) for names in (run, over))
    scored = {}
    for benchmark in weights:
        scored[benchmark] = [_scored(profile, name, benchmark, checkpoint) for name in ours]
        scored[benchmark] += [_scored(profile, name, benchmark, over_checkpoint) for name in theirs]
    seeds = sorted(set.intersection(*(set(one) for models in scored.values() for one in models)))
    if not seeds:
        return None
    shares = [1 / len(ours) for _ in ours] + [-1 / len(theirs) for _ in theirs]
    sums, used = [], 0.0
    for benchmark, weight in weights.items():
        models = [[one[seed] for seed in seeds] for one in scored[benchmark]]
        if not relative:
            sums.append(stats.contrast(benchmark, models, shares)["official"] * (weight * unit(benchmark)))
            continue
        parts = []
        for pair in zip(models[: len(ours)], models[len(ours) :], strict=True):
            above, below = (np.mean([seed.effects["official"].seeds for seed in side]) for side in pair)
            if below > 0:  # a ratio, whose denominator is measured as well: linear in both around their means
                around = stats.contrast(benchmark, pair, (1, -above / below))["official"] * (1 / below)
                gain = replace(around, seeds=around.seeds + above / below - 1)
                parts.append(gain * (weight * 100))
        if parts:
            used += weight * len(parts)
            sums.append(functools.reduce(operator.add, parts))  # the systems answer the same questions
    if not sums:
        return None
    total = functools.reduce(Effects.beside, sums)
    if relative:
        return (total * (1 / used)).interval()
    alike = {reference(profile, name) for name in (*ours, *theirs)}
    group = [name for name in dict.fromkeys(together) if reference(profile, name) in alike]
    covariance, freedom = seed_noise(profile, group, list(weights))
    if freedom < len(seeds):  # these seeds alone have as many degrees of freedom
        return total.interval()
    weight = np.array(list(weights.values()))
    return total.interval((float(np.square(shares).sum() * weight @ covariance @ weight), freedom))


def differences(
    profile: str, pairs: Iterable[tuple[str, str]], benchmarks: Iterable[str] | None = None
) -> pd.DataFrame:
    """Paired differences, of each pair the first run minus the second, on the questions and seeds that both have.

    All of these runs together tell the noise of a seed.  Columns: run, reference, benchmark, difference, low, high, p
    (two-sided), error, df, n, clusters, seeds; no row for what has not been run.
    """
    pairs, rows = list(pairs), []
    together = [name for pair in pairs for name in pair]
    for run, over in pairs:
        for benchmark in benchmarks_of(profile) if benchmarks is None else benchmarks:
            one = change(profile, run, over, {benchmark: 1.0}, together=together)
            if one is not None:
                rows.append({"run": run, "reference": over, "benchmark": benchmark, **one.columns()})
    columns = ["run", "reference", "benchmark", "value", *COLUMNS]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "difference"})
