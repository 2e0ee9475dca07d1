"""Figures name what has not been run, and the notebooks that draw curves stand where nothing has been run."""

import runpy

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from workbook import notebook, plots
from workbook.paths import ROOT


def test_a_run_without_rows_is_in_the_legend_and_keeps_the_others_looks():
    table = pd.DataFrame({"run": "viral", "layer": [0, 1], "cknna": [0.5, 0.4], "low": [0.4, 0.3], "high": [0.6, 0.5]})
    figure, axis = plt.subplots()
    plots.curves(axis, table, "layer", "cknna", {"baseline": "(a) baseline", "viral": "VIRAL"})
    absent, drawn = axis.get_lines()
    assert [text.get_text() for text in axis.legend().get_texts()] == ["(a) baseline (not run)", "VIRAL"]
    assert len(absent.get_xdata()) == 0
    assert list(drawn.get_xdata()) == [0, 1]
    assert drawn.get_color() == plots.COLOURS[1]
    plt.close(figure)


@pytest.mark.parametrize(
    "name", ["pilot_study", "residual_variants", "attention", "robustness", "efficiency", "llava_next"]
)
def test_a_notebook_says_not_run_where_nothing_has_been_measured(name, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *objects, **_: shown.extend(objects))
    runpy.run_path(str(ROOT / "notebooks" / f"{name}.py"))
    plt.close("all")
    said = "\n".join(getattr(thing, "data", None) or "" for thing in shown)
    assert "Not run" in said
