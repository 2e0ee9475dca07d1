"""Executed notebooks as offline HTML: whole pages, and the tables, figures and conclusions that the report shows."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

# Displayed formulas first; a formula does not begin or end with a space, and code is left alone.
_MATH = re.compile(r"(`[^`]*`)|\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)


@dataclass
class Part:
    """One piece of a notebook for the report: `kind` is heading, text, table or figure; `html` is ready to show."""

    kind: str
    html: str


@dataclass
class Notebook:
    """Title of an executed notebook and what it shows, in its order."""

    title: str
    parts: list[Part] = field(default_factory=list)


def formulas(markdown: str) -> str:
    """Markdown with its TeX formulas as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def replace(found: re.Match) -> str:
        code, block, inline = found.groups()
        if code:
            return code
        return convert(block or inline, display="block" if block else "inline")

    return _MATH.sub(replace, markdown)


def render(markdown: str) -> str:
    """HTML of Markdown with formulas, tables included."""
    from nbconvert.filters import markdown2html

    return markdown2html(formulas(markdown))


def read_notebook(file: Path) -> Notebook:
    """What an executed notebook shows: headings, its own question, and the outputs of its cells."""
    notebook = nbformat.read(file, as_version=4)
    found = Notebook(file.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            _read_text(found, cell.source)
        elif cell.cell_type == "code":
            for output in cell.outputs:
                if part := _output(output):
                    found.parts.append(part)
    shown = [part for i, part in enumerate(found.parts) if part.kind != "heading" or _has_content(found.parts[i + 1 :])]
    return Notebook(found.title, shown)


def _has_content(following: list[Part]) -> bool:
    return bool(following) and following[0].kind != "heading"


def _read_text(found: Notebook, source: str) -> None:
    """Title and first question from the first cell; of the others the headings."""
    if source.startswith("# "):
        title, _, rest = source.partition("\n")
        found.title = title.removeprefix("# ").strip()
        question = [block for block in rest.strip().split("\n\n") if block.startswith(("**Question", ">"))]
        found.parts.append(Part("text", render("\n\n".join(question))))
        return
    for line in source.splitlines():
        if line.startswith("## "):
            found.parts.append(
                Part("heading", render(line.removeprefix("## ")).removeprefix("<p>").removesuffix("</p>"))
            )


def _output(output) -> Part | None:
    """A part from a cell's output; None for what is not to be shown: prints, progress bars, widgets."""
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return None
    if "image/png" in data:
        picture = data["image/png"].replace("\n", "")
        return Part("figure", f'<img alt="figure" src="data:image/png;base64,{picture}">')
    if "text/html" in data and "<table" in data["text/html"]:
        return Part("table", data["text/html"])
    if "text/markdown" in data:
        return Part("text", render(data["text/markdown"]))
    return None


def to_page(file: Path) -> str:
    """The whole notebook, code included, as HTML without scripts or addresses outside of it."""
    from nbconvert import HTMLExporter

    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = formulas(data["text/markdown"])
            data.pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    body, _ = HTMLExporter(template_name="basic", exclude_anchor_links=True).from_notebook_node(notebook)
    return body
