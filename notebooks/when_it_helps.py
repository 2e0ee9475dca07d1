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
# # When does alignment help? (beyond the paper)
#
# **Question.** The paper trains on one number of images, with teachers that are all strong. What decides whether
# alignment helps: how much data there is, how much the teacher knows, or how little the encoder knows? And how much
# could the best possible teacher give?
#
# > *The paper* leaves it open: "While our method demonstrates general improvements across vision encoders, model
# > scales, and language backbones [...], several considerations remain" (Appendix G).
#
# Four ways to align, each against the baseline that was trained on the *same* data:
#
# - **VIRAL**: the teacher is DINOv2's stand-in;
# - **oracle**: the teacher is the scene itself, its truth through a fixed random projection. No teacher can know more;
#   one that knows less may still teach more (the diary in `stand_ins`);
# - **encoder**: the target is the encoder's own features (Eq. 4), which add nothing that was not there;
# - **shuffled**: the right teacher's features of the wrong image. What is gained here is regularisation, not content.
#
# There are many intervals here, each at 95 % for itself, so that some exclude 0 by chance. The ledger decides two
# questions: whether the oracle beats the baseline, and whether it beats the shuffled teacher. The picture that puts all
# of it together, and the numbers that answer the question, come last.

# %% tags=["parameters"]
profile = "laptop"

# %%
import json
from dataclasses import replace

import pandas as pd
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

from viral_core.measure.intervals import interval, p_equivalence
from viral_core.specs import Align
from workbook import claims, plots, runs, scores, tables
from workbook.config import System
from workbook.notebook import begin, show, show_missing
from workbook.paths import ROOT
from workbook.scale.plan import samples_of

settings, out = begin(profile, "when_it_helps")
kinds = {
    "viral": "VIRAL",
    "oracle": "oracle (the scene itself)",
    "align-encoder": "the encoder itself",
    "shuffled-teacher": "shuffled teacher",
}
vision_centric = [name for name in ("cv_bench", "whats_up", "mmvp") if name in scores.benchmarks_of(profile)]

# %% [markdown]
# ## What differs between the runs
#
# `images` of a run takes the conversations about the first so many images of the instruction mix; the steps stay the
# same, so that fewer images are seen more often (`passes`: how often each; where it is below one, not all of them are
# seen). Everything else is the run's that it extends.

# %%
show(System)
show(Align)

# %%
samples, recipe, table = samples_of(settings), settings.stage2, []
everything = samples["images"]
for run, kind in runs.by_images(profile, ("baseline", *kinds)).items():
    images = settings.systems[run].images or everything
    seeds = [seed for _, seed in runs.evaluated(profile, [run])]
    conversations = round(samples["conversations"] * images / everything)
    passes = recipe.total_steps(conversations) * recipe.batch_size / conversations
    table.append({"run": run, "kind": kind, "images": images, "passes": passes, "evaluated_seeds": len(seeds)})
table = pd.DataFrame(table, columns=["run", "kind", "images", "passes", "evaluated_seeds"])
counts = table.pivot(index=["images", "passes"], columns="kind", values="evaluated_seeds").fillna(0).astype(int)
counts.reset_index("passes").round(2)

# %% [markdown]
# ## Gain against the number of images
#
# Paired differences to the baseline of the same images: same questions, same seeds, 95 % intervals over both.

# %%
baselines = table[table["kind"] == "baseline"].set_index("images")["run"]
pairs = {row.run: baselines[row.images] for row in table.itertuples() if row.kind in kinds and row.images in baselines}
gains = scores.differences(profile, pairs.items()).merge(table, on="run")
gains.to_csv(out / "gains.csv", index=False, float_format="%.4f")
sizes = sorted(set(gains["images"]))
if len(sizes) < 2:
    display(Markdown("This profile trains on one number of images: nothing here says how the gain depends on it."))
cells = gains.assign(
    gain=[
        f"{tables.number(row.difference, row.low, row.high, 1, sign=True)}, {plots.seeds([row.seeds])}"
        for row in gains.itertuples()
    ],
    kind=gains["kind"].map(kinds),
)
cells.pivot_table(index=["benchmark", "images"], columns="kind", values="gain", aggfunc="first").fillna("")


# %%
def by_images(axis: plt.Axes, table: pd.DataFrame) -> None:
    """Draw the gain of each kind with its interval against the number of images."""
    for i, (kind, name) in enumerate(kinds.items(), start=1):  # the baseline's look is the 0-th
        rows = table[table["kind"] == kind].sort_values("images")
        places = rows["images"].map(sizes.index) + 0.12 * (i - 2.5)
        axis.vlines(places, rows["low"], rows["high"], color=plots.COLOURS[i], linewidth=0.9)
        axis.plot(
            places, rows["difference"], label=name if len(rows) else f"{name} (not run)", markersize=4, **plots.line(i)
        )
    axis.axhline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_xlim(-0.5, len(sizes) - 0.5)
    axis.set_xticks(range(len(sizes)), sizes, rotation=45, fontsize="small")


if len(gains):
    shown = [name for name in (*vision_centric, "pope") if name in set(gains["benchmark"])]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.4 * len(shown) + 1.4, 2.9), squeeze=False)
    for axis, benchmark in zip(axes[0], shown, strict=True):  # gains
        part = gains[gains["benchmark"] == benchmark]
        by_images(axis, part)
        axis.set(title=scores.TITLES[benchmark], xlabel="instruction images")
    axes[0, 0].set_ylabel("gain over the baseline\nof the same images (points)")
    axes[0, -1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    caption = f"{settings.label}; n = {gains['n'].max()} questions at the most, {plots.seeds(gains['seeds'])}"
    figure.suptitle(plots.wrap(f"{caption}, 95 % intervals", 100), fontsize="small")
    plots.save(figure, out, "gains")

# %% [markdown]
# ## Gain against what the teacher could add
#
# All teachers on the full mix, the encoder itself among them. What one could *add* is how far the linear probes on its
# features (notebook `stand_ins`; `premises` has those on this profile's scenes) are above those on the encoder's, mean
# over five properties; of one that it knows less well than the encoder, nothing. The oracle knows everything.

# %%
kinds_of_probes = ["category", "number", "facing", "position", "extent"]


def probes(path: str) -> pd.Series:
    """Probe accuracies (%) of a model by property, NaN for one that is no stand-in."""
    file = ROOT / path / "metrics.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("probe") if file.is_file() else None
    return 100 * pd.Series(found or {}, dtype=float).reindex(kinds_of_probes)


teachers = {name: spec for name, spec in settings.teachers.items() if spec.kind not in ("clip", "vae", "oracle")}
encoder = probes(settings.visions["clip"].path)
known = pd.DataFrame({name: probes(spec.path) for name, spec in teachers.items()} | {"the encoder": encoder})
known["oracle"] = 100.0
adds = (known.sub(encoder, axis=0)).clip(lower=0).mean().where(known.notna().all()).dropna()
known.T.assign(adds=adds).round(1)

# %%
viral, strength = settings.systems["viral"], []
for run in settings.runs:
    system = settings.systems[run]
    if system.align is None:
        continue
    teacher = "the encoder" if system.align.target == "encoder" else system.align.teacher
    # as VIRAL in everything but the teacher
    align = replace(viral.align, target=system.align.target, teacher=system.align.teacher)
    if teacher in adds and system == viral.model_copy(update={"align": align, "checkpoints": system.checkpoints}):
        strength.append({"run": run, "teacher": teacher, "adds": adds[teacher]})
strength = pd.DataFrame(strength, columns=["run", "teacher", "adds"])
by_teacher = scores.differences(profile, [(run, "baseline") for run in strength["run"]], vision_centric)
by_teacher = by_teacher.merge(strength, on="run")
by_teacher.to_csv(out / "teachers.csv", index=False, float_format="%.4f")
by_teacher.set_index(["benchmark", "teacher"])[["adds", "difference", "low", "high", "n", "seeds"]].round(1)

# %% [markdown]
# ## Gain against what the encoder knows
#
# The same teacher on two encoders: the more the encoder knows (mean of its probes), the less there is to add, if
# content is what matters.

# %%
encoders = {"viral": "baseline", "siglip2-viral": "siglip2-baseline"}
by_encoder = scores.differences(profile, encoders.items())
by_encoder["encoder"] = by_encoder["run"].map(lambda run: settings.systems[run].vision)
by_encoder["known"] = by_encoder["encoder"].map(lambda name: probes(settings.visions[name].path).mean(skipna=False))
by_encoder.to_csv(out / "encoders.csv", index=False, float_format="%.4f")
by_encoder.set_index(["benchmark", "encoder"])[["known", "difference", "low", "high", "n", "seeds"]].sort_index().round(
    1
)

# %% [markdown]
# ## Content or regularisation: the differences
#
# Of the full mix: VIRAL and the oracle, which know something of the image that the encoder does not give, against the
# shuffled teacher and the encoder as teacher, which do not; the oracle against VIRAL; and the shuffled teacher against
# the baseline, where a gain would be regularisation.

# %% [markdown]
# What the student of a shuffled teacher still predicts is what no image is needed for: a mean feature, and what depends
# on the place in the picture alone. Only the rest of the target is content: how far the alignment loss, minus the mean
# cosine to the target, at the end of the training (its last tenth) lies below that of `shuffled-teacher`. Where this is
# little, the two are nearly the same objective, and no difference between their scores says little of content.

# %%
logs = runs.measured(profile, "log", ["viral", "shuffled-teacher"])
if len(logs):
    late = logs[logs["step"] > 0.9 * logs.groupby(["run", "seed"])["step"].transform("max")]
    final = late.pivot_table(index="seed", columns="run", values="vra_loss")
    display(final.agg(["mean", "min", "max"]).round(3))
    final.to_csv(out / "final_loss.csv", float_format="%.5f")
    if set(final) == {"viral", "shuffled-teacher"}:
        content = interval((final["shuffled-teacher"] - final["viral"]).dropna().to_numpy()[:, None])
        print(f"content: {content.value:.3f} [{content.low:.3f}, {content.high:.3f}] of cosine, {content.seeds} seeds")

# %%
contrasts = [
    ("viral", "shuffled-teacher"),
    ("viral", "align-encoder"),
    ("oracle", "shuffled-teacher"),
    ("oracle", "align-encoder"),
    ("oracle", "viral"),
    ("shuffled-teacher", "baseline"),
]
differences = scores.differences(profile, [pair for pair in contrasts if set(pair) <= set(settings.runs)])
differences.to_csv(out / "differences.csv", index=False, float_format="%.4f")
differences.drop(columns=["error", "df", "clusters"]).round(2)

# %% [markdown]
# ## The answer, in one picture and in numbers
#
# The mean gain on the vision-centric benchmarks, which alignment is for, against the three things that may decide it.
# Grey: 2 points to each side, the smallest effect of interest.

# %%
mean = {name: 1 / len(vision_centric) for name in vision_centric}
smallest, panels = claims.smallest("points"), []
compared = {
    "images": list(pairs.items()),
    "teacher": [(run, "baseline") for run in strength["run"]],
    "encoder": list(encoders.items()),
}
together = [name for pair in sum(compared.values(), []) for name in pair]
for panel, pairs_of in compared.items():
    for run, over in pairs_of if mean else ():
        if one := scores.change(profile, run, over, mean, together=together):
            panels.append({"panel": panel, "run": run, "reference": over, "difference": one.value, **one.columns()})
columns = ["panel", "run", "reference", "difference", "low", "high", "p", "n", "clusters", "seeds"]
panels = pd.DataFrame(panels, columns=columns)
panels.to_csv(out / "vision_centric.csv", index=False, float_format="%.4f")


# %%
def dots(axis: plt.Axes, table: pd.DataFrame, labels: pd.Series) -> None:
    """Draw gains with their intervals side by side."""
    places = range(len(table))
    axis.vlines(places, table["low"], table["high"], color="black", linewidth=0.9)
    axis.plot(places, table["difference"], "o", color="black", markersize=5)
    axis.axhline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_xlim(-0.5, len(table) - 0.5)
    axis.set_xticks(places, labels, rotation=45, ha="right", fontsize="small")


if len(panels):
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 4), sharey=True, width_ratios=[3, 2, 1])  # when_it_helps
    by_images(axes[0], panels[panels["panel"] == "images"].merge(table, on="run"))
    part = panels[panels["panel"] == "teacher"].merge(strength, on="run").sort_values("adds")
    dots(axes[1], part, part["teacher"].replace(plots.MODELS) + part["adds"].map(", {:.1f}".format))
    part = panels[panels["panel"] == "encoder"]
    dots(axes[2], part, part["run"].map(lambda run: settings.systems[run].vision).replace(plots.MODELS))
    for axis, title, label in zip(
        axes,
        ("How much data?", "How much does the teacher know?", "Which encoder?"),
        ("instruction images", "teacher, and what it could add (points)", "VIRAL on"),
        strict=True,
    ):
        axis.axhspan(-smallest, smallest, color="#f0f0f0", zorder=-1)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(label)
    axes[0].set_ylabel("gain on vision-centric benchmarks\nover the baseline (points)")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", loc="outside lower left", ncols=4)
    caption = f"{settings.label}; {', '.join(scores.TITLES[name] for name in vision_centric)}: n = {panels['n'].max()}"
    caption += f" questions, {plots.seeds(panels['seeds'])}, 95 % intervals"
    figure.suptitle(plots.wrap(caption, 110), fontsize="small")
    plots.save(figure, out, "when_it_helps")

# %% [markdown]
# What decides it, if anything: differences between those gains, on common questions and seeds.

# %%
run_of = {(row.kind, row.images): row.run for row in table.itertuples()}
asked = {}
if len(sizes) > 1:
    few, many = sizes[0], sizes[-1]
    for kind, name in kinds.items():
        if {(kind, few), (kind, many), ("baseline", few), ("baseline", many)} <= set(run_of):
            more = [run_of[kind, many], run_of["baseline", few]], [run_of[kind, few], run_of["baseline", many]]
            asked[f"{name}: its gain with {many} images minus that with {few}"] = more
asked["the oracle as teacher minus the encoder itself"] = ["oracle"], ["align-encoder"]
asked["VIRAL's gain with SigLIP2 minus that with CLIP"] = ["siglip2-viral", "baseline"], ["siglip2-baseline", "viral"]
rows = []
for question, sides in asked.items():
    if not mean or not set(sum(sides, [])) <= set(settings.runs):
        continue
    weights = {name: share * len(sides[0]) for name, share in mean.items()}  # of sums, where sides are means
    if one := scores.change(profile, *sides, weights, together=together):
        verdict = "not told apart"
        if p_equivalence(one.value, one.error, one.df, smallest) < claims.RATE:
            verdict = f"less than {smallest} points apart"
        elif one.p < claims.RATE:
            verdict = "more" if one.value > 0 else "less"
        rows.append({"question": question, "points": one.value, **one.columns(), "for itself": verdict})
columns = ["question", "points", "low", "high", "p", "n", "seeds", "for itself"]
answers = pd.DataFrame(rows, columns=columns)
answers.to_csv(out / "answers.csv", index=False, float_format="%.4f")
answers.style.hide(axis="index").format(precision=2).set_uuid("answers")

# %% [markdown]
# ## In the ledger

# %%
claims.alone(claims.write(out, claims.gains(profile, "when_it_helps")))

# %%
missing = runs.not_run(profile, dict.fromkeys(["baseline", *kinds, *table["run"]]))
show_missing(missing)
