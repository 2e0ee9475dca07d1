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
# # The premises of the study
#
# **Question.** The paper's hypothesis rests on premises: text says little of what an image shows, the teacher knows
# what the encoder does not, there is room above the baseline, and training on text loses visual detail. Do they hold
# here?
#
# > *The paper:* "text-only supervision encourages the model to retain only those visual details that immediately aid
# > text prediction, discarding other potentially useful cues" -- a hypothesis that it supports by CKNNA and never
# > measures directly.
#
# Every premise gets a number, a 95 % interval, a threshold and its own verdict here; the verdict that counts is the one
# among all rows of the ledger, in the notebook `claims`: what is found of a claim whose premise fails says little about
# the paper. They are measured with the first encoder and language model and with DINOv2's stand-in, and taken for those
# of other systems.

# %% tags=["parameters"]
profile = "laptop"

# %%
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import load_file

from viral_core import distributed
from viral_core.measure.intervals import interval
from viral_core.measure.probes import layer_probes, probe, probes
from viral_core.teachers import load_teacher
from workbook import claims, plots, runs, scores
from workbook.benchmarks import EXPECTED, PAPER, stats
from workbook.notebook import begin, show
from workbook.paths import Paths
from workbook.world import questions, scenes

settings, out = begin(profile, "premises")
paths, rows = Paths(profile), []  # of the ledger

# %% [markdown]
# ## 1. Does text say little of what is there?
#
# Of every scene: how many facts it holds (each kind's presence and number; each object's place, facing and size) and
# how many of them its caption, and its conversation of a few questions, give away. A question is counted as one fact:
# some give away two, more repeat what was said; that a kind is *not* there is no fact of the scene. Drawn live, as the
# data was: so many that the interval reaches .01, half the smallest effect of interest, to each side at the most.

# %%
show(questions.caption)
show(questions.conversation)
rng, shares = np.random.default_rng(0), []
for scene in scenes.draw_scenes(2000, seed=1, split="val"):
    counts = scene.counts()
    facts = 2 * len(counts) + sum(2 + (one.facing is not None) for one in scene.objects)
    caption = questions.caption(scene, rng)
    numbered = sum(f"{questions.NUMBERS[n]} {scenes.BY_NAME[name].plural}" in caption for name, n in counts.items())
    told = len(counts) + sum(n == 1 for n in counts.values()) + numbered
    asked = questions.conversation(scene, rng, settings.world.turns)
    absent = sum(qa.answer == "No" and qa.category in ("existence", "commonsense_reasoning") for qa in asked)
    shares.append({"caption": told / facts, "conversation": min(1, (len(asked) - absent) / facts)})
shares = pd.DataFrame(shares)
rows += [claims.row("text-is-sparse", interval(shares[part]), part=part) for part in shares]
shares.describe().loc[["mean", "std", "min", "max"]].round(3)

# %% [markdown]
# ## 2. Does the teacher know what the encoder does not?
#
# Linear probes on a token's feature: category of the object at the token, how many of it there are, which way it faces,
# where its centre lies (nine directions), how large it is (three sizes). Fitted on the probe set's training scenes,
# asked about its test scenes (the probes of layers in section 5 about its validation scenes). Grey: always the same
# answer.

# %%
show(probe)
kinds = ("category", "number", "facing", "position", "extent")
pictures, labels = {}, {}
for split in ("train", "test"):
    stored = np.load(paths.data / "probes" / split / "labels.npz")
    labels[split] = {kind: stored[kind] for kind in kinds}
    pictures[split] = [Image.open(paths.data / "probes" / split / "images" / name) for name in stored["names"]]
grid = round(labels["train"]["category"].shape[1] ** 0.5)

# %%
tables = []
models = {"encoder clip": ("clip", settings.visions["clip"])}
for name, spec in settings.teachers.items():
    if name != "clip" and spec.kind not in ("vae", "oracle"):
        models[name] = (spec.kind, spec)
for name, (kind, spec) in models.items():
    model = load_teacher(kind, spec.path, grid, revision=spec.revision, device=distributed.device())
    known, asked = (
        np.concatenate([model(pictures[split][i : i + 100]).cpu().numpy() for i in range(0, len(pictures[split]), 100)])
        for split in ("train", "test")
    )
    tables.append(probes(known, labels["train"], asked, labels["test"]).assign(model=name))
table = pd.concat(tables)
table["accuracy"] = table["right"] / table["tokens"]
table["constant"] = table["constant"] / table["tokens"]
accuracy = table.pivot_table(index="model", columns="probe", values="accuracy", sort=False)
accuracy.loc["always the same"] = table.groupby("probe")["constant"].mean()
accuracy.round(3)  # with intervals in the figure

# %%
per_image = table.pivot_table(index=["model", "probe"], columns="image", values="accuracy")
figure, axis = plt.subplots(figsize=(6.4, 2.6))  # teachers
for i, name in enumerate(models):
    known = [interval(per_image.loc[name, kind]) for kind in kinds]
    places = np.arange(len(kinds)) + 0.12 * (i - (len(models) - 1) / 2)
    axis.vlines(places, [one.low for one in known], [one.high for one in known], color=plots.line(i)["color"])
    look = plots.line(i) | {"linestyle": ""}
    axis.plot(places, [one.value for one in known], label=name, markersize=4, **look)
for place, kind in enumerate(kinds):
    axis.hlines(accuracy.loc["always the same", kind], place - 0.35, place + 0.35, color="grey", linestyle=":")
axis.set_xticks(range(len(kinds)), kinds)
axis.set_ylabel("accuracy")
axis.legend(fontsize="x-small", ncols=2)
caption = f"{settings.label}; n = {len(pictures['test'])} test scenes, 95 % intervals over them"
axis.set_title(plots.wrap(caption), fontsize="small")
plots.save(figure, out, "teachers")
for kind in kinds:
    change = per_image.loc["dinov2", kind] - per_image.loc["encoder clip", kind]
    rows.append(claims.row("teacher-knows-more", interval(change.dropna()).scaled(100), part=kind))

# %% [markdown]
# ## 3. Is there room above and below the baseline?
#
# On each benchmark: the baseline against the best constant answer, and against its ceiling: the
# language model itself, asked the same kind of question with the scene in words *in place of the visual tokens*, at
# every position the words of what is there. This is what a perfect projector could give it. (*described*, the scene in
# a sentence before the question, is shown beside it: it asks more of the language model.) The ceiling was measured on
# 150 questions of each kind, which its distance allows for. Each distance should be 10 points; MME is in percent of its
# highest score. For what counts pairs, MMVP and half of MME, the ceiling is the square of the accuracy on single
# questions. Coin flips get 25 % of MMVP's pairs, one
# constant answer none; *single* is the share of single answers that are right. Where it is 50 %, right pairs come from
# the two answers differing, not from seeing.

# %%
language = settings.languages[settings.systems["baseline"].language]
file = Path(language.path) / "metrics.json"  # of a stand-in; a real model has no measured ceiling
metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
asked = [EXPECTED["cv_bench"]["categories"][kind] for kind in ("Count", "Relation")]
QUESTIONS = 150  # of each kind


def reads(benchmark: str, right: dict[str, float]) -> float:
    """Score of the language model that reads the scene, from the fractions of single questions that it has right."""
    match benchmark:
        case "cv_bench":
            return np.average([right["cv_bench_count"], right["cv_bench_relation"]], weights=asked)
        case "mmvp":
            return right["mmvp"] ** 2
        case "whats_up":
            return np.mean([right["whats_up_one"], right["whats_up_two"]])
        case "mme":
            return np.mean([(one + one**2) / 2 for name, one in right.items() if name.startswith("mme_")])
    return right[benchmark]


def reads_error(benchmark: str, right: dict[str, float]) -> float:
    """Its standard error, by the delta method; of what is always right as if one question more were half wrong."""
    squares = 0.0
    for name, one in right.items():
        slope = (reads(benchmark, right | {name: one + 1e-6}) - reads(benchmark, right)) / 1e-6
        one = (one * QUESTIONS + 0.5) / (QUESTIONS + 1)
        squares += slope**2 * one * (1 - one) / QUESTIONS
    return squares**0.5


words = metrics.get("text_accuracy", {})
percent, room = dict.fromkeys(PAPER, 100.0) | {"mme": 100 / scores.highest_mme(profile)}, []
for benchmark in PAPER:
    samples = list(runs.answers(profile, "baseline", benchmark).values())
    if not samples:
        missing = f"{benchmark} of baseline"
        rows += [
            claims.row(name, None, part=benchmark, missing=missing) for name in ("above-constant", "below-ceiling")
        ]
        continue
    of_baseline = stats.intervals(benchmark, samples)
    estimate = of_baseline["official"].scaled(percent[benchmark])
    constant, ceiling = scores.constant_score(benchmark, samples[0][0]), None
    constant *= percent[benchmark] / scores.unit(benchmark)
    room.append({"benchmark": benchmark, "constant": constant, "baseline": estimate.value})
    room[-1] |= {"low": estimate.low, "high": estimate.high, "seeds": estimate.seeds}
    room[-1]["single"] = 100 * of_baseline["single"].value if benchmark == "mmvp" else np.nan
    rows.append(claims.row("above-constant", replace(estimate, value=estimate.value - constant), part=benchmark))
    if words:
        room[-1]["ceiling"] = 100 * reads(benchmark, words["spelled"])
        room[-1]["described"] = 100 * reads(benchmark, words["described"])
        shares = np.array([estimate.error, 100 * reads_error(benchmark, words["spelled"])]) ** 2
        df = shares.sum() / (shares / (estimate.df, QUESTIONS - 1)).sum()
        below = room[-1]["ceiling"] - estimate.value
        ceiling = replace(estimate, value=below, error=shares.sum() ** 0.5, df=df)
    missing = "" if ceiling else "the ceiling of this language model"
    rows.append(claims.row("below-ceiling", ceiling, part=benchmark, missing=missing))
columns = ["benchmark", "constant", "baseline", "low", "high", "seeds", "single", "ceiling", "described"]
room = pd.DataFrame(room, columns=columns)
room.to_csv(out / "room.csv", index=False, float_format="%.4f")
room.style.hide(axis="index").format(precision=1, na_rep="").set_uuid("room")

# %% [markdown]
# ## 4. Does instruction tuning change the model?
#
# The baseline before stage 2 (step 0 of its learning curve) and after, on the same questions; how far LoRA has moved
# the weights, $\lVert \frac{\alpha}{r} BA \rVert$, block by block; and the language loss.

# %%
for benchmark in ("cv_bench", "mmvp", "whats_up", "pope"):
    before = runs.answers(profile, "baseline", benchmark, checkpoint=0)
    after = runs.answers(profile, "baseline", benchmark)
    seeds = [seed for seed in after if seed in before]
    moved = None
    if seeds:
        sides = [[side[seed] for seed in seeds] for side in (after, before)]
        moved = stats.intervals(benchmark, *sides)["official"].scaled(100)
    missing = "" if moved else f"{benchmark} of baseline, before or after stage 2"
    rows.append(claims.row("stage2-moves", moved, part=benchmark, missing=missing))

# %%
folder = paths.run("baseline", settings.runs["baseline"][0])
if (folder / "adapter" / "adapter_model.safetensors").is_file():
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    norms = {}  # by block
    for name, a in adapter.items():
        if ".lora_A." in name:
            update = adapter[name.replace("lora_A", "lora_B")] @ a * config["lora_alpha"] / config["r"]
            norms.setdefault(int(name.split("layers.")[1].split(".")[0]) + 1, []).append(update.norm().item())
    name = f"mean norm of the update, seed {settings.runs['baseline'][0]}"
    display(pd.DataFrame(norms).mean().rename(name).rename_axis("block").to_frame().T.round(2))
log = runs.measured(profile, "log", ["baseline"])
if len(log):
    display(log.groupby("seed")["lm_loss"].agg(["first", "last"]).round(3).add_suffix(" loss in the log"))

# %% [markdown]
# ## 5. What each layer holds, before and after stage 2
#
# The hypothesis itself: what can be read from the visual tokens of every layer, before stage 2 and after it, of the
# baseline and of VIRAL; horizontal lines: from the encoder's features, and always the same answer. If instruction
# tuning discards detail, the baseline's curve falls below the one before stage 2. Seeds are of stage 2: before it
# there is one model, whose interval is over scenes alone.

# %%
show(layer_probes)
layers = runs.measured(profile, "probes", ["baseline", "viral"])
if len(layers):
    layers["layer"] = layers["layer"].astype("Int64")
    layers["accuracy"], layers["constant"] = layers["right"] / layers["tokens"], layers["constant"] / layers["tokens"]
    layers["system"] = layers["run"].where(layers["source"] != "before", "before stage 2")
    once = (layers["system"] != "before stage 2") | (layers["seed"] == layers["seed"].min())  # the same for every seed
else:
    once = []
curves = runs.intervals(layers[once], ["system", "probe", "layer"], "image", "accuracy").rename(
    columns={"system": "run"}
)
curves.to_csv(out / "layer_probes.csv", index=False, float_format="%.5f")
curves.pivot_table(index=["probe", "layer"], columns="run", values="value").round(3)

# %%
if len(curves):
    drawn = [kind for kind in kinds if kind in set(curves["probe"])]
    figure, axes = plt.subplots(1, len(drawn), figsize=(1.9 * len(drawn), 2.8), squeeze=False)  # layer_probes
    names = {"before stage 2": "before stage 2", "baseline": "baseline", "viral": "VIRAL"}
    for axis, kind in zip(axes[0], drawn, strict=True):
        plots.curves(axis, curves[curves["probe"] == kind], "layer", "value", names)
        chosen = layers[layers["probe"] == kind]
        axis.axhline(chosen.loc[chosen["source"] == "encoder", "accuracy"].mean(), color="grey", linestyle="--", lw=0.9)
        axis.axhline(chosen["constant"].mean(), color="grey", linestyle=":", lw=0.9)
        plots.mark_layers(axis, settings.systems["viral"].align.blocks(settings.blocks("viral")))
        axis.set(title=kind, xlabel="layer", ylabel="accuracy" if kind == drawn[0] else "")
    axes[0, -1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    trained = curves.loc[curves["run"] != "before stage 2", "seeds"]
    caption = f"{settings.label}; n = {curves['n'].max()} scenes at the most, {plots.seeds(trained)}; 95 % intervals"
    caption += "; dashed: the encoder's features, and the aligned layer; dotted: always the same answer"
    figure.suptitle(plots.wrap(caption, 100), fontsize="small")
    plots.save(figure, out, "figure_layer_probes")

# %% [markdown]
# Two things may be meant by *discards*, and each is a claim. With depth: what the last layer of the baseline holds,
# minus what its input (layer 0) holds, as in Figure 2 (d). By instruction tuning: what the last layer holds, minus what
# it held before stage 2 (the paper says by training on text alone, which stage 1 is, too). Where less than the smallest
# effect of interest can be read from the input, nothing can be lost: a premise of these two, property by property. And
# what the aligned layer of VIRAL holds, minus that of the baseline: where the baseline's has not lost it, that is
# something that alignment has added, not kept.

# %%
middle = settings.systems["viral"].align.blocks(settings.blocks("viral"))[0]
for kind in kinds:
    there = lost = discarded = kept = None
    if len(layers):
        chosen = layers[(layers["probe"] == kind) & layers["layer"].notna()]
        cells = chosen.pivot_table(index=["system", "layer", "seed"], columns="image", values="accuracy")
        last = chosen["layer"].max()
        if "baseline" in set(chosen["run"]):
            constant = chosen.pivot_table(index=["system", "layer", "seed"], columns="image", values="constant")
            there = interval(cells.loc["baseline", 0] - constant.loc["baseline", 0]).scaled(100)
            lost = interval(cells.loc["baseline", last] - cells.loc["baseline", 0]).scaled(100)
            discarded = interval(cells.loc["baseline", last] - cells.loc["before stage 2", last]).scaled(100)
        if {"baseline", "viral"} <= set(chosen["run"]):
            kept = interval(cells.loc["viral", middle] - cells.loc["baseline", middle]).scaled(100)
    missing = "" if lost else "probes of baseline"
    rows.append(claims.row("detail-can-be-read", there, part=kind, missing=missing))
    rows.append(claims.row("detail-is-lost", lost, part=kind, missing=missing))
    rows.append(claims.row("training-discards-detail", discarded, part=kind, missing=missing))
    rows.append(claims.row("alignment-keeps-detail", kept, part=kind, missing="" if kept else "probes of viral"))

# %% [markdown]
# ## All of them

# %%
claims.alone(claims.write(out, rows))
