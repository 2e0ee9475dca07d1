"""The claims ledger: its rule, and quantities recomputed from answers and tables with a known effect."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from viral_core import claims
from viral_core.benchmarks.answers import append, continue_file, settings
from viral_core.results import reading

QUESTIONS = 60


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Evidence of the smoke profile, on an empty folder."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    return claims.Evidence("smoke")


def answer(folder, benchmark, right, category="Relation", variant=""):
    """Answers of which those of `right` (booleans) are right, in the format of the evaluation."""
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
        benchmark, rows, model="m", template="t", prompts=[""] * len(rows), max_new_tokens=1, variant=variant
    )
    name = {"": benchmark}.get(variant, variant)
    continue_file(folder / f"{name}.jsonl", facts)
    said = [{True: row["answer"], False: "no"}[bool(ok)] for row, ok in zip(rows, right, strict=True)]
    append(folder / f"{name}.jsonl", [row | {"run": 0, "response": s} for row, s in zip(rows, said, strict=True)])


def pope(evidence, tmp_path, run, right):
    for part in ("random", "popular"):
        answer(tmp_path / evidence.paths.evaluation(f"{run}-s0"), f"pope_{part}", right, part)


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


def test_half_of_a_benchmark_and_unknown_runs_are_missing(evidence, tmp_path):
    answer(tmp_path / evidence.paths.evaluation("viral-s0"), "pope_random", np.ones(9, bool), "random")
    (found,) = claims.gain(evidence, "viral", "baseline", ["pope"])
    assert found.missing == "viral: pope"
    (found,) = claims.gain(evidence, "no-such-run", "baseline", ["pope"])
    assert "not in profile" in found.missing


def test_a_partial_evaluation_is_refused(evidence, tmp_path):
    folder = tmp_path / evidence.paths.evaluation("viral-s0")
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
        file = tmp_path / evidence.paths.cknna(f"{run}-s0")
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)
    (fall,) = claims.cknna_change(evidence, "baseline", 0.0, 1.0)
    assert fall.value == pytest.approx(-0.4, abs=0.01)
    assert fall.high < 0
    (gained,) = claims.cknna_gain(evidence, "residual-pre", "baseline", 0.5)
    assert gained.value == pytest.approx(0.05, abs=0.01)
    assert gained.low > 0


def test_permutation_compares_drops(evidence, tmp_path):
    right = np.ones(QUESTIONS, bool)
    for run, kept in (("baseline", 0.9), ("viral", 0.5)):
        folder = tmp_path / evidence.paths.root / "permutation" / f"{run}-s0"
        answer(folder, "cv_bench", right, variant="original")
        for p in range(2):
            answer(folder, "cv_bench", np.arange(QUESTIONS) < kept * QUESTIONS, variant=f"permuted-{p}")
    (found,) = claims.permutation_gain(evidence, "viral", "baseline")
    assert found.value == pytest.approx(40)
    assert found.low > 0
    assert "2 permutations" in found.n


def test_entropy_is_paired_by_question_and_read_twice(evidence, tmp_path):
    for run, entropy in (("baseline", 1.0), ("viral", 0.8)):
        folder = tmp_path / evidence.paths.root / "attention" / f"{run}-s0"
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
    run = tmp_path / evidence.paths.run("viral-s0")
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"training": {"step": 100}}))
    kept = tmp_path / evidence.paths.root / "learning_curve" / "viral-s0"
    for step, share in ((20, 0.1), (60, 0.8)):
        right = np.arange(QUESTIONS) < share * QUESTIONS
        for part in ("random", "popular"):
            answer(kept / f"checkpoint-{step}", f"pope_{part}", right, part)
    pope(evidence, tmp_path, "baseline", np.arange(QUESTIONS) < 0.5 * QUESTIONS)
    (found,) = claims.early_gain(evidence, "viral", "baseline", 0.577, ["pope"])
    assert found.value == pytest.approx(30)
    assert found.low > 0


def test_overhead_is_the_ratio_of_step_times(evidence, tmp_path):
    for run, seconds in (("baseline", 1.0), ("viral", 1.02)):
        folder = tmp_path / evidence.paths.run(f"{run}-s0")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"seed": 0}))
        lines = [json.dumps({"step": s, "seconds": s * seconds}) for s in range(1, 12)]
        (folder / "log.jsonl").write_text("\n".join(lines))
    (found,) = claims.overhead(evidence, "viral", "baseline")
    assert found.value == pytest.approx(0.02)
    assert claims.verdict(found.low, found.high, "below", 0.05) == "reproduced"


def test_the_ledger_is_sound_and_nothing_run_is_not_run(evidence, monkeypatch):
    entries = claims.claims()
    assert len(entries) > 30
    known = set(evidence.settings.registry)
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
