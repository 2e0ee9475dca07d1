"""The claims ledger: every claim of `claims.yaml` evaluated on what a profile's runs have shown.

A claim names a quantity, a function below that returns one `Measured` per part (benchmark), and the side of a threshold
that it is claimed on.  The rule is the same for all: the 95 % interval lies on the claimed side, "reproduced"; on the
other side, "contradicted"; it holds the threshold, or there is no interval, "inconclusive"; a run or a measurement is
missing, "not run".  Every part is a row with its own verdict: at 95 %, one row in twenty that has no effect behind it
is decided by chance, half of them as reproduced.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from viral_core.measure.intervals import Interval
from workbook import config, paper
from workbook.benchmarks import PAPER
from workbook.paths import Paths
from workbook.results.curves import interval
from workbook.results.permutation import losses
from workbook.results.reading import Answered, answers, checkpoints
from workbook.results.scores import TITLES, resampled

LEDGER = Path(__file__).with_name("claims.yaml")
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not run")
COLOURS = dict(zip(VERDICTS, ("#009E73", "#D55E00", "#666666", "#999999"), strict=True))
FACTS = {"id", "section", "claim", "quantity", "expect", "threshold"}  # the other keys are the quantity's arguments
COLUMNS = ["id", "section", "claim", "expect", "threshold", "quantity", "part", "value", "low", "high", "unit", "n",
           "paper", "verdict", "missing"]  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A quantity with its 95 % interval, NaN where there is none; `missing` says what has to be run first.

    `n`: what the interval resamples, as text, such as "600 questions in 300 clusters, 3 seeds"; a single seed is not
    resampled.  `paper`: the same quantity from the paper's numbers, NaN where it gives none.  Accuracies are in points
    (hundredths), MME in its own.
    """

    part: str
    unit: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: str = ""
    paper: float = math.nan
    missing: str = ""


class Missing(Exception):
    """A run or a measurement that a quantity needs is not there; the message names it."""


def claims() -> list[dict]:
    """The entries of the ledger, checked.

    Raises:
        ValueError: an id twice, a key missing, an unknown quantity, or a side that is none.
    """
    entries = yaml.safe_load(LEDGER.read_text())
    names = [entry.get("id") for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        where = f"{LEDGER.name}: {name}"
        if absent := FACTS - {"threshold"} - set(entry):
            raise ValueError(f"{where}: missing {', '.join(sorted(absent))}")
        if names.count(name) > 1:
            raise ValueError(f"{where}: the id occurs {names.count(name)} times")
        if entry["quantity"] not in QUANTITIES:
            raise ValueError(f"{where}: no quantity {entry['quantity']!r}; there are: {', '.join(QUANTITIES)}")
        if entry["expect"] not in ("above", "below"):
            raise ValueError(f"{where}: expect is above or below, not {entry['expect']!r}")
        entry["section"] = str(entry["section"])
    return entries


def verdict(low: float, high: float, expect: str, threshold: float = 0.0) -> str:
    """The decision rule, for an interval and the side of the threshold (above, below) that is claimed."""
    if math.isnan(low) or math.isnan(high):
        return "inconclusive"
    sides = {"above": low > threshold, "below": high < threshold}
    other = {"above": "below", "below": "above"}[expect]
    return "reproduced" if sides[expect] else "contradicted" if sides[other] else "inconclusive"


def evaluate(profile: str, progress: bool = True) -> pd.DataFrame:
    """The ledger of a profile, one row per claim and part.

    Returns:
        id, section, claim, expect, threshold, quantity, part, value, low, high, unit, n, paper, verdict, missing.

    Raises:
        ValueError: the ledger is faulty, or an evaluation is partial.
    """
    from tqdm.auto import tqdm

    evidence, rows = Evidence(profile), []
    for entry in tqdm(claims(), desc="claims", unit="claim", disable=not progress):
        facts = {key: entry.get(key) for key in ("id", "section", "claim", "expect", "quantity")}
        facts["threshold"] = float(entry.get("threshold", 0))
        arguments = {key: value for key, value in entry.items() if key not in FACTS}
        for found in QUANTITIES[entry["quantity"]](evidence, **arguments):
            said = "not run" if found.missing else verdict(found.low, found.high, facts["expect"], facts["threshold"])
            rows.append({**facts, **vars(found), "verdict": said})
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """Rows of each verdict, per claim: section, claim and a column for each of `VERDICTS`, in the ledger's order."""
    counts = ledger.groupby(["id", "verdict"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=VERDICTS, fill_value=0)
    return ledger.drop_duplicates("id").set_index("id")[["section", "claim"]].join(counts)


def styled(ledger: pd.DataFrame, caption: str):
    """The ledger to read: the claim once, then its parts; the paper's value in italics, verdicts coloured."""
    decided = [_decided(row) for row in ledger.itertuples()]
    table = pd.DataFrame({
        "section": ledger["section"].where(~ledger["id"].duplicated(), ""),
        "claim": ledger["claim"].where(~ledger["id"].duplicated(), ""),
        "part": ledger["part"].map(lambda part: TITLES.get(part, part)),
        "claimed": [f"{row.expect} {row.threshold:g}" for row in ledger.itertuples()],
        "paper": [_number(row.paper, row.unit) for row in ledger.itertuples()],
        "ours [95 % interval]": decided,
        "verdict": ledger["verdict"],
        "n, or what is missing": ledger["n"].where(ledger["missing"] == "", ledger["missing"].map(_first)),
    })  # fmt: skip
    return (
        table.style.hide(axis="index").set_caption(caption).set_uuid("claims")
        .set_properties(subset="paper", **{"font-style": "italic", "color": "#666666"})
        .map(lambda word: f"font-weight: bold; color: {COLOURS[word]}", subset="verdict")
    )  # fmt: skip


def _first(missing: str, shown: int = 2) -> str:
    """The first few of what is missing."""
    names = missing.split("; ")
    return "; ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return ""
    digits = {"CKNNA": 3, "nats": 3, "share": 3, "MME points": 1}.get(unit, 2)
    return f"{value:+.{digits}f}"


def _decided(row) -> str:
    if row.missing:
        return "not run"
    bounds = "no interval" if math.isnan(row.low) else f"{_number(row.low, row.unit)}, {_number(row.high, row.unit)}"
    return f"{_number(row.value, row.unit)} [{bounds}] {row.unit}"


def conclusions(ledger: pd.DataFrame) -> list[str]:
    """Sentences that count the verdicts, the paper's claims and our controls apart."""
    lines = []
    for name, part in (
        ("Paper's claims", ledger["section"] != "control"),
        ("Controls", ledger["section"] == "control"),
    ):
        rows = ledger[part]
        if rows.empty:
            continue
        said = rows["verdict"].value_counts()
        found = ", ".join(f"{said.get(word, 0)} {word}" for word in VERDICTS)
        ran = len(rows) - said.get("not run", 0)
        lines.append(f"{name}: {rows['id'].nunique()} with {len(rows)} rows: {found}.")
        if ran:
            lines.append(
                f"{name}: of the {ran} rows that have been run, about {0.05 * ran:.1f} would be decided by chance "
                "if nothing had an effect."
            )
    if one := list(dict.fromkeys(ledger.loc[ledger["n"].str.contains(r"\b1 seed"), "id"])):
        lines.append(
            f"Claims with one seed ({', '.join(one)}) carry the noise of the questions, not that of the training."
        )
    return lines


class Evidence:
    """What a profile's runs have shown, read once when it is asked for."""

    def __init__(self, profile: str):
        self.settings, self.paths = config.load(profile), Paths(profile)
        self.answers = lru_cache(None)(self._answers)

    def seeds(self, run: str) -> list[int]:
        """Seeds of a run; `Missing` where the profile does not name it."""
        if run not in self.settings.runs:
            raise Missing(f"{run} is not in profile {self.settings.name}")
        return self.settings.runs[run]

    def folders(self, run: str, kind: str, file: str) -> dict[int, Path]:
        """A file of what a kind of stage has made of a run, by seed; `Missing` where there is none."""
        found = {seed: getattr(self.paths, kind)(run, seed) / file for seed in self.seeds(run)}
        found = {seed: path for seed, path in found.items() if path.exists()}
        if not found:
            raise Missing(f"{run}: {file}")
        return found

    def _answers(self, run: str, benchmark: str) -> Answered:
        """Answered rows of a run to one of the paper's benchmarks, all its files, by seed."""
        self.seeds(run)
        if not (found := answers(self.settings.name, run, benchmark)):
            raise Missing(f"{run}: {benchmark}")
        return found

    def similarity(self, run: str) -> pd.DataFrame:
        """CKNNA per seed, image and layer: token reading, unclamped."""
        files = self.folders(run, "measurement", "cknna.csv")
        table = pd.concat([pd.read_csv(file).assign(seed=seed) for seed, file in files.items()])
        return table[table["clamp"] == 1.0]


def _unit(benchmark: str) -> tuple[float, str]:
    return (1.0, "MME points") if benchmark == "mme" else (100.0, "points")


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _questions(found: Interval) -> str:
    return f"{found.n} questions" + (f" in {found.clusters} clusters" if found.clusters < found.n else "")


def _change(ours: pd.DataFrame, theirs: pd.DataFrame, items: str, scale: float = 1.0) -> dict:
    """Mean of ours minus theirs, both (seeds, items), on the seeds and items that both have; both are resampled.

    Raises:
        Missing: they share none.
    """
    ours, theirs = ours.align(theirs, join="inner")
    if ours.empty:
        raise Missing(f"seeds and {items} that both sides have")
    change = (scale * (ours - theirs)).dropna(how="all").dropna(axis=1, how="all")
    found = dict(zip(("value", "low", "high"), map(float, interval(change.to_numpy())), strict=True))
    return {**found, "n": f"{change.shape[1]} {items}, {_seeds(len(change))}"}


def _sum_interval(parts: Sequence[Measured], weights: Sequence[float]) -> tuple[float, float, float]:
    """A weighted sum of quantities measured on different questions: their half widths add in quadrature."""
    value = sum(w * p.value for w, p in zip(weights, parts, strict=True))
    half = math.sqrt(sum((w * (p.high - p.low) / 2) ** 2 for w, p in zip(weights, parts, strict=True)))
    return value, value - half, value + half


def gain(
    evidence: Evidence, run: str | list[str], over: str | list[str], benchmarks: Sequence[str] = tuple(PAPER)
) -> list[Measured]:
    """Paired difference of official scores, `run` minus `over`, per benchmark of the paper.

    Questions and seeds are resampled; the scores of a seed's sampled runs are averaged.  Lists of runs stand for their
    mean: then the first seed of each is taken, and the runs are resampled like seeds.
    """
    runs, others = _listed(run), _listed(over)
    return [_gain(evidence, runs, others, benchmark) for benchmark in benchmarks]


def _gain(evidence: Evidence, runs: list[str], others: list[str], benchmark: str) -> Measured:
    scale, unit = _unit(benchmark)
    printed = [[paper.score(name, benchmark) for name in names] for names in (runs, others)]
    known = all(value is not None for side in printed for value in side)
    facts = {"part": benchmark, "unit": unit, "paper": np.mean(printed[0]) - np.mean(printed[1]) if known else math.nan}
    try:
        sides = [[evidence.answers(name, benchmark) for name in names] for names in (runs, others)]
    except Missing as absent:
        return Measured(**facts, missing=str(absent))
    if len(runs) == len(others) == 1:
        seeds = _common(sides[0][0], sides[1][0])
        pairs = [[side[0][seed] for seed in seeds] for side in sides]
        repeated = _seeds(len(seeds))
    else:  # all pairs of the two lists
        first = [[found[min(found)] for found in side] for side in sides]
        pairs = [[a for a in first[0] for _ in first[1]], [b for _ in first[0] for b in first[1]]]
        repeated = f"{len(runs)} against {len(others)} runs, 1 seed"
    if not pairs[0]:
        return Measured(**facts, missing=f"{runs[0]} and {others[0]} share no seed")
    found = resampled(benchmark, *pairs)["official"]
    return Measured(
        **facts, value=scale * found.value, low=scale * found.low, high=scale * found.high,
        n=f"{_questions(found)}, {repeated}",
    )  # fmt: skip


def _common(ours: Answered, theirs: Answered) -> list[int]:
    """Seeds that two runs both have."""
    return sorted(set(ours) & set(theirs))


def relative_gain(
    evidence: Evidence, pairs: Sequence[Sequence[str]], benchmarks: Sequence[str] = tuple(PAPER)
) -> list[Measured]:
    """Gain divided by the reference's score, in percent, averaged over pairs (run, reference) and benchmarks.

    The intervals of the gains, over questions and seeds, are combined as if independent.  A cell whose reference scores
    0 has no relative gain and is left out; the number of cells says so.
    """
    from workbook.benchmarks import score

    parts, weights, absent, printed, repeated, undefined = [], [], [], [], [], 0
    for run, over in pairs:
        for benchmark in benchmarks:
            ours, theirs = paper.score(run, benchmark), paper.score(over, benchmark)
            if ours is not None and theirs is not None:
                printed.append(100 * (ours - theirs) / theirs)
            found = _gain(evidence, [run], [over], benchmark)
            if found.missing:
                absent.append(found.missing)
                continue
            scale, _ = _unit(benchmark)
            base = evidence.answers(over, benchmark)
            seeds = _common(evidence.answers(run, benchmark), base)
            reference = scale * np.mean([score(benchmark, rows)["official"] for seed in seeds for rows in base[seed]])
            if reference <= 0:
                undefined += 1
                continue
            parts.append(found)
            weights.append(100 / reference)
            repeated.append(len(seeds))
    facts = {"part": "mean", "unit": "%", "paper": float(np.mean(printed)) if printed else math.nan}
    if absent or not parts:
        return [Measured(**facts, missing="; ".join(dict.fromkeys(absent)) or "a reference that scores above 0")]
    value, low, high = _sum_interval(parts, [w / len(parts) for w in weights])
    n = f"{len(parts)} of {len(parts) + undefined} cells, each its questions, {_seeds(min(repeated))} or more"
    return [Measured(**facts, value=value, low=low, high=high, n=n)]


def gain_contrast(evidence: Evidence, run: str, over: str, more: list[str], less: list[str]) -> list[Measured]:
    """Mean gain on the benchmarks `more` minus mean gain on `less`, in points; the gains' intervals as independent."""
    cells = [_gain(evidence, [run], [over], benchmark) for benchmark in [*more, *less]]
    weights = [1 / len(more)] * len(more) + [-1 / len(less)] * len(less)
    facts = {"part": "mean", "unit": "points", "paper": sum(w * c.paper for w, c in zip(weights, cells, strict=True))}
    if absent := [cell.missing for cell in cells if cell.missing]:
        return [Measured(**facts, missing="; ".join(dict.fromkeys(absent)))]
    value, low, high = _sum_interval(cells, weights)
    seeds = min(len(_common(evidence.answers(run, name), evidence.answers(over, name))) for name in [*more, *less])
    n = f"{len(cells)} benchmarks, each its questions, {_seeds(seeds)}"
    return [Measured(**facts, value=value, low=low, high=high, n=n)]


def _per_image(evidence: Evidence, run: str, start: float, end: float = 1.0) -> pd.DataFrame:
    """Mean CKNNA over the layers between two relative depths: (seeds, images)."""
    table = evidence.similarity(run)
    blocks = table["layer"].max()
    chosen = table[table["layer"].between(round(start * blocks), round(end * blocks))]
    return chosen.groupby(["seed", "image"])["cknna"].mean().unstack()


def cknna_change(evidence: Evidence, run: str, start: float, end: float) -> list[Measured]:
    """CKNNA at relative depth `end` minus that at `start` (0 is the model's input), paired by seed and image.

    Images and seeds are resampled.
    """
    facts = {"part": f"depth {start:g} to {end:g}", "unit": "CKNNA"}
    try:
        sides = _per_image(evidence, run, end, end), _per_image(evidence, run, start, start)
        return [Measured(**facts, **_change(*sides, "images"))]
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]


def cknna_gain(evidence: Evidence, run: str, over: str, start: float) -> list[Measured]:
    """CKNNA of `run` minus that of `over`, mean over the layers from relative depth `start` on.

    Paired by seed and image; images and seeds are resampled.
    """
    facts = {"part": f"from depth {start:g}", "unit": "CKNNA"}
    try:
        sides = [_per_image(evidence, name, start) for name in (run, over)]
        return [Measured(**facts, **_change(*sides, "images"))]
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]


def entropy_gain(evidence: Evidence, run: str, over: str, depth: float | None = None) -> list[Measured]:
    """Spatial entropy of `run` minus that of `over`; renormalised (primary) and raw reading.

    Mean over heads, and over layers unless a relative depth names one.  Paired by seed and question; questions and
    seeds are resampled.
    """
    where, rows = "all layers" if depth is None else f"depth {depth:g}", []
    for reading in ("renormalised", "raw"):
        facts = {"part": f"{where}, {reading}", "unit": "nats"}
        try:
            sides = []
            for name in (run, over):
                files = evidence.folders(name, "measurement", "attention/questions.csv")
                table = pd.concat([pd.read_csv(file).assign(seed=seed) for seed, file in files.items()])
                table = table[table["reading"] == reading]
                if table.empty:
                    raise Missing(f"{name}: attention, reading {reading}")
                if depth is not None:
                    table = table[table["layer"] == max(1, round(depth * table["layer"].max()))]
                sides.append(table.groupby(["seed", "question"])["entropy"].mean().unstack())
            rows.append(Measured(**facts, **_change(*sides, "questions")))
        except Missing as absent:
            rows.append(Measured(**facts, missing=str(absent)))
    return rows


def permutation_gain(evidence: Evidence, run: str, over: str, category: str = "Relation") -> list[Measured]:
    """How much more accuracy `run` loses than `over` when its visual tokens are shuffled.

    What a question loses is the mean over its permutations.  Paired by seed and question; questions and seeds are
    resampled.
    """
    cells = paper.table(3).pivot(index="run", columns="benchmark", values="value")
    asked = float(paper.text().set_index("quantity").loc["spatial_questions", "value"])
    printed = 100 * (cells.loc[run, "drop"] - cells.loc[over, "drop"]) / asked
    facts = {"part": f"cv_bench, {category}", "unit": "points", "paper": float(printed)}
    sides = [losses(evidence.settings.name, name, category) for name in (run, over)]
    if absent := [f"{name}: permutation" for name, lost in zip((run, over), sides, strict=True) if lost.empty]:
        return [Measured(**facts, missing="; ".join(absent))]
    try:
        found = _change(*sides, "questions", scale=100)
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    found["n"] += f", mean of {evidence.settings.permutation.permutations} permutations"
    return [Measured(**facts, **found)]


def early_gain(evidence: Evidence, run: str, over: str, fraction: float, benchmarks: Sequence[str]) -> list[Measured]:
    """Mean score of `run` at its checkpoint nearest to a fraction of the training minus the final one of `over`.

    Questions and seeds are resampled for each benchmark, the intervals combined as independent.

    Raises:
        ValueError: one side has been answered greedily and the other by sampled runs, or by another number of them.
    """
    facts = {"part": f"at {fraction:.0%} of the steps", "unit": "points"}
    cells = []
    try:
        step = _checkpoint(evidence, run, fraction)
        for benchmark in benchmarks:
            early, final = answers(evidence.settings.name, run, benchmark, step), evidence.answers(over, benchmark)
            if not (seeds := _common(early, final)):
                raise Missing(f"{run}: {benchmark} of its checkpoints")
            pairs = [[side[seed] for seed in seeds] for side in (early, final)]
            try:
                found = resampled(benchmark, *pairs)["official"]
            except ValueError as error:
                raise ValueError(f"{run} at step {step} against {over}: {error}") from error
            bounds = [100 * value for value in (found.value, found.low, found.high)]
            cells.append(Measured(benchmark, "points", *bounds, n=_seeds(len(seeds))))
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    value, low, high = _sum_interval(cells, [1 / len(cells)] * len(cells))
    n = f"questions of {' and '.join(benchmarks)}, {cells[0].n}"
    return [Measured(**facts, value=value, low=low, high=high, n=n)]


def _checkpoint(evidence: Evidence, run: str, fraction: float) -> int:
    """Step of the evaluated checkpoint nearest to a fraction of the training."""
    described = evidence.folders(run, "run", "run.json")
    steps = json.loads(next(iter(described.values())).read_text())["training"]["step"]
    if not (kept := checkpoints(evidence.settings.name, run)):
        raise Missing(f"{run}: learning_curve")
    return min(kept, key=lambda step: abs(step / steps - fraction))


def overhead(evidence: Evidence, run: str, over: str) -> list[Measured]:
    """Relative difference of the time per step (0.03 is 3 %), seed by seed as `step_costs` takes it from the logs.

    Seeds are resampled: the intervals of one log are no independent measurements.  A single seed has no interval.
    """
    from workbook.logs import learning_curves, step_costs

    stated = paper.text().set_index("quantity").loc["overhead", "value"]
    facts = {"part": "time per step", "unit": "share", "paper": float(stated) / 100}
    try:
        ours, theirs = (evidence.folders(name, "run", "log.jsonl") for name in (run, over))
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    if not (seeds := sorted(set(ours) & set(theirs))):
        return [Measured(**facts, missing=f"{run} and {over} share no seed")]
    logs = learning_curves([side[seed].parent for side in (ours, theirs) for seed in seeds])
    try:
        costs = step_costs(logs, over)
    except ValueError as short:
        return [Measured(**facts, missing=str(short))]
    value, low, high = interval(costs.loc[costs["run"] == run, "overhead"].to_numpy()[:, None])
    return [Measured(**facts, value=value, low=low, high=high, n=_seeds(len(seeds)))]


QUANTITIES: dict[str, Callable[..., list[Measured]]] = {
    function.__name__: function
    for function in (
        gain, relative_gain, gain_contrast, cknna_change, cknna_gain, entropy_gain, permutation_gain, early_gain,
        overhead,
    )
}  # fmt: skip
