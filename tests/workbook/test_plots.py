"""Figures: what has not been run is named, captions, the forest, and the size of a saved picture."""

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from workbook import plots


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


def test_a_caption_says_how_many_seeds():
    assert plots.seeds(pd.Series([5, 3, 10])) == "3 to 10 seeds"
    assert plots.seeds(pd.Series([1, 1])) == "1 seed"


def test_a_forest_has_a_line_per_claim_and_an_arrow_for_what_lies_beyond():
    row = {"family": "the paper's claims", "claim": "It helps.", "verdict": "reproduced", "seeds": 5,
           "value": 2, "low": 1, "high": 3, "paper": 2.5}  # fmt: skip
    far = row | {"value": 9, "low": 8, "high": 10, "paper": float("nan")}
    other = row | {
        "family": "controls",
        "claim": "It costs nothing.",
        "verdict": "contradicted",
        "seeds": 1,
        "paper": 7,
    }
    effects = pd.DataFrame([row, far, other])
    figure = plots.forest(effects, {"reproduced": "green", "contradicted": "red"}, limit=6)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["It helps.", "It costs nothing."]
    marks = [line for line in axis.get_lines() if line.get_marker() in ("o", ">", "D") and len(line.get_xdata())]
    dots = [line for line in marks if line.get_color() != "black"]
    assert [(line.get_marker(), line.get_color()) for line in dots] == [("o", "green"), (">", "green"), ("o", "red")]
    assert [line.get_xdata()[0] for line in dots] == [2, 6, 2]
    assert [line.get_markerfacecolor() for line in dots] == ["green", "green", "white"]
    of_paper = [(line.get_marker(), line.get_xdata()[0]) for line in marks if line.get_color() == "black"]
    assert [mark for mark in of_paper if mark[1] == mark[1]] == [("D", 2.5), (">", 6)]
    assert [text.get_text() for text in axis.texts] == ["the paper's claims", "controls"]
    plt.close(figure)


def test_a_saved_picture_has_the_pixels_that_are_seen(tmp_path):
    plots.style()
    figure, _ = plt.subplots(figsize=(4, 2))
    plots.save(figure, tmp_path, "a")
    plots.save(figure, tmp_path, "b")
    assert Image.open(tmp_path / "a.png").size == (4 * 96, 2 * 96)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    plt.close(figure)
