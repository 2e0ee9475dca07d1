"""The explorer as a widget of JupyterLab.

Drawn by a small widget of our own on anywidget, which carries its script in the notebook's messages: it works offline
and needs no build.  plotly and bqplot would bring scripts of megabytes for charts that this is not, and ipympl draws in
the kernel.  Maps of all layers travel together as bytes, so a moved layer is drawn where it is moved.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import anywidget
import matplotlib as mpl
import traitlets
from pydantic import TypeAdapter

from workbook import plots
from workbook.explorer.session import Choice, Session

HERE = Path(__file__).parent
CHOICE = TypeAdapter(Choice)


class Explorer(anywidget.AnyWidget):
    """Shows a session; `choice` is what the browser chose, and may be set here as well."""

    _esm = HERE / "widget.js"
    _css = HERE / "widget.css"
    choice = traitlets.Dict().tag(sync=True)
    offer = traitlets.Dict().tag(sync=True)  # the names to choose from
    view = traitlets.Dict().tag(sync=True)  # what `Session.view` returns
    status = traitlets.Dict().tag(sync=True)  # seconds of the last choice, or its error, or where a figure was saved
    questions = traitlets.List().tag(sync=True)  # of the chosen benchmark
    drawing = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session, label: str = ""):
        super().__init__()
        self.session, self._shown = session, None
        palettes = {
            name: mpl.colormaps[name](range(256), bytes=True)[:, :3].tobytes() for name in ("viridis", "inferno")
        }
        self.drawing = {**palettes, "lines": list(plots.COLOURS), "label": label}
        self.offer = {
            "run": list(session.runs),
            "beside": ["", *session.runs],
            "teacher": ["", *session.teachers],
            "benchmark": session.benchmarks,
        }
        self.observe(self._answer, "choice")
        self.on_msg(self._receive)
        self.choice = asdict(session.first())

    def _answer(self, _change=None) -> None:
        """Show the choice; what a user can mend is said, and the last picture stays."""
        start = time.perf_counter()
        try:
            choice = CHOICE.validate_python(self.choice)
            rows = self.session.rows(choice.benchmark)
            if choice.row not in rows:  # of the benchmark that was chosen before
                choice = replace(choice, row=next(iter(rows)))
            if self._shown == replace(choice, layer=None):  # the browser has all layers
                if "error" in self.status:  # of a choice that has been taken back
                    self.status = {}
                return
            self.view = self.session.view(choice)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a model that does not fit the memory
            self.status = {"error": str(error)}
            return
        self._shown = replace(choice, layer=None)
        self.questions = [[name, row["question"]] for name, row in rows.items()]
        self.choice = asdict(choice)
        self.status = {"seconds": time.perf_counter() - start}

    def _receive(self, _widget, message: dict, buffers: list) -> None:
        """An own image, or a picture of what is seen, to be saved."""
        try:
            if message["kind"] == "image":
                self.choice = {**self.choice, "image": self.session.upload(bytes(buffers[0]))}
            elif message["kind"] == "figure":
                self.status = {"saved": str(self.session.save(bytes(buffers[0])))}
        except (OSError, ValueError) as error:
            self.status = {"error": str(error)}
