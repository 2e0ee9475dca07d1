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
# # What do the visual tokens look like? (Section 5.6, Appendix F, Figures 5, 10 and 11)
#
# **Question.** Drawn as colours, are the visual tokens of an aligned model more ordered than the baseline's?
#
# > *The paper's answer:* VIRAL gives "more structured and semantically coherent embeddings", and "correctly answers
# > challenging visual questions related to the number of objects and spatial positioning, whereas the baseline model
# > [...] frequently fails."
#
# The paper's examples are chosen. Here a rule chooses them: of each kind of question of CV-Bench2D the first one that
# the aligned model answers right and the baseline wrong, and the first the other way round. Pictures are no evidence:
# the table at the end has CKNNA of what they show, on pictures that nobody chose.

# %% tags=["parameters"]
profile = "laptop"

# %%
import pandas as pd
import torch

from viral_core.images import pad_to_square
from viral_core.measure.cknna import cknna
from viral_core.measure.intervals import interval
from viral_core.measure.pca import pca_map, pca_maps
from viral_core.measure.states import stream_states
from viral_core.templates import IMAGE_MARKER, prompt
from workbook import models, plots, runs
from workbook.benchmarks import load_rows, open_image
from workbook.benchmarks.registry import read
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "qualitative")
teachers = {
    "clip": "align-encoder",
    "dinov2": "viral",
    "sam": "teacher-sam",
    "depth_anything": "teacher-depth_anything",
    "radio": "teacher-radio",
}
systems = ["baseline", *teachers.values()]
middle = settings.systems["viral"].align.blocks(settings.blocks("viral"))[0]
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## Which questions
#
# Both answer all of CV-Bench2D (`evaluate`, the first seed that both have). The 2 x 2 table says how often they
# disagree at all:

# %%
benchmark = "cv_bench"
rows = {row["id"]: row for row in load_rows(benchmark, settings.data.benchmarks)}
answered = {run: runs.answers(profile, run, benchmark) for run in ("baseline", "viral")}
shared = [seed for seed in answered["baseline"] if seed in answered["viral"]]
right = {}
for run, seeds in answered.items():
    if shared:
        given = seeds[shared[0]][0]
        readings = read(benchmark, given, "official")
        right[run] = pd.Series(
            {row["id"]: answer == row["answer"] for row, answer in zip(given, readings, strict=True)}
        )
right = pd.DataFrame(right, columns=["baseline", "viral"])
told = right.map({True: "right", False: "wrong"}.get)
pd.crosstab(told["baseline"].rename("baseline is"), told["viral"].rename("VIRAL is"))

# %%
kind, chosen = pd.Series({name: row["category"] for name, row in rows.items()}), []
for run, other in (("viral", "baseline"), ("baseline", "viral")):
    chosen += kind[right.index[right[run] & ~right[other]]].drop_duplicates().index.tolist()
chosen = chosen or kind.drop_duplicates().index.tolist()
others = [name for name in rows if name not in chosen][:60]  # for the numbers at the end
pictures = [pad_to_square(open_image(rows[name]["image"])) for name in [*chosen, *others]]
examples = pd.DataFrame([rows[name] for name in chosen])[["id", "question", "options", "answer"]]
examples["in_words"] = [row.options[ord(row.answer) - ord("A")] for row in examples.itertuples()]
examples = examples.drop(columns="options")
for run, seeds in answered.items():
    given = {row["id"]: row["response"] for row in seeds[shared[0]][0]} if shared else {}
    examples[run] = examples["id"].map(given).fillna("not run")
examples.to_csv(out / "figure_5.csv", index=False)
examples

# %% [markdown]
# ## Tokens as colours
#
# Three principal components of the $N$ tokens, each scaled robustly, $x \mapsto (x - \mathrm{median}) / \mathrm{IQR}$,
# and squashed into a colour channel by $(1 + \tanh x) / 2$. Every map has a basis of its own (`pca_map`), and a colour
# means nothing across maps; but the layers of one system share one (`pca_maps`).

# %%
show(pca_map)
show(pca_maps)

# %% [markdown]
# The hidden states of every layer, of each trained system, for the chosen pictures, and of the aligned layer for the
# others: one system at a time is in memory.

# %%
BATCH = 8  # pictures at a time
states, aligned, features = {}, {}, None
for run, folder in runs.trained(profile, systems).items():
    loaded = models.load(settings, folder)
    layers = range(settings.blocks(run) + 1)
    question = prompt(loaded.template, IMAGE_MARKER)
    states[run], aligned[run], features = [], [], []
    for image in stream_states(loaded.model, loaded.processor, pictures, question, layers, BATCH, ""):
        if len(states[run]) < len(chosen):
            states[run].append(image.states.float().cpu())  # each (layers, N, D)
        aligned[run].append(image.states[middle].float().cpu())  # each (N, D)
        features.append(image.features.float().cpu())  # each (N, Dz): the encoder's z
    del loaded

# %% [markdown]
# ## Questions that the two answer differently (Figure 5)

# %%
columns = {"image": [plots.pixels(picture, 160) for picture in pictures[: len(chosen)]]}
for run in ("baseline", "viral"):
    tokens = [image[middle] for image in states.get(run, ())]
    columns[f"{run}\nlayer {middle}"] = [pca_map(values) for values in tokens] or [None] * len(chosen)
named = [
    f"{plots.wrap(row.question, 45)}\nright: {row.in_words} ({row.answer})\n"
    f"baseline: {plots.wrap(row.baseline, 35)}\nVIRAL: {plots.wrap(row.viral, 35)}"
    for row in examples.itertuples()
]
figure = plots.tiles(columns, named, 1.5)
seed = f", seed {shared[0]}" if shared else ""
if others_first := {settings.runs[run][0] for run in states} - {*shared[:1]}:
    seed = f"{seed}, maps of first seeds: {', '.join(map(str, sorted(others_first)))}, too"
figure.suptitle(plots.wrap(f"{settings.label}{seed}; chosen by a rule", 60), fontsize="small")
plots.save(figure, out, "figure_5")

# %% [markdown]
# ## Layer by layer (Figure 10)
#
# The first example. A row has one basis: where a colour stays from layer to layer, a token's feature does.

# %%
depth = settings.blocks("baseline")
drawn = range(depth + 1) if depth <= 12 else [*range(depth // 4, depth // 2), *range(3 * depth // 4, depth)]
columns = {"image": [plots.pixels(pictures[0])] * 2}
rows_of = [
    pca_maps([states[run][0][layer] for layer in drawn]) if run in states else [None] * len(drawn)
    for run in ("baseline", "viral")
]
columns |= {f"layer {layer}": list(pair) for layer, *pair in zip(drawn, *rows_of, strict=True)}
figure = plots.tiles(columns, ["baseline", "VIRAL"], 0.95)
figure.suptitle(plots.wrap(f"{settings.label}{seed}", 90), fontsize="small")
plots.save(figure, out, "figure_10")

# %% [markdown]
# ## Aligned with different teachers (Figure 11)
#
# Above, the teacher's own features of the image; below, the aligned layer of the system that was trained with it.

# %%
seen = {}
for teacher, run in teachers.items():
    if run in states:
        model = models.teacher(settings, teacher, settings.systems[run].vision, "intact")
        batches = (pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH))
        seen[teacher] = torch.cat([model(batch).cpu() for batch in batches])  # (pictures, N, d)
columns = {"image": [plots.pixels(pictures[0]), ""]}
columns["baseline"] = ["", pca_map(states["baseline"][0][middle]) if "baseline" in states else None]
for teacher, run in teachers.items():
    above = pca_map(seen[teacher][0]) if teacher in seen else None
    columns[plots.MODELS.get(teacher, teacher)] = [above, pca_map(states[run][0][middle]) if run in states else None]
figure = plots.tiles(columns, ["teacher", f"layer {middle}"])
figure.suptitle(plots.wrap(f"{settings.label}{seed}", 90), fontsize="small")
plots.save(figure, out, "figure_11")

# %% [markdown]
# ## A token and those that resemble it
#
# PCA shows three directions; the loss speaks of all. Cosine similarity of the marked token of the first picture to the
# others, tokens centred, at the aligned layer and in the teacher:

# %%
sources = {"encoder z": features[0]} if features else {}
sources |= {run: states[run][0][middle] for run in ("baseline", "viral") if run in states}
sources |= {"teacher DINOv2": seen["dinov2"][0]} if "dinov2" in seen else {}
figure = plots.similarities(pictures[0], sources)  # similarity
figure.suptitle(plots.wrap(f"{settings.label}{seed}", 90), fontsize="small")
plots.save(figure, out, "similarity")

# %% [markdown]
# ## The number beside the pictures
#
# If an aligned layer shows the teacher's structure, its tokens have the teacher's neighbourhoods: CKNNA at the aligned
# layer to the system's own teacher, minus the baseline's, on the first pictures of the benchmark that are not above,
# with 95 % intervals over them. It is of one seed each: another one's may lie outside.

# %%
numbers = []
for teacher, run in teachers.items():
    if teacher not in seen or "baseline" not in aligned:
        continue
    tokens = (torch.stack(aligned[name][len(chosen) :]) for name in (run, "baseline"))
    ours, baseline = (cknna(values, seen[teacher][len(chosen) :], settings.cknna.k).numpy() for values in tokens)
    row = {"teacher": teacher, "run": run, "cknna": ours.mean(), "of_baseline": baseline.mean()}
    numbers.append(row | interval(ours - baseline).columns())
columns = ["teacher", "run", "cknna", "of_baseline", "value", "low", "high", "n", "seeds"]
numbers = pd.DataFrame(numbers, columns=columns).rename(columns={"value": "difference"})
numbers.to_csv(out / "cknna_to_teachers.csv", index=False, float_format="%.5f")
numbers.round(3)
