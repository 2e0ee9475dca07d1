"""What does not add up in the paper, against figures worked out by hand."""

import pytest

from workbook.paper import arithmetic


def test_average_gains():
    percent = arithmetic.average_gains().set_index("reading")["percent"]
    assert percent["four systems, six benchmarks"] == pytest.approx(7.49, abs=0.005)
    assert percent["four systems, without MME"] == pytest.approx(8.39, abs=0.005)
    assert percent["Vicuna 7B with CLIP, without MME"] == pytest.approx(9.449, abs=0.001)


def test_larger_gains_than_the_largest():
    found = arithmetic.largest_gains()
    assert found["relative"].round(1).tolist() == [40.1, 21.0, 18.2, 17.3]
    assert tuple(found.iloc[-1][["run", "benchmark"]]) == ("siglip2-viral", "mmvp")


def test_not_all_tasks_improve():
    found = arithmetic.not_improved()
    assert sorted(zip(found["run"], found["benchmark"], found["gain"], strict=True)) == [
        ("qwen-viral", "pope", -0.96), ("viral", "mmstar", 0.0),
    ]  # fmt: skip


def test_error_of_a_drop():
    table = arithmetic.permutation_errors().set_index(["encoder", "n"])
    assert 17 < table.loc[("CLIP", 650), "error"] < 19
    assert table.loc[("CLIP", 788), "difference"] == 28
    assert table["z"].max() < 2.6


def test_unattainable_accuracies():
    assert arithmetic.attainable(100 * 817 / 1438, 1438)
    assert arithmetic.attainable(56.82, 1438)
    found = arithmetic.unattainable()
    assert set(found[found["benchmark"] == "cv_bench"]["value"]) == {57.59, 57.77, 49.62}
    assert (found["benchmark"] == "mmvp").sum() > 3
    assert not (found["benchmark"] == "mmstar").any()


def test_where_viral_is_not_the_best():
    two = arithmetic.ranks("2")
    layers = set(two[two["sweep"] == "layers"]["benchmark"])
    assert layers == {"pope", "mme"}
    assert set(arithmetic.ranks("5")["benchmark"]) == {"whats_up"}
    assert set(arithmetic.ranks("6")["benchmark"]) == {"mmstar"}
    clip = arithmetic.compare("teacher-clip", "baseline", ["mme"])
    assert clip["difference"].iat[0] == pytest.approx(-101.72)


def test_standard_error_of_mmvp():
    table = arithmetic.standard_errors().set_index("benchmark")
    assert table.loc["mmvp", "n"] == 150
    assert table.loc["mmvp", "error"] == pytest.approx(3.67, abs=0.01)
