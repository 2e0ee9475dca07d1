# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same drift in LLaVA-NeXT? (Appendix E, Figure 9)
#
# **Question.** LLaVA-NeXT cuts an image into tiles, encodes each on its own and joins their tokens into one sequence.
# Do its visual tokens drift away from the encoder's features too, and does alignment change it?
#
# > *The paper's answer:* "Figure 9 demonstrates a decline in alignment scores between input visual features and
# > layer-wise visual representations across the layers in LLaVA-NeXT"; "similar patterns observed in Figure 2(d)".
# > VIRAL is not trained on it; the aligned run here is ours.

# %% tags=["parameters"]
profile = "laptop"

# %%
import pandas as pd
import torch
from IPython.display import display

from viral_core import tiles
from viral_core.conversations import load_conversations
from viral_core.measure.cknna import cknna
from viral_core.measure.intervals import interval
from viral_core.measure.states import layerwise_cknna
from workbook import claims, models, plots, runs
from workbook.layers import slower_middle
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "llava_next")
systems = {"next-baseline": "LLaVA-NeXT", "next-viral": "LLaVA-NeXT with alignment"}

# %% [markdown]
# ## How an image becomes tokens
#
# Tile 0 is the whole image, squeezed into the encoder's input; the other tiles are a grid at higher resolution, of the
# shape among a few that keeps most of the image's pixels. Each tile goes through the encoder like an image of its own.

# %%
show(tiles.View.pictures)

# %%
vision = settings.visions[settings.systems["next-baseline"].vision]
samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
sample = next(sample for sample in samples if sample.images)
image = sample.open_images()[0]
config = models.vision_config(vision)
side, patch = config.image_size, config.patch_size
processor = tiles.tile_processor(vision.path, side, settings.tiles.grids, vision.revision)
views = tiles.View(processor, patch).pictures(image)
columns = {f"tile {number}": [plots.pixels(view)] for number, view in enumerate(views)}
figure = plots.tiles({"image": [plots.pixels(image)], **columns}, [""])
plots.save(figure, out, "tiles")

# %% [markdown]
# The grid's tokens follow tile 0's as one map, row by row across the tiles. Rows and columns of pure padding are left
# out, and each row ends with a newline token, which belongs to no tile. `patch_index` says for each visual token which
# patch of which tile it is:

# %%
show(tiles.patch_index)

# %%
index = tiles.patch_index((image.height, image.width), processor.image_grid_pinpoints, side, patch)
tile = torch.where(index == tiles.NEWLINE, -1, index // (side // patch) ** 2)
pd.Series(tile.tolist(), name="tokens").value_counts().rename(index={-1: "newline"}).rename_axis("tile").to_frame().T

# %% [markdown]
# ## What is measured
#
# CKNNA (see the pilot study) of the tokens of *one tile* against the encoder's features of that tile, averaged over the
# tiles of an image, then over images. A tile of which unpadding leaves fewer than $k + 2$ tokens has no value.

# %%
show(cknna)
show(layerwise_cknna)

# %%
similarity = runs.measured(profile, "cknna", systems)
if len(similarity):
    similarity = similarity[similarity["clamp"] == 1]
    display(
        similarity.groupby("run").agg(
            images=("image", "nunique"),
            tiles=("tile", "nunique"),
            k=("k", "first"),
            fewest_tokens=("n", "min"),
            most_tokens=("n", "max"),
        )
    )
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## Layer by layer (Figure 9)
#
# The mean over tiles first; then mean and 95 % interval over images and seeds. Chance is the same measurement against
# the encoder's features in an arbitrary order.

# %%
curve = runs.intervals(similarity, ["run", "layer"], "image", "cknna")
curve.to_csv(out / "figure_9.csv", index=False, float_format="%.5f")
curve.pivot(index="layer", columns="run", values="value").round(3)

# %%
if len(curve):
    aligned = settings.systems["next-viral"].align.blocks(settings.blocks("next-viral"))
    counted, chance = f"k = {similarity['k'].iat[0]} of the tokens of each tile", similarity["chance"].mean()
    figure = plots.cknna_curves(curve, systems, aligned, counted, chance, settings.label)  # figure_9
    plots.save(figure, out, "figure_9")

# %% [markdown]
# ## With alignment, against without
#
# The same images and seeds, layer by layer. An interval of one seed is over images alone: another seed may fall
# outside.

# %%
rows, cells = [], pd.DataFrame()
if len(similarity):  # mean over tiles
    cells = similarity.pivot_table(index=["run", "layer", "seed"], columns="image", values="cknna")
if len(similarity) and set(systems) <= set(similarity["run"]):
    for layer in sorted(similarity["layer"].unique()):
        change = cells.loc["next-viral", layer] - cells.loc["next-baseline", layer]
        rows.append({"comparison": f"aligned - baseline, layer {layer}", **interval(change).columns()})
differences = pd.DataFrame(rows, columns=["comparison", "value", "low", "high", "n", "seeds", "p"])
differences.to_csv(out / "differences.csv", index=False, float_format="%.5f")
differences.style.hide(axis="index").format({"p": "{:.2g}"}, precision=4).set_uuid("differences")

# %% [markdown]
# ## The claims of this section
#
# How far the baseline falls from the input to the last layer; and how much less from a quarter of its depth to the
# middle than up to the quarter, and than from the middle on, as in the pilot study.

# %%
show(slower_middle)
falls, slower = None, dict.fromkeys(("than before", "than after"))
if len(similarity) and "next-baseline" in set(similarity["run"]):
    baseline, depth = cells.loc["next-baseline"], settings.blocks("next-baseline")
    falls = interval(baseline.loc[depth] - baseline.loc[0])
    slower = {part: interval(change) for part, change in slower_middle(baseline, depth).items()}
missing = "" if falls else "cknna of next-baseline"
rows = [claims.row("next-cknna-falls", falls, missing=missing)]
rows += [claims.row("next-cknna-middle-slows", one, part=part, missing=missing) for part, one in slower.items()]
claims.alone(claims.write(out, rows))
