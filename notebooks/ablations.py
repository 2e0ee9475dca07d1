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
# # Which teacher, which layer, which objective? (Section 5.3, Appendix C, Tables 2 and 5, and our controls)
#
# **Question.** VIRAL aligns the middle layer with DINOv2 by cosine similarity. What do another teacher, another layer,
# several layers or another objective change? And, ours: is it the teacher's content that helps, or any regularisation?
#
# > **The paper's answer**: DINOv2 is the most versatile teacher, layer 16 of 32 the best layer, one layer better than
# > several, cosine better than relation. By its own numbers layer 16 is not the best on POPE or MME, aligning to CLIP
# > costs 101.7 points of MME, and relation beats cosine on What's Up.
#
# **How we measure.** As in the main table: official scores, and paired gains over the baseline, and over `viral` for
# the controls. Layers are named as in the paper's 32 blocks and lie at the same relative depth.

# %% tags=["parameters"]
profile = "laptop"

# %%
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "ablations")

# %% [markdown]
# ## Teachers and layers (Table 2)

# %%
teachers_and_layers = results.side_by_side(profile, 2)
teachers_and_layers.to_csv(out / "table_2.csv", index=False, float_format="%.4f")
results.styled(teachers_and_layers, f"Table 2, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
once = teachers_and_layers.drop_duplicates(["run", "benchmark"])
figure = plots.score_panels(once[once["run"] != "baseline"], results.TITLES, "gain", zero=True)
figure.suptitle(plots.wrap(f"{settings.label}; gain over the baseline; filled: excludes 0", 90), fontsize="small")
plots.save(figure, out, "table_2_gains")

# %% [markdown]
# ## Several layers, another objective (Table 5)

# %%
layers_and_objective = results.side_by_side(profile, 5)
layers_and_objective.to_csv(out / "table_5.csv", index=False, float_format="%.4f")
results.styled(layers_and_objective, f"Table 5, the paper's numbers beside ours. Ours: {settings.label}.")

# %% [markdown]
# ## Our controls
#
# - `as-released`: what the released code trains, a teacher whose linear layers are random and a head that never
# learns. - `shuffled-teacher`: the right teacher's features of the wrong image. A gain that stays is not the
# teacher's content. - `lambda-...`: the weight of the alignment loss; `viral` has 0.5.

# %%
labels = {"viral": "VIRAL", "as-released": "as the code was released", "shuffled-teacher": "features of another image",
          "lambda-0_1": "λ = 0.1", "lambda-0_25": "λ = 0.25", "lambda-1": "λ = 1"}  # fmt: skip
controls = results.side_by_side(profile, 2, labels)
controls = controls[controls["run"].isin(["baseline", *labels])]
controls.to_csv(out / "controls.csv", index=False, float_format="%.4f")
results.styled(controls, f"Controls of ours; only the first two rows are the paper's. Ours: {settings.label}.")

# %%
figure = plots.score_panels(controls[controls["run"] != "baseline"], results.TITLES, "gain", zero=True)
figure.suptitle(plots.wrap(f"{settings.label}; gain over the baseline; filled: excludes 0", 90), fontsize="small")
plots.save(figure, out, "controls_gains")

# %%
own = results.own_runs(profile, labels)
if own:
    pairs = [name for run in own for name in (results.reference(run), run)]
    table = results.side_by_side(profile, 1, {run: "own run" if run in own else "its reference" for run in pairs})
    table = table[table["run"].isin(pairs)]
    table.to_csv(out / "own_runs.csv", index=False, float_format="%.4f")
    display(Markdown("## Own runs\n\nRuns of the registry that supply nothing of the paper and are no control above, "
                     "each below the run without alignment of the same models."))  # fmt: skip
    display(results.styled(table, f"Own runs; gains over the row's reference. Ours: {settings.label}."))

# %% [markdown]
# ## What these numbers say
#
# First each run against the baseline of the same models, then the controls against `viral`.

# %%
runs = dict.fromkeys([*teachers_and_layers["run"], *layers_and_objective["run"], *labels, *own])
against_baseline = results.gains(profile, runs, {run: results.reference(run) for run in runs})
against_viral = results.gains(profile, [run for run in labels if run != "viral"], "viral")
for name, gains in (("gains", against_baseline), ("gains_over_viral", against_viral)):
    gains.to_csv(out / f"{name}.csv", index=False, float_format="%.4f")
conclude(results.gain_lines(against_baseline))
conclude(results.gain_lines(against_viral) + results.missing_line(results.not_run(profile, runs=runs)))
