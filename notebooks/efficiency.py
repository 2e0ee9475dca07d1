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
# # Does alignment pay its way? (Section 5.7, Figure 6, overhead)
#
# **Question.** Is an aligned model ahead earlier in training, and what does a training step cost more?
#
# > **The paper's answer**: evaluated every 1 K of 5.2 K steps on CV-Bench2D and MMVP, the aligned models pass the
# > baseline's final score within 3 K steps; alignment adds "about 3 %" to the training time.
#
# **How we measure.** Run folders kept at fixed fractions of training are asked the same benchmarks as the finished
# run. Bands are 95 % bootstrap intervals over questions and seeds; the average of the two benchmarks takes them as
# independent. Unlike the paper we show the baseline's own curve: its end alone hides how early it got there. The time
# of a step is the median over logging intervals of the run's own log.

# %% tags=["parameters"]
profile = "laptop"

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from workbook import plots, results
from workbook.notebook import begin, conclude

settings, out = begin(profile, "efficiency")
models = {"": "CLIP, Vicuna-7B", "qwen-": "CLIP, Qwen2.5-7B", "13b-": "CLIP, Vicuna-13B"}
systems = [f"{prefix}{kind}" for prefix in models for kind in ("baseline", "viral")]

# %% [markdown]
# ## Learning curves (Figure 6)

# %%
curve = results.learning_curve(profile, systems)
curve.to_csv(out / "figure_6.csv", index=False, float_format="%.4f")
if len(curve):
    benchmarks = dict.fromkeys(curve["benchmark"])
    figure, axes = plt.subplots(len(benchmarks), len(models), figsize=(8.6, 2.3 * len(benchmarks)), squeeze=False,
                                sharex=True)  # fmt: skip
    for row, benchmark in enumerate(benchmarks):
        part = curve[curve["benchmark"] == benchmark]
        for axis, (prefix, title) in zip(axes[row], models.items(), strict=True):
            names = {f"{prefix}baseline": "without alignment", f"{prefix}viral": "with alignment"}
            plots.curves(axis, part, "step", "score", names)
            end = part[(part["run"] == f"{prefix}baseline") & (part["fraction"] == 1)]["score"]
            if len(end):
                axis.axhline(end.iat[0], color="grey", linewidth=0.8, linestyle="--", zorder=0)
            if not set(names) & set(part["run"]):
                axis.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", color="grey")
                axis.set_yticks([])
            elif row == 0:
                axis.legend(fontsize="x-small")
            axis.set_title(title if row == 0 else "", fontsize="small")
        axes[row, 0].set_ylabel(f"{results.TITLES.get(benchmark, 'average')} (%)")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.suptitle(plots.wrap(f"{settings.label}; dashed: the finished baseline", 90), fontsize="small")
    plots.save(figure, out, "figure_6")
else:
    display(Markdown("Not run in this profile."))

# %% [markdown]
# ## The losses

# %%
logs = results.training_logs(profile, systems)
logs.to_csv(out / "losses.csv", index=False, float_format="%.5f")
if len(logs):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    names = {"baseline": "baseline", "viral": "VIRAL"}
    for axis, column, title in zip(axes, ("lm_loss", "vra_loss"), ("language loss (Eq. 2)", "alignment loss (Eq. 6)"),
                                   strict=True):  # fmt: skip
        mean = logs.groupby(["run", "step"], sort=False)[column].agg(["mean", "min", "max"]).reset_index()
        mean = mean.rename(columns={"mean": column, "min": "low", "max": "high"})
        plots.curves(axis, mean.dropna(), "step", column, names)
        axis.set(xlabel="step", title=title)
    axes[0].legend()
    figure.suptitle(plots.wrap(f"{settings.label}; band: lowest and highest seed", 90), fontsize="small")
    plots.save(figure, out, "losses")
else:
    display(Markdown("Not run in this profile."))

# %% [markdown]
# ## What a step costs
#
# From the logs above, seed by seed. Times of runs that shared their machine with other work are noisy.

# %%
costs = results.costs(profile, systems)
costs.to_csv(out / "step_costs.csv", index=False, float_format="%.5f")
display(costs.round(4) if len(costs) else Markdown("Not run in this profile."))

# %% [markdown]
# ## What this profile took
#
# Every stage notes its time. `minutes` adds up all stages of a kind, those that ran side by side included; the time
# that Python takes to start is not in it.

# %%
stages = results.stage_costs(profile)
stages.to_csv(out / "stage_costs.csv", index=False, float_format="%.2f")
display(stages.round(1) if len(stages) else Markdown("Not noted in this profile."))

# %% [markdown]
# ## On a GPU
#
# Small measurements that were made on a GPU, if any: one stage-2 step without alignment, with cached and with online
# teacher features, and with the usual transcription of the method. Each says where it was made.

# %%
gpu = results.gpu_benchmarks()
display(gpu if len(gpu) else Markdown("Not run: no measurement was made on a GPU."))

# %% [markdown]
# ## What these numbers say

# %%
conclude(
    results.efficiency_lines(curve, costs) + results.missing_line(results.not_run(profile, "learning_curve", systems))
)
