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

from viral_core import paper
from viral_core import profile as profiles
from viral_core.benchmarks import PAPER, differences
from viral_core.benchmarks.answers import read_answers
from viral_core.benchmarks.registry import read
from viral_core.paths import ROOT, RunPaths
from viral_core.results.reading import Answered, answers, checkpoints
from viral_core.results.scores import TITLES

LEDGER = Path(__file__).with_name("claims.yaml")
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not run")
COLOURS = dict(zip(VERDICTS, ("#009E73", "#D55E00", "#666666", "#999999"), strict=True))
FACTS = {"id", "section", "claim", "quantity", "expect", "threshold"}  # the other keys are the quantity's arguments
COLUMNS = ["id", "section", "claim", "expect", "threshold", "quantity", "part", "value", "low", "high", "unit", "n",
           "paper", "verdict", "missing"]  # fmt: skip
RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """A quantity with its 95 % interval, NaN where there is none; `missing` says what has to be run first.

    `n`: what the interval resamples, as text, such as "600 questions, 3 seeds".  `paper`: the same quantity from the
    paper's numbers, NaN where it gives none.  Accuracies are in points (hundredths), MME in its own.
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
    if one := sorted(set(ledger.loc[ledger["n"].str.contains(r"\b1 seed"), "part"])):
        lines.append(
            f"Rows with one seed ({', '.join(one)}) carry the noise of the questions, not that of the training."
        )
    return lines


class Evidence:
    """What a profile's runs have shown, read once when it is asked for."""

    def __init__(self, profile: str):
        self.settings, self.paths = profiles.load(profile), RunPaths(profile)
        self.answers = lru_cache(None)(self._answers)

    def seeds(self, run: str) -> list[int]:
        """Seeds of a run; `Missing` where the profile does not name it."""
        if run not in self.settings.runs:
            raise Missing(f"{run} is not in profile {self.settings.name}")
        return self.settings.runs[run]

    def folders(self, run: str, kind: Path, file: str = "") -> dict[int, Path]:
        """What a kind of stage has made of a run, by seed; `Missing` where there is nothing."""
        found = {seed: ROOT / kind / f"{run}-s{seed}{file}" for seed in self.seeds(run)}
        found = {seed: path for seed, path in found.items() if path.exists()}
        if not found:
            raise Missing(f"{run}: {kind.name}")
        return found

    def _answers(self, run: str, benchmark: str) -> Answered:
        """Answered rows of a run to one of the paper's benchmarks, all its files, by seed."""
        self.seeds(run)
        if not (found := answers(self.settings.name, run, benchmark)):
            raise Missing(f"{run}: {benchmark}")
        return found

    def similarity(self, run: str) -> pd.DataFrame:
        """CKNNA per seed, image and layer: token reading, unclamped."""
        files = self.folders(run, self.paths.similarities, ".csv")
        table = pd.concat([pd.read_csv(file) for file in files.values()])
        return table[(table["reading"] == "tokens") & (table["clamp"] == 1.0)]


def _unit(benchmark: str) -> tuple[float, str]:
    return (1.0, "MME points") if benchmark == "mme" else (100.0, "points")


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval of (n,) values, one per cluster; NaN are left out."""
    from scipy.stats import bootstrap

    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (float(values.mean()) if len(values) else math.nan, math.nan, math.nan)
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def _sum_interval(parts: Sequence[Measured], weights: Sequence[float]) -> tuple[float, float, float]:
    """A weighted sum of quantities measured on different questions: their half widths add in quadrature."""
    value = sum(w * p.value for w, p in zip(weights, parts, strict=True))
    half = math.sqrt(sum((w * (p.high - p.low) / 2) ** 2 for w, p in zip(weights, parts, strict=True)))
    return value, value - half, value + half


def gain(
    evidence: Evidence, run: str | list[str], over: str | list[str], benchmarks: Sequence[str] = tuple(PAPER)
) -> list[Measured]:
    """Paired difference of official scores, `run` minus `over`, per benchmark of the paper.

    Questions and seeds are resampled.  Lists of runs stand for their mean: then the first seed of each is taken, and
    the runs are resampled like seeds.
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
        seeds = sorted(set(sides[0][0]) & set(sides[1][0]))
        pairs = _paired([[side[0][seed] for seed in seeds] for side in sides])
        repeated = _seeds(len(seeds))
    else:  # all pairs of the two lists
        first = [[found[min(found)] for found in side] for side in sides]
        pairs = _paired([[a for a in first[0] for _ in first[1]], [b for _ in first[0] for b in first[1]]])
        repeated = f"{len(runs)} against {len(others)} runs, 1 seed"
    if not pairs[0]:
        return Measured(**facts, missing=f"{runs[0]} and {others[0]} share no seed")
    found = differences(benchmark, *pairs, resamples=RESAMPLES)["official"]
    return Measured(
        **facts, value=scale * found.value, low=scale * found.low, high=scale * found.high,
        n=f"{found.n} questions, {repeated}",
    )  # fmt: skip


def _paired(sides: Sequence[Sequence[list[list[dict]]]]) -> list[list[list[dict]]]:
    """Two sides of seeds with their sampled answers, flattened so that answer i stands against answer i."""
    pairs = [pair for seed in zip(*sides, strict=True) for pair in zip(*seed, strict=False)]
    return [list(side) for side in zip(*pairs, strict=True)] or [[], []]


def relative_gain(
    evidence: Evidence, pairs: Sequence[Sequence[str]], benchmarks: Sequence[str] = tuple(PAPER)
) -> list[Measured]:
    """Gain divided by the reference's score, in percent, averaged over pairs (run, reference) and benchmarks.

    The intervals of the gains are combined as if independent.  A cell whose reference scores 0 has no relative gain and
    is left out; the number of cells says so.
    """
    from viral_core.benchmarks import score

    parts, weights, absent, printed, undefined = [], [], [], [], 0
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
            seeds = evidence.answers(over, benchmark)
            reference = scale * np.mean(
                [score(benchmark, rows)["official"] for runs in seeds.values() for rows in runs]
            )
            if reference <= 0:
                undefined += 1
                continue
            parts.append(found)
            weights.append(100 / reference)
    facts = {"part": "mean", "unit": "%", "paper": float(np.mean(printed)) if printed else math.nan}
    if absent or not parts:
        return [Measured(**facts, missing="; ".join(dict.fromkeys(absent)) or "a reference that scores above 0")]
    value, low, high = _sum_interval(parts, [w / len(parts) for w in weights])
    return [Measured(**facts, value=value, low=low, high=high, n=f"{len(parts)} of {len(parts) + undefined} cells")]


def gain_contrast(evidence: Evidence, run: str, over: str, more: list[str], less: list[str]) -> list[Measured]:
    """Mean gain on the benchmarks `more` minus mean gain on `less`, in points; the gains' intervals as independent."""
    cells = [_gain(evidence, [run], [over], benchmark) for benchmark in [*more, *less]]
    weights = [1 / len(more)] * len(more) + [-1 / len(less)] * len(less)
    facts = {"part": "mean", "unit": "points", "paper": sum(w * c.paper for w, c in zip(weights, cells, strict=True))}
    if absent := [cell.missing for cell in cells if cell.missing]:
        return [Measured(**facts, missing="; ".join(dict.fromkeys(absent)))]
    value, low, high = _sum_interval(cells, weights)
    return [Measured(**facts, value=value, low=low, high=high, n=f"{len(cells)} benchmarks, {cells[0].n}")]


def _per_image(evidence: Evidence, run: str, start: float, end: float = 1.0) -> pd.Series:
    """Mean CKNNA over seeds and the layers between two relative depths, per image."""
    table = evidence.similarity(run)
    blocks = table["layer"].max()
    chosen = table[table["layer"].between(round(start * blocks), round(end * blocks))]
    return chosen.groupby("image")["cknna"].mean()


def cknna_change(evidence: Evidence, run: str, start: float, end: float) -> list[Measured]:
    """CKNNA at relative depth `end` minus that at `start` (0 is the model's input), paired by image."""
    facts = {"part": f"depth {start:g} to {end:g}", "unit": "CKNNA"}
    try:
        change = _per_image(evidence, run, end, end) - _per_image(evidence, run, start, start)
        seeds = evidence.similarity(run)["seed"].nunique()
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    value, low, high = _mean_interval(change.to_numpy())
    return [Measured(**facts, value=value, low=low, high=high, n=f"{change.count()} images, {_seeds(seeds)}")]


def cknna_gain(evidence: Evidence, run: str, over: str, start: float) -> list[Measured]:
    """CKNNA of `run` minus that of `over`, mean over the layers from relative depth `start` on, paired by image."""
    facts = {"part": f"from depth {start:g}", "unit": "CKNNA"}
    try:
        change = _per_image(evidence, run, start) - _per_image(evidence, over, start)
        seeds = [evidence.similarity(name)["seed"].nunique() for name in (run, over)]
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    value, low, high = _mean_interval(change.to_numpy())
    return [Measured(**facts, value=value, low=low, high=high, n=f"{change.count()} images, {_seeds(min(seeds))}")]


def entropy_gain(evidence: Evidence, run: str, over: str, depth: float | None = None) -> list[Measured]:
    """Spatial entropy of `run` minus that of `over`, paired by question; renormalised (primary) and raw reading.

    Mean over heads, and over layers unless a relative depth names one.
    """
    where, rows = "all layers" if depth is None else f"depth {depth:g}", []
    for reading in ("renormalised", "raw"):
        facts = {"part": f"{where}, {reading}", "unit": "nats"}
        try:
            sides, seeds = [], []
            for name in (run, over):
                files = evidence.folders(name, evidence.paths.root / "attention", "/questions.csv")
                table = pd.concat([pd.read_csv(file) for file in files.values()])
                table = table[table["reading"] == reading]
                if table.empty:
                    raise Missing(f"{name}: attention, reading {reading}")
                if depth is not None:
                    table = table[table["layer"] == max(1, round(depth * table["layer"].max()))]
                sides.append(table.groupby("question")["entropy"].mean())
                seeds.append(len(files))
        except Missing as absent:
            rows.append(Measured(**facts, missing=str(absent)))
            continue
        change = (sides[0] - sides[1]).to_numpy()
        value, low, high = _mean_interval(change)
        n = f"{np.count_nonzero(~np.isnan(change))} questions, {_seeds(min(seeds))}"
        rows.append(Measured(**facts, value=value, low=low, high=high, n=n))
    return rows


def permutation_gain(evidence: Evidence, run: str, over: str, category: str = "Relation") -> list[Measured]:
    """How much more accuracy `run` loses than `over` when its visual tokens are shuffled, paired by question."""
    cells = paper.wide("3").droplevel("row")
    asked = float(paper.text().set_index("quantity").loc["spatial_questions", "value"])
    printed = 100 * (cells.loc[run, "drop"] - cells.loc[over, "drop"]) / asked
    facts = {"part": f"cv_bench, {category}", "unit": "points", "paper": float(printed)}
    try:
        sides, kept = [], []
        for name in (run, over):
            folders = evidence.folders(name, evidence.paths.root / "permutation")
            drops = [_drops(folder, category) for folder in folders.values()]
            sides.append(pd.concat([drop for drop, _ in drops]).groupby(level=0).mean())
            kept.append((len(drops), drops[0][1]))
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    value, low, high = _mean_interval(100 * (sides[0] - sides[1]).to_numpy())
    (seeds, shuffles), _ = sorted(kept)
    n = f"{len(sides[0])} questions, {_seeds(seeds)}, {shuffles} permutations"
    return [Measured(**facts, value=value, low=low, high=high, n=n)]


def _drops(folder: Path, category: str) -> tuple[pd.Series, int]:
    """Per question of a category: right as it is minus the share of permutations that are right; and their number."""
    right = {}
    for file in sorted(folder.glob("*.jsonl")):
        settings, runs = read_answers(file)
        rows = [row for row in runs[0] if row["category"] == category]
        named = read(settings["benchmark"], rows, "official")
        right[file.stem] = pd.Series({r["id"]: float(n == r["answer"]) for r, n in zip(rows, named, strict=True)})
    shuffled = [values for name, values in right.items() if name != "original"]
    if "original" not in right or not shuffled:
        raise Missing(f"{folder.name}: permutation")
    return right["original"] - sum(shuffled) / len(shuffled), len(shuffled)


def early_gain(evidence: Evidence, run: str, over: str, fraction: float, benchmarks: Sequence[str]) -> list[Measured]:
    """Mean score of `run` at its checkpoint nearest to a fraction of the training minus the final one of `over`."""
    facts = {"part": f"at {fraction:.0%} of the steps", "unit": "points"}
    cells = []
    try:
        step = _checkpoint(evidence, run, fraction)
        for benchmark in benchmarks:
            early, final = answers(evidence.settings.name, run, benchmark, step), evidence.answers(over, benchmark)
            if not (seeds := sorted(set(early) & set(final))):
                raise Missing(f"{run}: {benchmark} of its checkpoints")
            pairs = _paired([[early[seed] for seed in seeds], [final[seed] for seed in seeds]])
            found = differences(benchmark, *pairs, resamples=RESAMPLES)["official"]
            bounds = [100 * value for value in (found.value, found.low, found.high)]
            cells.append(Measured(benchmark, "points", *bounds, n=f"{_seeds(len(seeds))}"))
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    value, low, high = _sum_interval(cells, [1 / len(cells)] * len(cells))
    n = f"{' and '.join(benchmarks)}, {cells[0].n}"
    return [Measured(**facts, value=value, low=low, high=high, n=n)]


def _checkpoint(evidence: Evidence, run: str, fraction: float) -> int:
    """Step of the evaluated checkpoint nearest to a fraction of the training."""
    described = evidence.folders(run, evidence.paths.root / "stage2", "/run.json")
    steps = json.loads(next(iter(described.values())).read_text())["training"]["step"]
    if not (kept := checkpoints(evidence.settings.name, run)):
        raise Missing(f"{run}: learning_curve")
    return min(kept, key=lambda step: abs(step / steps - fraction))


def overhead(evidence: Evidence, run: str, over: str) -> list[Measured]:
    """Relative difference of the time per step (0.03 is 3 %), ratio of medians over the logs' intervals, all seeds."""
    from scipy.stats import bootstrap

    from viral_core.metrics import read_log

    stated = paper.text().set_index("quantity").loc["overhead", "value"]
    facts = {"part": "time per step", "unit": "share", "paper": float(stated) / 100}
    try:
        sides, seeds = [], []
        for name in (run, over):
            folders = evidence.folders(name, evidence.paths.root / "stage2", "/log.jsonl")
            spans = [read_log(file.parent)[["step", "seconds"]].diff().iloc[1:] for file in folders.values()]
            sides.append(np.concatenate([(span["seconds"] / span["step"]).to_numpy() for span in spans]))
            seeds.append(len(spans))
    except Missing as absent:
        return [Measured(**facts, missing=str(absent))]
    if min(map(len, sides)) < 2:
        return [Measured(**facts, missing=f"{run}, {over}: logs of three events or more")]

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(a, axis=axis) / np.median(b, axis=axis) - 1

    found = bootstrap(sides, ratio, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    n = f"{min(map(len, sides))} logging intervals, {_seeds(min(seeds))}"
    bounds = {"value": float(ratio(*sides)), "low": float(found.low), "high": float(found.high)}
    return [Measured(**facts, **bounds, n=n)]


QUANTITIES: dict[str, Callable[..., list[Measured]]] = {
    function.__name__: function
    for function in (
        gain, relative_gain, gain_contrast, cknna_change, cknna_gain, entropy_gain, permutation_gain, early_gain,
        overhead,
    )
}  # fmt: skip
