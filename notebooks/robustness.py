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
# # Does a model notice that its image was shuffled? (Section 5.5, Table 3, Figure 7)
#
# **Question.** The order of the visual features is permuted before the projector; the positions in the sequence stay. A
# model that takes the layout of the image from the *order* of its tokens loses answers; one that reads places off the
# features, which carry the encoder's position embedding, need not. Does an aligned model lose more?
#
# > *The paper's answer:* "while the text-only baseline undergoes little degradation under permutation, our model
# > suffers larger drops, reflecting increased sensitivity to spatial structure."
#
# Its numbers are right answers "out of 788 spatial reasoning tasks" of CV-Bench2D, of one permutation and without
# intervals: the baselines lose 26 and 21, the aligned models 54 and 83. (788 is the number of *Count* questions; the
# spatial ones, *Relation*, are 650.)

# %% tags=["parameters"]
profile = "laptop"

# %%
from contextlib import nullcontext

import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib import pyplot as plt
from PIL import Image

from viral_core.images import pad_to_square
from viral_core.measure.permutation import PatchPermutation, patch_order
from viral_core.templates import IMAGE_MARKER, prompt
from viral_core.tiles import view_of
from workbook import claims, models, paper, plots, runs
from workbook.benchmarks import load_rows, open_image
from workbook.evaluate import generate
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "robustness")
systems = {
    "baseline": "CLIP",
    "viral": "CLIP, aligned",
    "siglip2-baseline": "SigLIPv2",
    "siglip2-viral": "SigLIPv2, aligned",
}
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## The permutation
#
# Every sample has a permutation of its own, drawn from a seed and the sample's id, so that all models that are compared
# see the same one. Several seeds give several permutations, of which the mean counts.

# %%
show(patch_order)

# %% [markdown]
# It acts on the encoder's features $z \in \mathbb{R}^{N \times D_z}$ right before the projector:

# %%
show(PatchPermutation._permute)

# %% [markdown]
# ## What it does to an image (Figure 7)
#
# For the eye: the same order applied to the patches of the picture. The model sees whole features in that order.

# %%
rows = load_rows("cv_bench", settings.data.benchmarks)
row = next(row for row in rows if row["category"] == "Relation")
folders = runs.trained(profile, systems)
trained = list(folders)
picture = pad_to_square(open_image(row["image"]))
grid = 8
if trained:
    run = models.load(settings, folders[trained[0]])
    grid = round(view_of(run.processor).tokens() ** 0.5)
side = max(1, 240 // grid)
square = picture.resize((side * grid,) * 2, Image.Resampling.BICUBIC)
figure, axes = plt.subplots(1, 3, figsize=(5.4, 2.1))  # figure_7
for axis, title in zip(axes, ("as it is", "permutation 0", "permutation 1"), strict=True):
    order = range(grid**2) if title == "as it is" else patch_order(int(title[-1]), row["id"], grid**2)
    shuffled = Image.new("RGB", square.size)
    for place, patch in enumerate(order):
        x, y = side * (patch % grid), side * (patch // grid)
        shuffled.paste(square.crop((x, y, x + side, y + side)), (side * (place % grid), side * (place // grid)))
    axis.imshow(shuffled)
    axis.set(xticks=[], yticks=[], title=title)
figure.suptitle(plots.wrap(settings.label, 60), fontsize="x-small")
plots.save(figure, out, "figure_7")

# %% [markdown]
# ## One question, live
#
# The first trained system answers the question with its features in order and in five permutations.

# %%
if trained:
    question = prompt(run.template, f"{IMAGE_MARKER}\n{row['prompt']}")
    answered = {}
    for seed in range(6):
        with PatchPermutation(run.model, seed) if seed else nullcontext() as permutation:
            if seed:
                permutation.set_samples([row["id"]])
            name = f"permutation {seed}" if seed else "in order"
            [answered[name]] = generate(run, [picture], [question], settings.evaluation.max_new_tokens)
    print(f"{row['prompt']}\nright: {row['answer']}")
    display(pd.Series(answered, name=f"answer of {trained[0]}").to_frame())
    del run

# %% [markdown]
# ## Table 3
#
# For each question: whether the answer in order is right (official rule), and the share of permutations under which it
# is right. Their difference, the *loss*, is averaged over questions; 95 % intervals are over questions and seeds.
# Counts are of all questions of the category, and `drop_percent` is of those that were right before, which is the
# paper's number that ours can stand beside; in the figure and in the ledger losses are shares of all questions.

# %%
answers = runs.measured(profile, "permutation/accuracy", systems)
image = {row["id"]: row["group"] for row in load_rows("cv_bench", settings.data.benchmarks)}  # of a question
losses = {}  # (category, run): (seeds, questions), 1 a right answer lost, -1 one won
for (category, run), group in answers.groupby(["category", "run"], sort=False) if len(answers) else ():
    right = group.assign(permuted=group["variant"] != "original").pivot_table(
        index="seed", columns=["permuted", "id"], values="right"
    )
    losses[category, run] = right[False] - right[True]
for run in dict.fromkeys(run for _, run in losses):
    losses["all", run] = pd.concat([loss for (_, name), loss in losses.items() if name == run], axis=1)

# %%
printed = paper.table(3).pivot(index="run", columns="benchmark", values="value")
tasks = float(paper.text().set_index("quantity").loc["spatial_questions", "value"])  # that the paper counts
rows = []
for (category, run), loss in losses.items():
    chosen = answers[(answers["run"] == run) & (answers["variant"] == "original") & answers["id"].isin(loss.columns)]
    n, estimate = loss.shape[1], runs.over_items(loss, image)
    original = chosen["right"].sum() / loss.shape[0]
    rows.append(
        {
            "category": category,
            "run": run,
            "n": n,
            "seeds": loss.shape[0],
            "original": original,
            "patch_shuffle": original - n * estimate.value,
            "drop": n * estimate.value,
            "drop_low": n * estimate.low,
            "drop_high": n * estimate.high,
            "drop_percent": 100 * n * estimate.value / max(original, 1),
        }
    )
measures = ["original", "patch_shuffle", "drop", "drop_low", "drop_high", "drop_percent"]
table = pd.DataFrame(rows, columns=["category", "run", "n", "seeds", *measures])
table.to_csv(out / "table_3.csv", index=False, float_format="%.4f")

# %% [markdown]
# As the paper prints it, its numbers (of "788 spatial reasoning tasks") beside ours of *Relation*:

# %%
relation = table[table["category"] == "Relation"].set_index("run")
shown = {"original": "original", "patch_shuffle": "patch shuffle", "drop": "Δ", "drop_percent": "Δ (% of original)"}
form = {
    (title, who): numbers.reindex(systems)[column]
    for column, title in shown.items()
    for who, numbers in (("paper", printed), ("ours", relation))
}
form |= {(column, ""): relation.reindex(systems)[column] for column in ("n", "seeds")}
form = pd.DataFrame(form).rename_axis("run")
style = form.style.format(precision=1, na_rep="not run")
style = style.format("{:.0f}", subset=[("n", ""), ("seeds", "")], na_rep="")
style = style.set_properties(subset=[column for column in form if column[1] == "paper"], **paper.LOOK)
style.set_caption(settings.label).set_uuid("form")

# %% [markdown]
# And each category, with the interval of what is lost:

# %%
table.round(1)

# %%
if len(table):
    categories = list(table["category"].unique())
    figure, axes = plt.subplots(1, len(categories), figsize=(7.2, 2.2), sharey=True, squeeze=False)  # table_3
    for axis, category in zip(axes[0], categories, strict=True):
        part = table[table["category"] == category].set_index("run").reindex(systems)
        share = 100 * part[["drop", "drop_low", "drop_high"]].div(part["n"], axis=0)
        y = range(len(systems))
        axis.hlines(y, share["drop_low"], share["drop_high"], color="black")
        sns.scatterplot(x=share["drop"], y=list(y), color="black", ax=axis)
        for place in (i for i, run in enumerate(systems) if pd.isna(share.loc[run, "drop"])):
            axis.annotate("not run", (0, place), color="grey", va="center")
        axis.axvline(0, color="grey", linewidth=0.8, zorder=0)
        axis.set(title=f"{category} (n = {part['n'].max():.0f})", xlabel="right answers lost (points)", ylabel="")
    axes[0, 0].set_yticks(list(y), systems.values())
    axes[0, 0].set_ylim(len(systems) - 0.5, -0.5)
    figure.suptitle(
        plots.wrap(
            f"{settings.label}; {settings.permutation.permutations} permutations, {plots.seeds(table['seeds'])}, "
            "95 % intervals",
            90,
        ),
        fontsize="small",
    )
    plots.save(figure, out, "table_3")

# %% [markdown]
# ## Differences and claims
#
# Does the aligned model lose more answers than the baseline of the same encoder: same questions, permutations and
# seeds? A baseline that knows no answers has none to lose: a premise is how far it lies above the best constant
# answer. And, as a control, whether the baseline loses any.

# %%
keys = [row["answer"] for row in load_rows("cv_bench", settings.data.benchmarks) if row["category"] == "Relation"]
constant = pd.Series(keys).value_counts(normalize=True).max()  # right answers of always the same letter
lost = 100 * printed["drop"] / tasks  # the paper's, in points
rows, found = [], []
for run, reference, claim in (
    ("viral", "baseline", "permutation-clip"),
    ("siglip2-viral", "siglip2-baseline", "permutation-siglip2"),
):
    cost = above = None
    if ("Relation", reference) in losses:
        cost = runs.over_items(losses["Relation", reference], image).scaled(100)
        asked = answers[(answers["run"] == reference) & (answers["category"] == "Relation")]
        right = asked[asked["variant"] == "original"].pivot_table(index="seed", columns="id", values="right")
        above = runs.over_items(right - constant, image).scaled(100)
    missing = "" if cost else f"permutation of {reference}"
    found.append(claims.row("relation-is-known", above, part=systems[reference], missing=missing))
    found.append(claims.row("shuffling-costs", cost, part=systems[reference], missing=missing, paper=lost[reference]))
    estimates = {}
    for category in dict.fromkeys(category for category, _ in losses):
        if (category, run) in losses and (category, reference) in losses:
            change = (losses[category, run] - losses[category, reference]).dropna()
            estimates[category] = runs.over_items(change, image).scaled(100)
            rows.append({"comparison": f"{run} - {reference}", "category": category, **estimates[category].columns()})
    estimate = estimates.get("Relation")
    missing = "" if estimate else f"permutation of {run} or {reference}"
    theirs = lost[run] - lost[reference]
    found.append(claims.row(claim, estimate, part=systems[reference], missing=missing, paper=theirs))
differences = pd.DataFrame(rows, columns=["comparison", "category", "value", "low", "high", "n", "seeds", "p"])
differences.to_csv(out / "differences.csv", index=False, float_format="%.4f")
display(differences.round(3))
claims.alone(claims.write(out, found))
