"""What the stages of a profile have written, as tables; what has not been run is left out, and `not_run` names it."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from viral_core.files import read_json
from viral_core.measure.intervals import Interval, interval
from workbook import config
from workbook.benchmarks import PAPER
from workbook.benchmarks.answers import read_answers
from workbook.paths import Paths

NAMES = dict.fromkeys(("id", "question", "image"), str)  # columns of tables whose values may look like numbers


@functools.cache
def settings(profile: str) -> config.Profile:
    """The profile, read once."""
    return config.current(profile)


def names(profile: str, runs: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """(run, seed) of a profile: of all its runs, or of those of `runs` that it has."""
    seeds = settings(profile).runs
    return [(run, seed) for run in (seeds if runs is None else runs) for seed in seeds.get(run, ())]


def folders(profile: str, runs: Iterable[str] | None = None) -> dict[tuple[str, int], Path]:
    """Folders of the trained ones of all runs, or of those of `runs`, relative to the repository: by (run, seed)."""
    places = {(run, seed): Paths(profile).run(run, seed) for run, seed in names(profile, runs)}
    return {name: folder for name, folder in places.items() if (folder / "run.json").is_file()}


def trained(profile: str, runs: Iterable[str]) -> dict[str, Path]:
    """Folders of the first seed of those of `runs` that have been trained."""
    first = {(run, seeds[0]) for run, seeds in settings(profile).runs.items()}
    return {name[0]: folder for name, folder in folders(profile, runs).items() if name in first}


def evaluated(profile: str, runs: Iterable[str] | None = None) -> dict[tuple[str, int], Path]:
    """Folders of the evaluated ones of all runs, or of those of `runs`, by (run, seed): answers, log, `run.json`."""
    places = {(run, seed): Paths(profile).evaluation(run, seed) for run, seed in names(profile, runs)}
    return {name: folder for name, folder in places.items() if (folder / "scores.json").is_file()}  # last


def not_run(profile: str, runs: Iterable[str]) -> list[str]:
    """Those of `runs` that have not been evaluated, with their seeds, or without any where the profile trains none."""
    absent, there = [], evaluated(profile)
    for run in runs:
        all_seeds = names(profile, [run])
        seeds = [str(seed) for _, seed in all_seeds if (run, seed) not in there]
        if seeds or not all_seeds:
            absent.append(f"{run} (seed {', '.join(seeds)})" if seeds else run)
    return absent


def sessions(profile: str, run: str, seed: int) -> list[dict]:
    """Machine, versions and threads of each session of an evaluated run's training."""
    return read_json(Paths(profile).evaluation(run, seed) / "environment.json")


def by_images(profile: str, kinds: Iterable[str]) -> dict[str, str]:
    """The runs of a profile that are one of `kinds` but for how many images they are trained on; of each its kind.

    There is one of each kind and number of images: of several the kind itself, or else the first.
    """
    systems, besides = settings(profile).systems, {"images", "checkpoints"}
    described = {str(systems[kind].model_dump(exclude=besides)): kind for kind in kinds if kind in systems}
    found = {}
    for run in sorted(settings(profile).runs, key=lambda run: run not in described.values()):
        if kind := described.get(str(systems[run].model_dump(exclude=besides))):
            found.setdefault((kind, systems[run].images), run)
    return {run: kind for (kind, _), run in found.items()}


def answer_files(profile: str, run: str, benchmark: str, checkpoint: int | None = None) -> dict[int, list[Path]]:
    """Files of answers of every seed of a run that has been evaluated on all parts of a benchmark.

    `checkpoint`: a step of the learning curve, 0 for the model before stage 2; the finished run by default.
    What the profile does not ask is not counted: such files are left from a time when it did, and of another training.
    """
    seeds, parts = {}, PAPER.get(benchmark, (benchmark,))
    asked = settings(profile).learning_curve if checkpoint else settings(profile).evaluation
    if asked is None or not set(parts) <= set(asked.benchmarks):
        return seeds
    for _, seed in names(profile, [run]):
        folder = Paths(profile).evaluation(run, seed)
        if checkpoint is not None:
            folder = folder / f"checkpoint-{checkpoint}"
        files = [folder / f"{part}.jsonl" for part in parts]
        if all(file.is_file() for file in files):
            seeds[seed] = files
    return seeds


def read_all(files: Iterable[Path]) -> list[list[dict]]:
    """The answered rows of the parts of a benchmark together, of each sampled run.

    ValueError for an evaluation that is not complete, which enters no table.
    """
    parts = []
    for file in files:
        header, samples = read_answers(file)
        if any(len(rows) != header["rows"] for rows in samples):
            raise ValueError(
                f"{file} is partial, and partial results enter no table: finish its stage evaluate first (make repro)"
            )
        parts.append(samples)
    return [sum(rows, []) for rows in zip(*parts, strict=True)]


def answers(profile: str, run: str, benchmark: str, checkpoint: int | None = None) -> dict[int, list]:
    """Answered rows of every seed of a run, or of its `checkpoint`, on one of `benchmarks.BENCHMARKS` or of `PAPER`.

    A seed has a list of rows for each of its sampled runs, or one where it answers greedily.
    """
    return {seed: read_all(files) for seed, files in answer_files(profile, run, benchmark, checkpoint).items()}


def checkpoints(profile: str, run: str) -> list[int]:
    """Steps of the checkpoints of a run that all its evaluated seeds have answers of; 0 is the run before stage 2."""
    steps = [
        {int(checkpoint.name.split("-")[1]) for checkpoint in folder.glob("checkpoint-*[0-9]")}
        for folder in evaluated(profile, [run]).values()
    ]
    return sorted(set.intersection(*steps)) if steps else []


def measured(profile: str, table: str, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """One table of measurements of each run and seed, below each other with columns run and seed; empty without any.

    `table`: cknna, attention/questions, attention/heads, permutation/accuracy, probes, or log, the training's.
    """
    frames = []
    for run, seed in names(profile, runs):
        places = Paths(profile).evaluation if table == "log" else Paths(profile).measurement
        file = places(run, seed) / f"{table}.csv"
        if file.is_file():
            frames.append(pd.read_csv(file, dtype=NAMES).assign(run=run, seed=seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def over_items(cells: pd.DataFrame, clusters: Mapping[str, str] | None = None) -> Interval:
    """The interval of the mean of `cells`, (seeds, items); `clusters` as of `intervals`."""
    return interval(cells, [clusters[name] for name in cells] if clusters else None)


def intervals(
    table: pd.DataFrame, by: list[str], item: str, value: str, clusters: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The interval of the mean of `value` over seeds and the items in column `item`, of each group of rows.

    Of an item with several rows, such as the tiles of an image, their mean counts.  `clusters`: of each item what it
    belongs to, such as the image of a question.
    """
    rows = []
    for key, group in table.groupby(by, sort=False) if len(table) else ():
        cells = group.pivot_table(index="seed", columns=item, values=value)
        rows.append({**dict(zip(by, key, strict=True)), **over_items(cells, clusters).columns()})
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n", "seeds"])


def attention_maps(profile: str, run: str, seed: int) -> dict[str, np.ndarray]:
    """Attention maps of a run, (layers, H, W) by question; empty if it has none."""
    file = Paths(profile).measurement(run, seed) / "attention" / "maps.npz"
    if not file.is_file():
        return {}
    with np.load(file) as maps:
        return {name: maps[name] for name in maps.files}
