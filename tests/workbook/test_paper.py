"""The paper's numbers as data: complete, in agreement with themselves and with the benchmarks' names."""

import pytest

from workbook import paper
from workbook.benchmarks import PAPER

CELLS = {1: 48, 2: 70, 3: 16, 4: 15, 5: 25, 6: 24}


@pytest.mark.parametrize(("number", "cells"), CELLS.items())
def test_every_cell_is_there_once_per_row(number, cells):
    table = paper.table(number)
    assert len(table) == cells
    assert not table.duplicated(["row", "benchmark"]).any()
    assert number == 3 or set(table["benchmark"]) <= set(PAPER)


def test_printed_gains_are_differences_of_printed_scores():
    gains = paper.table(1).dropna(subset="printed_gain")
    assert len(gains) == 24
    for cell in gains.itertuples():
        baseline = paper.score(cell.run.replace("viral", "baseline"), cell.benchmark)
        assert round(cell.value - baseline, 2) == cell.printed_gain


def test_tables_agree_on_the_cells_they_share():
    cells = paper.tables()
    shared = cells[cells["table"] != 3].groupby(["run", "benchmark"])["value"]
    assert (shared.nunique() == 1).all()
    assert paper.score("viral", "mme") == 1694.52
    assert paper.score("residual-post", "mme") is None


def test_the_drops_of_table_3_follow_from_its_counts():
    table = paper.table(3).pivot(index="run", columns="benchmark", values="value")
    assert (table["original"] - table["patch_shuffle"] == table["drop"]).all()
    assert ((100 * table["drop"] / table["original"]).round(1) == table["drop_percent"]).all()
