"""The paper's tables beside ours: tidy, and styled so that the two cannot be taken for each other.

Which run supplies which row stands in `workbook/paper/table_<n>.csv`.  What has not been run says "not run"; what the
paper does not report is a dash.
"""

from collections.abc import Collection, Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from workbook import paper, plots
from workbook import scores as ours
from workbook.runs import settings

NOT_RUN, DASH = "not run", "–"


def own_runs(profile: str) -> list[str]:
    """Runs of a profile that supply no row of the paper's tables."""
    printed = set(paper.tables()["run"])
    return [run for run in settings(profile).runs if run not in printed]


def side_by_side(
    profile: str, number: int, extra: Mapping[str, str] | None = None, only: Collection[str] | None = None
) -> pd.DataFrame:
    """One of the paper's tables of scores (1, 2, 4, 5, 6) with our numbers in every cell.

    `extra` are rows of our own below the paper's, {run: label}; a run that the table has too is only there.  With
    `only`, rows of other runs are left out.

    One row per cell, in the paper's order: row, run, benchmark, paper, ours, low, high, strict, constant, n, clusters,
    seeds; reference, and the paired gain over it: gain, gain_low, gain_high, gain_seeds, and the paper's, paper_gain,
    unless its points of MME are of another scale.  What has not been run has NaN and n = 0.  A run that the paper
    prints in several rows has them all.
    """
    cells, extra = paper.table(number), extra or {}
    benchmarks = list(dict.fromkeys(cells["benchmark"]))
    rows = [pair for pair in dict.fromkeys(zip(cells["row"], cells["run"], strict=True)) if pair[1] not in extra]
    rows += [(label, run) for run, label in extra.items()]
    rows = [row for row in rows if only is None or row[1] in only]
    frame = pd.DataFrame([(*row, name) for row in rows for name in benchmarks], columns=["row", "run", "benchmark"])
    printed = [paper.score(run, name) for run, name in zip(frame["run"], frame["benchmark"], strict=True)]
    frame["paper"] = pd.Series(printed, dtype=float)
    runs = dict.fromkeys(run for _, run in rows)
    complete = [name for name in benchmarks if name in ours.benchmarks_of(profile)]
    scores = ours.scores(profile, runs, complete).rename(columns={"score": "ours"}).drop(columns="part")
    frame = frame.merge(scores, how="left", on=["run", "benchmark"])
    references = {run: ours.reference(profile, run) for run in runs}
    pairs = {run: over for run, over in references.items() if over != run}
    gains = ours.differences(profile, pairs.items(), complete)
    names = {"difference": "gain", "low": "gain_low", "high": "gain_high", "seeds": "gain_seeds"}
    gains = gains[["run", "benchmark", *names]].rename(columns=names)
    frame = frame.merge(gains, how="left", on=["run", "benchmark"])
    frame["reference"] = frame["run"].map(pairs)
    over = [paper.score(run, name) for run, name in zip(frame["reference"], frame["benchmark"], strict=True)]
    frame["paper_gain"] = frame["paper"] - pd.Series(over, dtype=float)
    if ours.highest_mme(profile) != 2800:
        frame.loc[frame["benchmark"] == "mme", "paper_gain"] = float("nan")
    return frame.assign(
        **{column: frame[column].fillna(0).astype(int) for column in ("n", "clusters", "seeds", "gain_seeds")}
    )


def number(value: float, low: float, high: float, digits: int, sign: bool = False) -> str:
    """A value with its interval, or "not run"."""
    if pd.isna(value):
        return NOT_RUN
    plus = "+" if sign else ""
    bounds = "" if pd.isna(low) else f" [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"
    return f"{value:{plus}.{digits}f}{bounds}"


def styled(frame: pd.DataFrame, caption: str) -> Styler:
    """What `side_by_side` returns, as the paper prints it: a row per system, three columns per benchmark.

    Columns of a benchmark: the paper's number (italic and grey), ours with its interval and the number of seeds, and
    our paired difference to the row's reference, on the seeds that both have; bold where these are several and its
    interval excludes zero.  The caption, below, says so.
    """
    columns, bold = {}, {}
    for benchmark, cells in frame.groupby("benchmark", sort=False):
        digits = 0 if benchmark == "mme" else 1
        n, clusters = cells["n"].max(), cells["clusters"].max()
        size = f"{n} in {clusters} clusters" if clusters < n else n or DASH
        title = f"{ours.TITLES[benchmark]} (n = {size})"
        columns[title, "paper"] = [DASH if pd.isna(value) else f"{value:.2f}" for value in cells["paper"]]
        columns[title, "ours"] = [_ours(row, digits) for row in cells.itertuples()]
        columns[title, "gain"] = [DASH if pd.isna(row.reference) else _gain(row, digits) for row in cells.itertuples()]
        decided = ((cells["gain_low"] > 0) | (cells["gain_high"] < 0)) & (cells["gain_seeds"] > 1)
        bold[title, "gain"] = ["font-weight: bold" if one else "" for one in decided]
    index = pd.MultiIndex.from_frame(frame.drop_duplicates(["row", "run"])[["row", "run"]])
    table = pd.DataFrame(columns, index=index)
    weights = pd.DataFrame(bold, index=index).reindex(columns=table.columns, fill_value="")
    caption += (
        " In brackets: 95 % intervals over questions and seeds. Gains are paired: of the questions and seeds that a row"
        " and its reference share; bold where there are several seeds and this one interval excludes zero, for all of"
        " them together see the ledger. The runs of a table tell the noise of a seed together: in another table the"
        " same gain may have another interval. A single seed's is over questions alone; there is none where all answers"
        " are the same."
    )
    if "mme" in set(frame["benchmark"]):
        caption += " MME: the paper's points are of 2,800, ours of 200 for each subtask that was asked."
    style = table.style.apply(lambda _: weights, axis=None).set_caption(caption)
    style = style.set_uuid("scores")  # else the page would differ every time
    printed = [column for column in table.columns if column[1] == "paper"]
    style = style.set_properties(subset=printed, **paper.LOOK)
    style = style.map(lambda text: "color: #999999" if text == NOT_RUN else "")
    return style.set_table_styles([{"selector": "caption", "props": "caption-side: bottom; text-align: left"}])


def _gain(row, digits: int) -> str:
    text = number(row.gain, row.gain_low, row.gain_high, digits, sign=True)
    return text if row.gain_seeds in (0, row.seeds) else f"{text}, {plots.seeds([row.gain_seeds])}"


def _ours(row, digits: int) -> str:
    text = number(row.ours, row.low, row.high, digits)
    if text == NOT_RUN:
        return text
    strict = f" (strict {row.strict:.{digits}f})" if abs(row.strict - row.ours) > 1 else ""
    return f"{text}, {plots.seeds([row.seeds])}{strict}"
