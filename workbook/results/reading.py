"""What the stages of a profile have written, as tables; what has not run is left out, and named by `not_run`."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from workbook import pipeline
from workbook import profile as profiles
from workbook.benchmarks import PAPER
from workbook.benchmarks.answers import read_answers
from workbook.paths import ROOT, RunPaths
from workbook.scale import costs

Answered = dict[int, list[list[dict]]]  # seed: answered rows of its greedy, or of each of its sampled, evaluations


def settings_of(profile: str) -> profiles.Profile:
    """The profile, read once."""
    return _read(profile, profiles.PROFILES)


@functools.cache
def _read(profile: str, _folder: Path) -> profiles.Profile:
    return profiles.load(profile)


def names(profile: str, runs: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """(run, seed) of a profile, of all its runs or of those of `runs` that it has."""
    settings = settings_of(profile)
    chosen = settings.runs if runs is None else [run for run in runs if run in settings.runs]
    return [(run, seed) for run in chosen for seed in settings.runs[run]]


def own_runs(profile: str, besides: Iterable[str] = ()) -> list[str]:
    """Runs of a profile that supply nothing of the paper (no `uses` in the registry), without those of `besides`."""
    settings, known = settings_of(profile), set(besides)
    return [run for run in settings.runs if not settings.registry[run].uses and run not in known]


def not_run(profile: str, kind: str = "evaluate", runs: Iterable[str] | None = None) -> list[str]:
    """What a kind of stage is to make in a profile and has not made: runs with their seed.

    `runs`: only of these; one of them that the profile does not train is named without a seed.
    """
    settings = settings_of(profile)
    wanted = {entry["name"] for entry in pipeline.stages(settings)[kind].values()}
    absent = [run for run in runs or () if not any(f"{run}-s{seed}" in wanted for seed in settings.runs.get(run, ()))]
    folder = ROOT / RunPaths(profile).measured(kind)
    made = {path.name.removesuffix(".csv") for path in folder.glob("*")} if folder.is_dir() else set()
    return absent + [
        name for run, seed in names(profile, runs) if (name := f"{run}-s{seed}") in wanted and name not in made
    ]


def answers(profile: str, run: str, benchmark: str, checkpoint: int | None = None) -> Answered:
    """Answered rows of every seed of a run that has been evaluated on a benchmark, or on all parts of one.

    Args:
        benchmark: one of `benchmarks.BENCHMARKS`, or of `PAPER` (then all its files' rows).
        checkpoint: step of a kept checkpoint; the finished run by default.

    Raises:
        ValueError: an evaluation that is not complete, which enters no table.
    """
    paths, found = RunPaths(profile), {}
    for _, seed in names(profile, [run]):
        name = f"{run}-s{seed}"
        folder = ROOT / paths.evaluation(name)
        if checkpoint is not None:
            folder = ROOT / paths.measured("learning_curve") / name / f"checkpoint-{checkpoint}"
        files = [folder / f"{part}.jsonl" for part in PAPER.get(benchmark, (benchmark,))]
        if all(file.is_file() for file in files):
            parts = [_complete(file) for file in files]
            found[seed] = [sum(rows, []) for rows in zip(*parts, strict=True)]
    return found


def _complete(file) -> list[list[dict]]:
    settings, runs = read_answers(file)
    if settings["limit"] is not None or any(len(rows) != settings["rows"] for rows in runs):
        raise ValueError(f"{file} is partial: evaluate it in full, partial results enter no table")
    return runs


def checkpoints(profile: str, run: str) -> list[int]:
    """Steps of the checkpoints of a run that have been evaluated, of all its seeds."""
    folder = ROOT / RunPaths(profile).measured("learning_curve")
    found = [folder.glob(f"{run}-s{seed}/checkpoint-*") for _, seed in names(profile, [run])]
    return sorted({int(path.name.split("-")[1]) for paths in found for path in paths})


def measured(profile: str, kind: str, file: str | None, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """The tables that one kind of stage has written for each run and seed, below each other; empty without any.

    Args:
        kind: a kind of stage, such as "attention".
        file: the table's name in the folder of a run, or None where the stage writes a table for a run.
    """
    folder, frames = ROOT / RunPaths(profile).measured(kind), []
    for run, seed in names(profile, runs):
        path = folder / f"{run}-s{seed}.csv" if file is None else folder / f"{run}-s{seed}" / file
        if path.is_file():
            frames.append(pd.read_csv(path).assign(run=run, seed=seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def similarity(profile: str, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """CKNNA per run, seed, image and layer (unclamped, one reading per image); empty if nothing has been measured."""
    table = measured(profile, "cknna", None, runs)
    return table[table["clamp"] == 1.0] if len(table) else table


def attention_maps(profile: str, run: str, seed: int) -> dict[str, np.ndarray]:
    """Kept attention maps of a run, (layers, H, W) by question; empty if it has none."""
    file = ROOT / RunPaths(profile).measured("attention") / f"{run}-s{seed}" / "maps.npz"
    if not file.is_file():
        return {}
    with np.load(file) as kept:
        return {name: kept[name] for name in kept.files}


def stage_costs(profile: str) -> pd.DataFrame:
    """What the stages before the notebooks took as they last finished, as each has noted (`workbook.scale.costs`).

    Returns:
        stage, stages, minutes (their sum: stages side by side count in full), began and ended (UTC, of the first and of
        the last); empty where nothing has been noted.
    """
    file = ROOT / RunPaths(profile).root / costs.FILE
    if not file.is_file():
        return pd.DataFrame(columns=["stage", "stages", "minutes", "began", "ended"])
    noted = pd.DataFrame(json.loads(line) for line in file.read_text().splitlines())
    noted = noted[noted["done"]].drop_duplicates(["stage", "key"], keep="last")
    noted = noted[~noted["stage"].isin(["notebook", "notebook2", "claims", "report"])].copy()
    noted["began"] = pd.to_datetime(noted["began"])
    noted["ended"] = noted["began"] + pd.to_timedelta(noted["seconds"], unit="s").dt.round("s")
    table = noted.groupby("stage", sort=False).agg(
        stages=("key", "size"), minutes=("seconds", "sum"), began=("began", "min"), ended=("ended", "max")
    )
    return table.assign(minutes=table["minutes"] / 60).sort_values("began").reset_index()


def aligned_layers(profile: str, runs: Iterable[str] | None = None) -> list[int]:
    """Blocks that any of the profile's runs aligns, or re-injects after."""
    settings, layers = settings_of(profile), set()
    for run in dict(names(profile, runs)):
        spec = settings.registry[run]
        blocks = settings.languages[spec.language].depth
        layers |= set(spec.align.blocks(blocks)) if spec.align else set()
        layers |= {spec.residual.block(blocks)} if spec.residual else set()
    return sorted(layers)
