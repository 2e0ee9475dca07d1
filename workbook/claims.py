"""The ledger: what each claim of `claims.yaml` comes to on a profile's runs.

Every notebook writes the rows of its own claims (`write`): a value with its interval for each part, such as a
benchmark.  The ledger is all of them (`read`), and one rule decides every row (`decide`), from two tests: whether the
value differs from the threshold (two-sided t), and whether it is equivalent to it, that is, less than the smallest
effect of interest away (two one-sided t tests).

    no difference   equivalent, whether or not it differs: an effect too small to matter; beside a threshold, at it
    reproduced      differs, on the claimed side of the threshold
    contradicted    differs, on the other side
    inconclusive    neither can be said, there is no interval, or it is of trainings and has but one seed
    not run         a run or a measurement is missing

The p-values of each test are adjusted over all rows after Benjamini and Hochberg: of the rows that differ 5 % are
expected to do so falsely, and of those of no difference too.  (One adjustment of both tests together would let the many
clear cases of no difference pay for weak differences.)  That holds of the ledger as a whole: in a part of it where few
effects are real, such as the benchmarks, the share may be larger.  Not Holm's procedure, which bounds the probability
of a single false decision: no conclusion hangs on all of the rows, and with so many of them that bound would leave real
effects undecided.

A claim names the premises that it needs.  A premise is a claim as any other, whose `state` follows from its verdicts;
where all of its rows are needed and one is about the very part that a claim's row is about, such as a benchmark, that
verdict counts.  Premises are measured on the baseline of the first system and on the first teacher, and are taken for
those of the others.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.stats import false_discovery_control

from viral_core.measure.intervals import Interval, p_difference, p_equivalence
from workbook import paper, scores
from workbook.benchmarks import PAPER
from workbook.paths import Paths
from workbook.runs import answer_files

LEDGER = Path(__file__).with_name("claims.yaml")
DECIDED = ("reproduced", "contradicted", "no difference")
VERDICTS = (*DECIDED, "inconclusive", "not run")
COLOURS = dict(zip(VERDICTS, ("#009E73", "#D55E00", "#0072B2", "#666666", "#999999"), strict=True))
NEAR = COLOURS["no difference"]  # from a threshold that is not 0: "at the threshold" in tables
NO_SEED = "a seed that all of these runs have"
RATE = 0.05  # of false ones among the decisions of either kind
COLUMNS = ["id", "part", "unit", "value", "low", "high", "error", "df", "n", "clusters", "seeds", "paper", "missing"]


class Claim(BaseModel):
    """An entry of the ledger; `claims.yaml` says what its keys mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    notebook: str
    section: str
    claim: str
    expect: Literal["above", "below"] = "above"
    threshold: float = 0.0
    run: str | list[str] | None = None
    over: str | list[str] | None = None
    benchmarks: list[str] = list(PAPER)
    quantity: str | None = None
    unit: str | None = None
    needs: list[str] = []
    at_least: int | None = None
    training: bool = True

    @model_validator(mode="after")
    def _check_quantity(self):
        runs, quantity = bool(self.run and self.over), bool(self.quantity and self.unit)
        if runs == quantity:
            raise ValueError("give either run and over, or quantity and unit")
        return self

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The runs of `run`, and those of `over`."""
        return tuple([names] if isinstance(names, str) else names for names in (self.run, self.over))


@functools.cache
def ledger() -> tuple[dict[str, Claim], dict[str, float]]:
    """The claims by id, and the smallest effect of interest of each unit.

    ValueError for a faulty entry, an id that occurs twice, a premise or a unit that is not in the ledger.
    """
    content = yaml.safe_load(LEDGER.read_text(encoding="utf-8"))
    claims: dict[str, Claim] = {}
    for notebook, entries in content["claims"].items():
        for entry in entries:
            claim = Claim(notebook=notebook, **entry)
            if claim.id in claims:
                raise ValueError(f"{LEDGER.name}: the id {claim.id} occurs twice")
            claims[claim.id] = claim
    for claim in claims.values():
        if unknown := set(claim.needs) - set(claims):
            raise ValueError(f"{LEDGER.name}: {claim.id} needs {', '.join(sorted(unknown))}, which are no entries")
        if claim.unit and claim.unit not in content["smallest"]:
            raise ValueError(f"{LEDGER.name}: {claim.id}: no smallest effect of interest in {claim.unit}")
    return claims, content["smallest"]


def smallest(unit: str) -> float:
    """The smallest effect of interest in a unit, NaN without one; of MME's points it is a share of their highest."""
    name, _, highest = unit.partition(" points of ")
    return ledger()[1][name] * float(highest or 1) if unit else np.nan


def row(id: str, interval: Interval | None, *, part: str = "", unit: str = "", paper=np.nan, missing: str = "") -> dict:
    """One row of the ledger: the interval of the quantity, in the claim's unit, or None and what is `missing` for it.

    `unit` is of a claim about scores, for one with a quantity has its own; `paper` the same quantity from the paper's
    numbers, where it gives them.  ValueError: neither an interval nor what is missing.
    """
    claim = ledger()[0][id]
    if interval and np.isnan(interval.value):
        interval, missing = None, NO_SEED
    if (interval is None) != bool(missing):
        raise ValueError(f"{id}: a row has either an interval or what is missing")
    columns = interval.columns() if interval else {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0, "seeds": 0}
    return {"id": id, "part": part, "unit": claim.unit or unit, "paper": paper, "missing": missing} | columns


def gains(profile: str, notebook: str) -> list[dict]:
    """Rows of the claims of a notebook that compare the scores of runs, one per benchmark.

    All runs of these claims together tell the noise of a seed (`scores.seed_noise`).
    """
    rows, scale = [], scores.highest_mme(profile)
    own = [claim for claim in ledger()[0].values() if claim.notebook == notebook and claim.run is not None]
    together = [name for claim in own for side in claim.sides for name in side]
    for claim in own:
        sides = claim.sides
        for benchmark in claim.benchmarks:
            one = scores.change(profile, claim.run, claim.over, {benchmark: 1.0}, together=together)
            printed = [[paper.score(name, benchmark) for name in names] for names in sides]
            known = all(value is not None for side in printed for value in side)
            rows.append(
                row(
                    claim.id,
                    one,
                    part=benchmark,
                    unit=f"MME points of {scale}" if benchmark == "mme" else "points",
                    paper=np.mean(printed[0]) - np.mean(printed[1]) if known else np.nan,
                    missing="" if one else _missing(profile, sides[0] + sides[1], benchmark),
                )
            )
    return rows


def _missing(profile: str, runs: Iterable[str], benchmark: str) -> str:
    absent = [run for run in runs if not answer_files(profile, run, benchmark)]
    return f"{benchmark} of {', '.join(absent)}" if absent else NO_SEED


def write(out: Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Write the rows of one notebook's claims, in the ledger's order, to `claims.csv` in its folder of results.

    Returns them as a table.  ValueError: a claim of the notebook has no row, or a row is of another notebook's claim.
    """
    table = pd.DataFrame(rows, columns=COLUMNS)
    own = [claim.id for claim in ledger()[0].values() if claim.notebook == out.name]
    if set(own) != set(table["id"]):
        raise ValueError(f"{out.name} writes rows of {sorted(set(table['id']))}, the ledger has its claims {own}")
    table = table.sort_values("id", key=lambda ids: ids.map(own.index), kind="stable", ignore_index=True)
    table.to_csv(out / "claims.csv", index=False, float_format="%.10g")
    return table


def read(profile: str) -> pd.DataFrame:
    """The rows that the notebooks have written, in the ledger's order; a claim without rows has one that says so."""
    tables = []
    for claim in ledger()[0].values():
        file = Paths(profile).results(claim.notebook) / "claims.csv"
        table = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=COLUMNS)
        table = table[table["id"] == claim.id].fillna({"part": "", "missing": ""})
        if table.empty:
            table = pd.DataFrame([row(claim.id, None, missing=f"notebook {claim.notebook}")], columns=COLUMNS)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def decide(rows: pd.DataFrame, family: bool = True) -> pd.DataFrame:
    """Apply the rule to rows as `read` returns them; all rows are one family, or each is one for itself.

    Adds section, claim, expect, threshold and notebook of their claim; p and p_equivalence as they are, q and
    q_equivalence adjusted; verdict; and fails, the needed premises that do not hold for it, each with its `state`.
    """
    claims, _ = ledger()
    own = pd.DataFrame([claims[name].model_dump() for name in rows["id"]], index=rows.index)
    table = rows.join(own[["section", "claim", "expect", "threshold", "notebook"]])
    numbers = {name: table[name].to_numpy(float) for name in ("value", "error", "df", "threshold")}
    effect = table["unit"].map(smallest).to_numpy(float)
    table["p"] = p_difference(**numbers)
    table["p_equivalence"] = p_equivalence(**numbers, smallest=effect)
    noise_unknown = (table["seeds"] < 2) & table["id"].map({name: claim.training for name, claim in claims.items()})
    tested = table["p"].notna() & ~noise_unknown
    for p, q in (("p", "q"), ("p_equivalence", "q_equivalence")):
        table[q] = np.nan
        table.loc[tested, q] = false_discovery_control(table.loc[tested, p]) if family else table.loc[tested, p]
    claimed = (table["value"] > table["threshold"]) == (table["expect"] == "above")
    conditions = [
        table["missing"] != "",
        table["q_equivalence"] <= RATE,
        (table["q"] <= RATE) & claimed,
        table["q"] <= RATE,
    ]
    verdicts = ["not run", "no difference", "reproduced", "contradicted"]
    table["verdict"] = np.select(conditions, verdicts, "inconclusive")
    # Of a whole premise, and of each part that a row may be about, too.
    states = {(name, None): state(claims[name], rows["verdict"]) for name, rows in table.groupby("id")}
    for (name, part), rows in table.groupby(["id", "part"]):
        if claims[name].at_least is None:
            states[name, part] = state(claims[name], rows["verdict"])
    table["fails"] = [
        ", ".join(
            f"{name} ({found})"
            for name in claims[id].needs
            if (found := states.get((name, part), states.get((name, None), "open"))) != "holds"
        )
        for id, part in zip(table["id"], table["part"], strict=True)
    ]
    return table


def state(claim: Claim, verdicts: pd.Series) -> str:
    """Whether a premise holds, by the verdicts of all its rows: "holds", "fails", or "open" until more is decided."""
    needed = len(verdicts) if claim.at_least is None else claim.at_least
    if (verdicts == "reproduced").sum() >= needed:
        return "holds"
    undecided = ["inconclusive", "not run"]
    if claim.threshold:
        undecided.append("no difference")  # at the threshold: it may be either side of it
    possible = verdicts.isin(["reproduced", *undecided]).sum()
    return "open" if possible >= needed else "fails"


def alone(rows: pd.DataFrame):
    """The rows of one notebook, to read, each decided for itself: whether a difference is there, and which it is."""
    caption = "Each row decided for itself, at 5 %; what counts is its verdict among all rows, in the notebook claims."
    return styled(decide(rows, family=False), caption).hide(subset=["premises that fail or are open"], axis="columns")


def styled(table: pd.DataFrame, caption: str):
    """What `decide` returns, to read: the claim once, then its parts; the paper's value in italics."""
    first = ~table["id"].duplicated()
    shown = pd.DataFrame({
        "section": table["section"].where(first, ""),
        "claim": table["claim"].where(first, ""),
        "part": table["part"].map(lambda part: scores.TITLES.get(part, part)),
        "claimed": table["expect"] + table["threshold"].map(" {:g}".format),
        "paper": table["paper"],
        "ours": table["value"].round(9),  # of equal scores some 1e-16 is left
        "low": table["low"],
        "high": table["high"],
        "unit": table["unit"],
        "n": table["n"],
        "seeds": table["seeds"],
        "verdict": table["verdict"].mask(
            (table["verdict"] == "no difference") & (table["threshold"] != 0), "at the threshold"
        ),
        "missing": table["missing"],
        "premises that fail or are open": table["fails"].where(table["missing"] == "", ""),
    })  # fmt: skip
    style = shown.style.hide(axis="index").set_caption(caption).set_uuid("claims")
    style = style.format("{:+.3g}", subset=["paper", "ours", "low", "high"], na_rep="")
    style = style.set_properties(subset="paper", **paper.LOOK)
    return style.map(lambda word: f"font-weight: bold; color: {COLOURS.get(word, NEAR)}", subset="verdict")
