"""Scores: reference figures of real answers, constant answers, official rules, sub-scores, intervals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import DATA, needs_data

from workbook.benchmarks import BENCHMARKS, registry, score
from workbook.benchmarks.multiple_choice import MMStar
from workbook.benchmarks.stats import intervals
from workbook.benchmarks.yes_no import MME_COGNITION, MME_PERCEPTION

COUNTS = ["4", "2", "3", "1"]


def row(number, answer, options=("yes", "no"), group=None, category="", response=None, **more):
    group = str(number) if group is None else group
    return {"id": str(number), "options": list(options), "answer": answer, "group": group, "category": category,
            "response": answer if response is None else response, **more}  # fmt: skip


def answered(rows, response):
    return [r | {"response": response} for r in rows]


def mme_rows():
    return [
        row(f"{task}/{i}#{j}", ("yes", "no")[j], group=f"{task}/{i}", category=task)
        for task, n in (MME_PERCEPTION | MME_COGNITION).items()
        for i in range(n // 2)
        for j in range(2)
    ]


def pope_rows(subset="random", n=3000):
    return [row(i, ("yes", "no")[i % 2], group=str(i // 6), category=subset) for i in range(n)]


def mmvp_rows():
    rows = []
    for number in range(1, 301):
        answer = "(a)" if number % 2 else "(b)"
        swapped = number in (99, 100, 279, 280)
        rows.append(row(number, answer, ("Open", "Closed"), f"pair {(number + 1) // 2}",
                        corrected_answer={"(a)": "(b)", "(b)": "(a)"}[answer] if swapped else answer))  # fmt: skip
    return rows


def mmstar_rows():
    letters = "A" * 429 + "B" * 447 + "C" * 309 + "D" * 315
    places = [(MMStar.categories[i % 6], f"{MMStar.categories[i % 6]} {i % 18}") for i in range(len(letters))]
    return [
        row(i, letter, ["w", "x", "y", "z"], category=category, subcategory=subcategory)
        for i, (letter, (category, subcategory)) in enumerate(zip(letters, places, strict=True))
    ]


def cv_bench_rows():
    rows = [row(i, "ABCD"[i % 4], COUNTS, category="Count", source=("ADE20K", "COCO")[i % 2]) for i in range(788)]
    return rows + [
        row(i, "AB"[i % 2], ["left", "right"], category="Relation", source=("ADE20K", "COCO")[i % 3 == 0])
        for i in range(788, 1438)
    ]


def whats_up_rows(subset, counts):
    options = list(counts)
    words = [word for word, n in counts.items() for _ in range(n)]
    return [row(i, word, options, group=str(i // 2), category=subset) for i, word in enumerate(words)]


ONE = {"left": 576, "right": 564, "top": 363, "bottom": 744}
TWO = {"left": 150, "right": 129, "above": 86, "below": 75}
ROWS = {
    "cv_bench": cv_bench_rows(),
    "mmvp": mmvp_rows(),
    "whats_up_one": whats_up_rows("one", ONE),
    "whats_up_two": whats_up_rows("two", TWO),
    "pope_random": pope_rows("random"),
    "pope_popular": pope_rows("popular"),
    "pope_adversarial": pope_rows("adversarial"),
    "mmstar": mmstar_rows(),
    "mme": mme_rows(),
}


@needs_data
def test_mme_of_lavin_13b_to_the_last_digit():
    rows = []
    for task in MME_PERCEPTION | MME_COGNITION:
        for number, line in enumerate((DATA / "mme_lavin" / f"{task}.txt").read_text(encoding="utf-8").splitlines()):
            image, question, gold, answer = line.split("\t")
            rows.append(row(f"{task}/{number}", gold.lower(), group=f"{task}/{image}", category=task, response=answer))
    result = score("mme", rows)
    assert (result["perception"], result["cognition"]) == (963.6114445778312, 249.64285714285714)
    assert result["official"] == 963.6114445778312 + 249.64285714285714
    assert result["n"] == 2374


@needs_data
@pytest.mark.parametrize(
    ("subset", "accuracy", "f1", "table"),
    [
        ("random", 0.8800687285223368, 0.8713601179506082, (1182, 31, 1379, 318)),
        ("popular", 0.8743333333333333, 0.8624589565851879, (1182, 59, 1441, 318)),
    ],
)
def test_pope_of_llava_13b_to_the_last_digit(subset, accuracy, f1, table):
    def read(name):
        return [json.loads(line) for line in (DATA / "pope" / name).read_text(encoding="utf-8").splitlines()]

    category = {q["question_id"]: q["category"] for q in read("llava_pope_test.jsonl")}
    answers = [a for a in read("answers_llava-v1.5-13b.jsonl") if category[a["question_id"]] == subset]
    labels = read(f"coco_pope_{subset}.json")
    rows = [
        row(x["question_id"], x["label"], group=x["image"], category=subset, response=a["text"])
        for x, a in zip(labels, answers, strict=True)
    ]
    result = score(f"pope_{subset}", rows)
    tp, fp, tn, fn = table
    assert (result["accuracy"], result["f1"]) == (accuracy, f1)
    assert (result["precision"], result["recall"]) == (tp / (tp + fp), tp / (tp + fn))
    assert result["yes_ratio"] == (tp + fp) / len(rows)
    assert (tp + tn) / len(rows) == result["official"]
    assert (result["strict"], result["unparsed"]) == (accuracy, 0)


def test_constant_answers():
    yes = score("mme", answered(ROWS["mme"], "Yes"))
    assert (yes["perception"], yes["cognition"], yes["strict"]) == (500, 200, 700)
    pope = score("pope_random", answered(ROWS["pope_random"], "Yes"))
    assert (pope["accuracy"], pope["yes_ratio"]) == (0.5, 1)
    assert pope["f1"] == pytest.approx(2 / 3)
    mmvp = score("mmvp", answered(ROWS["mmvp"], "(a)"))
    assert (mmvp["single"], mmvp["pair"], mmvp["single_corrected"], mmvp["pair_corrected"]) == (0.5, 0, 0.5, 0)
    for letter, expected in zip("ABCD", (0.286, 0.298, 0.206, 0.210), strict=True):
        assert score("mmstar", answered(ROWS["mmstar"], letter))["official"] == expected
    for word, n in ONE.items():
        assert score("whats_up_one", answered(ROWS["whats_up_one"], word.capitalize()))["official"] == n / 2247


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_an_oracle_scores_everything_and_silence_nothing(benchmark):
    right, silent = score(benchmark, ROWS[benchmark]), score(benchmark, answered(ROWS[benchmark], ""))
    full = 2800 if benchmark == "mme" else 1
    assert (right["official"], right["strict"], right["unparsed"]) == (full, full, 0)
    assert (silent["strict"], silent["unparsed"]) == (0, 1)
    if not benchmark.startswith("pope"):  # whose rule takes silence for yes
        assert silent["official"] == 0


def test_official_answers_of_the_released_scorers():
    cases = {
        "cv_bench": [("(C)", "C"), ("c", "C"), ("The answer is (B).", "B"), ("Answer: D", "D"), ("", "")],
        "mmvp": [("(a)", "(a)"), ("A.", "(a)"), ("Closed", "(b)"), ("Standing", None), ("the answer is (b)", "(b)")],
        "whats_up": [("It is on the LEFT or right", "left"), ("top", None), ("", None)],
        "pope": [("Incorrect", "yes"), ("There is no dog", "no"), ("Yes. No", "yes"), ("No, sir", "no"), ("NO", "yes")],
        "mmstar": [("a dog", "A"), ("(B) x", "B"), ("Option C", "C"), ("The answer is D", "D"), ("Answer: A", "A"),
                   ("It is B", None), ("(", None)],
        "mme": [("Yes", "yes"), ("no, it", "no"), ("The yes", "other"), (" yes", "yes"), ("I know", "other")],
    }  # fmt: skip
    gold = {"cv_bench": "C", "mmvp": "(a)", "whats_up": "left", "pope": "yes", "mmstar": "A", "mme": "yes"}
    for family, pairs in cases.items():
        for response, expected in pairs:
            asked = {"response": response, "answer": gold[family], "options": ["Open", "Closed"]}
            assert registry.FAMILIES[family].official(asked) == expected, (family, response)


def test_strict_differs_where_the_official_rule_errs():
    everything = answered(ROWS["whats_up_one"], "left, right, top or bottom")
    assert score("whats_up_one", everything)["official"] == 1
    assert score("whats_up_one", everything)["strict"] == 0
    refusal = score("pope_random", answered(ROWS["pope_random"], "I am unable to see"))
    assert (refusal["official"], refusal["strict"], refusal["unparsed"]) == (0.5, 0, 1)
    assert score("mmstar", answered(ROWS["mmstar"], "A photo"))["official"] == 0.286
    assert score("mmstar", answered(ROWS["mmstar"], "A photo"))["unparsed"] == 1


def test_sub_scores():
    rows = ROWS["cv_bench"]
    result = score("cv_bench", [r | {"response": r["answer"] if r["category"] == "Count" else "z"} for r in rows])
    coco = [r["category"] == "Count" for r in rows if r["source"] == "COCO"]
    ade = [r["category"] == "Count" for r in rows if r["source"] == "ADE20K"]
    assert (result["count"], result["relation"], result["official"]) == (1, 0, 788 / 1438)
    assert (result["coco"], result["ade20k"]) == (np.mean(coco), np.mean(ade))
    assert result["source_mean"] == (np.mean(coco) + np.mean(ade)) / 2 != result["official"]

    corrected = score("mmvp", [r | {"response": r["corrected_answer"]} for r in ROWS["mmvp"]])
    assert (corrected["pair"], corrected["single"]) == (148 / 150, 296 / 300)
    assert (corrected["pair_corrected"], corrected["single_corrected"]) == (1, 1)

    star = score("mmstar", [r | {"response": r["answer"] if r["category"] == "math" else "?"} for r in ROWS["mmstar"]])
    assert [star[c] for c in MMStar.categories] == [0, 0, 0, 0, 0, 1]
    assert sum(name.startswith("math ") for name in star) == 3
    assert star["official"] == 250 / 1500

    mme = score("mme", [r | {"response": "yes" if r["category"] == "OCR" else r["answer"]} for r in ROWS["mme"]])
    assert (mme["OCR"], mme["existence"], mme["perception"], mme["cognition"]) == (50, 200, 1850, 800)
    assert set(MME_PERCEPTION | MME_COGNITION) <= set(mme)


def test_a_benchmark_of_two_files_is_their_mean():
    both = score("pope", ROWS["pope_random"] + answered(ROWS["pope_popular"], "yes"))
    assert (both["official"], both["recall"], both["yes_ratio"]) == (0.75, 1, 0.75)
    both = score("whats_up", ROWS["whats_up_one"] + answered(ROWS["whats_up_two"], "?"))
    assert (both["official"], both["one"], both["two"]) == (0.5, 1, 0)
    assert registry.PAPER["pope"] == ("pope_random", "pope_popular")  # the paper leaves adversarial out


def test_half_pairs_and_unknown_names_are_errors():
    with pytest.raises(ValueError, match="rows 300 only"):
        score("mmvp", ROWS["mmvp"][:298] + ROWS["mmvp"][299:])
    with pytest.raises(ValueError, match="existence/0 has 1 rows"):
        score("mme", ROWS["mme"][1:])
    with pytest.raises(ValueError, match="unknown benchmark 'vqa'"):
        score("vqa", ROWS["mme"])
    with pytest.raises(ValueError, match="no answers"):
        score("mme", [])


@pytest.mark.parametrize(
    ("benchmark", "form"),
    [
        ("cv_bench", "({})".format),
        ("mmstar", "({})".format),
        ("mmvp", lambda key: key.strip("()").upper()),
        ("pope_random", str.capitalize),
        ("mme", str.capitalize),
        ("whats_up_one", str.capitalize),
    ],
)
def test_keys_in_the_data_sets_own_form(benchmark, form):
    result = score(benchmark, [r | {"answer": form(r["answer"])} for r in ROWS[benchmark]])
    full = 2800 if benchmark == "mme" else 1
    assert (result["official"], result["strict"]) == (full, full)


@pytest.mark.parametrize(
    ("benchmark", "change", "said"),
    [
        ("cv_bench", {"category": "3D"}, "row 0: the category '3D' is none of Count, Relation"),
        ("mmstar", {"category": "maths"}, "row 0: the category 'maths'"),
        ("mme", {"category": "Existence"}, "row existence/0#0: the category"),
        ("pope_random", {"category": "any"}, "none of random, popular, adversarial"),
        ("whats_up_one", {"category": "three"}, "row 0: the category"),
        ("cv_bench", {"answer": "(E)"}, r"row 0: the key '\(E\)' is none of \['A', 'B', 'C', 'D'\]"),
        ("pope_random", {"answer": "nein"}, "row 0: the key 'nein'"),
        ("mme", {"answer": None}, "row existence/0#0 has no answer"),
        ("mmstar", {"subcategory": None}, "row 0 has no subcategory"),
        ("cv_bench", {"options": None}, "row 0 has no options"),
        ("mmstar", {"response": None}, "row 0: the response is None"),
        ("whats_up_one", {"response": 3}, "row 0: the response is 3"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(benchmark, change, said):
    first, *others = ROWS[benchmark]
    with pytest.raises(ValueError, match=said):
        score(benchmark, [first | change, *others])


def noisy(benchmark, seed, share=0.3):
    """Rows of a run that answers correctly but for a share of random answers."""
    rng = np.random.default_rng(seed)
    rows = ROWS[benchmark]
    wrong = [rows[i]["answer"] for i in rng.permutation(len(rows))]
    return [r | {"response": w if rng.random() < share else r["answer"]} for r, w in zip(rows, wrong, strict=True)]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_intervals_hold_every_score_and_its_value(benchmark):
    run = noisy(benchmark, 0)
    result, scores = score(benchmark, run), intervals(benchmark, [[run]])
    assert set(scores) < set(result)
    for name, interval in scores.items():
        assert interval.value == pytest.approx(result[name], abs=1e-12)
        assert interval.low < interval.value < interval.high or interval.value in (0, 1)
    assert scores["official"].low < scores["official"].high
    assert (scores["official"].n, scores["official"].seeds) == (len(run), 1)
    assert intervals(benchmark, [[run]], rule="strict")["official"].value == pytest.approx(result["strict"])


def test_interval_has_the_width_of_the_binomial_and_of_the_clusters():
    run = noisy("mmstar", 1)
    p = score("mmstar", run)["official"]
    interval = intervals("mmstar", [[run]])["official"]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 1500), rel=0.01)
    # six alike answers to a photo: the photo is the unit, so the interval is wider by the root of six
    rows = [r | {"response": "yes" if int(r["group"]) % 3 else "no", "answer": "yes"} for r in ROWS["pope_random"]]
    clustered = intervals("pope_random", [[rows]])["official"]
    assert clustered.clusters == 500
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 9 / 500), rel=0.01)
    pairs = intervals("mmvp", [[noisy("mmvp", 2)]])["pair"]
    assert (pairs.clusters, pairs.n) == (150, 300)


def test_mme_subtasks_are_strata():
    run = [r | {"response": "yes" if r["category"] == "OCR" else r["answer"]} for r in ROWS["mme"]]
    scores = intervals("mme", [[run]])
    assert scores["official"].value == 2650
    assert np.isnan(scores["official"].error)  # no subtask varies within itself


def test_paired_differences_and_seeds():
    same = intervals("mmstar", [[noisy("mmstar", 0)]], [[noisy("mmstar", 0)]])["official"]
    assert same.value == 0
    assert np.isnan(same.error)
    a, b = [[noisy("mmstar", s, 0.2)] for s in range(3)], [[noisy("mmstar", s, 0.4)] for s in range(3, 6)]
    change = intervals("mmstar", a, b)["official"]
    means = [np.mean([score("mmstar", run)["official"] for (run,) in side]) for side in (a, b)]
    assert change.value == pytest.approx(means[0] - means[1])
    assert 0 < change.low < change.value < change.high
    assert change.p < 0.001
    assert change.seeds == 3
    # seeds that differ widely widen the interval: two of them tell next to nothing
    apart = intervals("mmstar", [[noisy("mmstar", 0, 0)], [noisy("mmstar", 1, 0.9)]])["official"]
    assert apart.low < 0 < 1 < apart.high


def test_sampled_runs_are_averaged_and_are_no_seeds():
    runs = [noisy("mmstar", seed) for seed in range(4)]
    alone, averaged = intervals("mmstar", [[runs[0]]])["official"], intervals("mmstar", [runs])["official"]
    assert averaged.value == pytest.approx(np.mean([score("mmstar", run)["official"] for run in runs]))
    assert averaged.seeds == 1
    assert averaged.error < alone.error
    with pytest.raises(ValueError, match="answered 1 and 4 times a seed"):
        intervals("mmstar", [[runs[0]], runs])
    with pytest.raises(ValueError, match="answered 1 and 4 times a seed"):
        intervals("mmstar", [runs], [[runs[0]]])


def test_runs_of_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="same questions"):
        intervals("mmstar", [[ROWS["mmstar"]]], [[ROWS["mmstar"][:-1]]])
    with pytest.raises(ValueError, match="same questions"):
        intervals("mmstar", [[ROWS["mmstar"]], [ROWS["mmstar"][:-1]]])
    with pytest.raises(ValueError, match="0 against 1 seeds: seeds are compared in pairs"):
        intervals("mmstar", [[ROWS["mmstar"]]], [])


def test_one_question_has_no_interval():
    one = intervals("mmstar", [[ROWS["mmstar"][:1]]])["official"]
    assert np.isnan([one.low, one.high]).all()
    assert one.value == 1


def test_no_torch_is_needed():
    code = (
        "import sys\n"
        "from workbook.benchmarks import load_rows, parse_answer, score\n"
        "from workbook.benchmarks.stats import intervals\n"
        "assert parse_answer('mmvp', '(b) Closed', ['Open', 'Closed']) == '(b)'\n"
        "row = {'id': '1', 'answer': 'yes', 'options': [], 'group': 'x', 'category': 'random', 'response': 'Yes'}\n"
        "assert score('pope_random', [row])['official'] == 1\n"
        "assert intervals('pope_random', [[[row, row | {'id': '2', 'group': 'y'}]]])['f1'].value == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
