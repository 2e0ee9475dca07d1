"""What stages have written, as scores, paired differences and the paper's tables, against direct computations."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from answer_files import QUESTIONS, profile, share, write

from viral_core.measure.intervals import effects, interval
from workbook import config, paper, plots, runs, scores, tables
from workbook.paths import Paths


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Baseline and viral with two seeds on two benchmarks: 24 and 30 of 60 right, then 30 and 42."""
    settings = profile(**{"baseline": [0, 1], "viral": [0, 1], "qwen-viral": [0], "layer-4": [0]})
    for module in (runs, scores, tables):
        monkeypatch.setattr(module, "settings", lambda name: settings)
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        for benchmark in ("cv_bench", "pope_random", "pope_popular", "mmvp"):
            write(tmp_path, "baseline", benchmark, share(24 + 6 * seed), seed=seed)
            write(tmp_path, "viral", benchmark, share(30 + 12 * seed), seed=seed)
    return tmp_path


def cell(table, run, benchmark):
    rows = table[(table["run"] == run) & (table["benchmark"] == benchmark)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_scores_are_means_over_seeds_in_the_papers_units(root):
    table = scores.scores("tiny", ["baseline", "viral", "qwen-viral"])
    assert set(table["benchmark"]) == {"cv_bench", "mmvp", "pope"}  # What's Up has two files, one is asked
    assert set(table["run"]) == {"baseline", "viral"}
    row = cell(table, "viral", "cv_bench")
    assert row["score"] == pytest.approx(100 * (30 + 42) / 2 / QUESTIONS)
    assert row["low"] < row["score"] < row["high"]
    assert (row["n"], row["seeds"], row["part"]) == (QUESTIONS, 2, "official")
    assert cell(table, "viral", "pope")["n"] == 2 * QUESTIONS
    assert cell(table, "viral", "pope")["clusters"] == QUESTIONS  # its files share their images
    assert cell(table, "viral", "cv_bench")["constant"] == 50
    parts = scores.scores("tiny", ["viral"], ["cv_bench"], parts=True)
    assert {"official", "count", "relation"} <= set(parts["part"])
    seeds = scores.by_seed("tiny", ["viral"]).query("benchmark == 'cv_bench'")
    assert seeds["score"].tolist() == pytest.approx([50, 70])


def test_differences_are_paired_on_common_seeds(root):
    table = scores.differences("tiny", [("viral", "baseline"), ("qwen-viral", "baseline")], ["cv_bench", "pope"])
    assert set(table["run"]) == {"viral"}
    row = cell(table, "viral", "cv_bench")
    assert row["difference"] == pytest.approx(100 * (6 + 12) / 2 / QUESTIONS)
    right = {name: np.array([share(n) for n in counts]) for name, counts in (("v", (30, 42)), ("b", (24, 30)))}
    direct = interval(right["v"].astype(float) - right["b"]).scaled(100)
    assert (row["low"], row["high"]) == pytest.approx((direct.low, direct.high))
    assert (row["n"], row["seeds"]) == (QUESTIONS, 2)
    write(root, "layer-4", "cv_bench", share(40))
    row = cell(scores.differences("tiny", [("layer-4", "viral")], ["cv_bench"]), "layer-4", "cv_bench")
    assert (row["difference"], row["seeds"]) == (pytest.approx(100 * 10 / 60), 1)


def test_a_list_of_runs_is_their_mean_and_a_sum_shares_its_seeds(root):
    write(root, "layer-4", "cv_bench", share(40))
    one = scores.change("tiny", "viral", ["baseline", "layer-4"], {"cv_bench": 1})
    assert one.value == pytest.approx(100 * (30 - (24 + 40) / 2) / 60)
    assert one.seeds == 1

    halves = {"cv_bench": 0.5, "pope": 0.5}
    both = scores.change("tiny", "viral", "baseline", halves)
    assert both.value == pytest.approx(15)
    change = np.array([share(30), share(42)]) * 1.0 - np.array([share(24), share(30)])
    alike = (effects(change) * 50).beside(effects(change) * 50).interval()
    assert both.error == pytest.approx(alike.error)  # POPE's two files are one cluster an image
    ours, theirs = (scores.change("tiny", run, (), halves).value for run in ("viral", "baseline"))
    assert both.value == pytest.approx(ours - theirs)
    relative = scores.change("tiny", "viral", "baseline", halves, relative=True)
    assert relative.value == pytest.approx(100 * 15 / 45)
    pairs = scores.change("tiny", ["viral", "layer-4"], ["baseline", "baseline"], {"cv_bench": 1}, relative=True)
    above = (np.array(share(30)) * 1.0 + share(40)) / 2  # of the same questions
    assert pairs.value == pytest.approx(100 * (above.sum() / 24 - 1))
    around = interval(above - above.sum() / 24 * np.array(share(24)))  # of a ratio: its denominator varies, too
    assert pairs.error == pytest.approx(around.error * 100 * QUESTIONS / 24)
    assert pairs.n == QUESTIONS
    assert scores.change("tiny", "viral", "qwen-viral", {"cv_bench": 1}) is None


def test_runs_of_a_table_tell_the_noise_of_a_seed_together(root):
    """Two runs of two seeds and one of three: a layout with a missing cell; MMVP is counted with its own covariance."""
    runs.settings("tiny").runs["layer-4"] = [0, 1, 2]
    for seed, right in enumerate((20, 33, 30)):
        write(root, "layer-4", "cv_bench", share(right), seed=seed)
    names, percent = ["baseline", "viral", "layer-4"], 100 / QUESTIONS
    covariance, freedom = scores.seed_noise("tiny", names, ["cv_bench"])
    steps = percent * np.array([6, 12, 13])  # from seed 0 to 1; the third seed of one run is fitted exactly
    assert freedom == 2
    assert covariance.item() == pytest.approx(steps.var(ddof=1) / 2)
    table = scores.differences("tiny", [("viral", "baseline"), ("layer-4", "baseline")], ["cv_bench"])
    row = cell(table, "viral", "cv_bench")
    alone = scores.change("tiny", "viral", "baseline", {"cv_bench": 1})
    assert (row["difference"], row["seeds"]) == (pytest.approx(alone.value), 2)
    assert row["df"] > alone.df
    other = scores.change("tiny", "viral", "baseline", {"cv_bench": 1}, together=["baseline", "viral", "qwen-viral"])
    assert other == alone  # a run with another reference tells nothing of these
    assert scores.seed_noise("tiny", ["qwen-viral"], ["cv_bench"])[1] == 0


def test_a_run_that_is_another_but_for_its_images(monkeypatch):
    """One of each kind and number of images: a copy of `viral` is a run of its own."""
    viral = config.load("laptop").systems["viral"]
    small = viral.model_copy(update={"images": 500})
    systems = {"same": viral, "viral": viral, "small": small, "small-again": small}
    settings = SimpleNamespace(systems=systems, runs={name: [0] for name in systems})
    monkeypatch.setattr(runs, "settings", lambda name: settings)
    assert runs.by_images("tiny", ["baseline", "viral"]) == {"viral": "viral", "small": "viral"}


def test_answers_to_what_a_profile_does_not_ask_are_of_another_time(root):
    runs.settings("tiny").evaluation.benchmarks.remove("cv_bench")
    assert runs.answer_files("tiny", "viral", "cv_bench") == {}
    assert scores.change("tiny", "viral", "baseline", {"cv_bench": 1}) is None


def test_checkpoints_are_those_that_all_seeds_have(root):
    for seed in (0, 1):
        for step, right in ((0, 6), (20, 48)):
            write(root, "viral", "cv_bench", share(right), seed=seed, folder=f"checkpoint-{step}")
    write(root, "viral", "cv_bench", share(1), folder="checkpoint-40")  # of one seed only
    assert runs.checkpoints("tiny", "viral") == [0, 20]
    runs.settings("tiny").runs["viral"].append(2)  # a seed that has not been run
    assert runs.checkpoints("tiny", "viral") == [0, 20]
    assert scores.scores("tiny", ["viral"], ["cv_bench"], checkpoint=20)["score"].tolist() == pytest.approx([80])
    early = scores.change("tiny", "viral", "baseline", {"cv_bench": 1}, checkpoint=20)
    assert early.value == pytest.approx(80 - 45)


def test_sampled_runs_are_averaged_within_their_seed_and_not_compared_with_greedy_ones(root):
    half = np.arange(QUESTIONS) % 2 == 0
    write(root, "layer-4", "mmvp", half, ~half, share(30))
    row = cell(scores.scores("tiny", ["layer-4"], ["mmvp"]), "layer-4", "mmvp")
    assert (row["score"], row["seeds"]) == (pytest.approx(100 / 6), 1)  # pairs: none, none and a half
    with pytest.raises(ValueError, match="mmvp has been answered 1 and 3 times a seed"):
        scores.differences("tiny", [("layer-4", "baseline")], ["mmvp"])


def test_a_partial_evaluation_enters_no_table(root):
    file = write(root, "layer-4", "cv_bench", share(9))
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="is partial, .* finish its stage evaluate"):
        scores.scores("tiny", ["layer-4"])


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ("viral", "baseline"),
        ("baseline", "baseline"),
        ("qwen-viral", "qwen-baseline"),
        ("siglip2-viral", "siglip2-viral"),
        ("viral-500", "baseline-500"),
    ],
)
def test_the_reference_is_the_baseline_of_the_same_models_and_images(root, run, reference):
    assert scores.reference("tiny", run) == reference


def test_what_has_not_run_is_named(root):
    assert runs.not_run("tiny", ["viral", "qwen-viral", "siglip2-viral"]) == ["qwen-viral (seed 0)", "siglip2-viral"]


def test_measurements_stand_below_each_other_with_run_and_seed(root):
    for run, seed in (("baseline", 0), ("viral", 1)):
        folder = root / Paths("tiny").measurement(run, seed)
        folder.mkdir(parents=True)
        pd.DataFrame({"layer": [0, 1], "cknna": [0.5, 0.1 * seed]}).to_csv(folder / "cknna.csv", index=False)
    expected = {"layer": [0, 1, 0, 1], "cknna": [0.5, 0, 0.5, 0.1], "run": ["baseline"] * 2 + ["viral"] * 2}
    expected = pd.DataFrame(expected | {"seed": [0, 0, 1, 1]})
    pd.testing.assert_frame_equal(runs.measured("tiny", "cknna"), expected)
    assert runs.measured("tiny", "probes").empty


def test_tables_come_out_as_the_paper_prints_them(root):
    for number in (1, 2, 4, 5, 6):
        printed, frame = paper.table(number), tables.side_by_side("tiny", number)
        cells = zip(printed["row"], printed["run"], printed["benchmark"], printed["value"], strict=True)
        assert list(zip(frame["row"], frame["run"], frame["benchmark"], frame["paper"], strict=True)) == list(cells)
        html = tables.styled(frame, "caption").to_html()
        assert html.count("row_heading level1 ") == len(frame.drop_duplicates(["row", "run"]))


def test_our_numbers_stand_beside_the_papers_and_what_is_missing_says_so(root):
    frame = tables.side_by_side("tiny", 1, {"layer-4": "a run of ours"})
    row = cell(frame, "viral", "cv_bench")
    assert (row["paper"], row["ours"], row["seeds"], row["reference"]) == (59.67, pytest.approx(60), 2, "baseline")
    assert (row["gain"], row["gain_seeds"]) == (pytest.approx(15), 2)
    assert cell(frame, "layer-4", "cv_bench")["n"] == 0
    assert cell(frame, "layer-4", "mme")["paper"] == paper.score("layer-4", "mme")  # Table 2 prints it
    assert np.isnan(cell(frame, "layer-4", "mmstar")["paper"])
    html = tables.styled(frame, "caption").to_html()
    assert "not run" in html
    assert "60.0 [" in html
    assert ", 2 seeds" in html
    for seeds, bold in ((1, False), (2, True)):
        clear = frame.assign(gain_low=1.0, gain_seeds=seeds)
        assert ("font-weight: bold" in tables.styled(clear, "caption").to_html()) == bold
    assert html == tables.styled(frame, "caption").to_html()  # no number that is drawn for each
    assert tables.own_runs("tiny") == []
    figure = plots.score_panels(frame, scores.TITLES, "tiny")
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [
        scores.TITLES[name] for name in frame["benchmark"].unique()
    ]
    plots.plt.close(figure)
