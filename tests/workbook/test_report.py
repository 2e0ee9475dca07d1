"""The report: what has run is shown, what has not says so, and no page needs or runs anything from outside."""

import html
import re
from html.parser import HTMLParser

import pytest

from workbook import config, report
from workbook.notebook import notebooks
from workbook.report import pages


class Page(HTMLParser):
    """Ids, and targets of links and sources, of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.targets += [attributes[key] for key in ("href", "src") if key in attributes]


@pytest.fixture
def index(report_folder):
    return (report_folder / "index.html").read_text(encoding="utf-8")


def test_pages_are_whole_without_a_network(report_folder):
    files = list(report_folder.rglob("*.html"))
    assert len(files) == 2
    for file in files:
        text = file.read_text(encoding="utf-8")
        page = Page(text)
        assert pages.POLICY in html.unescape(text)
        for target in page.targets:
            path, _, anchor = target.partition("#")
            if not target.startswith(("data:", "http://127.0.0.1:9/")):
                assert not path or (file.parent / path).resolve().is_file(), target
                assert not anchor or anchor in page.ids, target


@pytest.mark.parametrize(
    "text",
    [
        "<b>1</b> reproduced",
        "<b>1</b> inconclusive",
        "<b>0</b> contradicted",
        "It helps &lt;b&gt;here&lt;/b&gt;.",
        "premises that fail or are open: above-constant (open)",
        f"1 of {sum(map(len, config.load('smoke').runs.values()))} trainings",
        "<code>baseline-s0</code>",
        "<math",
        "$HOME",
        "Not run: no GPU.",
        "<h3>On a GPU</h3>",
        "75 s",
    ],
)
def test_the_index_shows(index, text):
    assert text in re.sub(r"\s+", " ", index)


@pytest.mark.parametrize("text", ["Nothing below", "progress 100%", "<code>viral-s0</code>", "&lt;math"])
def test_the_index_leaves_out(index, text):
    assert text not in index


def test_the_papers_figure_is_seen_and_the_others_are_folded(index):
    section = index.split('id="pilot_study"')[1].split("</section>")[0]
    seen, folded = section.split("<details>")
    assert seen.count("<img alt") == seen.count('<img alt="Of the paper"') == 1
    assert folded.count("<figure><img alt") == 2
    assert "<table" in folded


def test_notebooks_that_have_not_run_are_named(index):
    missing = index.split('id="missing"')[1]
    absent = [name for name in notebooks(config.load("smoke")) if name != "pilot_study"]
    assert all(name.replace("_", " ").capitalize() in missing for name in absent)
    assert {f"#{name}" for name in absent}.isdisjoint(Page(index).targets)


def test_the_page_of_a_notebook_has_its_code_and_no_progress(report_folder):
    text = (report_folder / "notebooks/pilot_study.html").read_text(encoding="utf-8")
    assert "<title>A title – smoke</title>" in text
    assert 'class="highlight' in text
    assert "progress 100%" not in text


def test_without_a_ledger_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = report.build("smoke", tmp_path / "report").read_text(encoding="utf-8")
    assert "Claims: not run." in text
    assert "Times: not run." in text


@pytest.mark.parametrize("text", ["`$x$`, $ 5 and $ 6", "no formula"])
def test_formulas_leave_code_and_money_alone(text):
    assert pages.formulas(text) == text


def test_displayed_formulas_are_blocks():
    assert 'display="block"' in pages.formulas("$$x^2$$")
