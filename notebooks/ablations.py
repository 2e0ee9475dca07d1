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
# > *The paper's answer:* "DINOv2 consistently emerges as the most effective and versatile"; "the 16th layer of the
# > 32-layer model consistently yielding stronger results across multiple benchmarks"; "applying alignment solely at
# > the 16th layer achieves the best performance"; "simple cosine similarity-based alignment loss yields higher
# > performance".
#
# By its own numbers layer 16 is not the best on POPE and MME, aligning to CLIP costs 101.7 points of MME, and relation
# beats cosine on What's Up.

# %% tags=["parameters"]
profile = "laptop"

# %%
from dataclasses import asdict

import pandas as pd
import torch
from IPython.display import Markdown, display

from viral_core import losses
from viral_core.aligned import AlignedModel
from viral_core.conversations import load_conversations
from viral_core.specs import Align
from viral_core.teachers import randomise_linears
from workbook import claims, models, plots, runs, scores, tables
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "ablations")
controls = {
    "viral": "VIRAL",
    "as-released": "as the code was released",
    "shuffled-teacher": "features of another image",
    "lambda-0_1": "λ = 0.1",
    "lambda-0_25": "λ = 0.25",
    "lambda-1": "λ = 1",
}

# %% [markdown]
# ## What a run may change
#
# A run states how it differs from the run that it extends. `Align` is the one statement of an alignment, in
# `profiles/runs.yaml`, in the saved run and in the model:

# %%
show(Align)

# %%
viral = asdict(settings.systems["viral"].align)
changes = {
    name: {key: value for key, value in asdict(system.align).items() if value != viral[key]}
    for name, system in settings.systems.items()
    if system.align and not system.images  # the data sizes are as their namesakes
}
changes = {name: change for name, change in changes.items() if change}
pd.Series(changes, name="how its alignment differs from VIRAL's").astype(str).to_frame()

# %% [markdown]
# Layers are named as in the paper's 32 blocks and lie at the same relative depth; neighbours are neighbouring blocks,
# however many there are. Several layers have one loss and one head each, averaged:

# %%
named = [name for name in settings.runs if name == "viral" or name.startswith("layer")]
depths = {name: settings.blocks(name) for name in named if settings.systems[name].align}
layers = {name: settings.systems[name].align.blocks(depth) for name, depth in depths.items()}
pd.DataFrame({"aligned blocks": layers, "of": depths}).astype(str)

# %%
show(AlignedModel._alignment)

# %% [markdown]
# ## Cosine and relation on one image, live
#
# Cosine pulls each token towards its own target. Relation compares the two tables of similarities *among* the tokens,
# and leaves the direction of the space free:

# %%
show(losses.cosine)
show(losses.relation)

# %%
samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
image = next(sample for sample in samples if sample.images).open_images()[0]
vision = settings.systems["viral"].vision
features = {}
used = dict.fromkeys(settings.systems[run].teacher for run in settings.runs)
used |= {"clip": None} if "align-encoder" in settings.runs else {}
for name, spec in settings.teachers.items():
    if name not in used or spec.kind == "oracle":  # which reads no pictures
        continue
    features[name] = models.teacher(settings, name, vision, "intact")([image])[0].cpu()
if features:
    y = features.get("dinov2", next(iter(features.values())))
    one_image = torch.zeros(len(y), dtype=torch.long)
    rotation = torch.linalg.qr(torch.randn(y.shape[1], y.shape[1], generator=torch.Generator().manual_seed(0)))[0]
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * y.std()
    predictions = {"the target itself": y, "the target, turned": y @ rotation, "half noise": y + noise, "noise": noise}
    found = {
        name: {loss.__name__: loss(pred, y, one_image).item() for loss in (losses.cosine, losses.relation)}
        for name, pred in predictions.items()
    }
    display(pd.DataFrame(found).round(3))

# %% [markdown]
# ## What the teachers see (live)
#
# Similarity of the marked token to all others, tokens centred, as each teacher has it, and as DINOv2 has it after what
# the released code (github.com/cvlab-kaist/VIRAL, commit adc0791) does to it. It makes the teacher in the constructor
# of the language model (`llava/model/language_model/llava_llama.py`), and `from_pretrained` then draws anew what the
# language model's checkpoint lacks: every linear layer of the teacher.

# %%
show(randomise_linears)

# %%
if "dinov2" in features:
    released = models.teacher(settings, "dinov2", vision, "as_released")
    features["dinov2, as released"] = released([image])[0].cpu()
if features:
    figure = plots.similarities(image, features)  # teachers
    plots.save(figure, out, "teachers")

# %% [markdown]
# ## Teachers and layers (Table 2)
#
# With CLIP as teacher the target is what Eq. 4 aligns to, the features of the encoder itself: the paper prints the same
# numbers in both places, and one run, `align-encoder`, supplies both.

# %%
second = tables.side_by_side(profile, 2)
second.to_csv(out / "table_2.csv", index=False, float_format="%.4f")
tables.styled(second, f"Table 2, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
once = second.drop_duplicates(["run", "benchmark"])
figure = plots.score_panels(once, scores.TITLES, settings.label, "gain")  # table_2_gains
plots.save(figure, out, "table_2_gains")

# %% [markdown]
# ## Several layers, another objective (Table 5)

# %%
fifth = tables.side_by_side(profile, 5)
fifth.to_csv(out / "table_5.csv", index=False, float_format="%.4f")
blocks_of = "; ".join(
    f"{name}: blocks {', '.join(map(str, layers[name]))} of {depths[name]}"
    for name in layers
    if name.startswith("layers")
)
tables.styled(fifth, f"Table 5, the paper's numbers beside ours. Ours: {settings.label}; {blocks_of}.")

# %% [markdown]
# ## Our controls
#
# - `as-released`: what the released code trains: the teacher above, which is given pixels in CLIP's normalisation, and
#   a head that never learns: peft freezes it with the rest, and `llava/train/train.py` sets only the projector free.
# - `shuffled-teacher`: the right teacher's features of the wrong image. A gain that stays is not the teacher's content.
# - `lambda-...`: the weight of the alignment loss; `viral` has 0.5.

# %%
table = tables.side_by_side(profile, 2, controls, only=["baseline", *controls])
table.to_csv(out / "controls.csv", index=False, float_format="%.4f")
tables.styled(table, f"Controls of ours; only the first two rows are the paper's. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label, "gain")  # controls_gains
plots.save(figure, out, "controls_gains")

# %% [markdown]
# ## Runs of your own
#
# Runs of `profiles/runs.yaml` that the profile trains and that no table of the paper and no notebook of ours is about:
# gains over the run without alignment of the same models, on the seeds that both have.

# %%
sizes = runs.by_images(profile, ("baseline", "viral", "oracle", "align-encoder", "shuffled-teacher"))
elsewhere = {"oracle", "next-baseline", "next-viral", *sizes}
own = {run: scores.reference(profile, run) for run in tables.own_runs(profile) if run not in {*controls, *elsewhere}}
gains = scores.differences(profile, [pair for pair in own.items() if pair[0] != pair[1]])
gains.to_csv(out / "own_runs.csv", index=False, float_format="%.4f")
columns = ["run", "reference", "benchmark", "difference", "low", "high", "p", "n", "seeds"]
display(gains[columns].round(3) if len(gains) else Markdown("None." if own else "None in this profile."))
for run in [run for run in own if run not in set(gains["run"]) and not settings.systems[run].plain]:
    other = own[run]
    why = f"no seed of it and of {other}" if run != other else "no run without alignment of the same models and images"
    display(Markdown(f"**{run}** is compared with nothing: {why} has been evaluated."))

# %% [markdown]
# ## Differences and claims

# %%
missing = runs.not_run(profile, dict.fromkeys([*second["run"], *fifth["run"], *controls]))
show_missing(missing)
claims.alone(claims.write(out, claims.gains(profile, "ablations")))
