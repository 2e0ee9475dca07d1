"""Run cards and costs, from what the stages have left in their folders."""

import json
from pathlib import Path

import yaml

from workbook import paper
from workbook.config import Profile
from workbook.paths import ROOT, Paths
from workbook.scale.costs import read_costs


def run_cards(settings: Profile, paths: Paths) -> list[dict]:
    """A card per run and seed of a profile, in its order.

    Returns:
        name, uses (tables), ran; and of a run that has: configuration (yaml), steps, seconds, losses (the last
        of each), curve (an SVG polyline's points, language loss over the steps), environment and commit.
    """
    cells = paper.tables()
    tables = cells.groupby("run")["table"].unique()
    return [
        _card(f"{run}-s{seed}", [f"Table {number}" for number in tables.get(run, [])], paths.run(run, seed))
        for run, seeds in settings.runs.items()
        for seed in seeds
    ]


def _card(name: str, uses: list[str], folder: Path) -> dict:
    card = {"name": name, "uses": ", ".join(uses), "ran": (folder / "run.json").is_file()}
    if not card["ran"]:
        return card
    described = json.loads((folder / "run.json").read_text())
    lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").is_file() else []
    log = [json.loads(line) for line in lines]
    last = log[-1] if log else {}
    facts = {key: described[key] for key in ("template", "align", "residuals", "reconstruct") if described.get(key)}
    training = described["training"]
    recipe = {key: value for key, value in training.get("recipe", {}).items() if value not in (None, [], ())}
    base = {key: described["base"][key] for key in ("language", "vision")}
    card |= {
        "configuration": yaml.safe_dump({"base": base, **facts, "recipe": recipe}, sort_keys=False, width=90),
        "steps": training.get("step"),
        "seconds": last.get("seconds"),
        "losses": {key: last[key] for key in ("lm_loss", "vra_loss", "ross_loss") if last.get(key) is not None},
        "curve": _points([(entry["step"], entry["lm_loss"]) for entry in log if entry.get("lm_loss") is not None]),
        "environment": _environment(folder / "environment.json"),
    }
    return card


def _points(values: list[tuple[float, float]], width: int = 240, height: int = 48) -> str:
    """Points of a polyline in a box, from (x, y); empty for fewer than two."""
    if len(values) < 2:
        return ""
    xs, ys = zip(*values, strict=True)
    x_range, y_range = max(xs) - min(xs) or 1, max(ys) - min(ys) or 1
    return " ".join(
        f"{width * (x - min(xs)) / x_range:.1f},{height * (1 - (y - min(ys)) / y_range):.1f}" for x, y in values
    )


def _environment(file: Path) -> dict | None:
    """The environment of the training's last start."""
    try:
        return json.loads(file.read_text())[-1]
    except (OSError, ValueError, LookupError):
        return None


def costs(settings: Profile, paths: Paths) -> dict:
    """Time and disk per kind of stage: {"stages": [{stage, runs, seconds, bytes}], "seconds", "bytes"}.

    Time is what the finished stages took as they last ran, None where it has not been noted.
    """
    from workbook import pipeline

    noted, rows = read_costs(paths.root), []
    index = pipeline.stages(settings)
    outs = {kind: {key: ROOT / item["out"] for key, item in entries.items()} for kind, entries in index.items()}
    runs = index["stage2"].items()
    outs["evaluate"] = {key: paths.evaluation(item["run"], item["seed"]) for key, item in runs}
    outs["measure"] = {key: paths.measurement(item["run"], item["seed"]) for key, item in runs}
    for kind, entries in outs.items():
        if not entries:
            continue
        made = {key: out for key, out in entries.items() if out.exists()}
        seconds = [noted[kind, key] for key in made if (kind, key) in noted]
        rows.append({
            "stage": kind, "made": len(made), "planned": len(entries), "seconds": sum(seconds) if seconds else None,
            "timed": len(seconds), "bytes": sum(size(out) for out in made.values()),
        })  # fmt: skip
    total = sum(row["seconds"] or 0 for row in rows)
    return {"stages": rows, "seconds": total or None, "bytes": sum(row["bytes"] for row in rows)}


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
