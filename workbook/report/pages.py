"""Executed notebooks as offline HTML: whole pages, and the parts that the report shows."""

import base64
import functools
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from PIL import Image

PARTS = resources.files("workbook.report")
# No script runs and nothing is fetched, whatever the outputs hold: texts of models, names of files.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Displayed formulas first; a formula does not begin or end with a space, and code is left alone.
_MATH = re.compile(r"(`[^`]*`)|\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)


@dataclass
class Section:
    """A notebook in the report: its parts as HTML, in its order; without a notebook it has not run."""

    name: str
    title: str
    question: str = ""  # and the paper's answer
    figures: list[str] = field(default_factory=list)  # the paper's own first
    rest: list[str] = field(default_factory=list)  # headings, tables and texts
    notebook: nbformat.NotebookNode | None = None

    @property
    def ran(self) -> bool:
        return self.notebook is not None


def formulas(markdown: str) -> str:
    """Markdown with its TeX formulas as MathML, which browsers show without a script."""

    def replace(match: re.Match) -> str:
        code, block, inline = match.groups()
        return code or convert(block or inline, display="block" if block else "inline")

    return _MATH.sub(replace, markdown)


def render(markdown: str) -> str:
    """HTML of Markdown with formulas, tables included."""
    return markdown2html(formulas(markdown))


def section(name: str, file: Path, recorded: Mapping[str, str]) -> Section:
    """What the report shows of a notebook; one that has not been executed has a title only.

    `recorded`: MD5 of files, by path. A notebook that differs is left out, as is one that was cut; a line says so.
    """
    data = file.read_bytes() if file.is_file() else b""
    digest = hashlib.md5(data).hexdigest()
    try:
        if digest != recorded.get(str(file), digest):
            raise ValueError("it is not what its stage wrote")
        notebook = nbformat.reads(data.decode(), as_version=4)
    except ValueError as error:
        if data:
            remedy = f"make repro PROFILE={file.parts[-3]} TARGETS={name} makes it"
            print(f"{file} is left out: changed, damaged or being made ({error}); {remedy}")
        return Section(name, name.replace("_", " ").capitalize())
    part = Section(name, name, notebook=notebook)
    heading, own = "", 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            title, _, text = cell.source.partition("\n")
            part.title = title.removeprefix("# ").strip()
            blocks = [block for block in text.strip().split("\n\n") if block.startswith(("**Question", ">"))]
            part.question = render("\n\n".join(blocks))
        elif cell.cell_type == "markdown" and (match := re.search(r"^## (.+)$", cell.source, re.MULTILINE)):
            heading = match[1]
        for output in cell.get("outputs", []):
            html = _html(output.get("data", {}), heading or part.title)
            if html.startswith("<figure") and re.search(r'save\(.+"(figure|table)_', cell.source):
                part.figures.insert(own, html)
                own += 1
            elif html.startswith("<figure"):
                part.figures.append(html)
            elif html:
                part.rest.append((f"<h3>{render(heading).strip()[3:-4]}</h3>" if heading else "") + html)
                heading = ""
    return part


def _html(data: dict, caption: str) -> str:
    """An output as HTML; "" for what is not to be shown: prints, progress bars, widgets."""
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""
    if "image/png" in data:
        width = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width
        label = re.sub(r"[\"<>&`$*]", "", caption)
        picture = f'<img alt="{label}" width="{width}" src="data:image/png;base64,{data["image/png"].strip()}">'
        return f"<figure>{picture}</figure>"
    if "text/html" in data and "<table" in data["text/html"]:
        return f'<div class="scroll" tabindex="0">{data["text/html"]}</div>'
    return render(data["text/markdown"]) if "text/markdown" in data else ""


def page(notebook: nbformat.NotebookNode, shared: dict[str, str]) -> str:
    """A whole notebook, code included, as a page; `shared`: title, profile, label and style."""
    body, _ = _exporter().from_notebook_node(notebook, resources={**shared, "policy": POLICY})
    return body


@functools.cache  # its templates take a while to compile
def _exporter() -> HTMLExporter:
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(PARTS)])
    exporter.register_filter("markdown2html", render)
    return exporter
