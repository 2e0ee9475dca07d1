"""The report of a profile: one page with its results, and its executed notebooks as pages beside it, all offline.

`build` reads what the stages have written and renders `index.html.j2`; nothing is computed here.  Tables and figures
are the outputs of the executed notebooks, so that report and notebooks cannot differ.  What has not run says so.
"""

import shutil
from importlib import resources
from pathlib import Path

import jinja2

from viral_core import environment
from workbook import config
from workbook.notebook import notebooks as names_of_notebooks
from workbook.paths import Paths
from workbook.report.cards import costs, run_cards
from workbook.report.notebooks import read_notebook, to_page

PARTS = resources.files("workbook.report")
FIRST = ("claims",)  # notebooks that come before the sections of the paper


def build(profile: str, out: str | Path) -> Path:
    """Write the report of a profile into the folder `out`, anew; returns its `index.html`.

    Raises:
        ProfileError: no such profile.
    """
    settings, paths, out = config.load(profile), Paths(profile), Path(out)
    shutil.rmtree(out, ignore_errors=True)
    (out / "notebooks").mkdir(parents=True)
    page = jinja2.Environment(loader=jinja2.PackageLoader("workbook.report", "."), autoescape=True)
    common = {"profile": profile, "label": settings.label, "style": PARTS.joinpath("style.css").read_text()}

    sections = []
    for name in [*FIRST, *(name for name in names_of_notebooks(settings) if name not in FIRST)]:
        file = paths.notebook(name)
        if not file.is_file():
            sections.append({"name": name, "title": name.replace("_", " ").capitalize(), "parts": None})
            continue
        notebook = read_notebook(file)
        body = page.get_template("notebook.html.j2").render(**common, title=notebook.title, body=to_page(file))
        (out / "notebooks" / f"{name}.html").write_text(body, encoding="utf-8")
        sections.append({"name": name, "title": notebook.title, "parts": notebook.parts})

    cards = run_cards(settings, paths)
    index = out / "index.html"
    index.write_text(
        page.get_template("index.html.j2").render(
            **common, summary=_summary(paths), sections=sections, cards=cards, costs=costs(settings, paths),
            environment=environment.describe(), ran=sum(card["ran"] for card in cards),
        ),
        encoding="utf-8",
    )  # fmt: skip
    return index


def _summary(paths: Paths) -> dict | None:
    """How many rows of claims have which verdict; None while the ledger has not been evaluated."""
    import pandas as pd

    from workbook import claims

    file = paths.results("claims") / "claims.csv"
    if not file.is_file():
        return None
    ledger = pd.read_csv(file, dtype={"section": str})
    paper = ledger[~ledger["section"].isin(["control", "premise"])]
    counts = paper["verdict"].value_counts()
    return {
        "verdicts": [(word, int(counts.get(word, 0)), claims.COLOURS[word]) for word in claims.VERDICTS],
    }
