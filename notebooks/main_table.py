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
# > *The paper's answer:* "the model trained with VIRAL consistently outperforms the baseline -- with the largest gains
# > on fine-grained vision-centric tasks"; "significant improvements of an average 9.4% over the baseline".
#
# Two of its 24 cells do not improve (Qwen2.5 on POPE, Vicuna-7B with CLIP on MMStar).

# %% tags=["parameters"]
profile = "laptop"

# %%
import json

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib import pyplot as plt

from viral_core.measure import intervals
from workbook import claims, paper, plots, runs, scores, tables
from workbook.benchmarks import BENCHMARKS, load_rows, open_image, parse_answer, score
from workbook.benchmarks.registry import read
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "main_table")
systems = list(dict.fromkeys(paper.table(1)["run"]))
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## One question of each benchmark
#
# The first one, with the prompt that the model reads and the answer that counts as right.

# %%
questions = [
    load_rows(name, settings.data.benchmarks)[0] | {"benchmark": name}
    for name in BENCHMARKS
    if name in settings.evaluation.benchmarks
]
figure = plots.tiles({row["benchmark"]: [plots.pixels(open_image(row["image"]))] for row in questions}, [""])
plots.save(figure, out, "questions")
pd.DataFrame(questions)[["benchmark", "category", "prompt", "answer"]]

# %% [markdown]
# ## From words to a score
#
# Answers are greedy; for MMVP a profile may sample them, which is how we read the paper's average of ten runs. The
# official score reads them by the benchmark's own rule, lenient or not, and combines them as the paper does: CV-Bench2D
# over all questions (not per source), MMVP by *pairs* (both right or nothing), What's Up and POPE as the mean of two
# files, MME perception plus cognition, where a subtask's points are accuracy plus accuracy over images of which both
# questions are right.

# %%
show(score)

# %% [markdown]
# A second score, *strict*, reads all benchmarks by one parser: a letter, an option's text, yes or no; what it cannot
# read counts as wrong. Tables print it where it differs from the official one by more than 1.

# %%
show(parse_answer)

# %% [markdown]
# ## The interval of a paired difference
#
# Both models answer the same questions, in every seed. So the difference is taken question by question, and two things
# are left to chance: which questions (in clusters, where questions share an image) and which seeds. A seed is one of
# stage 2: stage 1 and the pretrained models are the same in all of them. For a mean over questions this is all; the
# library's routine does the same for scores that are no means:

# %%
example = "cv_bench"
viral, baseline = (runs.answers(profile, run, example) for run in ("viral", "baseline"))
shared = [seed for seed in viral if seed in baseline]
right = {}
for name, answered in (("viral", viral), ("baseline", baseline)):
    for seed in shared:
        rows = answered[seed][0]  # the greedy answers of this seed
        keys = [row["answer"] for row in rows]
        right[name, seed] = np.equal(read(example, rows, "official"), keys).astype(float)
if shared:
    difference = np.stack([right["viral", seed] - right["baseline", seed] for seed in shared])  # (seeds, questions)
    estimate = intervals.interval(difference, [row["group"] for row in rows]).scaled(100)
    display(pd.DataFrame(estimate.columns(), index=[f"{example}: viral - baseline (points)"]).round(3))
show(intervals.Effects.interval)

# %% [markdown]
# ## Table 1
#
# The paper's numbers are grey and italic. MMVP's best constant answer gets none of the pairs; coins would get 25 %. (In
# the embedded profiles the larger of the two Vicuna was taught for fewer steps and knows no more than the smaller one,
# see `stand_ins`: what is gained *at a larger size* is not tested there.)

# %%
table = tables.side_by_side(profile, 1)
table.to_csv(out / "table_1.csv", index=False, float_format="%.4f")
tables.styled(table, f"Table 1, the paper's numbers beside ours. Ours: {settings.label}.")

# %% [markdown]
# How far each is above the best constant answer (MME in points). The premise that the baseline is so by 10 points or
# more is decided for the first system alone (notebook `premises`): with a model that is not, a gain says less.

# %%
above = table.assign(above=table["ours"] - table["constant"]).rename(columns={"benchmark": ""})
above.pivot_table(index="row", columns="", values="above", sort=False).rename(columns=scores.TITLES).round(1)

# %%
headline = table[table["run"].isin(["baseline", "viral"])].pivot(index="run", columns="benchmark", values="ours")
(out / "metrics.json").write_text(json.dumps(headline.round(3).T.to_dict(), indent=1) + "\n", encoding="utf-8")
figure = plots.score_panels(table, scores.TITLES, settings.label)  # figure_1b
plots.save(figure, out, "figure_1b")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label, "gain")  # table_1_gains
plots.save(figure, out, "table_1_gains")

# %% [markdown]
# ## The noise of the seed
#
# How far apart the seeds of one recipe lie (`std`, `range`), and, since gains are paired by seed, the gains of single
# seeds (`std of gain`): one seed's gain that is smaller than the latter says little, whatever its interval over
# questions. Few seeds tell such a deviation badly. The runs of a table tell it together: *rest* of score = run + seed +
# rest, which the intervals of gains are made of.

# %%
noise = scores.by_seed(profile, systems)
spread = noise.groupby(["benchmark", "run"], sort=False)["score"].agg(["count", "mean", "std", np.ptp])
spread.loc[spread["count"] == 1, "ptp"] = np.nan  # one seed has no noise to show
by_run = noise.pivot(index=["benchmark", "seed"], columns="run", values="score")
for run in [run for run in by_run if scores.reference(profile, run) in by_run and run.endswith("viral")]:
    change = by_run[run] - by_run[scores.reference(profile, run)]
    for benchmark, deviation in change.groupby("benchmark").std().dropna().items():
        spread.loc[(benchmark, run), "std of gain"] = deviation
spread.to_csv(out / "seed_noise.csv", float_format="%.4f")
display(spread.rename(columns={"count": "seeds", "ptp": "range"}).round(2))
show(scores.seed_noise)
rest = {}
for reference in dict.fromkeys(scores.reference(profile, run) for run in systems):
    alike = [run for run in systems if scores.reference(profile, run) == reference]
    covariance, freedom = scores.seed_noise(profile, alike, scores.benchmarks_of(profile))
    if freedom:
        deviations = dict(zip(scores.benchmarks_of(profile), np.sqrt(np.diag(covariance)), strict=True))
        rest[f"std of rest, {reference} and its own"] = deviations | {"degrees of freedom": freedom}
pd.DataFrame(rest).T.round(2) if rest else "No run has several seeds yet."

# %%
if len(noise):
    benchmarks, trained = list(dict.fromkeys(noise["benchmark"])), list(dict.fromkeys(noise["run"]))
    labels = table.drop_duplicates("run").set_index("run")["row"]
    figure, axes = plt.subplots(
        1, len(benchmarks), figsize=(1.6 * len(benchmarks) + 2.4, 4.2), sharey=True, squeeze=False
    )
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):  # seed_noise
        part = noise[noise["benchmark"] == benchmark]
        # a swarm: equal scores lie beside each other
        sns.swarmplot(part, x="score", y="run", order=trained, color="black", size=2.5, ax=axis)
        axis.set_title(scores.TITLES[benchmark], fontsize="small")
        axis.set(ylabel="", xlabel="points" if benchmark == "mme" else "%")
        axis.set_yticks(range(len(trained)), labels[trained])
    figure.suptitle(plots.wrap(f"{settings.label}; a dot is a seed", 90), fontsize="small")
    plots.save(figure, out, "seed_noise")

# %% [markdown]
# ## Kinds of questions
#
# Where a benchmark has kinds of questions: the scores of each, in the same units. Their intervals are in
# `sub_scores.csv`, where `n` is the number of questions of the whole benchmark. Of CV-Bench `source_mean` is the mean
# over its sources of pictures, of which the embedded world is one; of MMVP `single` counts questions in place of
# pairs, `corrected` is by the key with its known errors mended; `yes_ratio` is the share of answers that are yes.

# %%
kinds = scores.scores(profile, systems, parts=True)
kinds["constant"] = kinds["constant"].where(kinds["part"] == "official")  # of no single kind
kinds.to_csv(out / "sub_scores.csv", index=False, float_format="%.4f")
if len(kinds):
    told = kinds.pivot_table(index=["benchmark", "part"], columns="run", values="score", sort=False)
    again = told.round(6).reset_index("part", drop=True).reset_index().duplicated()  # other names of the same number
    display(told[~again.to_numpy()].round(1))

# %% [markdown]
# ## Differences and claims
#
# Aligned minus not, of the same models: same questions, same seeds. Of the average gain only seeds count that all
# systems have; they answer the same questions, so they are no independent samples. The paper's 9.4 % is that of the
# first system without MME; over all that Table 1 prints it is 7.49 % (notebook `paper_arithmetic`), which is what ours
# stands beside. A relative gain is a ratio, and the interval allows for the noise of both scores. Where a baseline's
# score is near zero, its relative gain is that of a few questions: below, the mean is shown without MMVP, too.

# %%
rows = claims.gains(profile, "main_table")
aligned = [run for run in systems if run.endswith("viral")]
every = dict.fromkeys(scores.TITLES, 1 / len(scores.TITLES))
references = [scores.reference(profile, run) for run in aligned]
mean = scores.change(profile, aligned, references, every, relative=True)
without = {name: 1 / (len(every) - 1) for name in every if name != "mmvp"}
for name, weights in (("all benchmarks", every), ("without MMVP", without)):
    if one := scores.change(profile, aligned, references, weights, relative=True):
        print(f"average gain, {name}: {one.value:+.1f} % [{one.low:+.1f}, {one.high:+.1f}], {plots.seeds([one.seeds])}")
missing = "" if mean else ", ".join(runs.not_run(profile, systems)) or "a seed, or a benchmark, that all systems have"
printed = paper.gains()
rows.append(claims.row("average-gain", mean, missing=missing, paper=printed["relative"].mean()))

centric = {"cv_bench": 1 / 3, "mmvp": 1 / 3, "whats_up": 1 / 3}
of_7b = printed[printed["run"] == "viral"].set_index("benchmark")["gain"]
for part, contrast in (("there", centric), ("minus elsewhere", centric | {"pope": -1 / 2, "mmstar": -1 / 2})):
    estimate = scores.change(profile, "viral", "baseline", contrast, together=systems)
    stated = sum(share * of_7b[name] for name, share in contrast.items())
    missing = "" if estimate else "viral or baseline"
    rows.append(claims.row("vision-centric-most", estimate, part=part, missing=missing, paper=stated))
claims.alone(claims.write(out, rows))
