"""The claims ledger: its rule, and quantities recomputed from answers and tables with a known effect."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from workbook import claims
from workbook.benchmarks.answers import append, continue_file, settings
from workbook.results import reading

QUESTIONS = 60


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Evidence of the smoke profile, on an empty folder."""
    monkeypatch.chdir(tmp_path)
    return claims.Evidence("smoke")


def answer(folder, benchmark, right, category="Relation", variant="", sampled=None):
    """Answers of which those of `right` (booleans) are right, in the format of the evaluation.

    `sampled`: answers of so many sampled runs, all the same.
    """
    rows = [
        {
            "id": str(i),
            "group": str(i),
            "category": category,
            "options": ["yes", "no"],
            "answer": "A" if category == "Relation" else "yes",
        }
        for i in range(len(right))
    ]
    facts = settings(
        benchmark,
        rows,
        model="m",
        template="t",
        prompts=[""] * len(rows),
        max_new_tokens=1,
        variant=variant,
        protocol=sampled and {"runs": sampled},
    )
    name = {"": benchmark}.get(variant, variant)
    continue_file(folder / f"{name}.jsonl", facts)
    said = [{True: row["answer"], False: "no"}[bool(ok)] for row, ok in zip(rows, right, strict=True)]
    append(
        folder / f"{name}.jsonl",
        [row | {"run": run, "response": s} for run in range(sampled or 1) for row, s in zip(rows, said, strict=True)],
    )


def pope(evidence, tmp_path, run, right):
    for part in ("random", "popular"):
        answer(tmp_path / evidence.paths.evaluation(run, 0), f"pope_{part}", right, part)


@pytest.mark.parametrize(
    ("low", "high", "expect", "threshold", "said"),
    [
        (0.1, 0.3, "above", 0, "reproduced"),
        (0.1, 0.3, "below", 0, "contradicted"),
        (-0.1, 0.3, "above", 0, "inconclusive"),
        (-0.3, -0.1, "below", 0, "reproduced"),
        (0.0, 0.3, "above", 0, "inconclusive"),
        (0.01, 0.04, "below", 0.05, "reproduced"),
        (math.nan, math.nan, "above", 0, "inconclusive"),
    ],
)
def test_the_rule(low, high, expect, threshold, said):
    assert claims.verdict(low, high, expect, threshold) == said


def test_gain_is_the_paired_difference_in_points(evidence, tmp_path):
    base = np.arange(QUESTIONS) % 2 == 0
    better = base | (np.arange(QUESTIONS) % 5 == 0)
    pope(evidence, tmp_path, "baseline", base)
    pope(evidence, tmp_path, "viral", better)
    (found,) = claims.gain(evidence, "viral", "baseline", ["pope"])
    assert found.value == pytest.approx(100 * (better.mean() - base.mean()))
    assert 0 < found.low < found.value < found.high
    assert found.paper == pytest.approx(2.62)
    assert claims.verdict(found.low, found.high, "above") == "reproduced"


def test_questions_in_clusters_and_seeds_that_both_have_are_counted(evidence, tmp_path, monkeypatch):
    monkeypatch.setitem(evidence.settings.runs, "viral", [0, 1, 2])
    monkeypatch.setitem(evidence.settings.runs, "baseline", [0, 2])
    monkeypatch.setattr(reading, "settings_of", lambda profile: evidence.settings)
    right = np.arange(QUESTIONS) % 2 == 0
    for name in (("viral", 0), ("viral", 1), ("viral", 2), ("baseline", 0), ("baseline", 2)):
        for part in ("random", "popular"):
            answer(tmp_path / evidence.paths.evaluation(*name), f"pope_{part}", right, part)
    (found,) = claims.gain(evidence, "viral", "baseline", ["pope"])
    assert found.n == f"{2 * QUESTIONS} questions in {QUESTIONS} clusters, 2 seeds"
    (found,) = claims.gain_contrast(evidence, "viral", "baseline", ["pope"], ["pope"])
    assert found.n == "2 benchmarks, each its questions, 2 seeds"


def test_half_of_a_benchmark_and_unknown_runs_are_missing(evidence, tmp_path):
    answer(tmp_path / evidence.paths.evaluation("viral", 0), "pope_random", np.ones(9, bool), "random")
    (found,) = claims.gain(evidence, "viral", "baseline", ["pope"])
    assert found.missing == "viral: pope"
    (found,) = claims.gain(evidence, "no-such-run", "baseline", ["pope"])
    assert "not in profile" in found.missing


def test_a_partial_evaluation_is_refused(evidence, tmp_path):
    folder = tmp_path / evidence.paths.evaluation("viral", 0)
    pope(evidence, tmp_path, "viral", np.ones(9, bool))
    lines = (folder / "pope_random.jsonl").read_text().splitlines()
    (folder / "pope_random.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="partial"):
        claims.gain(evidence, "viral", "baseline", ["pope"])


def test_cknna_changes_are_paired_by_image(evidence, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, 40)  # far larger than the effect: only pairing shows it
    for run, shift in (("baseline", 0.0), ("residual-pre", 0.05)):
        rows = [
            {"run": run, "seed": 0, "reading": "tokens", "layer": layer, "image": i, "clamp": 1.0,
             "cknna": value - 0.1 * layer + shift + rng.normal(0, 0.01)}
            for i, value in enumerate(images) for layer in range(5)
        ]  # fmt: skip
        file = tmp_path / evidence.paths.measurement(run, 0) / "cknna.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)
    (fall,) = claims.cknna_change(evidence, "baseline", 0.0, 1.0)
    assert fall.value == pytest.approx(-0.4, abs=0.01)
    assert fall.high < 0
    (gained,) = claims.cknna_gain(evidence, "residual-pre", "baseline", 0.5)
    assert gained.value == pytest.approx(0.05, abs=0.01)
    assert gained.low > 0


def similarities(evidence, tmp_path, run, by_seed):
    """CKNNA of 40 images, falling from `1 + seed's value` by 0.1 a layer, for each seed."""
    for seed, value in by_seed.items():
        rows = [
            {"seed": seed, "reading": "tokens", "layer": layer, "image": i, "clamp": 1.0,
             "cknna": 1 + value + 0.001 * i - 0.1 * layer}
            for i in range(40) for layer in range(5)
        ]  # fmt: skip
        file = tmp_path / evidence.paths.measurement(run, seed) / "cknna.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)


def test_seeds_are_resampled_and_only_those_that_both_have_count(evidence, tmp_path, monkeypatch):
    monkeypatch.setitem(evidence.settings.runs, "viral", [0, 1, 2])
    monkeypatch.setitem(evidence.settings.runs, "baseline", [0, 1, 3])
    similarities(evidence, tmp_path, "viral", {0: 0.3, 1: -0.1, 2: 9.0})
    similarities(evidence, tmp_path, "baseline", {0: 0.0, 1: 0.0, 3: -9.0})
    (found,) = claims.cknna_gain(evidence, "viral", "baseline", 0.5)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.3))  # 40 images alone would leave no doubt
    assert found.n == "40 images, 2 seeds"
    monkeypatch.setitem(evidence.settings.runs, "viral", [2])
    (found,) = claims.cknna_gain(evidence, "viral", "baseline", 0.5)
    assert found.missing == "seeds and images that both sides have"


def test_permutation_compares_drops(evidence, tmp_path):
    right = np.ones(QUESTIONS, bool)
    for run, kept in (("baseline", 0.9), ("viral", 0.5)):
        folder = tmp_path / evidence.paths.measurement(run, 0) / "permutation"
        answer(folder, "cv_bench", right, variant="original")
        for p in range(2):
            answer(folder, "cv_bench", np.arange(QUESTIONS) < kept * QUESTIONS, variant=f"permuted-{p}")
    (found,) = claims.permutation_gain(evidence, "viral", "baseline")
    assert found.value == pytest.approx(40)
    assert found.low > 0
    assert found.n == f"{QUESTIONS} questions, 1 seed, mean of 2 permutations"
    (found,) = claims.permutation_gain(evidence, "siglip2-viral", "baseline")
    assert found.missing == "siglip2-viral: permutation"


def test_entropy_is_paired_by_question_and_read_twice(evidence, tmp_path):
    for run, entropy in (("baseline", 1.0), ("viral", 0.8)):
        folder = tmp_path / evidence.paths.measurement(run, 0) / "attention"
        folder.mkdir(parents=True)
        rows = [
            {"reading": "renormalised", "question": q, "layer": layer, "entropy": entropy + 0.01 * q + (layer == 2)}
            for q in range(10) for layer in (1, 2, 3, 4)
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / "questions.csv", index=False)
    first, second = claims.entropy_gain(evidence, "viral", "baseline", 0.5)
    assert first.value == pytest.approx(-0.2)
    assert "reading raw" in second.missing


def test_an_early_checkpoint_is_compared_with_the_final_baseline(evidence, tmp_path):
    run = tmp_path / evidence.paths.run("viral", 0)
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"training": {"step": 100}}))
    kept = tmp_path / evidence.paths.evaluation("viral", 0)
    for step, share in ((20, 0.1), (60, 0.8)):
        right = np.arange(QUESTIONS) < share * QUESTIONS
        for part in ("random", "popular"):
            answer(kept / f"checkpoint-{step}", f"pope_{part}", right, part)
    pope(evidence, tmp_path, "baseline", np.arange(QUESTIONS) < 0.5 * QUESTIONS)
    (found,) = claims.early_gain(evidence, "viral", "baseline", 0.577, ["pope"])
    assert found.value == pytest.approx(30)
    assert found.low > 0
    assert found.n == "questions of pope, 1 seed"

    sampled = tmp_path / evidence.paths.evaluation("baseline", 0)
    for part in ("random", "popular"):
        (sampled / f"pope_{part}.jsonl").unlink()
        answer(sampled, f"pope_{part}", np.ones(QUESTIONS, bool), part, sampled=3)
    with pytest.raises(ValueError, match="viral at step 60 against baseline: pope has been answered 1 and 3 times"):
        claims.early_gain(claims.Evidence("smoke"), "viral", "baseline", 0.577, ["pope"])


def write_log(evidence, tmp_path, run, seed, seconds, events=11):
    folder = tmp_path / evidence.paths.run(f"{run}-s{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"seed": seed}))
    lines = [json.dumps({"step": s, "seconds": s * seconds}) for s in range(1, events + 1)]
    (folder / "log.jsonl").write_text("\n".join(lines))


def test_overhead_is_the_ratio_of_step_times_seed_by_seed(evidence, tmp_path, monkeypatch):
    for run, seconds in (("baseline", 1.0), ("viral", 1.02)):
        write_log(evidence, tmp_path, run, 0, seconds)
    (found,) = claims.overhead(evidence, "viral", "baseline")
    assert found.value == pytest.approx(0.02)
    assert found.n == "1 seed"
    assert claims.verdict(found.low, found.high, "below", 0.05) == "inconclusive"  # ten intervals of one log are one

    for run in ("baseline", "viral"):
        monkeypatch.setitem(evidence.settings.runs, run, [0, 1, 2])
    for seed, machine, share in ((1, 3.0, 0.03), (2, 0.5, 0.04)):  # far larger than the effect: only pairing shows it
        write_log(evidence, tmp_path, "baseline", seed, machine)
        write_log(evidence, tmp_path, "viral", seed, machine * (1 + share))
    (found,) = claims.overhead(evidence, "viral", "baseline")
    assert found.value == pytest.approx(0.03)
    assert found.n == "3 seeds"
    assert 0.02 <= found.low < found.high <= 0.0401
    assert claims.verdict(found.low, found.high, "below", 0.05) == "reproduced"

    write_log(evidence, tmp_path, "viral", 1, 1.0, events=1)
    (found,) = claims.overhead(evidence, "viral", "baseline")
    assert "one logging event" in found.missing


def test_claims_with_one_seed_are_named_once_in_order():
    n = ["9 questions, 1 seed", "9 questions, 3 seeds", "9 questions, 1 seed", "11 seeds", "9 questions, 1 seed", ""]
    ledger = pd.DataFrame({"id": ["z", "b", "z", "c", "a", "d"], "section": "4", "verdict": "inconclusive", "n": n})
    assert claims.conclusions(ledger)[-1].startswith("Claims with one seed (z, a) carry")


def test_the_ledger_is_sound_and_nothing_run_is_not_run(evidence, monkeypatch):
    entries = claims.claims()
    assert len(entries) > 30
    known = set(evidence.settings.systems)
    for entry in entries:
        named = [entry.get("run"), entry.get("over"), *entry.get("pairs", [])]
        flat = [name for item in named if item for name in ([item] if isinstance(item, str) else item)]
        assert set(flat) <= known, entry["id"]
    ledger = claims.evaluate("smoke", progress=False)
    assert set(ledger["verdict"]) == {"not run"}
    assert ledger["missing"].all()
    counts = claims.summary(ledger)
    assert list(counts.index) == [entry["id"] for entry in entries]
    assert counts["not run"].sum() == len(ledger)


def test_a_faulty_ledger_is_refused(tmp_path, monkeypatch):
    entry = "- {id: a, section: x, claim: y, quantity: gian, expect: above}\n"
    (tmp_path / "claims.yaml").write_text(entry)
    monkeypatch.setattr(claims, "LEDGER", tmp_path / "claims.yaml")
    with pytest.raises(ValueError, match="no quantity 'gian'; there are: gain"):
        claims.claims()
