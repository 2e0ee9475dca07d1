"""What the stages of a profile have written, as tables; what has not run is left out, and named by `not_run`."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from workbook import config, paper
from workbook.benchmarks import PAPER
from workbook.benchmarks.answers import read_answers
from workbook.paths import Paths
from workbook.scale import costs

Answered = dict[int, list[list[dict]]]  # seed: answered rows of its greedy, or of each of its sampled, evaluations


def settings_of(profile: str) -> config.Profile:
    """The profile, read once."""
    return _read(profile, config.PROFILES)


@functools.cache
def _read(profile: str, _folder: Path) -> config.Profile:
    return config.load(profile)


def names(profile: str, runs: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """(run, seed) of a profile, of all its runs or of those of `runs` that it has."""
    settings = settings_of(profile)
    chosen = settings.runs if runs is None else [run for run in runs if run in settings.runs]
    return [(run, seed) for run in chosen for seed in settings.runs[run]]


def own_runs(profile: str, besides: Iterable[str] = ()) -> list[str]:
    """Runs of a profile that are in none of the paper's tables, without those of `besides`."""
    known = set(paper.tables()["run"]) | set(besides)
    return [run for run in settings_of(profile).runs if run not in known]


def not_run(profile: str, kind: str = "evaluate", runs: Iterable[str] | None = None) -> list[str]:
    """What a kind of stage is to make in a profile and has not made: runs with their seed.

    `runs`: only of these; one of them that the profile does not train is named without a seed.
    """
    settings = settings_of(profile)
    section = getattr(settings, kind, None)
    asked = set(getattr(section, "runs", settings.runs)) & set(settings.runs)
    absent = [run for run in runs or () if run not in asked]
    return absent + [
        f"{run}-s{seed}"
        for run, seed in names(profile, runs)
        if run in asked and not measurement(profile, kind, run, seed).exists()
    ]


def measurement(profile: str, kind: str, run: str, seed: int) -> Path:
    """Where a kind of measurement of a run lies."""
    paths = Paths(profile)
    if kind in ("evaluate", "learning_curve"):
        return paths.evaluation(run, seed)
    return paths.measurement(run, seed) / ("cknna.csv" if kind == "cknna" else kind)


def answers(profile: str, run: str, benchmark: str, checkpoint: int | None = None) -> Answered:
    """Answered rows of every seed of a run that has been evaluated on a benchmark, or on all parts of one.

    Args:
        benchmark: one of `benchmarks.BENCHMARKS`, or of `PAPER` (then all its files' rows).
        checkpoint: step of a kept checkpoint; the finished run by default.

    Raises:
        ValueError: an evaluation that is not complete, which enters no table.
    """
    paths, found = Paths(profile), {}
    for _, seed in names(profile, [run]):
        folder = paths.evaluation(run, seed)
        if checkpoint is not None:
            folder = folder / f"checkpoint-{checkpoint}"
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
    found = [Paths(profile).evaluation(run, seed).glob("checkpoint-*") for _, seed in names(profile, [run])]
    return sorted({int(path.name.split("-")[1]) for paths in found for path in paths})


def measured(profile: str, kind: str, file: str | None, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """The tables that one kind of stage has written for each run and seed, below each other; empty without any.

    Args:
        kind: a kind of stage, such as "attention".
        file: the table's name in the folder of a run, or None where the stage writes a table for a run.
    """
    frames = []
    for run, seed in names(profile, runs):
        path = measurement(profile, kind, run, seed)
        path = path if file is None else path / file
        if path.is_file():
            frames.append(pd.read_csv(path).assign(run=run, seed=seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def similarity(profile: str, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """CKNNA per run, seed, image and layer (unclamped, one reading per image); empty if nothing has been measured."""
    table = measured(profile, "cknna", None, runs)
    return table[table["clamp"] == 1.0] if len(table) else table


def attention_maps(profile: str, run: str, seed: int) -> dict[str, np.ndarray]:
    """Kept attention maps of a run, (layers, H, W) by question; empty if it has none."""
    file = measurement(profile, "attention", run, seed) / "maps.npz"
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
    file = Paths(profile).root / costs.FILE
    if not file.is_file():
        return pd.DataFrame(columns=["stage", "stages", "minutes", "began", "ended"])
    noted = pd.DataFrame(json.loads(line) for line in file.read_text().splitlines())
    noted = noted[noted["done"]].drop_duplicates(["stage", "key"], keep="last")
    noted = noted[noted["stage"] != "report"].copy()
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
        spec = settings.systems[run]
        blocks = settings.blocks(run)
        layers |= set(spec.align.blocks(blocks)) if spec.align else set()
        layers |= {spec.residual.block(blocks)} if spec.residual else set()
    return sorted(layers)
