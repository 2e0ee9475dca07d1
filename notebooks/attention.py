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
# # Does alignment focus the attention on the image? (Section 5.4, Figures 4 and 12)
#
# **Question.** When a model answers, how are its looks at the image spread? Spatial entropy counts the patches of high
# attention: one compact region has entropy 0, many scattered ones a high entropy.
#
# > **The paper's answer**: LLaVA-1.5-7B has high entropy "across layers and heads"; the aligned model "consistently
# > lower", most at the aligned layer. No number is printed.
#
# **How we measure.** At each step of a greedy answer, the attention of the position that predicts the next token,
# stop token excluded, to the visual tokens. $S$ is that row as a map, $B = \max(S - \mathrm{mean}\, S, 0)$; the
# 8-connected components of $\{B > \tau\}$ have shares $p_c$ of all $B$, and the entropy is $-\sum p_c \ln p_c$. Mean
# over tokens, then questions. Two readings: *renormalised* to sum 1 over the image with $\tau = 0$ (ours, primary),
# and *raw* with $\tau = 0.001$ (the reference's), where a head that hardly looks at the image scores 0, as if
# perfectly focussed. The paper asks GQA questions of the category Relation; here they are CV-Bench2D's.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Markdown, display

from viral_core.images import pad_to_square
from workbook import plots, results
from workbook.benchmarks import load_rows, open_image
from workbook.notebook import begin, conclude

settings, out = begin(profile, "attention")
systems = {"baseline": "baseline", "viral": "VIRAL"}
if missing := results.not_run(profile, "attention", systems):
    display(Markdown(f"Not run in this profile: {', '.join(missing)}."))

# %% [markdown]
# ## Entropy, layer by layer (Figure 4, right)

# %%
questions = results.measured(profile, "attention", "questions.csv", systems)
curves = {
    reading: results.layer_curve(group, "entropy", "question").assign(reading=reading)
    for reading, group in (questions.groupby("reading", sort=False) if len(questions) else ())
}
for reading, curve in curves.items():
    curve.to_csv(out / f"figure_4_{reading}.csv", index=False, float_format="%.5f")

# %%
if curves:
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.4), squeeze=False)
    for axis, (reading, curve) in zip(axes[0], curves.items(), strict=True):
        plots.curves(axis, curve, "layer", "entropy", systems)
        plots.mark_layers(axis, results.aligned_layers(profile, systems))
        axis.set(
            xlabel="layer", ylabel="spatial entropy (nats)", title=f"{reading}, n = {curve['items'].max()} questions"
        )
    axes[0, 0].legend()
    figure.suptitle(plots.wrap(f"{settings.label}; mean over heads; dashed: aligned layer", 90), fontsize="small")
    plots.save(figure, out, "figure_4")

# %% [markdown]
# ## Layers and heads

# %%
heads = results.measured(profile, "attention", "heads.csv", systems)
heads.to_csv(out / "figure_4_heads.csv", index=False, float_format="%.5f")
if len(heads):
    primary = heads[heads["reading"] == "renormalised"]
    maps = {
        run: group.pivot_table(index="layer", columns="head", values="entropy", dropna=False)
        for run, group in primary.groupby("run")
    }
    top = np.nanmax([np.nanmax(grid) for grid in maps.values()])
    figure, axes = plt.subplots(1, len(maps), figsize=(3.2 * len(maps), 3.4), squeeze=False)
    for axis, run in zip(axes[0], maps, strict=True):
        last = axis is axes[0, -1]
        sns.heatmap(maps[run], ax=axis, cmap="Greys", vmin=0, vmax=top, cbar=last, square=True,
                    cbar_kws={"label": "spatial entropy (nats)"} if last else None)  # fmt: skip
        axis.set_title(systems[run])
    plots.save(figure, out, "figure_4_heads")

# %% [markdown]
# ## Maps of a few questions (Figure 4, left; Figure 12)
#
# The first questions of the category, not chosen by us: mean over the answer's tokens and over heads, seed by seed the
# first. Darker is more attention; each map has its own scale.

# %%
kept = {run: results.attention_maps(profile, run, settings.runs[run][0]) for run in systems if run in settings.runs}
shown = list(next((maps for maps in kept.values() if maps), {}))
rows = {row["id"]: row for row in load_rows(settings.attention.benchmark, settings.data.benchmarks)} if shown else {}
for question in shown:
    layers = len(next(maps for maps in kept.values() if maps)[question])
    chosen = range(1, layers + 1) if layers <= 8 else range(layers - 7, layers + 1)
    picture = pad_to_square(open_image(rows[question]["image"]))
    columns = {"image": [plots.pixels(picture)] * len(systems)}
    for layer in chosen:
        columns[f"layer {layer}"] = [kept[run][question][layer - 1] if kept.get(run) else None for run in systems]
    figure = plots.tiles(columns, list(systems.values()))
    figure.suptitle(plots.wrap(rows[question]["question"], 110), fontsize="x-small")
    plots.save(figure, out, f"figure_12_{shown.index(question)}")

# %% [markdown]
# ## What these numbers say

# %%
lines = []
for reading, group in questions.groupby("reading", sort=False) if len(questions) else ():
    difference = results.layer_difference(group, "entropy", "question", "viral")
    difference.to_csv(out / f"difference_{reading}.csv", index=False, float_format="%.5f")
    lines += results.difference_lines(difference, "viral", "baseline", f"spatial entropy, {reading}")
    undefined = group.groupby("run", sort=False)["undefined"].sum()
    lines += [f"{reading}: undefined and left out, over all layers and heads: " + ", ".join(
        f"`{run}` {count}" for run, count in undefined.items()) + "."]  # fmt: skip
conclude(lines + results.missing_line(missing))
