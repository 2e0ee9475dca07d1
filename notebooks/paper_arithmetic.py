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
# # What does not add up in the paper
#
# **Question.** Do the paper's printed numbers support its sentences? Nothing of this notebook comes from a run of ours:
# every number is recomputed from the cells of Tables 1 to 6 (`workbook/paper/*.csv`) and from the benchmarks' numbers
# of questions. It says how large an effect must be before it means something, which the other notebooks build on.
#
# > **The paper's answer** *(typeset like this throughout)* stands before each computation.

# %% tags=["parameters"]
profile = "laptop"

# %%
from IPython.display import Markdown, display

from workbook import paper
from workbook.notebook import begin
from workbook.paper import arithmetic

_, out = begin(profile, "paper_arithmetic")


def show(table, name: str, digits: int = 2) -> None:
    """Write a table and display it."""
    table.to_csv(out / f"{name}.csv", index=False, float_format="%.4f")
    display(table.style.format(precision=digits).hide(axis="index").set_uuid(name))


# %% [markdown]
# ## The average gain
#
# > "an average improvement of 9.4 % over the baseline" (Abstract, Section 1)
#
# With $s$ a printed score, the relative gain of a cell is $(s_{VIRAL} - s_{baseline}) / s_{baseline}$. Which mean is
# 9.4 %?

# %%
average = arithmetic.average_gains()
show(average, "average_gains", 3)
stated = paper.text().set_index("quantity").loc["average_gain", "value"].iloc[0]
near = average.loc[(average["percent"] - float(stated)).abs().idxmin()]
everything = average.iloc[0]
display(Markdown(
    f"The reading nearest to {stated} % is *{near.reading}*: {near.percent:.3f} % over {near.cells} cells. Over all "
    f"{everything.cells} cells of Table 1 the mean is {everything.percent:.2f} %."
))  # fmt: skip

# %% [markdown]
# ## The largest gain
#
# > "gains reaching up to 17.3 %" (Abstract)

# %%
largest = arithmetic.largest_gains()
show(largest, "largest_gains", 1)
display(Markdown(
    f"17.3 % is `{largest.iloc[-1].run}` on {largest.iloc[-1].benchmark}; {len(largest) - 1} cells of Table 1 gain "
    f"more, up to {largest.iloc[0].relative:.1f} % (`{largest.iloc[0].run}`, {largest.iloc[0].benchmark})."
))  # fmt: skip

# %% [markdown]
# ## All tasks
#
# > "performance improvements across all tasks" (Abstract); "significant improvements across all tasks" (Section 1)

# %%
worse = arithmetic.not_improved()
show(worse, "not_improved")
display(Markdown(f"{len(worse)} of {len(arithmetic.gains())} cells of Table 1 do not improve."))

# %% [markdown]
# ## Table 3: which 788 questions, and how much is noise
#
# > "Number of correct predictions out of 788 spatial reasoning tasks in CV-Bench2D": shuffling costs VIRAL more.
#
# CV-Bench2D has 788 *Count* and 650 *Relation* questions. The table has no error bars and one permutation. If $k_0$ and
# $k_1$ of $n$ answers are right before and after, and independent, the drop $k_0 - k_1$ has the standard error
# $\sqrt{n (p_0 (1 - p_0) + p_1 (1 - p_1))}$; a difference of two drops has $\sqrt{2}$ times that. Asking the same
# questions twice makes the truth smaller by an amount that the table does not tell.

# %%
errors = arithmetic.permutation_errors()
show(errors, "permutation_errors", 1)
display(Markdown("\n".join(
    f"- {row.encoder}, n = {row.n}: VIRAL loses {row.difference:.0f} answers more, with a standard error of about "
    f"{row.difference_error:.0f} ({row.z:.1f} of them)." for row in errors.itertuples()
)))  # fmt: skip

# %% [markdown]
# ## Accuracies that cannot be
#
# > Overall accuracy of CV-Bench2D (1438 questions); MMVP's pair accuracy (150 pairs) averaged over 10 runs.
#
# An accuracy is $k / n$ with whole $k$. For some printed values there is none.

# %%
impossible = arithmetic.unattainable()
show(impossible, "unattainable", 3)
display(Markdown(
    f"{len(impossible)} values are no k / n: "
    + "; ".join(f"{name}: {', '.join(f'{v:.2f}' for v in group['value'])}"
                for name, group in impossible.groupby("benchmark"))
    + ". Rows of Table 2 that miss MMVP's grid may have been averaged over another number of runs."
))  # fmt: skip

# %% [markdown]
# ## Ablations
#
# > DINOv2 "consistently emerges as the most effective"; "the 16th layer ... consistently yielding stronger results"
# > (Section 5.3); one layer and the cosine objective are best (Appendix C); VIRAL beats ROSS "across all benchmarks"
# > (Appendix D).

# %%
for number in ("2", "5", "6"):
    display(Markdown(f"Table {number}: where VIRAL is not the best"))
    show(arithmetic.ranks(number), f"table_{number}_exceptions")
clip = arithmetic.compare("teacher-clip", "baseline", ["cv_bench", "mmvp", "whats_up", "pope", "mme"])
show(clip, "table_2_clip")
cost = clip.set_index("benchmark").loc["mme", "difference"]
display(Markdown(f"Aligning to CLIP changes MME by {cost:+.1f} points, which the paper does not discuss."))

# %% [markdown]
# ## A larger model that is worse
#
# > Vicuna 13B stands for a "scaling trend" (Section 5.2).

# %%
sizes = arithmetic.compare("13b-baseline", "baseline", ["mme", "cv_bench", "mmvp", "whats_up", "pope", "mmstar"])
show(sizes, "13b_against_7b")
mme = sizes.iloc[0]
display(Markdown(
    f"MME of the 13B baseline is {mme['13b-baseline']:.0f}, of the 7B baseline {mme['baseline']:.0f}: "
    f"{mme['difference']:+.0f} points."
))  # fmt: skip

# %% [markdown]
# ## How large the noise is
#
# > One number per cell, no intervals (all tables).
#
# The standard error of one run's accuracy $p$ over $n$ questions is $\sqrt{p (1 - p) / n}$, before any noise of the
# seed. For MMVP $n$ is its 150 pairs: ten sampled answers to the same pairs do not make it smaller.

# %%
noise = arithmetic.standard_errors()
show(noise, "standard_errors", 1)
display(Markdown("\n".join(
    f"- {row.benchmark}: standard error {row.error:.1f} points at n = {row.n}; Table 1's first gain is "
    f"{row.viral_gain:+.2f} points, {abs(row.viral_gain) / row.error:.1f} standard errors of one run."
    for row in noise.itertuples()
)))  # fmt: skip
