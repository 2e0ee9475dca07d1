"""Sentences that a notebook concludes with, computed from its own tables; nothing here knows what to expect."""

from collections.abc import Iterable

import pandas as pd

from workbook.results.curves import layer_drop
from workbook.results.scores import TITLES, disagreements, reference


def verdict(low: float, high: float) -> str:
    """What an interval of a difference allows to say."""
    if pd.isna(low) or pd.isna(high):
        return "no interval"
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def seeds_text(seeds: int) -> str:
    """The number of seeds, with what a single one cannot say."""
    return f"{seeds} seeds" if seeds > 1 else "1 seed, so the interval is over questions alone"


def gain_lines(gains: pd.DataFrame) -> list[str]:
    """A sentence per comparison of the official scores in what `gains` returns, and how many there are of each kind."""
    official = gains[gains["score_name"] == "official"] if len(gains) else gains
    lines = [
        f"`{row.run}` against `{row.reference}` on {TITLES[row.benchmark]}: {row.gain:+.2f} "
        f"[{row.low:+.2f}, {row.high:+.2f}] points "
        f"(n = {row.n}, {seeds_text(row.seeds)}): **{verdict(row.low, row.high)}**."
        for row in official.itertuples()
    ]
    return lines + ([count_line(official)] if len(lines) > 1 else [])


def count_line(gains: pd.DataFrame) -> str:
    """How many of several comparisons are higher, lower and not told apart, and how many chance alone would give."""
    verdicts = [verdict(row.low, row.high) for row in gains.itertuples()]
    return (
        f"Of {len(verdicts)} comparisons {verdicts.count('higher')} are higher, {verdicts.count('lower')} lower and "
        f"{verdicts.count('not told apart')} not told apart; without any effect, 95 % intervals would call "
        f"{0.05 * len(verdicts):.1f} of them higher or lower by chance."
    )


def missing_line(missing: Iterable[str]) -> list[str]:
    """What has not been run, as a list of none or one sentence."""
    names = ", ".join(f"`{name}`" for name in missing)
    return [f"Not run in this profile: {names}."] if names else []


def similarity_lines(similarity: pd.DataFrame, curve: pd.DataFrame) -> list[str]:
    """Where each run's similarity to the encoder starts, ends and is lowest, and whether the loss is told apart."""
    lines = []
    for run, line in curve.groupby("run", sort=False):
        line = line.set_index("layer")
        first, last = line.loc[line.index.min()], line.loc[line.index.max()]
        lost, low, high = layer_drop(similarity, run)
        word = {"higher": "a loss", "lower": "a rise"}.get(verdict(low, high), "no change that can be told")
        lines.append(
            f"`{run}`: CKNNA is {first['cknna']:.3f} at layer {first.name} and {last['cknna']:.3f} at layer "
            f"{last.name}, {word} ({-lost:+.3f} [{-high:+.3f}, {-low:+.3f}]; {int(first['images'])} images, "
            f"{int(first['seeds'])} seed(s)); lowest at layer {line['cknna'].idxmin()}; chance is "
            f"{line['chance'].mean():.3f}."
        )
    return lines


def difference_lines(difference: pd.DataFrame, run: str, reference: str, what: str, digits: int = 3) -> list[str]:
    """In which layers a run's curve lies above or below another's, from what `layer_difference` returns."""
    if difference.empty:
        return [f"`{run}` against `{reference}`, {what}: not run."]
    found = {word: [int(row.layer) for row in difference.itertuples() if verdict(row.low, row.high) == word]
             for word in ("higher", "lower")}  # fmt: skip
    parts = [f"{word} in layers {', '.join(map(str, layers))}" for word, layers in found.items() if layers]
    widest = difference.loc[difference["difference"].abs().idxmax()]
    return [
        f"`{run}` against `{reference}`, {what}: {'; '.join(parts) or 'not told apart in any layer'}; the largest "
        f"difference is {widest['difference']:+.{digits}f} [{widest['low']:+.{digits}f}, {widest['high']:+.{digits}f}] "
        f"at layer {int(widest['layer'])} ({int(widest['items'])} items, {int(widest['seeds'])} seed(s))."
    ]


def drop_lines(table: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """What shuffling costs each run, and whether one run loses more than its reference."""
    lines = [
        f"`{row.run}`, {row.category}: {row.original:.1f} of {row.n} right, {row.shuffled:.1f} with shuffled features, "
        f"a change of {-row.drop:+.1f} [{-row.high:+.1f}, {-row.low:+.1f}] (mean of {row.permutations} permutations, "
        f"{row.seeds} seed(s)): **{verdict(-row.high, -row.low)}**."
        if row.n else f"`{row.run}`, {row.category}: not run."
        for row in table.itertuples()
    ]  # fmt: skip
    return lines + [
        f"`{row.run}` loses {row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}] more answers of {row.n} than "
        f"`{row.reference}` ({row.category}): **{verdict(row.low, row.high)}**."
        for row in differences.itertuples()
    ]


def efficiency_lines(curve: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """When each aligned run passes its finished baseline on the average, and what its steps cost more."""
    lines = []
    average = curve[curve["benchmark"] == "average"] if len(curve) else curve
    for run in dict.fromkeys(average["run"]) if len(average) else ():
        base, mine = average[average["run"] == reference(run)], average[average["run"] == run]
        end = base[base["fraction"] == 1]
        if reference(run) == run or end.empty:
            continue
        passed = mine[mine["score"] > end["score"].iat[0]]
        when = (f"is first above it after step {passed['step'].iat[0]} of {mine['step'].max()}" if len(passed)
                else "never is above it")  # fmt: skip
        own = base[base["score"] > end["score"].iat[0]]
        early = f"; so is the baseline itself after step {own['step'].iat[0]}" if len(own) else ""
        lines.append(
            f"`{run}`: the finished baseline averages {end['score'].iat[0]:.2f} % [{end['low'].iat[0]:.2f}, "
            f"{end['high'].iat[0]:.2f}]; the aligned run {when}{early} ({int(mine['seeds'].min())} seed(s))."
        )
    for run, rows in costs[costs["run"] != costs["reference"]].groupby("run", sort=False) if len(costs) else ():
        spread = f" (from {rows['overhead'].min():+.1%} to {rows['overhead'].max():+.1%})" if len(rows) > 1 else ""
        lines.append(f"`{run}`: a step takes {rows['overhead'].mean():+.1%}{spread} compared with its baseline, "
                     f"{len(rows)} seed(s).")  # fmt: skip
    return lines or ["No learning curve has been measured in this profile."]


def disagreement_lines(profile: str, run: str, reference: str, benchmark: str) -> list[str]:
    """How often one of two runs alone is right, with the exact test of no difference (McNemar)."""
    from scipy.stats import binomtest

    found = disagreements(profile, run, reference, benchmark)
    if found.empty:
        return [f"`{run}` and `{reference}` do not disagree on {TITLES[benchmark]}, or have not been evaluated."]
    mine = int((found["right"] == run).sum())
    return [
        f"On {TITLES[benchmark]}, first seed: `{run}` alone is right on {mine} questions, `{reference}` alone on "
        f"{len(found) - mine} (McNemar's exact test: p = {binomtest(mine, len(found)).pvalue:.3f})."
    ]
