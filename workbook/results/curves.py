"""Curves over layers, heads and training steps, with intervals over what was measured and over seeds."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from viral_core.measure import intervals
from workbook.paths import Paths
from workbook.results.reading import answers, checkpoints, measured, names, settings_of
from workbook.results.scores import reference, resampled, unit


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of (seeds, items) values, and its interval."""
    one = intervals.interval(values)
    return one.value, one.low, one.high


def layer_curve(table: pd.DataFrame, value: str, item: str) -> pd.DataFrame:
    """Mean of a column per run and layer.

    Args:
        table: with columns run, seed, layer, `item` (image or question) and `value`.

    Returns:
        run, layer, `value`, low, high (95 %), items, seeds, undefined (values left out).
    """
    rows = []
    for (run, layer), group in table.groupby(["run", "layer"], sort=False) if len(table) else ():
        matrix = group.pivot_table(index="seed", columns=item, values=value, dropna=False).to_numpy()
        mean, low, high = interval(matrix)
        rows.append((run, layer, mean, low, high, matrix.shape[1], matrix.shape[0], int(group[value].isna().sum())))
    return pd.DataFrame(rows, columns=["run", "layer", value, "low", "high", "items", "seeds", "undefined"])


def layer_difference(table: pd.DataFrame, value: str, item: str, run: str, reference: str = "baseline") -> pd.DataFrame:
    """Paired difference of two runs per layer, same items and seeds: layer, difference, low, high, items, seeds."""
    rows = []
    if len(table) and {run, reference} <= set(table["run"]):
        for layer, group in table[table["run"].isin([run, reference])].groupby("layer"):
            sides = [
                group[group["run"] == name].pivot_table(index="seed", columns=item, values=value, dropna=False)
                for name in (run, reference)
            ]
            difference = sides[0].sub(sides[1]).dropna(how="all").dropna(how="all", axis=1)
            if len(difference):
                rows.append((layer, *interval(difference.to_numpy()), difference.shape[1], len(difference)))
    return pd.DataFrame(rows, columns=["layer", "difference", "low", "high", "items", "seeds"])


def similarity_curve(table: pd.DataFrame) -> pd.DataFrame:
    """`layer_curve` of what `similarity` returns, with the chance level of each row: run, layer, cknna, low, high,
    images, seeds, undefined, chance."""
    curve = layer_curve(table, "cknna", "image").rename(columns={"items": "images"})
    if curve.empty:
        return curve.assign(chance=[])
    chance = table.groupby(["run", "layer"])["chance"].mean().rename("chance").reset_index()
    return curve.merge(chance, on=["run", "layer"], how="left")


def layer_drop(table: pd.DataFrame, run: str) -> tuple[float, float, float]:
    """How much CKNNA a run loses from layer 0 to its last one, with the interval; positive is a loss."""
    table = table[table["run"] == run]
    ends = [
        table[table["layer"] == layer].pivot_table(index="seed", columns="image", values="cknna", dropna=False)
        for layer in (0, table["layer"].max())
    ]
    return interval((ends[0] - ends[1]).to_numpy())


def learning_curve(profile: str, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Official scores of kept checkpoints and of the finished runs, over training (Fig. 6).

    Returns:
        One row per run, step and benchmark, and for "average", the mean of the benchmarks (its interval takes them as
        independent: they share no question): run, step, fraction, benchmark, score (percent), low, high, n, seeds.
    """
    settings, rows = settings_of(profile), []
    curve = settings.learning_curve
    for run in dict(names(profile, runs)) if curve else ():
        kept = checkpoints(profile, run)
        last = last_step(profile, run)
        if not kept or last is None:
            continue
        for step in [*kept, last]:
            found = []
            for benchmark in curve.benchmarks:
                answered = answers(profile, run, benchmark, None if step == last else step)
                if answered:
                    one = resampled(benchmark, list(answered.values()))["official"]
                    facts = {"run": run, "step": step, "fraction": step / last, "n": one.n, "seeds": len(answered)}
                    values = {key: unit(benchmark) * getattr(one, key) for key in ("value", "low", "high")}
                    found.append(facts | {"benchmark": benchmark, "score": values.pop("value")} | values)
            rows += found
            if len(found) == len(curve.benchmarks) > 1:
                rows.append(_average(found))
    return pd.DataFrame(rows, columns=["run", "step", "fraction", "benchmark", "score", "low", "high", "n", "seeds"])


def _average(rows: list[dict]) -> dict:
    mean = np.mean([row["score"] for row in rows])
    below, above = (np.sqrt(sum((row[end] - row["score"]) ** 2 for row in rows)) / len(rows) for end in ("low", "high"))
    return rows[0] | {
        "benchmark": "average", "score": mean, "low": mean - below, "high": mean + above,
        "n": sum(row["n"] for row in rows), "seeds": min(row["seeds"] for row in rows),
    }  # fmt: skip


def last_step(profile: str, run: str) -> int | None:
    """Steps of a finished training, from the log that the learning curve's stage has kept; None without one."""
    logs = training_logs(profile, [run])
    return int(logs["step"].max()) if len(logs) else None


def training_logs(profile: str, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Losses and seconds over the steps of the runs whose learning curve has been measured; empty without any."""
    return measured(profile, "learning_curve", "log.csv", runs)


def costs(profile: str, runs: Iterable[str]) -> pd.DataFrame:
    """`metrics.step_costs` of aligned runs against the baseline of the same models; empty without measured logs."""
    from workbook.logs import step_costs

    logs, tables = training_logs(profile, runs), []
    for run in dict.fromkeys(logs["run"]) if len(logs) else ():
        base = reference(run)
        if base == run or base not in set(logs["run"]):
            continue
        table = step_costs(logs[logs["run"].isin([run, base])], base)
        tables.append(table[table["run"] == run].assign(reference=base))
        tables.append(table[table["run"] == base].assign(reference=base))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def gpu_benchmarks() -> pd.DataFrame:
    """The small measurements of `runs/gpu/results/benchmark/*.json`, one row per file, nested keys joined by a dot."""
    files = sorted(Paths("gpu").results("benchmark").glob("*.json"))
    tables = [pd.json_normalize(json.loads(file.read_text())).assign(file=file.name) for file in files]
    return pd.concat(tables, ignore_index=True).set_index("file") if tables else pd.DataFrame()
