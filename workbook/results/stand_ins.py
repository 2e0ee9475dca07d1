"""What the embedded stand-ins have learned, from the metrics.json that each one's training has left."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from workbook.results.reading import settings_of

# Each probe, and what metrics.json says of how many patches it was asked.
PROBES = {"category": "objects", "occupied": "patches", "facing": "fronts", "position": "patches"}


def language_accuracies(profile: str) -> pd.DataFrame:
    """Held-out questions answered exactly where the scene is spelled out in words.

    Returns:
        model, steps, question, accuracy, low, high (95 %, Wilson), n; empty where no language model is trained.
    """
    rows = [
        (name, metrics["steps"], question, *_share(right, metrics["rows"]))
        for name, metrics in _metrics(profile, "languages")
        for question, right in metrics["text_accuracy"].items()
    ]
    return pd.DataFrame(rows, columns=["model", "steps", "question", "accuracy", "low", "high", "n"])


def probe_accuracies(profile: str) -> pd.DataFrame:
    """What linear probes read from each patch's feature on held-out scenes (`workbook.world.probe`).

    Returns:
        model, steps, probe, accuracy, low, high (95 %, Wilson, patches taken as independent), n.
    """
    rows = [
        (name, metrics["steps"], probe, *_share(metrics["probe"][probe], metrics["probe"][counted]))
        for group in ("visions", "teachers")
        for name, metrics in _metrics(profile, group)
        for probe, counted in PROBES.items()
    ]
    return pd.DataFrame(rows, columns=["model", "steps", "probe", "accuracy", "low", "high", "n"])


def stand_in_lines(language: pd.DataFrame, probes: pd.DataFrame) -> list[str]:
    """Sentences on what each language model answers worst, and on what is read best and worst by each probe."""
    lines = []
    for name, table in language.groupby("model", sort=False):
        worst = table.loc[table["accuracy"].idxmin()]
        lines.append(
            f"`{name}` answers {(table['accuracy'] >= 0.95).sum()} of {len(table)} kinds of question at 0.95 or more; "
            f"its worst is `{worst['question']}`: {worst['accuracy']:.2f} [{worst['low']:.2f}, {worst['high']:.2f}] "
            f"(n = {worst['n']})."
        )
    for probe, table in probes.groupby("probe", sort=False):
        best, worst = (table.loc[index] for index in (table["accuracy"].idxmax(), table["accuracy"].idxmin()))
        lines.append(
            f"`{probe}` is read best from `{best['model']}` ({best['accuracy']:.2f}) and worst from `{worst['model']}` "
            f"({worst['accuracy']:.2f}), n = {best['n']} patches."
        )
    return lines or ["No model of this profile's own has been trained."]


def _metrics(profile: str, group: str) -> Iterator[tuple[str, dict]]:
    """Names of the models of a profile that state their metrics, with them."""
    for name, model in getattr(settings_of(profile), group).items():
        file = Path(model.path) / "metrics.json"
        if file.is_file():
            yield name, json.loads(file.read_text())


def _share(accuracy: float, n: int) -> tuple[float, float, float, int]:
    low, high = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
    return accuracy, low, high, n
