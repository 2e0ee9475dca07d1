"""Tidy tables of measurements: one row per observation, with the run and the seed it belongs to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from viral_core import distributed


def label(frame: pd.DataFrame, run: str, seed: int) -> pd.DataFrame:
    """Put the run and the seed that a table belongs to in front of its columns, in place; returns the table."""
    frame.insert(0, "run", run)
    frame.insert(1, "seed", seed)
    return frame


def write_csv(frame: pd.DataFrame, csv=None) -> pd.DataFrame:
    """Write a table to `csv`, making its folder, unless that is None; returns the table."""
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(csv, index=False)
    return frame


def merge_shares(frame: pd.DataFrame, column: str, order: Sequence) -> pd.DataFrame | None:
    """Tables of all processes as one, its rows in the `order` of a column's values; None but at the main process."""
    parts = distributed.gather(frame)
    if parts is None:
        return None
    place = {value: i for i, value in enumerate(order)}
    return pd.concat(parts).sort_values(column, key=lambda c: c.map(place), kind="stable", ignore_index=True)


def summarise(frame: pd.DataFrame, value: str, by: Sequence[str], level: float = 0.95) -> pd.DataFrame:
    """Mean and confidence interval (Student's t) of a column, per group of rows.

    Returns:
        One row per group: the columns of `by`, mean, low, high (NaN for a single value), n, undefined (NaN values, left
        out of the mean and counted).
    """
    groups = frame.groupby(list(by), sort=True)[value]
    table = groups.agg(mean="mean", n="count", sem="sem", undefined=lambda column: column.isna().sum()).reset_index()
    half = table.pop("sem") * stats.t.ppf((1 + level) / 2, np.maximum(table["n"] - 1, 1))
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    return table[[*by, "mean", "low", "high", "n", "undefined"]]
