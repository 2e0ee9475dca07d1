"""The paper's numbers as it prints them: Tables 1-6 (`table_<n>.csv`) and the numbers of its text (`text.csv`).

A row of a table's file is one cell: table, row (the paper's label), run (the entry of `profiles/runs.yaml` that
supplies this row), benchmark (the cell's column; in Table 3, which counts right answers: original, patch_shuffle, drop,
drop_percent) and value (percent; MME in points; Table 3 as printed). Table 1 also has printed_gain, the difference in
brackets. Figure 2e repeats numbers of Table 4.
"""

import functools
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
TABLES = (1, 2, 3, 4, 5, 6)
LOOK = {"font-style": "italic", "color": "#666666"}  # of the paper's numbers in a table of ours


def table(number: int) -> pd.DataFrame:
    """The cells of one of the paper's tables, in the paper's order."""
    return pd.read_csv(FOLDER / f"table_{number}.csv", encoding="utf-8")


def tables() -> pd.DataFrame:
    """The cells of all tables, below each other; a number that several tables print occurs in each."""
    return pd.concat([table(number) for number in TABLES], ignore_index=True)


def score(run: str, benchmark: str) -> float | None:
    """The paper's score of a run on a benchmark: percent, MME in points; None where it prints none."""
    return _scores().get((run, benchmark))


@functools.cache
def _scores() -> dict[tuple[str, str], float]:
    cells = tables().drop_duplicates(["run", "benchmark"])
    return cells.set_index(["run", "benchmark"])["value"].astype(float).to_dict()


def gains() -> pd.DataFrame:
    """Table 1's cells of the aligned runs beside those of the same models without alignment.

    As the table's, with reference (the run without alignment), value_baseline, gain = value - value_baseline, and
    relative, 100 gain / value_baseline.
    """
    cells = table(1)
    aligned = cells["run"].str.endswith("viral")
    found = cells[aligned].assign(reference=cells["run"].str.replace("viral", "baseline"))
    without = cells[~aligned][["run", "benchmark", "value"]].rename(columns={"run": "reference"})
    found = found.merge(without, on=["reference", "benchmark"], suffixes=("", "_baseline"))
    found["gain"] = found["value"] - found["value_baseline"]
    return found.assign(relative=100 * found["gain"] / found["value_baseline"])


def text() -> pd.DataFrame:
    """Numbers quoted in the text, with their section: section, quantity, value, unit, statement."""
    return pd.read_csv(FOLDER / "text.csv", keep_default_na=False, encoding="utf-8")
