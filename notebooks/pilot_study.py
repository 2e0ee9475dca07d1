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
# **Question.** A LLaVA is trained on text alone: nothing asks its visual tokens to stay visual. Do they drift away from
# what the vision encoder gave them, and does an alignment loss in the middle layer change that?
#
# > **The paper's answer** *(typeset like this throughout)*: similarity to the encoder's features, measured by CKNNA,
# > drops sharply after the early layers and stays low, with a slight rise in the middle layers; an alignment loss
# > preserves it better and improves benchmarks.
#
# **How we measure.** For each image the $N$ visual tokens are the samples. At every layer $\ell = 0 \ldots L$ (layer 0
# is the language model's input, layer $\ell$ the output of block $\ell$, before any final norm) we compute the mutual
# nearest-neighbour alignment CKNNA (Huh et al., 2024; unbiased HSIC) between the hidden states and the encoder features
# $z$ that the projector got, and average over images. The dotted line is chance: the same features in arbitrary order.

# %% tags=["parameters"]
profile = "laptop"

# %%

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

import viral_core.profile
from viral_core import plots, results
from viral_core.paths import ROOT, RunPaths

settings = viral_core.profile.load(profile)
paths = RunPaths(profile)
out = ROOT / paths.results("pilot_study")
out.mkdir(parents=True, exist_ok=True)
plots.style()
display(Markdown(f"Profile **{profile}**: {settings.label}."))

# %% [markdown]
# ## Similarity to the encoder, layer by layer (Figure 2d)
#
# One row per run, seed, image and layer. The band is the 95 % interval of the mean over images and seeds (images are
# resampled as clusters, because all seeds see the same images).

# %%
similarity = results.similarity(profile)
curve = results.similarity_curve(similarity)
curve.to_csv(out / "figure_2d.csv", index=False, float_format="%.5f")
curve.pivot_table(index="layer", columns="run", values="cknna").round(3)

# %%
k, n = similarity["k"].iat[0], similarity["n"].iat[0]
figure, axis = plt.subplots(figsize=(5.4, 3.8))
for i, (run, line) in enumerate(curve.groupby("run", sort=False)):
    axis.plot(line["layer"], line["cknna"], color=plots.COLOURS[i], marker=plots.MARKERS[i], label=run)
    axis.fill_between(line["layer"], line["low"], line["high"], color=plots.COLOURS[i], alpha=0.2, linewidth=0)
axis.axhline(curve["chance"].mean(), color="grey", linestyle=":", label="chance")
for layer in results.aligned_layers(settings):
    axis.axvline(layer, color="grey", linewidth=0.8, linestyle="--", zorder=0)
axis.set(xlabel="layer (0 = input of the language model)", ylabel=f"CKNNA to the encoder's z (k = {k}, n = {n})")
axis.legend(title=None)
axis.set_title(plots.wrap(f"{settings.label}; dashed: aligned layer"), fontsize="small")
plots.save(figure, out, "figure_2d")

# %% [markdown]
# ## Benchmarks of the same runs (Figure 2e)
#
# Official scores with 95 % bootstrap intervals over questions (in clusters where questions share an image) and seeds.
# Chance is what always giving one answer scores at the best.

# %%
scores = results.scores(profile)
scores.to_csv(out / "figure_2e.csv", index=False, float_format="%.5f")
official = scores[scores["score_name"] == "official"]
official.round(4)

# %%
asked = list(official["benchmark"].unique())
figure, axes = plt.subplots(1, len(asked), figsize=(max(5.4, 2.4 * len(asked)), 3.6), squeeze=False)
for axis, benchmark in zip(axes[0], asked, strict=True):
    rows = official[official["benchmark"] == benchmark].reset_index(drop=True)
    axis.bar(rows.index, rows["score"], color=[plots.COLOURS[i] for i in rows.index], width=0.6)
    axis.errorbar(rows.index, rows["score"], [rows["score"] - rows["low"], rows["high"] - rows["score"]],
                  fmt="none", color="grey", capsize=4)  # fmt: skip
    axis.axhline(rows["constant"].iat[0], color="grey", linestyle=":", linewidth=1)
    axis.set(xticks=rows.index, title=benchmark)
    axis.set_xticklabels(rows["run"], rotation=20)
axes[0, 0].set_ylabel("official score")
figure.suptitle(plots.wrap(f"{settings.label}; dotted: best constant answer"), fontsize="small")
plots.save(figure, out, "figure_2e")

# %% [markdown]
# ## What these numbers say
#
# The sentences below are computed from the tables above.

# %%
gains = results.gains(profile)
gains.to_csv(out / "gains.csv", index=False, float_format="%.5f")
display(gains[gains["score_name"] == "official"].round(4))
display(Markdown("\n".join(f"- {line}" for line in results.pilot_conclusions(curve, gains, settings))))
