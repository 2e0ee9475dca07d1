"""The paper's tables beside ours: tidy, and styled so that the two cannot be taken for each other.

What has not been run says "not run"; what the paper does not report is a dash.
"""

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from workbook import paper
from workbook.results.scores import TITLES, asked, gains, reference, scores

NOT_RUN, DASH = "not run", "–"


def side_by_side(profile: str, number: str | int, extra: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One of the paper's tables of scores (1, 2, 4, 5, 6) with our numbers in every cell.

    Args:
        number: of the table.
        extra: rows of our own below the paper's, {run: label}; a run that the table has too is only there.

    Returns:
        One row per cell, in the paper's order: row, run, benchmark, paper, ours, low, high, strict, constant, n, seeds,
        and the paired gain over the row's reference with its interval and seeds: reference, gain, gain_low, gain_high,
        gain_seeds.  Cells that have not been run have NaN and n = 0.  A run that the paper prints in several rows has
        them all.
    """
    cells, extra = paper.table(number), extra or {}
    order = list(dict.fromkeys(cells["benchmark"]))
    printed = dict.fromkeys(zip(cells["row"], cells["run"], strict=True))
    rows = [(label, run) for label, run in printed if run not in extra] + [(label, run) for run, label in extra.items()]
    frame = pd.DataFrame([(*row, name) for row in rows for name in order], columns=["row", "run", "benchmark"])
    runs = dict.fromkeys(run for _, run in rows)
    frame = frame.merge(
        cells[["run", "benchmark", "value"]].drop_duplicates(["run", "benchmark"]).rename(columns={"value": "paper"}),
        how="left", on=["run", "benchmark"],
    )  # fmt: skip
    benchmarks = [name for name in order if name in asked(profile)]
    ours = scores(profile, runs, benchmarks).rename(columns={"score": "ours"})
    ours = ours[ours["score_name"] == "official"].drop(columns="score_name")
    frame = frame.merge(ours, how="left", on=["run", "benchmark"])
    against = {run: reference(run) for run in runs if run != reference(run)}
    more = gains(profile, runs, against, benchmarks).rename(
        columns={"low": "gain_low", "high": "gain_high", "seeds": "gain_seeds"}
    )
    more = more[more["score_name"] == "official"].drop(columns=["score_name", "n"])
    frame = frame.merge(more, how="left", on=["run", "benchmark"])
    return frame.assign(**{column: frame[column].fillna(0).astype(int) for column in ("n", "seeds", "gain_seeds")})


def number(value: float, low: float, high: float, digits: int, sign: bool = False) -> str:
    """A value with its interval, or "not run"."""
    if pd.isna(value):
        return NOT_RUN
    plus = "+" if sign else ""
    bounds = "" if pd.isna(low) else f" [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"
    return f"{value:{plus}.{digits}f}{bounds}"


def styled(frame: pd.DataFrame, caption: str, gain: bool = True) -> Styler:
    """What `side_by_side` returns, as the paper prints it: a row per system, two or three columns per benchmark.

    Columns of a benchmark: the paper's number (italic and grey), ours with its interval and the number of seeds, and,
    with `gain`, our paired difference to the row's reference; bold where its interval excludes zero.
    """
    columns, bold = {}, {}
    for benchmark, cells in frame.groupby("benchmark", sort=False):
        digits, title = (0 if benchmark == "mme" else 1), f"{TITLES[benchmark]} (n = {cells['n'].max() or DASH})"
        columns[title, "paper"] = [DASH if pd.isna(value) else f"{value:.2f}" for value in cells["paper"]]
        columns[title, "ours"] = [_ours(row, digits) for row in cells.itertuples()]
        if gain:
            columns[title, "gain"] = [_gain(row, digits) for row in cells.itertuples()]
            bold[title, "gain"] = [bool(row.gain_low > 0 or row.gain_high < 0) for row in cells.itertuples()]
    first = frame.drop_duplicates(["row", "run"])
    table = pd.DataFrame(columns, index=pd.MultiIndex.from_arrays([first["row"], first["run"]], names=["row", "run"]))
    weights = pd.DataFrame(bold, index=table.index).replace({True: "font-weight: bold", False: ""})
    weights = weights.reindex(columns=table.columns, fill_value="")
    papers = [column for column in table.columns if column[1] == "paper"]
    return _dress(table.style.apply(lambda _: weights, axis=None), caption, papers)


def _ours(row, digits: int) -> str:
    text = number(row.ours, row.low, row.high, digits)
    if text == NOT_RUN:
        return text
    seeds = f"{row.seeds} seed{'s' * (row.seeds != 1)}"
    strict = f" (strict {row.strict:.{digits}f})" if abs(row.strict - row.ours) > 1 else ""
    return f"{text}, {seeds}{strict}"


def _gain(row, digits: int) -> str:
    return DASH if row.run == reference(row.run) else number(row.gain, row.gain_low, row.gain_high, digits, sign=True)


def styled_drops(frame: pd.DataFrame, caption: str) -> Styler:
    """What `permutation_table` returns, as the paper prints it; its numbers are italic and grey."""
    columns = {("paper", key): frame[f"paper_{key}"].map("{:.0f}".format) for key in ("original", "shuffled", "drop")}
    for key in ("original", "shuffled"):
        columns["ours", key] = [NOT_RUN if pd.isna(value) else f"{value:.1f}" for value in frame[key]]
    columns["ours", "drop"] = [number(row.drop, row.low, row.high, 1) for row in frame.itertuples()]
    columns["ours", "drop (%)"] = [NOT_RUN if pd.isna(value) else f"{value:.1f}" for value in frame["drop_percent"]]
    for key in ("n", "seeds", "permutations"):
        columns["ours", key] = frame[key].to_numpy()
    table = pd.DataFrame({key: list(values) for key, values in columns.items()},
                         index=pd.MultiIndex.from_frame(frame[["row", "run", "category"]]))  # fmt: skip
    papers = [column for column in table.columns if column[0] == "paper"]
    return _dress(table.style, caption, papers)


def _dress(style: Styler, caption: str, papers: list) -> Styler:
    return (
        style.set_caption(caption)
        .set_uuid("scores")  # else the page would differ every time
        .set_properties(subset=papers, **{"font-style": "italic", "color": "#666666"})
        .map(lambda text: "color: #999999" if text == NOT_RUN else "")
        .set_table_styles([{"selector": "caption", "props": "caption-side: bottom; text-align: left"}])
    )
