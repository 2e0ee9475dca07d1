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
# # The stand-ins: what the embedded models have learned
#
# **Question.** Everything in the embedded profiles rests on tiny models that the pipeline trains itself. Have they
# learned enough for a comparison of runs to mean anything?
#
# No section of the paper has this: its models come trained. A language model that cannot count, or an encoder that
# cannot tell a dog from a cat, would turn all that is measured later into noise.
#
# **How we measure.** Language models answer held-out questions about a scene that is spelled out in words at the
# visual positions; an answer is right if every token of it is. Encoders and teachers are read, patch by patch, by
# linear probes, on scenes that neither the model nor the probe has seen. Intervals are 95 % (Wilson).
#
# The 13B and the Qwen stand-in do not start from nothing: they grow from the blocks of the 7B one, which spares most of
# their training. Their errors are therefore not independent of its errors.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "stand_ins")


def heatmap(table, columns, name, title):
    """Accuracies as a grid of models and what they were asked."""
    grid = table.pivot(index="model", columns=columns, values="accuracy")
    grid = grid.loc[table["model"].unique(), table[columns].unique()]
    size = (1.6 + 0.62 * grid.shape[1], 1.4 + 0.34 * len(grid))
    figure, axis = plt.subplots(figsize=size)
    sns.heatmap(grid, vmin=0, vmax=1, annot=True, fmt=".2f", cmap="Greys", cbar=False, linewidths=0.5, ax=axis,
                annot_kws={"fontsize": "x-small"})  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.tick_params(labelsize="small", length=0)
    axis.set_xticks(axis.get_xticks(), axis.get_xticklabels(), rotation=35, ha="right")
    figure.suptitle(plots.wrap(f"{title}. {settings.label}", 80), fontsize="x-small")
    plots.save(figure, out, name)


# %% [markdown]
# ## Language models, the scene spelled out in words

# %%
language = results.language_accuracies(profile)
language.to_csv(out / "language_models.csv", index=False, float_format="%.4f")
if len(language):
    heatmap(language, "question", "language_models", "Held-out questions answered exactly from words")
else:
    display(Markdown("No language model of this profile's own has been trained."))

# %% [markdown]
# ## Encoders and teachers, patch by patch
#
# `category`: which of 24 or empty, over patches with an object; `occupied`: object or not; `facing`: left or right, one
# linear map for all categories (chance 0.5); `position`: which of the 16 cells.

# %%
probes = results.probe_accuracies(profile)
probes.to_csv(out / "probes.csv", index=False, float_format="%.4f")
if len(probes):
    heatmap(probes, "probe", "probes", "Read by linear probes from a patch's feature")
else:
    display(Markdown("No encoder and no teacher of this profile's own has been trained."))

# %% [markdown]
# ## What these numbers say

# %%
conclude(results.stand_in_lines(language, probes))
