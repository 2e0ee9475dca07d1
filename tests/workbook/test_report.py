"""The report: what has run is shown, what has not says so, and no page needs anything from outside."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from workbook import config, notebook, report
from workbook.paths import Paths
from workbook.report import notebooks
from workbook.scale import costs

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Page(HTMLParser):
    """Ids, targets of links and sources of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.targets, self.tags = set(), [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.tags.add(tag)
        self.ids.add(facts.get("id"))
        self.targets += [facts[key] for key in ("href", "src") if key in facts]


def executed():
    """A notebook with formulas, a table, a figure, a conclusion, and outputs that are not for a report."""
    table = pd.DataFrame({"run": ["viral"], "score": [0.5]}).to_html()
    outputs = [
        v4.new_output("display_data", {"text/html": table}),
        v4.new_output("display_data", {"image/png": PICTURE, "text/plain": "figure"}),
        v4.new_output("display_data", {"text/markdown": "- n is $n = 3$, from `$HOME`"}),
        v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}),
        v4.new_output("stream", name="stderr", text="https://example.com/progress 100%"),
    ]
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# A title\n\n**Question.** Is $\\sqrt{2}$ here?\n\n> **The paper's answer** is yes."),
            v4.new_markdown_cell("## A heading\n\nwords"),
            v4.new_code_cell("1 + 1", outputs=outputs),
            v4.new_markdown_cell("## Nothing below"),
            v4.new_markdown_cell("## On a GPU"),
            v4.new_code_cell("2", outputs=[v4.new_output("display_data", {"text/markdown": "Not run: no GPU."})]),
        ]
    )


@pytest.fixture
def built(tmp_path, monkeypatch):
    """(page, folder): the smoke profile's report of a run, a notebook, a ledger, and a noted cost."""
    monkeypatch.chdir(tmp_path)
    paths = Paths("smoke")
    file = tmp_path / paths.notebook("pilot_study")
    file.parent.mkdir(parents=True)
    nbformat.write(executed(), file)
    run = tmp_path / paths.run("viral", 0)
    run.mkdir(parents=True)
    described = {"template": "vicuna_v1", "align": {"layers": [4]}, "base": {"language": "l", "vision": "v"}}
    (run / "run.json").write_text(json.dumps({**described, "seed": 0, "training": {"step": 20}}))
    log = [{"step": s, "lm_loss": 1 / s, "vra_loss": -0.25, "seconds": s} for s in (1, 10, 20)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    ledger = pd.DataFrame([{"id": "a", "section": "4.1", "claim": "c", "part": "pope", "n": "9 questions, 1 seed",
                            "verdict": "reproduced", "missing": ""}])  # fmt: skip
    (tmp_path / paths.results("claims")).mkdir(parents=True)
    ledger.to_csv(tmp_path / paths.results("claims") / "claims.csv", index=False)
    with costs.timed(tmp_path / paths.root, "stage2", "smoke-viral-s0"):
        pass
    index = report.build("smoke", tmp_path / "report")
    return index.read_text(), tmp_path / "report"


def test_pages_are_whole_without_a_network(built):
    _, folder = built
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 2
    for file in pages:
        text = file.read_text()
        page = Page(text)
        assert "script" not in page.tags
        assert not re.search(r"(src|href)=\"?(https?:)?//", text)
        assert not re.search(r"@import|url\(", text)
        for target in page.targets:
            path, _, anchor = target.partition("#")
            if not target.startswith("data:"):
                assert not path or (file.parent / path).resolve().is_file(), target
                assert not anchor or anchor in page.ids, target


def test_it_shows_what_ran_and_says_what_did_not(built):
    text, _ = built
    label = report.config.load("smoke").label
    assert text.count(label) >= 4
    assert PICTURE in text
    assert "<math" in text
    assert "$HOME" in text
    assert "not run" in text
    assert "baseline-s0" in text
    assert "last vra_loss" in text
    assert "-0.2500" in text
    assert "example.com" not in text
    assert "Nothing below" not in text
    assert "On a GPU" in text
    assert "Not run: no GPU." in text
    assert "<b>1</b><span>reproduced</span>" in text


def test_every_notebook_has_a_section_and_a_place_in_the_contents(built):
    page, text = Page(built[0]), built[0]
    names = notebook.notebooks(config.load("smoke"))
    assert set(names) <= page.ids
    assert {f"#{name}" for name in names} <= set(page.targets)
    assert text.count("Not run in this profile.") == len(names) - 1


def test_costs_add_up_what_was_interrupted(tmp_path):
    with pytest.raises(KeyError), costs.timed(tmp_path, "stage2", "a"):
        raise KeyError
    assert costs.read_costs(tmp_path) == {}
    with costs.timed(tmp_path, "stage2", "a"):
        pass
    lines = [json.loads(line) for line in (tmp_path / costs.FILE).read_text().splitlines()]
    assert [line["done"] for line in lines] == [False, True]
    assert costs.read_costs(tmp_path)["stage2", "a"] == pytest.approx(sum(line["seconds"] for line in lines))


def test_formulas_leave_code_and_money_alone():
    assert notebooks.formulas("`$x$`, $ 5 and $ 6") == "`$x$`, $ 5 and $ 6"
    assert 'display="block"' in notebooks.formulas("$$x^2$$")
