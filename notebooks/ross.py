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
# # Alignment or reconstruction? (Appendix D, Table 6)
#
# **Question.** ROSS asks the visual tokens to reconstruct the image: a small denoiser, conditioned on them, predicts
# the noise in the latents of a variational autoencoder. Is that as good as aligning with a teacher? Its default
# condition is the last hidden state; `ross-middle` moves it to the layer that VIRAL aligns.
#
# > **The paper's answer**: both ROSS variants improve over the baseline, the middle layer more than the last, and
# > VIRAL beats both "across all benchmarks"; by its own numbers not on MMStar (34.73 for ROSS, 33.93 for VIRAL).
#
# **How we measure.** As in the main table: official scores, paired gains over the baseline and between the objectives.

# %% tags=["parameters"]
profile = "laptop"

# %%
from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "ross")

# %%
table = results.side_by_side(profile, 6)
table.to_csv(out / "table_6.csv", index=False, float_format="%.4f")
results.styled(table, f"Table 6, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, results.TITLES)
figure.suptitle(plots.wrap(f"{settings.label}; dotted: best constant answer", 90), fontsize="small")
plots.save(figure, out, "table_6")

# %% [markdown]
# ## What these numbers say
#
# Over the baseline, then VIRAL over each ROSS, and the middle layer over the last.

# %%
runs = dict.fromkeys(table["run"])
conclude(results.gain_lines(results.gains(profile, runs)))
between = results.gains(profile, ["ross-middle"], "ross-default")
for other in ("ross-default", "ross-middle"):
    conclude(results.gain_lines(results.gains(profile, ["viral"], other)))
conclude(results.gain_lines(between) + results.missing_line(results.not_run(profile, runs=runs)))
