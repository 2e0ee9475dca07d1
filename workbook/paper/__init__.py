"""The paper's numbers as it prints them: Tables 1-6 (`table_<n>.csv`) and the numbers of its text (`text.csv`).

A row of a table's file is one cell: table, row (the paper's label), run (its name in `profiles/runs.yaml`), benchmark
(the cell's column: a key of `workbook.benchmarks.PAPER`; in Table 3, which counts correct answers, original,
patch_shuffle, drop and drop_percent) and value (percent; MME in points; Table 3 as printed).  Table 1 also has
printed_gain, the difference in brackets.  Figures 2e and 1b repeat numbers of Tables 4 and 1.
"""

import functools
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
TABLES = ("1", "2", "3", "4", "5", "6")


def table(number: str | int) -> pd.DataFrame:
    """The cells of one of the paper's tables, in the paper's order.

    Raises:
        ValueError: there is no such table.
    """
    if str(number) not in TABLES:
        raise ValueError(f"the paper has no Table {number}; its tables are {', '.join(TABLES)}")
    return _read(str(number)).copy()


@functools.cache
def _read(number: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"table_{number}.csv", dtype={"table": str})


def tables() -> pd.DataFrame:
    """The cells of all tables, below each other; a number that several tables print occurs in each."""
    return pd.concat([table(number) for number in TABLES], ignore_index=True)


def wide(number: str | int) -> pd.DataFrame:
    """One of the tables as printed: a row per run (index: row, run), a column per benchmark."""
    cells = table(number)
    order = list(dict.fromkeys(cells["benchmark"]))
    return cells.pivot_table(index=["row", "run"], columns="benchmark", values="value", sort=False)[order]


def score(run: str, benchmark: str) -> float | None:
    """The paper's score of a run on a benchmark of the paper: percent, MME in points; None where it has none.

    Raises:
        ValueError: two tables disagree.
    """
    cells = tables()
    found = cells[(cells["run"] == run) & (cells["benchmark"] == benchmark)]["value"].unique()
    if len(found) > 1:
        raise ValueError(f"the paper's tables disagree on {run}, {benchmark}: {', '.join(map(str, found))}")
    return float(found[0]) if len(found) else None


def text() -> pd.DataFrame:
    """Numbers quoted in the text, with their section: section, quantity, value, unit, statement."""
    return pd.read_csv(FOLDER / "text.csv", keep_default_na=False)
