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
# # Does a model notice that its image was shuffled? (Section 5.5, Table 3, Figure 7)
#
# **Question.** The order of the visual features is permuted before the projector, the positions in the sequence stay.
# A model that uses the layout of the image must lose answers. Does an aligned model lose more?
#
# > **The paper's answer**: of "788 spatial reasoning tasks" of CV-Bench2D the baselines lose 26 and 21 answers, the
# > aligned models 54 and 83; so the aligned ones are more sensitive to spatial structure. (788 is the number of
# > *Count* questions; the spatial ones, *Relation*, are 650. One permutation, no error bars.)
#
# **How we measure.** Each sample has a permutation of its own, drawn from a seed and its id, the same for every model;
# several permutations, of which the mean counts. Intervals are bootstraps over questions and, where there are several,
# over seeds; models are compared on the same questions, permutations and seeds. Count and Relation apart, and together.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from PIL import Image
from transformers import AutoConfig

from viral_core.images import pad_to_square
from viral_core.measure.permutation import patch_order
from workbook import plots, results
from workbook.benchmarks import load_rows, open_image
from workbook.notebook import begin, conclude

settings, out = begin(profile, "robustness")

# %% [markdown]
# ## Table 3

# %%
categories = ("Count", "Relation", None)
tables = [results.permutation_table(profile, category) for category in categories]
table = pd.concat(tables, ignore_index=True)
table.to_csv(out / "table_3.csv", index=False, float_format="%.4f")
results.styled_drops(table, f"Table 3, the paper's numbers (of 788) beside ours. Ours: {settings.label}.")

# %%
figure, axes = plt.subplots(1, len(tables), figsize=(8.4, 2.4), sharey=True)
for axis, part in zip(axes, tables, strict=True):
    for i, row in enumerate(part.itertuples()):
        if row.n:
            share = [100 * value / row.n for value in (-row.high, -row.drop, -row.low)]
            axis.plot([share[0], share[2]], [i, i], color="black", linewidth=1.2)
            axis.plot(share[1], i, "o", color="black", markersize=5)
        else:
            axis.annotate(
                "not run", (0.5, i), xycoords=("axes fraction", "data"), color="grey", ha="center", va="center"
            )
    axis.axvline(0, color="grey", linewidth=0.8, zorder=0)
    axis.set(title=f"{part['category'].iat[0]} (n = {part['n'].max()})", xlabel="change (% of questions)")
axes[0].set(yticks=range(len(tables[0])), ylim=(len(tables[0]) - 0.5, -0.5))
axes[0].set_yticklabels(tables[0]["run"])
figure.suptitle(plots.wrap(f"{settings.label}; change of right answers when shuffled", 90), fontsize="small")
plots.save(figure, out, "table_3")

# %% [markdown]
# ## What a permutation does to an image (Figure 7)
#
# For the eye only: the same order applied to the patches of the picture, as many as the baseline's encoder has. The
# model sees whole features in that order.

# %%
if table["n"].any():
    vision = settings.visions[settings.systems["baseline"].vision]
    config = AutoConfig.from_pretrained(vision.path, revision=vision.revision)
    encoder = getattr(config, "vision_config", config)
    grid = encoder.image_size // encoder.patch_size
    rows = load_rows("cv_bench", settings.data.benchmarks)
    row = next(row for row in rows if row["category"] == "Relation")
    picture = pad_to_square(open_image(row["image"])).resize((24 * grid, 24 * grid), Image.BICUBIC)
    patches = [picture.crop((24 * x, 24 * y, 24 * x + 24, 24 * y + 24)) for y in range(grid) for x in range(grid)]
    figure, axes = plt.subplots(1, 3, figsize=(5.4, 2.1))
    for number, axis in enumerate(axes):
        order = range(grid**2) if number == 0 else patch_order(number - 1, row["id"], grid**2)
        shuffled = Image.new("RGB", picture.size)
        for place, patch in enumerate(order):
            shuffled.paste(patches[patch], (24 * (place % grid), 24 * (place // grid)))
        axis.imshow(shuffled)
        axis.set(xticks=[], yticks=[], title="as it is" if number == 0 else f"permutation {number - 1}")
    plots.save(figure, out, "figure_7")
else:
    display(Markdown("Not run in this profile."))

# %% [markdown]
# ## What these numbers say

# %%
pairs = [("viral", "baseline"), ("siglip2-viral", "siglip2-baseline")]
differences = pd.concat([results.drop_differences(profile, pairs, category) for category in categories])
differences.to_csv(out / "drop_differences.csv", index=False, float_format="%.4f")
conclude(results.drop_lines(table, differences))
