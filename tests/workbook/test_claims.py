"""The ledger: its rule, the rate of false decisions, rows of claims, premises, what is missing."""

import numpy as np
import pandas as pd
import pytest
import yaml
from answer_files import QUESTIONS, profile, share, write

from viral_core.measure.intervals import Interval
from workbook import claims, runs, scores
from workbook.paths import ROOT


def table(rows):
    return pd.DataFrame(rows, columns=claims.COLUMNS)


def interval(value, error, seeds=5):
    return Interval(value, error, 200.0, 1000, 1000, seeds)


@pytest.fixture
def entries(monkeypatch):
    """A ledger of four entries in points; effects below 2 are of no interest."""

    def set_entries(**change):
        common = {"section": "1", "claim": "c", "quantity": "q", "unit": "points", "notebook": "main_table"}
        ledger = {
            "above": claims.Claim(id="above", **common, needs=["premise"]),
            "below": claims.Claim(id="below", **common, expect="below"),
            "premise": claims.Claim(id="premise", **common, threshold=10, **change),
        }
        monkeypatch.setattr(claims, "ledger", lambda: (ledger, {"points": 2.0}))

    set_entries()
    return set_entries


@pytest.mark.parametrize(
    ("id", "value", "error", "verdict"),
    [
        ("above", 5, 1, "reproduced"),
        ("above", -5, 1, "contradicted"),
        ("above", 1, 1, "inconclusive"),
        ("above", 0.1, 0.3, "no difference"),
        ("above", 1.0, 0.1, "no difference"),  # real, and too small to matter
        ("below", -5, 1, "reproduced"),
        ("below", 5, 1, "contradicted"),
        ("premise", 15, 1, "reproduced"),  # the threshold is 10
        ("premise", 8, 0.4, "contradicted"),  # below it, and not too small to matter
        ("premise", 5, 1, "contradicted"),
        ("premise", 10.2, 0.3, "no difference"),
        ("above", 5, np.nan, "inconclusive"),
    ],
)
def test_the_rule(entries, id, value, error, verdict):
    rows = [claims.row(id, interval(value, error), part="a")]
    assert claims.decide(table(rows)).iloc[0]["verdict"] == verdict


def test_one_seed_decides_nothing_about_trainings(entries):
    values = (5, 0.1)
    rows = [claims.row(id, interval(value, 0.3, 1), part=str(value)) for id in ("above", "premise") for value in values]
    entries(training=False)  # the premise
    decided = claims.decide(table(rows))
    assert decided["verdict"].tolist() == ["inconclusive", "inconclusive", "contradicted", "contradicted"]
    assert decided["q"].isna().tolist() == [True, True, False, False]  # no members of the family


def test_false_decisions_are_controlled_over_all_rows(entries):
    """Of 120 rows a third has no effect, a third a small one at the smallest of interest, a third a large one."""
    rng, effects = np.random.default_rng(0), np.repeat([0.0, 2.0, 5.0], 40)
    false, decided = np.zeros(2), np.zeros(2)  # of differences, of no difference
    for _ in range(20):
        values = effects + 0.6 * rng.normal(size=120)
        rows = [claims.row("above", interval(value, 0.6), part=str(i)) for i, value in enumerate(values)]
        result = claims.decide(table(rows))
        verdict = result["verdict"].to_numpy()
        different, same = np.isin(verdict, ["reproduced", "contradicted"]), verdict == "no difference"
        wrong = different & (effects == 0) | (verdict == "contradicted")
        false += wrong.sum(), (same & (effects >= 2)).sum()
        decided += different.sum(), same.sum()
    assert decided.sum() > 20 * 40
    assert (decided > 20 * 10).all()
    assert (false / decided < 0.05).all()
    alone = claims.decide(table([claims.row("above", interval(2.1, 1.0))]))
    many = [claims.row("above", interval(2.1 if i == 0 else 0.5, 1.0), part=str(i)) for i in range(50)]
    assert alone["verdict"].iat[0] == "reproduced"
    assert claims.decide(table(many))["verdict"].iat[0] == "inconclusive"
    assert claims.decide(table(many), family=False)["verdict"].iat[0] == "reproduced"
    page = claims.alone(table(many)).to_html()
    assert page.count(">reproduced<") == 1
    assert "premises" not in page  # of which only the whole ledger knows


@pytest.mark.parametrize(("at_least", "fails"), [(None, "premise (fails)"), (2, ""), (3, "premise (fails)")])
def test_a_claim_names_the_premises_that_do_not_hold(entries, at_least, fails):
    entries(at_least=at_least)
    rows = [claims.row("above", interval(5, 1)), claims.row("below", interval(5, 1))]
    rows += [claims.row("premise", interval(value, 1), part=str(value)) for value in (20, 21, 3)]
    decided = claims.decide(table(rows)).set_index("id")
    assert decided.loc["above", "fails"] == fails
    assert decided.loc["below", "fails"] == ""


def test_a_premise_of_the_same_part_counts_for_a_row(entries):
    rows = [claims.row("above", interval(5, 1), part=part) for part in ("a", "b", "c")]
    rows += [claims.row("premise", interval(value, 1), part=part) for part, value in (("a", 20), ("b", 3))]
    fails = claims.decide(table(rows))["fails"]
    # c is no part of the premise: all of it must hold
    assert fails.tolist()[:3] == ["", "premise (fails)", "premise (fails)"]
    entries(at_least=1)
    assert claims.decide(table(rows))["fails"].tolist()[:3] == ["", "", ""]


@pytest.mark.parametrize(
    ("verdicts", "own", "state"),
    [
        (["reproduced", "contradicted"], {"at_least": 1}, "holds"),
        (["reproduced", "inconclusive"], {}, "open"),
        (["reproduced", "not run", "contradicted"], {"at_least": 2}, "open"),
        (["reproduced", "no difference"], {}, "fails"),  # too small to matter
        (["reproduced", "no difference"], {"threshold": 10}, "open"),  # at it, on either side
        (["reproduced", "contradicted", "contradicted"], {"at_least": 2}, "fails"),
    ],
)
def test_a_premise_is_open_while_its_rows_can_still_decide_it(verdicts, own, state):
    claim = claims.Claim(id="p", section="1", claim="c", quantity="q", unit="points", notebook="n", **own)
    assert claims.state(claim, pd.Series(verdicts)) == state


def test_every_notebook_writes_its_own_rows_and_the_ledger_has_all(entries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claims.read("tiny")["missing"].tolist() == ["notebook main_table"] * 3
    out = tmp_path / "runs/tiny/results/main_table"
    out.mkdir(parents=True)
    rows = [claims.row("below", interval(1.5, 1), part="b"), claims.row("above", None, missing="cv_bench of viral")]
    with pytest.raises(ValueError, match="the ledger has its claims"):
        claims.write(out, rows)
    claims.write(out, [*rows, claims.row("premise", interval(12, 1), paper=11.5)])
    ledger = claims.decide(claims.read("tiny"))
    assert ledger["id"].tolist() == ["above", "below", "premise"]
    assert ledger["verdict"].tolist() == ["not run", "inconclusive", "inconclusive"]
    assert ledger["value"].tolist()[1:] == [1.5, 12]
    html = claims.styled(ledger, "caption").to_html()
    assert "cv_bench of viral" in html
    assert "+11.5" in html
    with pytest.raises(ValueError, match="either an interval or what is missing"):
        claims.row("above", None)


def test_gains_are_rows_of_the_claims_that_compare_runs(tmp_path, monkeypatch):
    common = {"section": "1", "claim": "c", "notebook": "main_table"}
    entries = [
        claims.Claim(id="gain", run="viral", over="baseline", benchmarks=["cv_bench", "mme"], **common),
        claims.Claim(id="best", run="viral", over=["layer-4", "layer-8"], benchmarks=["cv_bench"], **common),
        claims.Claim(id="other", quantity="q", unit="points", **common),
    ]
    ledger = {claim.id: claim for claim in entries}
    monkeypatch.setattr(claims, "ledger", lambda: (ledger, {"points": 2.0}))
    settings = profile(**{"baseline": [0], "viral": [0], "layer-4": [0]})
    for module in (runs, scores):
        monkeypatch.setattr(module, "settings", lambda name: settings)
    monkeypatch.chdir(tmp_path)
    for run, right in (("baseline", 24), ("viral", 30), ("layer-4", 20)):
        write(tmp_path, run, "cv_bench", share(right))
    gain, mme, best = claims.gains("tiny", "main_table")
    assert (gain["id"], gain["part"], gain["unit"]) == ("gain", "cv_bench", "points")
    assert gain["value"] == pytest.approx(100 * 6 / QUESTIONS)
    assert gain["paper"] == pytest.approx(59.67 - 56.82)
    assert gain["low"] < gain["value"] < gain["high"]
    assert (mme["unit"], mme["missing"]) == ("MME points of 2800", "mme of viral, baseline")
    assert best["missing"] == "cv_bench of layer-8"
    write(tmp_path, "layer-4", "mme", share(30))
    assert claims.gains("tiny", "main_table")[1]["unit"] == "MME points of 2800"  # the profile does not ask it
    settings.evaluation.benchmarks.append("mme")
    assert claims.gains("tiny", "main_table")[1]["unit"] == "MME points of 200"  # of the one subtask that was asked


def test_the_smallest_effect_of_mme_grows_with_its_scale():
    assert [claims.smallest(unit) for unit in ("points", "MME points of 800", "MME points of 2000")] == [2, 16, 40]


def test_the_committed_ledger_is_sound():
    ledger, smallest = claims.ledger()
    assert len(ledger) > 40
    assert all(value > 0 for value in smallest.values())
    known = yaml.safe_load((ROOT / "profiles/runs.yaml").read_text(encoding="utf-8"))
    for claim in ledger.values():
        sides = [[side] if isinstance(side, str) else side or [] for side in (claim.run, claim.over)]
        assert set(sides[0] + sides[1]) <= set(known), claim.id
        assert (ROOT / "notebooks" / f"{claim.notebook}.py").is_file() or claim.notebook == "premises"


SOUND = {"id": "x", "section": "1", "claim": "c", "quantity": "q", "unit": "points"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([SOUND | {"run": "a", "over": "b"}], "either run and over, or quantity and unit"),
        ([SOUND | {"unit": "ells"}], "no smallest effect"),
        ([SOUND | {"needs": ["y"]}], "x needs y"),
        ([SOUND | {"expects": "above"}], "expects"),
        ([SOUND, SOUND], "the id x occurs twice"),
    ],
)
def test_a_faulty_ledger_is_refused(tmp_path, monkeypatch, entries, message):
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump({"smallest": {"points": 2}, "claims": {"main_table": entries}}))
    monkeypatch.setattr(claims, "LEDGER", file)
    with pytest.raises(ValueError, match=message):
        claims.ledger.__wrapped__()  # what is cached stays
