"""What the notebooks read: the measurements of a profile's runs as tidy tables with their intervals.

Seeds of a run are pooled: an interval resamples what is shared (images, questions) and the seeds.  A run that the
profile names and that has no results yet is missing from the tables; `missing` names it.
"""

import numpy as np
import pandas as pd

from viral_core import profile as profiles
from viral_core.benchmarks import differences, intervals, score
from viral_core.benchmarks.answers import read_answers
from viral_core.paths import ROOT, RunPaths


def similarity(profile: str) -> pd.DataFrame:
    """CKNNA per run, seed, image and layer (unclamped), as the `cknna` stages wrote it; `run` without its seed."""
    paths, settings = RunPaths(profile), profiles.load(profile)
    frames = []
    for run, seeds in settings.runs.items():
        for seed in seeds:
            file = ROOT / paths.cknna(f"{run}-s{seed}")
            if file.is_file():
                frames.append(pd.read_csv(file).assign(run=run))
    if not frames:
        raise FileNotFoundError(f"no similarities in {paths.similarities}: run the pipeline of profile {profile} first")
    table = pd.concat(frames, ignore_index=True)
    return table[(table["reading"] == "tokens") & (table["clamp"] == 1.0)]


def similarity_curve(table: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Mean CKNNA per run and layer with a 95 % interval over images, each averaged over seeds, and the chance level.

    Undefined values are left out of the means and counted in `undefined`.
    """
    from scipy.stats import bootstrap

    rows = []
    for (run, layer), group in table.groupby(["run", "layer"], sort=False):
        images = group.groupby("image")[["cknna", "chance"]].mean()
        values = images["cknna"].dropna().to_numpy()
        found = bootstrap((values,), np.mean, n_resamples=resamples, rng=0, method="percentile").confidence_interval
        rows.append({
            "run": run, "layer": layer, "cknna": values.mean(), "low": found.low, "high": found.high,
            "chance": images["chance"].mean(), "images": len(values), "seeds": group["seed"].nunique(),
            "undefined": int(group["cknna"].isna().sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def aligned_layers(settings: profiles.Profile) -> list[int]:
    """Layers that any of the profile's runs aligns, read from the runs' own folders."""
    import json

    layers: set[int] = set()
    for run, seeds in settings.runs.items():
        file = ROOT / RunPaths(settings.name).run(f"{run}-s{seeds[0]}") / "run.json"
        align = json.loads(file.read_text())["align"] if file.is_file() else None
        layers |= set(align["layers"]) if align else set()
    return sorted(layers)


def answers(profile: str, run: str, benchmark: str) -> list[list[dict]]:
    """Answered rows of every seed of a run that has been evaluated; partial evaluations are refused."""
    paths, found = RunPaths(profile), []
    for seed in profiles.load(profile).runs[run]:
        file = ROOT / paths.evaluation(f"{run}-s{seed}") / f"{benchmark}.jsonl"
        if file.is_file():
            settings, runs = read_answers(file)
            if settings["limit"] is not None or any(len(rows) != settings["rows"] for rows in runs):
                raise ValueError(f"{file} is partial: evaluate it in full, partial results enter no table")
            found += runs
    return found


def missing(profile: str) -> list[str]:
    """Runs of the profile, with their seed, that have no evaluation yet."""
    settings, paths = profiles.load(profile), RunPaths(profile)
    names = [f"{run}-s{seed}" for run, seeds in settings.runs.items() for seed in seeds]
    return [name for name in names if not (ROOT / paths.evaluation(name)).is_dir()]


def constant_score(benchmark: str, rows: list[dict]) -> float:
    """Official score of the best constant answer: what a model scores that does not look."""
    answers = {row["answer"] for row in rows}
    return max(score(benchmark, [row | {"response": answer} for row in rows])["official"] for answer in answers)


def scores(profile: str) -> pd.DataFrame:
    """Official score of every run and benchmark, and of each kind of question, with 95 % intervals."""
    settings, rows = profiles.load(profile), []
    for benchmark in settings.evaluation.benchmarks:
        for run in settings.runs:
            if not (found := answers(profile, run, benchmark)):
                continue
            for name, interval in intervals(benchmark, found).items():
                rows.append({
                    "benchmark": benchmark, "score_name": name, "run": run, "score": interval.value,
                    "low": interval.low, "high": interval.high, "n": interval.n, "seeds": interval.seeds,
                    "constant": constant_score(benchmark, found[0]),
                })  # fmt: skip
    return pd.DataFrame(rows)


def gains(profile: str, reference: str = "baseline") -> pd.DataFrame:
    """Paired differences to the reference run, per benchmark and sub-score, with 95 % intervals."""
    settings, rows = profiles.load(profile), []
    for benchmark in settings.evaluation.benchmarks:
        base = answers(profile, reference, benchmark)
        for run in settings.runs:
            found = answers(profile, run, benchmark) if run != reference else []
            seeds = min(len(found), len(base))
            if not seeds:
                continue
            for name, interval in differences(benchmark, found[:seeds], base[:seeds]).items():
                rows.append({
                    "benchmark": benchmark, "score_name": name, "run": run, "gain": interval.value,
                    "low": interval.low, "high": interval.high, "n": interval.n, "seeds": interval.seeds,
                })  # fmt: skip
    return pd.DataFrame(rows)


def pilot_conclusions(curve: pd.DataFrame, found: pd.DataFrame, settings: profiles.Profile) -> list[str]:
    """Sentences of the pilot study, from its tables alone."""
    lines = []
    for run, line in curve.groupby("run", sort=False):
        line = line.set_index("layer")
        first, last = line.loc[line.index.min()], line.loc[line.index.max()]
        lines.append(
            f"`{run}`: CKNNA is {first['cknna']:.3f} [{first['low']:.3f}, {first['high']:.3f}] at layer {first.name}, "
            f"{last['cknna']:.3f} [{last['low']:.3f}, {last['high']:.3f}] at layer {last.name} "
            f"({int(line['images'].iat[0])} images, {int(line['seeds'].iat[0])} seeds); its lowest layer is "
            f"{line['cknna'].idxmin()} and chance is {line['chance'].mean():.3f}."
        )
    for row in found[found["score_name"] == "official"].itertuples() if len(found) else ():
        verdict = "higher" if row.low > 0 else "lower" if row.high < 0 else "not told apart"
        lines.append(
            f"`{row.run}` against the baseline on {row.benchmark}: {row.gain:+.4f} [{row.low:+.4f}, {row.high:+.4f}] "
            f"(n = {row.n}, {row.seeds} seeds): {verdict}."
        )
    if absent := missing(settings.name):
        lines.append(f"Not run yet: {', '.join(absent)}.")
    return lines
