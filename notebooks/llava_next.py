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
# **Question.** LLaVA-NeXT cuts an image into tiles, each encoded on its own, and joins their tokens. Do its visual
# tokens drift away from the encoder's features too?
#
# > **The paper's answer**: similarity declines across the layers, "similar patterns" to Figure 2d; VIRAL is not
# > trained on it.
#
# **How we measure.** CKNNA per tile, its tokens against the encoder's features of that tile, averaged over the tiles
# of an image; otherwise as in the pilot study. Ours adds a run with the alignment loss.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "llava_next")
systems = {"next-baseline": "LLaVA-NeXT", "next-viral": "LLaVA-NeXT with alignment"}

# %%
similarity = results.similarity(profile, systems)
curve = results.similarity_curve(similarity)
curve.to_csv(out / "figure_9.csv", index=False, float_format="%.5f")
display(curve.round(3) if len(curve) else Markdown("Not run in this profile."))

# %%
if len(curve):
    facts = f"k = {similarity['k'].iat[0]}, n = {similarity['n'].iat[0]}"
    figure, axis = plt.subplots(figsize=(5.4, 3.6))
    plots.curves(axis, curve, "layer", "cknna", systems)
    plots.mark_layers(axis, results.aligned_layers(profile, systems), curve["chance"].mean())
    axis.set(
        xlabel="layer (0 = input of the language model)",
        ylabel=f"CKNNA to the encoder's z\n({facts}; tokens of each tile, no clamp)",
    )
    axis.legend(fontsize="small")
    axis.set_title(plots.wrap(settings.label), fontsize="small")
    plots.save(figure, out, "figure_9")

# %% [markdown]
# ## What these numbers say

# %%
difference = results.layer_difference(similarity, "cknna", "image", "next-viral", "next-baseline")
lines = results.similarity_lines(similarity, curve)
conclude(
    lines
    + results.difference_lines(difference, "next-viral", "next-baseline", "CKNNA")
    + results.missing_line(results.not_run(profile, "cknna", systems))
)
