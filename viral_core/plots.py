"""One style for all figures, and saving them so that the bytes depend on the data alone."""

import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns

# Okabe and Ito's colours, told apart by colour-blind readers, ordered so that neighbours differ in grey too.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("", (4, 2), (1, 1.5), (5, 1.5, 1, 1.5), (3, 1), (6, 2), (1, 1), (2, 1))


def style() -> None:
    """Apply the shared style."""
    sns.set_theme(context="paper", style="ticks", palette=COLOURS, font_scale=1.1)
    mpl.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "viral", "svg.fonttype": "path",
    })  # fmt: skip


def save(figure: plt.Figure, folder: str | Path, name: str) -> None:
    """Write `name`.svg and `name`.png without dates, so that equal data give equal files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def wrap(text: str, width: int = 70) -> str:
    """Break a title into lines."""
    return "\n".join(textwrap.wrap(text, width))
