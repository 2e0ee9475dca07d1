"""The report of a profile: one page with its results, and its executed notebooks as pages beside it, all offline.

`build` reads what the stages have written and renders `index.html.j2`; nothing is computed here.  Tables and figures
are the outputs of the executed notebooks, so that report and notebooks cannot differ.  What has not run says so.
"""

import base64
from pathlib import Path

import jinja2
import pandas as pd

from viral_core import environment
from viral_core.files import new_folder
from workbook import claims, config, lock
from workbook.notebook import notebooks
from workbook.paths import Paths
from workbook.report.pages import PARTS, POLICY, page, section
from workbook.runs import evaluated, names


def build(profile: str, out: str | Path) -> Path:
    """Write the report of a profile into the folder `out`, anew; returns its `index.html`."""
    settings, paths = config.load(profile), Paths(profile)
    shared = {
        "profile": profile,
        "label": settings.label,
        "style": PARTS.joinpath("style.css").read_text(encoding="utf-8"),
    }
    recorded = _recorded()
    sections = [section(name, paths.notebook(name), recorded) for name in notebooks(settings)]
    done = evaluated(profile)
    runs = {f"{run}-s{seed}": (run, seed) in done for run, seed in names(profile)}
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("workbook.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = templates.get_template("index.html.j2").render(
        **shared,
        policy=POLICY,
        sections=sections,
        runs=runs,
        ledger=_ledger(paths.results("claims")),
        times=_table(paths.results("runs") / "times.csv"),
        disk=_table(paths.results("runs") / "disk.csv"),
        environment=environment.describe(),
    )
    with new_folder(out) as folder:
        (folder / "notebooks").mkdir()
        for part in sections:
            if part.ran:
                body = page(part.notebook, shared | {"title": part.title})
                (folder / "notebooks" / f"{part.name}.html").write_text(body, encoding="utf-8")
        (folder / "index.html").write_text(text, encoding="utf-8")
    return Path(out) / "index.html"


def _recorded() -> dict[str, str]:
    """MD5 of what stages wrote, by path, as DVC has recorded it."""
    return {out["path"]: out["md5"] for stage in lock.entries().values() for out in stage.get("outs", ())}


def _ledger(folder: Path) -> dict | None:
    """What the claims notebook decided; None where it has not run.

    `forest` is its picture as base64, empty where nothing was measured; `verdicts` are of the rows of the paper's
    claims.
    """
    file, forest = folder / "claims.csv", folder / "claims.png"
    if not file.is_file():
        return None
    table = pd.read_csv(file, dtype={"section": str}).fillna({"fails": "", "part": ""})
    return {
        "forest": base64.b64encode(forest.read_bytes()).decode() if forest.is_file() else "",
        "verdicts": _verdicts(table[~table["section"].isin(["premise", "control"])]),
        "claims": [
            rows.iloc[0].to_dict()
            | {"verdicts": [verdict for verdict in _verdicts(rows) if verdict[1]]}
            | {"fails": ", ".join(dict.fromkeys(name for text in rows["fails"] for name in text.split(", ") if name))}
            for _, rows in table.groupby("id", sort=False)
        ],
    }


def _verdicts(table: pd.DataFrame) -> list[tuple[str, int, str]]:
    counts = table["verdict"].value_counts()
    return [(word, int(counts.get(word, 0)), claims.COLOURS[word]) for word in claims.VERDICTS]


def _table(file: Path) -> list[dict]:
    """The rows of a table that the notebook `runs` has written; none where it has not run."""
    return pd.read_csv(file, index_col=0).rename_axis("name").reset_index().to_dict("records") if file.is_file() else []
