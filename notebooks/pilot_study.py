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
# # Do multimodal models lose visual information? (Section 4.1, Figure 2)
#
# **Question.** A LLaVA is trained on text alone: nothing asks its visual tokens to stay visual. Do they drift away
# from what the vision encoder gave them, and do re-injecting or aligning visual features in the middle layer change
# that?
#
# > **The paper's answer** *(typeset like this throughout)*: similarity to the encoder's features, measured by CKNNA,
# > drops sharply after the early layers and stays low, with a slight rise in the middle layers. Re-injecting the
# > projected features (b) preserves it better, aligning to the encoder's features (c) better still, and both improve
# > POPE and CV-Bench2D; on MMVP (b) loses 1.5 points.
#
# **How we measure.** For each image the $N$ visual tokens are the samples. At every layer $\ell = 0 \ldots L$ (layer
# 0 is the language model's input, layer $\ell$ the output of block $\ell$, before any final norm) we compute the
# mutual nearest-neighbour alignment CKNNA (Huh et al., 2024; unbiased HSIC) between the hidden states and the encoder
# features $z$ that the projector got, and average over images. The dotted line is chance: the same features in
# arbitrary order.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude
from workbook.results.tables import NOT_RUN, number

settings, out = begin(profile, "pilot_study")
systems = {
    "baseline": "(a) baseline",
    "residual-post": "(b) residual, post-projection (Eq. 3)",
    "align-encoder": "(c) alignment to the encoder (Eq. 4)",
    "viral": "VIRAL, alignment to DINOv2 (Eq. 6)",
}

# %% [markdown]
# ## Similarity to the encoder, layer by layer (Figure 2d)
#
# One row per run, seed, image and layer. The band is the 95 % interval of the mean over images and seeds.

# %%
similarity = results.similarity(profile, systems)
curve = results.similarity_curve(similarity)
curve.to_csv(out / "figure_2d.csv", index=False, float_format="%.5f")
display(
    curve.pivot_table(index="layer", columns="run", values="cknna", sort=False).round(3)
    if len(curve) else Markdown("Not run in this profile.")
)  # fmt: skip

# %%
if len(curve):
    facts = f"k = {similarity['k'].iat[0]}, n = {similarity['n'].iat[0]}"
    figure, axis = plt.subplots(figsize=(5.8, 4))
    plots.curves(axis, curve, "layer", "cknna", systems)
    plots.mark_layers(axis, results.aligned_layers(profile, systems), curve["chance"].mean())
    axis.set(
        xlabel="layer (0 = input of the language model)",
        ylabel=f"CKNNA to the encoder's z\n({facts}; tokens of each image, no clamp)",
    )
    axis.legend(fontsize="x-small")
    axis.set_title(plots.wrap(f"{settings.label}; dashed: layer of re-injection or alignment"), fontsize="small")
    plots.save(figure, out, "figure_2d")

# %% [markdown]
# ## With and without clamp
#
# The reference clamps both sides to the 0.95 quantile of their magnitudes before CKNNA, so that a few channels of
# massive activations do not decide every neighbour. The curves above do not clamp; here are both, at the middle and
# the last layer.

# %%
images = results.measured(profile, "cknna", None, systems)
if len(images):
    images = images[images["reading"] == "tokens"]
    clamps = pd.concat(results.similarity_curve(rows).assign(clamp=clamp) for clamp, rows in images.groupby("clamp"))
    last = clamps.groupby("run")["layer"].transform("max")
    clamps = clamps[(clamps["layer"] == last // 2) | (clamps["layer"] == last)]
    clamps = clamps.sort_values(["layer", "clamp"], ascending=[True, False], kind="stable")
    clamps.to_csv(out / "clamps.csv", index=False, float_format="%.5f")
    cells = clamps.assign(
        cell=[number(row.cknna, row.low, row.high, 3) for row in clamps.itertuples()],
        clamp=clamps["clamp"].map(lambda q: "no clamp" if q == 1 else f"clamp {q:g}"),
        layer="layer " + clamps["layer"].astype(str),
    )
    order = pd.MultiIndex.from_frame(cells[["layer", "clamp"]].drop_duplicates())
    cells = cells.pivot(index="run", columns=["layer", "clamp"], values="cell").reindex(systems, columns=order)
    display(
        cells.fillna(NOT_RUN).style.set_caption(
            f"CKNNA to the encoder's z, {facts}; tokens of each image, mean over images and seeds. {settings.label}."
        ).set_uuid("clamps")
    )  # fmt: skip
else:
    display(Markdown("Not run in this profile."))

# %% [markdown]
# ## Benchmarks of the same runs (Figure 2e)
#
# Official scores with 95 % bootstrap intervals over questions (in clusters where questions share an image) and seeds;
# dotted: what always giving one answer scores at the best. The paper's numbers are those of its Table 4.

# %%
table = results.side_by_side(profile, 4, {"viral": systems["viral"]})
table = table[table["run"].isin(systems)]
table.to_csv(out / "figure_2e.csv", index=False, float_format="%.4f")
results.styled(table, f"Numbers of Figure 2e, the paper's beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, results.TITLES)
figure.suptitle(plots.wrap(f"{settings.label}; dotted: best constant answer", 70), fontsize="small")
plots.save(figure, out, "figure_2e")

# %% [markdown]
# ## What these numbers say
#
# The sentences below are computed from the tables above.

# %%
conclude(results.similarity_lines(similarity, curve))
for run in list(systems)[1:]:
    difference = results.layer_difference(similarity, "cknna", "image", run)
    conclude(results.difference_lines(difference, run, "baseline", "CKNNA"))

# %%
gains = results.gains(
    profile, systems, benchmarks=[name for name in results.asked(profile) if name in set(table["benchmark"])]
)
gains.to_csv(out / "gains.csv", index=False, float_format="%.4f")
conclude(results.gain_lines(gains) + results.missing_line(results.not_run(profile, runs=systems)))
