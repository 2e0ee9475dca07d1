"""Figures: what has not been run is named, captions, panels, the forest, and saved pictures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from workbook import plots


def curves(**options):
    table = pd.DataFrame({"run": "viral", "layer": [0, 1], "cknna": [0.5, 0.4], "low": [0.4, 0.3], "high": [0.6, 0.5]})
    figure, axis = plt.subplots(**options)
    plots.curves(axis, table, "layer", "cknna", {"baseline": "(a) baseline", "viral": "VIRAL"})
    return figure, axis


def test_a_run_without_rows_is_in_the_legend_and_keeps_the_others_looks():
    figure, axis = curves()
    absent, drawn = axis.get_lines()
    assert [text.get_text() for text in axis.legend().get_texts()] == ["(a) baseline (not run)", "VIRAL"]
    assert len(absent.get_xdata()) == 0
    assert list(drawn.get_xdata()) == [0, 1]
    assert drawn.get_color() == plots.COLOURS[1]
    plt.close(figure)


def test_a_system_has_one_look_with_every_language_model_and_a_readers_own_one_that_is_left_over():
    looks = plots.of_systems(["viral", "13b-viral", "mine", "residual-pre"])
    assert looks["viral"] == looks["13b-viral"] == plots.of_systems(["before stage 2", "viral"])["viral"]
    assert len({look["color"] for look in looks.values()}) == 3


def test_a_caption_says_how_many_seeds():
    assert plots.seeds(pd.Series([5, 3, 10])) == "3 to 10 seeds"
    assert plots.seeds(pd.Series([1, 1])) == "1 seed"


def test_panels_tell_decided_gains_from_others_and_say_what_has_not_run():
    aligned = {"benchmark": "mmvp", "reference": "z", "paper_gain": 2.0}
    cell = aligned | {"n": 60, "ours": 50.0, "low": 40.0, "high": 60.0, "seeds": 2, "constant": 25.0}
    table = pd.DataFrame([
        cell | {"run": "a", "row": "A", "gain": 3.0, "gain_low": 1.0, "gain_high": 5.0, "gain_seeds": 2},
        cell | {"run": "b", "row": "B", "gain": -1.0, "gain_low": -3.0, "gain_high": 1.0, "gain_seeds": 1},
        aligned | {"run": "c", "row": "C", "n": 0, "seeds": 0, "gain_seeds": 0},
    ])  # fmt: skip
    alone = {"benchmark": "mmvp", "run": "z", "row": "Z", "n": 0, "seeds": 0, "gain_seeds": 0}  # it has no gain
    for value, labels, drawings, unit in (
        ("ours", ["A, 2 seeds", "B, 2 seeds", "C"], ([50, 50, np.nan], [50, 50, np.nan], [25, 25]), "%"),
        ("gain", ["A, 2 seeds", "B, 1 seed", "C"], ([3, -1, np.nan], [3, np.nan, np.nan], [0, 0], [2, 2, 2]), "points"),
    ):
        table = pd.concat([table, pd.DataFrame([alone])]) if value == "gain" else table
        figure = plots.score_panels(table, {"mmvp": "MMVP"}, "tiny", value)
        (axis,) = figure.axes
        assert [label.get_text() for label in axis.get_yticklabels()] == labels
        assert (axis.get_title(), axis.get_xlabel()) == ("MMVP\nn = 60", unit)
        for drawn, expected in zip(axis.get_lines(), drawings, strict=True):
            np.testing.assert_array_equal(drawn.get_xdata(), expected)
        assert [(text.get_text(), text.xy[1]) for text in axis.texts] == [("not run", 2)]
        plt.close(figure)


def test_a_forest_has_a_line_per_claim_and_an_arrow_for_what_lies_beyond():
    row = {"family": "the paper's claims", "claim": "It helps.", "part": "there", "verdict": "reproduced", "seeds": 5,
           "value": 2, "low": 1, "high": 3, "paper": 2.5}  # fmt: skip
    far = row | {"part": "mmvp", "value": 9, "low": 8, "high": 10, "paper": float("nan")}
    other = row | {
        "family": "controls",
        "claim": "It costs nothing.",
        "part": "pope",
        "verdict": "contradicted",
        "seeds": 1,
        "paper": 7,
    }
    effects = pd.DataFrame([row, far, other])
    figure = plots.forest(
        effects, {"reproduced": "green", "contradicted": "red"}, {"mmvp": "MMVP", "pope": "POPE"}, limit=6
    )
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["It helps.", "It costs nothing."]
    marks = [line for line in axis.get_lines() if line.get_marker() in ("o", "^", ">", "D") and len(line.get_xdata())]
    dots = [line for line in marks if line.get_color() != "black"]
    assert [(line.get_marker(), line.get_color()) for line in dots] == [("o", "green"), (">", "green"), ("^", "red")]
    assert [line.get_xdata()[0] for line in dots] == [2, 6, 2]
    assert [line.get_markerfacecolor() for line in dots] == ["green", "green", "white"]
    of_paper = [(line.get_marker(), line.get_xdata()[0]) for line in marks if line.get_color() == "black"]
    assert [mark for mark in of_paper if mark[1] == mark[1]] == [("D", 2.5), (">", 6)]
    assert [text.get_text() for text in axis.texts] == ["the paper's claims", "there", "controls"]
    plt.close(figure)


def test_a_saved_picture_has_the_pixels_that_are_seen_and_equal_data_give_equal_files(tmp_path):
    plots.style()
    for name in ("a", "b"):
        figure, _ = curves(figsize=(4, 2))
        plots.save(figure, tmp_path, name)
        plt.close(figure)
    assert Image.open(tmp_path / "a.png").size == (4 * 96, 2 * 96)
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes(), kind
