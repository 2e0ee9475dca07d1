"""One style for all figures, and saving them so that the bytes depend on the data alone."""

import re
import textwrap
from collections.abc import Collection
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

# Okabe and Ito's colours, told apart by colour-blind readers, ordered so that neighbours differ in grey too.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "v", "P", "X", "*", "p")
PAPER = {"marker": "D", "linestyle": "", "color": "black", "markersize": 3, "markerfacecolor": "white"}
# Systems that several figures draw as lines, in the order of their looks.
SYSTEMS = (
    "baseline",
    "viral",
    "residual-post",
    "align-encoder",
    "residual-pre",
    "align-projector",
    "before stage 2",
)
MODELS = {  # encoders and teachers, as figures name them
    "clip": "CLIP",
    "siglip2": "SigLIPv2",
    "dinov2": "DINOv2",
    "sam": "SAM",
    "depth_anything": "Depth Anything",
    "radio": "RADIO",
}
DASHES = ("", (4, 2), (1, 1.5), (5, 1.5, 1, 1.5), (3, 1), (6, 2), (1, 1), (2, 1))


def style() -> None:
    """Apply the shared style; pictures have as many pixels as are seen, 96 an inch."""
    sns.set_theme(context="paper", style="ticks", palette=COLOURS, font_scale=1.1)
    mpl.rcParams.update(
        {
            "figure.dpi": 96,
            "savefig.dpi": "figure",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "svg.hashsalt": "viral",
            "svg.fonttype": "path",
        }
    )


def save(figure: plt.Figure, folder: str | Path, name: str) -> None:
    """Write `name`.svg and `name`.png without dates, so that equal data give equal files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def seeds(counts: Collection[int]) -> str:
    """How many seeds there are, for a caption: "1 seed", "5 seeds"; of several lines, "3 to 10 seeds"."""
    low, high = int(min(counts)), int(max(counts))
    return f"{high} seed{'s' * (high != 1)}" if low == high else f"{low} to {high} seeds"


def line(i: int) -> dict:
    """Colour, marker and dashes of the i-th line of a figure: told apart without colour too."""
    i %= len(COLOURS)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": (0, DASHES[i]) if DASHES[i] else "-"}


def of_systems(runs: Collection[str]) -> dict[str, dict]:
    """The look of the line of each run, the same in every figure and with every encoder and language model.

    Runs that are not of `SYSTEMS` have the looks that are left over.
    """
    named = {run: re.sub("^(next|qwen|13b|siglip2)-", "", run) for run in runs}
    order = [*SYSTEMS, *(name for name in named.values() if name not in SYSTEMS)]
    return {run: line(order.index(name)) for run, name in named.items()}


def curves(axis: plt.Axes, table: pd.DataFrame, x: str, y: str, names: dict[str, str]) -> None:
    """Draw a line per run with its interval, from columns run, `x`, `y`, low and high; `names` are for the legend.

    A run has its look from `of_systems`; one without rows is in the legend as "(not run)".
    """
    looks = of_systems(names)
    for run, name in names.items():
        rows = table[table["run"] == run].sort_values(x)
        axis.plot(rows[x], rows[y], label=name if len(rows) else f"{name} (not run)", markersize=4, **looks[run])
        if len(rows):
            axis.fill_between(rows[x], rows["low"], rows["high"], color=looks[run]["color"], alpha=0.15, lw=0)


def mark_layers(axis: plt.Axes, layers: list[int], chance: float | None = None) -> None:
    """Mark the layers that are aligned, and the level of chance."""
    for layer in layers:
        axis.axvline(layer, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    if chance is not None:
        axis.axhline(chance, color="grey", linestyle=":", linewidth=1.2, label="chance", zorder=0)


def cknna_curves(
    curve: pd.DataFrame, names: dict[str, str], aligned: list[int], k: str, chance: float, label: str
) -> plt.Figure:
    """The figure of CKNNA by layer, from columns run, layer, value, low, high, n and seeds, as `curves` draws them.

    `aligned`: layers to mark; `k` says how many neighbours of how many tokens count; `label` is the profile's.
    """
    figure, axis = plt.subplots(figsize=(7.8, 3.4))
    of_run = curve.groupby("run")["seeds"].max()
    counts = {run: f"{name}, {seeds([of_run[run]])}" if run in of_run else name for run, name in names.items()}
    curves(axis, curve, "layer", "value", counts)
    mark_layers(axis, aligned, chance)
    axis.set(xlabel="layer (0 = input of the language model)", ylabel="CKNNA to the encoder's z")
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    counted = f"{k}; n = {curve['n'].max()} images, 95 % intervals, of one seed over images alone"
    axis.set_title(wrap(f"{label}; {counted}; dashed: layer of re-injection or alignment"), fontsize="small")
    return figure


def score_panels(table: pd.DataFrame, titles: dict[str, str], label: str, value: str = "ours") -> plt.Figure:
    """What `tables.side_by_side` returns, a panel per benchmark and a line of text per run: dots with intervals.

    `value`: "ours", beside the dotted score of the best constant answer, or "gain" of the rows with a reference, beside
    zero and the paper's gain.  The number of seeds stands behind a run's label: scores of rows with other seeds are not
    to be subtracted, the gains are paired.  `label` is the profile's.
    """
    if value == "gain":
        table = table[table["reference"].notna()]
    low, high, counted = ("low", "high", "seeds") if value == "ours" else ("gain_low", "gain_high", "gain_seeds")
    runs, benchmarks = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["benchmark"]))
    labels, of_run = table.drop_duplicates("run").set_index("run")["row"], table.groupby("run")[counted].max()
    size = (3.6 + 1.6 * len(benchmarks), 1.3 + 0.34 * len(runs))
    figure, axes = plt.subplots(1, len(benchmarks), figsize=size, sharey=True, squeeze=False)
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):
        rows = table[table["benchmark"] == benchmark].set_index("run").loc[runs]
        lines = np.arange(len(runs))
        axis.hlines(lines, rows[low], rows[high], color="black", linewidth=1.2)
        axis.plot(rows[value], lines, "o", color="black", markerfacecolor="white", markersize=5)
        decided = ((rows[low] > 0) | (rows[high] < 0)) & (rows[counted] > 1)
        filled = rows[value] if value == "ours" else rows[value].where(decided)
        axis.plot(filled, lines, "o", color="black", markersize=5)
        empty = rows["n"] == 0
        for i in np.flatnonzero(empty):
            place = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
            axis.annotate("not run", (0.5, i), color="grey", fontsize="x-small", **place)
        if empty.all():
            axis.set_xticks([])
        if value == "ours" and rows["constant"].notna().any():
            axis.axvline(rows["constant"].max(), color="grey", linestyle=":", linewidth=1.2, zorder=0)
        if value == "gain":
            axis.axvline(0, color="grey", linewidth=0.8, zorder=0)
            axis.plot(rows["paper_gain"], lines, **PAPER)
        axis.set_title(f"{titles[benchmark]}\nn = {rows['n'].max():.0f}", fontsize="small")
        axis.set_xlabel("points" if benchmark == "mme" or value == "gain" else "%", fontsize="small")
        axis.tick_params(labelsize="small")
        axis.set(yticks=range(len(runs)), ylim=(len(runs) - 0.5, -0.5))
    axes[0, 0].set_yticklabels(
        wrap(labels[run] + (f", {seeds([of_run[run]])}" if of_run[run] else ""), 50) for run in runs
    )
    drawn = "dotted: best constant answer"
    if value == "gain":
        drawn = "paired gain over the baseline; filled: of several seeds, and this interval excludes 0"
        known = table.groupby("benchmark")["paper_gain"].agg(lambda gains: gains.notna().any())
        drawn += "; diamond: the paper's" if known.any() else ""
        drawn += ", whose points of MME are of another scale" if known.any() and not known.get("mme", True) else ""
    figure.suptitle(wrap(f"{label}; 95 % intervals; {drawn}", int(12 * size[0])), fontsize="small")
    return figure


def forest(effects: pd.DataFrame, colours: dict[str, str], parts: dict[str, str], limit: float = 6) -> plt.Figure:
    """All claims in one picture: a line of text each, and beside it a dot with its interval for every part.

    `effects` has a row per claim and part, in order: family (of claims), claim (text), part, verdict, seeds, and value,
    low, high and paper in multiples of the smallest effect of interest, positive where the effect is on the claimed
    side.  Each of `parts`, with their names, has a marker of its own; others have a dot, and their name beside it.
    Values beyond `limit` are drawn there, as arrows; markers of a single seed are hollow.
    """
    looks = dict(zip(parts, MARKERS[1:], strict=False))
    gap, least = 0.1, 0.26  # inches between claims, of a claim: two lines of text
    claims = effects.groupby("claim", sort=False)
    inches = {claim: 0.07 if rows["part"].isin(looks).all() else 0.11 for claim, rows in claims}  # of a part
    height = sum(max(inches[claim] * len(rows), least) + gap for claim, rows in claims)
    figure, axis = plt.subplots(figsize=(9.6, height + 0.8))
    y, ticks, family = 0.0, {}, ""
    for claim, rows in claims:
        band = max(inches[claim] * len(rows), least)
        if rows["family"].iat[0] != family:
            family = rows["family"].iat[0]
            axis.axhline(y - gap / 2, color="black", linewidth=0.8)
            place = {"xycoords": ("axes fraction", "data"), "rotation": -90, "va": "top"}
            axis.annotate(family, (1.2, y), fontsize="small", **place)
        ticks[wrap(claim, 64)] = y + band / 2
        places = y + band / 2 + inches[claim] * (np.arange(len(rows)) - (len(rows) - 1) / 2)
        for place, row in zip(places, rows.itertuples(), strict=True):
            colour = colours[row.verdict]
            axis.plot([row.low, row.high], [place] * 2, color=colour, linewidth=1)  # on beyond the edge
            if row.part not in looks:
                beside = {"xycoords": ("axes fraction", "data"), "va": "center", "color": colour}
                axis.annotate(row.part, (1.01, place), fontsize=6.5, **beside)
            inside = "white" if row.seeds == 1 else colour
            for value, look in (
                (
                    row.value,
                    {"marker": looks.get(row.part, "o"), "color": colour, "markersize": 4, "markerfacecolor": inside},
                ),
                (row.paper, PAPER),
            ):
                arrow = {"marker": ">" if value > limit else "<"} if abs(value) > limit else {}
                axis.plot(np.clip(value, -limit, limit), place, **(look | arrow))
        y += band + gap
        axis.axhline(y - gap / 2, color="#e6e6e6", linewidth=0.6, zorder=0)
    axis.axvspan(-1, 1, color="#f0f0f0", zorder=0)
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    for verdict in dict.fromkeys(effects["verdict"]):
        axis.plot([], [], "o", color=colours[verdict], markersize=4, label=verdict)
    for part in [part for part in parts if part in set(effects["part"])]:
        axis.plot([], [], looks[part], color="black", markersize=4, markerfacecolor="none", label=parts[part])
    axis.plot([], [], **PAPER, label="the paper")
    axis.set_yticks(list(ticks.values()), list(ticks), fontsize=8)
    axis.set(xlim=(-limit - 0.3, limit + 0.3), ylim=(y, -gap / 2))
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(
        f"effect, in smallest effects of interest (arrow: beyond {limit:g}, where intervals go on); right: as claimed",
        fontsize="small",
    )
    figure.legend(loc="outside lower right", ncols=4, fontsize="x-small")
    return figure


def pixels(image: Image.Image, side: int = 96) -> np.ndarray:
    """An image as an array that `tiles` draws, at most `side` pixels wide so that figures stay small."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def tiles(columns: dict[str, list], rows: list[str], side: float = 1.15) -> plt.Figure:
    """A grid of pictures: per column its title and one array (H, W, 3) or (H, W), text or None for each of `rows`.

    An (H, W) array is drawn from white (0) to black (its largest value); None says "not run".
    """
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False,
                                figsize=(side * len(columns) + 1.2, side * len(rows) + 0.5))  # fmt: skip
    for j, (title, pictures) in enumerate(columns.items()):
        axes[0, j].set_title(title, fontsize="x-small")
        for i, picture in enumerate(pictures):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
            if picture is None or isinstance(picture, str):
                said = "not run" if picture is None else picture
                axis.annotate(said, (0.5, 0.5), xycoords="axes fraction", ha="center", color="grey", fontsize="x-small")
            elif picture.ndim == 2:
                axis.imshow(picture, cmap="Greys", vmin=0, interpolation="nearest")
            else:
                axis.imshow(picture, interpolation="nearest")
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="x-small")
    return figure


def similarities(image: Image.Image, tokens: dict[str, np.ndarray]) -> plt.Figure:
    """An image, and a map for each set of tokens (N, D): cosine of one token to all, tokens centred.

    It is, and is marked on the image, the token whose feature in the first set is farthest from the mean: of an object.
    """
    figure, axes = plt.subplots(1, 1 + len(tokens), figsize=(1.4 * (1 + len(tokens)) + 0.6, 1.8), squeeze=False)
    centred = {
        name: np.asarray(values, float) - np.mean(np.asarray(values, float), 0) for name, values in tokens.items()
    }
    lengths = np.linalg.norm(next(iter(centred.values())), axis=1)
    asked, side = int(lengths.argmax()), round(len(lengths) ** 0.5)
    axes[0, 0].imshow(pixels(image), extent=(0, side, side, 0))
    axes[0, 0].set_axis_off()
    axes[0, 0].add_patch(plt.Rectangle((asked % side, asked // side), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
    for axis, (name, values) in zip(axes[0, 1:], centred.items(), strict=True):
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        last = {"cbar_kws": {"label": "cosine"}} if axis is axes[0, -1] else {"cbar": False}
        look = {"vmin": -1, "vmax": 1, "cmap": "vlag", "square": True, "xticklabels": False, "yticklabels": False}
        sns.heatmap((unit @ unit[asked]).reshape(side, side), ax=axis, **look, **last)
        axis.set_title(wrap(name, 14), fontsize="x-small")
    return figure


def wrap(text: str, width: int = 70) -> str:
    """Break a title into lines."""
    return textwrap.fill(text, width)
