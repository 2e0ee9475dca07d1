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
# # Re-injection and alignment, before and after the projector (Sections 4.2 and 4.3, Appendix B, Table 4, Figure 8)
#
# **Question.** Visual information can be given back to the middle layer in two ways, by adding features to its visual
# tokens or by a loss that asks the tokens to stay similar to features; and the features can be taken after the
# projector or before it. Which of the four helps?
#
# | | adds features (part of the model) | aligns to features (a loss) |
# |---|---|---|
# | after the projector | (b) $e_i \leftarrow e_i + P_\phi(z_i)$, Eq. 3 | (e) $-\cos(P_\pi(e_i), P_\phi(z_i))$, Eq. 8 |
# | before the projector | (d) $e_i \leftarrow e_i + P_{\phi'}(z_i)$, Eq. 7 | (c) $-\cos(P_\pi(e_i), z_i)$, Eq. 4 |
#
# > **The paper's answer**: (c) is best; (b) and (e) help on POPE and CV-Bench2D; (d) disturbs the model and falls
# > below the baseline, on MMVP by 8.9 points.
#
# **How we measure.** As in the pilot study. A residual is active in training and in every answer and measurement. Only
# the visual positions are changed.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "residual_variants")
systems = {
    "baseline": "(a) baseline",
    "residual-post": "(b) residual, post-projection (Eq. 3)",
    "align-encoder": "(c) alignment, encoder features (Eq. 4)",
    "residual-pre": "(d) residual, pre-projection (Eq. 7)",
    "align-projector": "(e) alignment, post-projection (Eq. 8)",
}

# %% [markdown]
# ## Benchmarks (Table 4, Figure 2e)

# %%
table = results.side_by_side(profile, 4)
table.to_csv(out / "table_4.csv", index=False, float_format="%.4f")
results.styled(table, f"Table 4, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, results.TITLES)
figure.suptitle(plots.wrap(f"{settings.label}; dotted: best constant answer", 70), fontsize="small")
plots.save(figure, out, "table_4")

# %% [markdown]
# ## Similarity to the encoder
#
# A residual raises similarity where it enters because it adds the very features that are compared; what the later
# layers keep of it is the question.

# %%
similarity = results.similarity(profile, systems)
curve = results.similarity_curve(similarity)
curve.to_csv(out / "figure_8_cknna.csv", index=False, float_format="%.5f")
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
    plots.save(figure, out, "figure_8_cknna")
else:
    display(Markdown("Not run in this profile."))

# %% [markdown]
# ## What these numbers say

# %%
for run in list(systems)[1:]:
    difference = results.layer_difference(similarity, "cknna", "image", run)
    conclude(results.difference_lines(difference, run, "baseline", "CKNNA"))

# %% [markdown]
# Against the baseline, then (c) against (b), and (e) against (c):

# %%
shown = [name for name in results.asked(profile) if name in set(table["benchmark"])]
gains = results.gains(profile, systems, benchmarks=shown)
gains.to_csv(out / "gains.csv", index=False, float_format="%.4f")
conclude(results.gain_lines(gains))
conclude(results.gain_lines(results.gains(profile, ["align-encoder"], "residual-post", shown)))
conclude(results.gain_lines(results.gains(profile, ["align-projector"], "align-encoder", shown)))
conclude(results.missing_line(results.not_run(profile, runs=systems)))
