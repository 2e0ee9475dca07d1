"""A report of one run and one notebook, whose outputs hold what a report must neither show nor run."""

import base64

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from workbook import report
from workbook.paths import Paths

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = "<script>window.evil = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.evil = 1' alt='none'>"


def executed():
    """A notebook with formulas, a table, figures, a text of a model, and outputs that are not for a report."""
    table = pd.DataFrame({"run": ["viral"], "answer": [HOSTILE]}).to_html()
    outputs = [
        v4.new_output("display_data", {"text/html": table}),
        v4.new_output("display_data", {"image/png": PICTURE, "text/plain": "figure"}),
        v4.new_output("display_data", {"image/png": PICTURE}),
        v4.new_output("display_data", {"text/markdown": "- n is $n = 3$, from `$HOME`"}),
        v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "w"}
        ),
        v4.new_output("stream", name="stderr", text="progress 100%"),
    ]
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# A title\n\n**Question.** Is $\\sqrt{2}$ here?\n\n> **The paper** says yes."),
            v4.new_markdown_cell("## A heading\n\nwords"),
            v4.new_code_cell("1 + 1", outputs=outputs),
            v4.new_markdown_cell("## Of the paper"),
            v4.new_code_cell(
                'plots.save(figure, out, "figure_2")',
                outputs=[v4.new_output("display_data", {"image/png": PICTURE})],
            ),
            v4.new_markdown_cell("## Nothing below"),
            v4.new_markdown_cell("## On a GPU"),
            v4.new_code_cell("2", outputs=[v4.new_output("display_data", {"text/markdown": "Not run: no GPU."})]),
            v4.new_code_cell("3", outputs=[v4.new_output("display_data", {"text/markdown": HOSTILE})]),
        ]
    )


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory):
    """Folder of the smoke profile's report: one run, one notebook, three rows of the ledger, one stage's time."""
    folder, paths = tmp_path_factory.mktemp("report"), Paths("smoke")
    for name in (paths.evaluation("viral", 0), paths.results("claims"), paths.notebook("x").parent):
        (folder / name).mkdir(parents=True)
    nbformat.write(executed(), folder / paths.notebook("pilot_study"))
    (folder / paths.evaluation("viral", 0) / "scores.json").touch()
    row = {"id": "a", "section": "4.1", "claim": "It helps <b>here</b>.", "fails": "above-constant (open)"}
    first = row | {"verdict": "reproduced"}
    second = row | {"verdict": "inconclusive", "fails": "above-constant (open), stage2-moves (fails)"}
    premise = row | {"id": "b", "section": "premise", "claim": "It holds.", "verdict": "reproduced"}
    table = pd.DataFrame([first, second, premise])
    table.to_csv(folder / paths.results("claims") / "claims.csv", index=False)
    (folder / paths.results("claims") / "claims.png").write_bytes(base64.b64decode(PICTURE))
    (folder / paths.results("runs")).mkdir()
    times = pd.DataFrame({"stages": [1], "minutes": [1.25]}, index=["stage2"])
    times.to_csv(folder / paths.results("runs") / "times.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return report.build("smoke", folder / "report").parent
