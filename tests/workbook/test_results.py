"""What the notebooks read: tables against direct computations, missing runs, intervals, figures, parameters."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from workbook import config, plots, results
from workbook.benchmarks.answers import append, settings
from workbook.paths import PROFILES
from workbook.results import permutation
from workbook.results.curves import interval

RUNS = {"baseline": 0.4, "viral": 0.6}  # the share that each run answers right
N = 40


def rows_of(benchmark):
    """Questions of a benchmark in the form that its module scores."""
    rows = []
    for i in range(N):
        row = {"id": str(i), "question": f"question {i}", "group": f"group {i}", "options": ["yes", "no"],
               "category": benchmark.removeprefix("pope_"), "answer": "yes" if i % 3 else "no"}  # fmt: skip
        if benchmark == "cv_bench":
            row |= {"options": ["left", "right"], "answer": "AB"[i % 2], "category": ("Count", "Relation")[i % 2]}
            row |= {"source": ("ADE20K", "COCO")[i % 2]}
        if benchmark == "mmvp":
            row |= {"options": ["left", "right"], "answer": "(a)", "corrected_answer": "(a)", "group": f"pair {i // 2}"}
        rows.append(row)
    return rows


def write_answers(file, benchmark, right, shift=0, sampled=()):
    """Answers of which the first `right` are right, counted from row `shift` on.

    `sampled`: rows that are right in each of several sampled runs, instead.
    """
    rows = rows_of(benchmark)
    file.parent.mkdir(parents=True, exist_ok=True)
    runs = sampled or [{i for i in range(N) if (i - shift) % N < right}]
    protocol = {"runs": len(sampled)} if sampled else None
    asked = settings(benchmark, rows, model="m", template="t", prompts=["?"] * N, max_new_tokens=4, protocol=protocol)
    file.write_text(json.dumps({"settings": asked}) + "\n")
    answered = [row | {"run": run, "response": row["answer"] if i in rights else "none"}
                for run, rights in enumerate(runs) for i, row in enumerate(rows)]  # fmt: skip
    append(file, answered)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results of the smoke profile: baseline and viral evaluated on the files of three benchmarks; nothing else run."""
    monkeypatch.chdir(tmp_path)
    for run, share in RUNS.items():
        for benchmark in ("cv_bench", "mmvp", "pope_random", "pope_popular"):
            right = int(share * N) + (8 if benchmark == "pope_popular" else 0)
            write_answers(tmp_path / f"runs/smoke/evaluate/{run}/s0/{benchmark}.jsonl", benchmark, right)
    return tmp_path


def official(table, run, benchmark, column):
    cell = table[(table["run"] == run) & (table["benchmark"] == benchmark)]
    return cell[cell["score_name"] == "official"][column].iat[0] if "score_name" in cell else cell[column].iat[0]


def test_scores_are_the_papers_combination_and_gains_are_paired(folder):
    table = results.scores("smoke", ["baseline", "viral"], ["cv_bench", "mmvp", "pope", "mme"])
    assert official(table, "baseline", "cv_bench", "score") == pytest.approx(100 * 16 / 40)
    assert official(table, "viral", "mmvp", "score") == pytest.approx(100 * 12 / 20)  # pairs
    assert official(table, "viral", "pope", "n") == 2 * N
    assert "mme" not in set(table["benchmark"])  # not evaluated
    row = table[(table["score_name"] == "official") & (table["run"] == "viral") & (table["benchmark"] == "cv_bench")]
    assert row["low"].iat[0] < row["score"].iat[0] < row["high"].iat[0]

    gains = results.gains("smoke", ["baseline", "viral"], benchmarks=["cv_bench"])
    assert set(gains["run"]) == {"viral"}
    assert official(gains, "viral", "cv_bench", "gain") == pytest.approx(100 * (24 - 16) / 40)
    assert official(gains, "viral", "cv_bench", "seeds") == 1


def test_sampled_runs_are_averaged_within_their_seed(folder):
    first, both = {i for i in range(N) if i % 2 == 0}, set(range(N // 2))
    for run, sampled in (("baseline", [set(), set(), set()]), ("viral", [first, set(range(N)) - first, both])):
        write_answers(folder / f"runs/smoke/evaluate/{run}/s0/mmvp.jsonl", "mmvp", 0, sampled=sampled)
    table = results.scores("smoke", ["viral"], ["mmvp"])
    assert official(table, "viral", "mmvp", "seeds") == 1
    assert official(table, "viral", "mmvp", "score") == pytest.approx(100 / 6)  # pairs: 0, 0 and a half
    assert official(table, "viral", "mmvp", "n") == N
    gains = results.gains("smoke", ["viral"], benchmarks=["mmvp"])
    assert official(gains, "viral", "mmvp", "gain") == pytest.approx(100 / 6)
    (low, high) = (official(gains, "viral", "mmvp", end) for end in ("low", "high"))
    assert 100 / 6 - low < 12  # of 20 pairs, not of three seeds: those would reach from 0 to 50
    assert high - 100 / 6 < 12


def test_greedy_and_sampled_answers_are_not_compared(folder):
    write_answers(folder / "runs/smoke/evaluate/viral/s0/mmvp.jsonl", "mmvp", 0, sampled=[{1}, {2}])
    with pytest.raises(ValueError, match="mmvp has been answered 1 and 2 times a seed"):
        results.gains("smoke", ["viral"], benchmarks=["mmvp"])


def test_tables_come_out_in_the_order_of_the_paper_with_a_repeated_run_twice(folder):
    table = results.side_by_side("smoke", 2).drop_duplicates(["row", "run"])
    assert list(table["run"]) == [
        "baseline", "viral", "teacher-clip", "teacher-sam", "teacher-depth_anything", "teacher-radio",
        "layer-4", "layer-8", "layer-12", "viral", "layer-20", "layer-24", "layer-28", "layer-32",
    ]  # fmt: skip
    assert list(table["row"])[1] == "VFM: DINOv2, layer 16"
    for number in range(1, 7):
        if number != 3:
            printed = results.tables.paper.table(number)
            frame = results.side_by_side("smoke", number)
            assert list(zip(frame["row"], frame["run"], frame["benchmark"], frame["paper"], strict=True)) == list(
                zip(printed["row"], printed["run"], printed["benchmark"], printed["value"], strict=True)
            )
            rows = len(frame.drop_duplicates(["row", "run"]))
            assert results.styled(frame, "caption").to_html().count("row_heading level1 ") == rows
    moved = results.side_by_side("smoke", 2, {"viral": "VIRAL", "lambda-1": "more"})
    assert list(dict.fromkeys(moved["row"]))[-2:] == ["VIRAL", "more"]
    assert (moved["run"] == "viral").sum() == 5


@pytest.fixture
def own(folder, monkeypatch):
    """Profiles with a run of a reader's own, of the second language model, that is in the smoke profile."""
    shutil.copytree(PROFILES, folder / "profiles")
    with (folder / "profiles/runs.yaml").open("a") as file:
        file.write("deep-qwen: {extends: qwen-viral, align: {depth: 0.75}}\n")
        file.write("alone: {language: qwen-7b, vision: siglip2, align: {teacher: dinov2}}\n")
    smoke = folder / "profiles/smoke.yaml"
    smoke.write_text(
        smoke.read_text().replace("  qwen-viral: [0]\n", "  qwen-viral: [0]\n  qwen-baseline: [0]\n  deep-qwen: [0]\n")
    )
    monkeypatch.setattr(config, "PROFILES", folder / "profiles")
    return folder


def test_a_run_is_compared_with_the_baseline_of_the_same_models(own):
    families = {"viral": "baseline", "13b-viral": "13b-baseline", "siglip2-viral": "siglip2-baseline"}
    families |= {"next-viral": "next-baseline", "residual-post": "baseline", "ross-middle": "baseline"}
    families |= {"deep-qwen": "qwen-baseline", "qwen-baseline": "qwen-baseline", "baseline": "baseline"}
    families |= {"alone": "alone", "no-such-run": "no-such-run"}
    assert {run: results.reference(run) for run in families} == families


def test_own_runs_reach_a_table(own):
    assert "deep-qwen" in results.own_runs("smoke")
    assert results.own_runs("smoke", results.own_runs("smoke")) == []
    assert not {"baseline", "viral", "ross-default"} & set(results.own_runs("smoke"))
    for run, right in (("qwen-baseline", 10), ("deep-qwen", 20)):
        write_answers(own / f"runs/smoke/evaluate/{run}/s0/cv_bench.jsonl", "cv_bench", right)
    cells = results.side_by_side("smoke", 1, {"deep-qwen": "own run"}).set_index(["run", "benchmark"])
    assert cells.loc[("deep-qwen", "cv_bench"), "reference"] == "qwen-baseline"
    assert cells.loc[("deep-qwen", "cv_bench"), "gain"] == pytest.approx(25)


def test_a_missing_run_says_so(folder):
    table = results.side_by_side("smoke", 1, {"mine": "a run of mine"})
    cells = table.set_index(["run", "benchmark"])
    assert len(table) == 9 * 6
    assert cells.loc[("qwen-baseline", "cv_bench"), "n"] == 0
    assert np.isnan(cells.loc[("qwen-baseline", "cv_bench"), "ours"])
    assert cells.loc[("viral", "cv_bench"), "paper"] == 59.67
    assert np.isnan(cells.loc[("mine", "cv_bench"), "paper"])
    html = results.styled(table, "caption").to_html()
    assert html.count("not run") >= 6 * 6
    assert "nan" not in html.split("</style>")[1]
    assert html == results.styled(table, "caption").to_html()
    missing = results.not_run("smoke", runs=["baseline", "viral", "qwen-viral", "mine"])
    assert missing == ["mine", "qwen-viral-s0"]
    assert "`qwen-viral-s0`" in results.missing_line(missing)[0]
    assert results.missing_line([]) == []


def test_a_partial_evaluation_enters_no_table(folder):
    file = folder / "runs/smoke/evaluate/viral/s0/cv_bench.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="partial"):
        results.scores("smoke", ["viral"], ["cv_bench"])


def test_disagreements_are_the_questions_that_one_run_alone_answers(folder):
    found = results.disagreements("smoke", "viral", "baseline", "cv_bench")
    assert list(found["id"]) == [str(i) for i in range(16, 24)]
    assert set(found["right"]) == {"viral"}
    assert len(results.disagreements("smoke", "viral", "baseline", "cv_bench", each=2)) == 2


def test_the_interval_of_a_mean_is_that_of_theory_and_grows_with_the_noise_of_seeds():
    rng = np.random.default_rng(1)
    values = rng.normal(3, 2, (1, 400))
    mean, low, high = interval(values)
    assert mean == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    seeds = values + np.array([[-1.0], [0.0], [1.0]])
    assert interval(seeds)[2] - interval(seeds)[1] > 2 * (high - low)
    holes = values.copy()
    holes[0, ::2] = np.nan
    assert interval(holes)[0] == pytest.approx(np.nanmean(holes))
    assert np.isnan(interval(np.array([[1.0]]))[1])
    assert all(np.isnan(interval(np.full((2, 3), np.nan))))


def layers_table():
    rows = [
        {"run": run, "seed": seed, "layer": layer, "image": f"image {image}", "chance": 0.1,
         "cknna": 0.9 - 0.1 * layer + 0.01 * image + (0.2 if run == "viral" and layer == 2 else 0)}
        for run in RUNS for seed in (0, 1) for layer in range(4) for image in range(5)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_curves_over_layers_are_means_and_paired_differences():
    table = layers_table()
    curve = results.similarity_curve(table).set_index(["run", "layer"])
    assert curve.loc[("baseline", 1), "cknna"] == pytest.approx(0.82)
    assert tuple(curve.loc[("baseline", 1), ["images", "seeds", "chance"]]) == (5, 2, 0.1)
    difference = results.layer_difference(table, "cknna", "image", "viral").set_index("layer")
    assert list(difference["difference"].round(6)) == [0, 0, 0.2, 0]
    assert difference.loc[2, "low"] == pytest.approx(0.2)  # every image differs by as much
    assert "higher in layers 2;" in results.difference_lines(difference.reset_index(), "viral", "baseline", "CKNNA")[0]
    lines = results.similarity_lines(table, curve.reset_index())
    assert "a loss (-0.300 [-0.300, -0.300]" in lines[0]
    empty = pd.DataFrame()
    assert results.similarity_curve(empty).empty
    assert "not run" in results.difference_lines(
        results.layer_difference(empty, "cknna", "image", "viral"), "viral", "baseline", "CKNNA"
    )[0]  # fmt: skip


def test_permutation_table_counts_lost_answers(folder):
    for run, share in RUNS.items():
        base = folder / f"runs/smoke/measure/{run}/s0/permutation"
        write_answers(base / "original.jsonl", "cv_bench", int(share * N))
        for number in range(2):
            write_answers(base / f"permuted-{number}.jsonl", "cv_bench", 12 + 2 * number)
    assert permutation.losses("smoke", "viral").shape == (1, N)  # permutations are no seeds
    assert permutation.losses("smoke", "viral").loc[0, "12"] == 0.5
    row = results.permutation_table("smoke").set_index("run").loc["viral"]
    assert (row["n"], row["original"], row["shuffled"], row["drop"]) == (40, 24, 13, 11)
    assert (row["permutations"], row["paper_drop"]) == (2, 54)
    assert row["low"] < 11 < row["high"]
    count = results.permutation_table("smoke", "Count").set_index("run")
    assert (count.loc["viral", "n"], count.loc["viral", "original"]) == (20, 12)
    assert count.loc["siglip2-viral", "n"] == 0
    more = results.drop_differences("smoke", [("viral", "baseline"), ("siglip2-viral", "siglip2-baseline")])
    assert list(more["difference"]) == [8]
    html = results.styled_drops(results.permutation_table("smoke"), "caption").to_html()
    assert html.count("not run") >= 2


def test_sentences_say_what_the_intervals_say():
    gains = pd.DataFrame({
        "run": "viral", "reference": "baseline", "benchmark": ["pope", "mme", "mmvp"], "score_name": "official",
        "gain": [2.0, -30.0, 1.0], "low": [1.0, -50.0, -1.0], "high": [3.0, -10.0, 3.0], "n": 100, "seeds": [3, 3, 1],
    })  # fmt: skip
    lines = results.gain_lines(gains)
    assert lines[0] == "`viral` against `baseline` on POPE: +2.00 [+1.00, +3.00] points (n = 100, 3 seeds): **higher**."
    assert "**lower**" in lines[1]
    assert "1 seed, so the interval is over questions alone): **not told apart**" in lines[2]
    assert lines[3].startswith("Of 3 comparisons 1 are higher, 1 lower and 1 not told apart")
    assert results.verdict(np.nan, np.nan) == "no interval"


def test_equal_data_give_equal_files(folder, tmp_path):
    plots.style()
    for name in ("first", "second"):
        table = results.side_by_side("smoke", 1)
        plots.save(plots.score_panels(table, results.TITLES), tmp_path / name, "panels")
        figure, axis = plots.plt.subplots()
        plots.curves(axis, results.similarity_curve(layers_table()), "layer", "cknna")
        plots.save(figure, tmp_path / name, "curves")
        picture = np.random.default_rng(0).random((4, 4, 3))
        plots.save(
            plots.tiles({"a": [picture, None], "b": ["", picture[..., 0]]}, ["x", "y"]), tmp_path / name, "tiles"
        )
    plots.plt.close("all")
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == [f"{name}.{kind}" for name in ("curves", "panels", "tiles") for kind in ("png", "svg")]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_what_stand_ins_have_learned_is_read_from_their_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not len(results.language_accuracies("smoke"))
    assert not len(results.probe_accuracies("smoke"))
    probe = {"category": 0.5, "occupied": 0.9, "facing": 0.75, "position": 0.25}
    learned = {
        "vicuna-7b": {"steps": 4, "rows": 200, "text_accuracy": {"pope": 0.99, "mmvp": 0.4}},
        "clip": {"steps": 5, "probe": {**probe, "patches": 160, "objects": 40, "fronts": 20}},
    }
    for name, metrics in learned.items():
        (tmp_path / f"workbook/world/stand_ins/{name}").mkdir(parents=True)
        (tmp_path / f"workbook/world/stand_ins/{name}/metrics.json").write_text(json.dumps(metrics))
    language, probes = results.language_accuracies("smoke"), results.probe_accuracies("smoke")
    assert list(language["n"]) == [200, 200]
    assert (language["low"] < language["accuracy"]).all()
    assert (language["accuracy"] < language["high"]).all()
    assert dict(zip(probes["probe"], probes["n"], strict=True)) == {
        "category": 40, "occupied": 160, "facing": 20, "position": 160
    }  # fmt: skip
    lines = results.stand_in_lines(language, probes)
    assert "1 of 2 kinds of question at 0.95 or more; its worst is `mmvp`: 0.40 [0.33, 0.47] (n = 200)" in lines[0]
    assert len(lines) == 5
    assert results.stand_in_lines(language[:0], probes[:0]) == ["No model of this profile's own has been trained."]


def test_stage_costs_are_of_the_last_time_that_each_finished(folder):
    assert not len(results.stage_costs("smoke"))
    lines = [
        ("stage2", "a", "2026-01-01T10:00:00+00:00", 50.0, False),
        ("stage2", "a", "2026-01-01T10:02:00+00:00", 60.0, True),
        ("stage2", "b", "2026-01-01T10:02:30+00:00", 120.0, True),
        ("world", "w", "2026-01-01T09:00:00+00:00", 30.0, True),
        ("report", "n", "2026-01-01T11:00:00+00:00", 30.0, True),
    ]
    names = ("stage", "key", "began", "seconds", "done")
    text = "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
    (folder / "runs/smoke/costs.jsonl").write_text(text)
    table = results.stage_costs("smoke").set_index("stage")
    assert list(table.index) == ["world", "stage2"]
    assert table.loc["stage2", "stages"] == 2
    assert table.loc["stage2", "minutes"] == 3
    assert str(table.loc["stage2", "ended"]) == "2026-01-01 10:04:30+00:00"
