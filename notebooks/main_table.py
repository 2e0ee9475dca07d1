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
# # Does alignment help, across encoders, language models and sizes? (Section 5.2, Table 1, Figure 1b)
#
# **Question.** Four systems are trained twice, with the language loss alone and with the alignment loss added (DINOv2,
# middle layer, cosine, $\lambda = 0.5$). Does the second answer better?
#
# > **The paper's answer**: it "consistently improves performance", by 9.4 % on average; most on What's Up and MMVP.
# > Two of its 24 cells do not improve (Qwen2.5 on POPE, Vicuna-7B with CLIP on MMStar).
#
# **How we measure.** The official score of each benchmark as the paper combines it: CV-Bench2D over all questions,
# MMVP by pairs, What's Up and POPE as the mean of their two files, MME perception plus cognition. Gains are paired:
# same questions, same seeds. Intervals are 95 % bootstraps over questions, in clusters where questions share an
# image, and over seeds where there are several. What differs by more than one point under a strict reading of the
# answers shows both scores.

# %% tags=["parameters"]
profile = "laptop"

# %%
from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "main_table")

# %% [markdown]
# ## Table 1
#
# The paper's numbers are grey and italic. A gain is bold where its interval excludes zero.

# %%
table = results.side_by_side(profile, 1)
table.to_csv(out / "table_1.csv", index=False, float_format="%.4f")
results.styled(table, f"Table 1, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, results.TITLES)
figure.suptitle(plots.wrap(f"{settings.label}; dotted: best constant answer", 90), fontsize="small")
plots.save(figure, out, "figure_1b")

# %%
aligned = table[[results.reference(run) != run for run in table["run"]]]
figure = plots.score_panels(aligned, results.TITLES, "gain", zero=True)
figure.suptitle(plots.wrap(f"{settings.label}; gain over the same system without alignment; filled: excludes 0", 90),
                fontsize="small")  # fmt: skip
plots.save(figure, out, "table_1_gains")

# %% [markdown]
# ## The noise of the seed
#
# How far apart seeds of one recipe lie. A gain from a single seed that is smaller than this says little, whatever its
# interval over questions.

# %%
noise = results.seed_noise(profile)
noise.to_csv(out / "seed_noise.csv", index=False, float_format="%.4f")
noise.round(2)

# %% [markdown]
# ## Kinds of questions
#
# Where a benchmark has kinds of questions: scores of each, in the same units.

# %%
kinds = results.scores(profile, dict.fromkeys(table["run"]))
kinds.to_csv(out / "sub_scores.csv", index=False, float_format="%.4f")
kinds.pivot_table(index=["benchmark", "score_name"], columns="run", values="score", sort=False).round(1)

# %% [markdown]
# ## What these numbers say

# %%
pairs = {run: results.reference(run) for run in aligned["run"]}
conclude(
    results.gain_lines(results.gains(profile, pairs, pairs))
    + results.missing_line(results.not_run(profile, runs=dict.fromkeys(table["run"])))
)
