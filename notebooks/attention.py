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
# # Does alignment focus the attention on the image? (Section 5.4, Figures 4 and 12)
#
# **Question.** When a model answers, how are its looks at the image spread: over one compact region, or over many
# scattered patches?
#
# > *The paper's answer:* "LLaVA-1.5-7B exhibits high entropy across layers and heads, reflecting dispersed attention
# > patterns, whereas our model shows consistently lower entropy -- particularly at the aligned intermediate layer".
#
# No number is printed. The paper asks GQA questions of the category Relation; here they are CV-Bench2D's.

# %% tags=["parameters"]
profile = "laptop"

# %%
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from scipy import ndimage

from viral_core.images import pad_to_square
from viral_core.measure.attention import READINGS, generate_with_attention, spatial_entropies
from viral_core.measure.inputs import batches
from viral_core.templates import IMAGE_MARKER, prompt, stop_token_id
from workbook import claims, models, plots, runs
from workbook.benchmarks import load_rows, open_image
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "attention")
systems = {"baseline": "baseline", "viral": "VIRAL"}
aligned = settings.systems["viral"].align.blocks(settings.blocks("viral"))[0]
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## Spatial entropy
#
# At each step of a greedy answer, the attention of the position that predicts the next token, to the visual tokens, is
# a map $S$ over the image. With $B = \max(S - \mathrm{mean}\,S,\, 0)$ and $c$ the 8-connected components of $\{B >
# \tau\}$,
#
# $$p_c = \frac{\sum_{i \in c} B_i}{\sum_i B_i}, \qquad H = -\sum_c p_c \ln p_c .$$
#
# One region has $H = 0$. Two readings: *renormalised*, where $S$ sums to 1 over the image and $\tau = 0$; and that of
# the code of Kang et al., whom the paper follows, *raw* attention with $\tau = 0.001$, where a head that hardly looks
# at the image falls under $\tau$ everywhere and scores 0, as if perfectly focussed. The first is ours; the ledger has a
# row for each.

# %%
show(spatial_entropies)
pd.DataFrame(READINGS).T

# %% [markdown]
# ## One answer, live
#
# The first question of the category, asked of the first trained system; hooks keep the last query's row of every head.

# %%
show(generate_with_attention)

# %%
section, rows = settings.attention, []
if section:
    rows = load_rows(section.benchmark, settings.data.benchmarks)
    rows = [row for row in rows if row["category"] == section.category]
else:
    display(Markdown("This profile measures no attention (`attention: null`)."))
folders = runs.trained(profile, systems)
trained = next(iter(folders), None)
maps = None
if rows and trained:
    row, picture = rows[0], pad_to_square(open_image(rows[0]["image"]))
    run = models.load(settings, folders[trained])
    question = prompt(run.template, f"{IMAGE_MARKER}\n{row['prompt']}")
    [(_, inputs)] = batches(run.model, run.processor, [picture], question, 1, "")
    stop = stop_token_id(run.processor.tokenizer, run.template)
    [answer] = generate_with_attention(run.model, inputs, settings.evaluation.max_new_tokens, stop)
    print(f"{row['prompt']}\n{trained}: {run.processor.tokenizer.decode(answer.tokens)}  | right: {row['answer']}")
    if answer.tokens:
        side = round(answer.attention.shape[-1] ** 0.5)
        maps = answer.attention[0].unflatten(-1, (side, side)).numpy()  # first token: (layers, heads, H, W)
    del run

# %% [markdown]
# The head of the aligned layer with the highest entropy: its map, what stands above the mean, and the components.

# %%
if maps is not None:
    middle = maps[aligned - 1]  # of the first block first
    head = int(spatial_entropies(middle).argmax())
    S = middle[head]
    S = S / S.sum()
    B = np.maximum(S - S.mean(), 0)
    components, count = ndimage.label(B > 0, structure=np.ones((3, 3)))
    shares = pd.Series([B[components == c].sum() / B.sum() for c in range(1, count + 1)], name="p_c")
    by_hand = float(-(shares * np.log(shares)).sum())
    print(f"shares p_c: {', '.join(f'{share:.3f}' for share in shares)}")
    print(f"H by hand {by_hand:.4f}, by the library {spatial_entropies(S):.4f}")
    figure, axes = plt.subplots(1, 4, figsize=(6.6, 1.8))  # one_map
    axes[0].imshow(plots.pixels(picture))
    for axis, values, cmap in zip(
        axes[1:], (S, B, np.where(components, components, np.nan)), ("Greys", "Greys", "tab10"), strict=True
    ):
        axis.imshow(values, cmap=cmap, interpolation="nearest")
    for axis, title in zip(axes, ("image", "attention S", "B", f"components: {count}"), strict=True):
        axis.set(xticks=[], yticks=[], title=title)
    caption = f"{settings.label}; {trained}, seed {settings.runs[trained][0]}, layer {aligned}, head {head}"
    figure.suptitle(plots.wrap(caption, 80), fontsize="small")
    plots.save(figure, out, "one_map")

# %% [markdown]
# ## Entropy, layer by layer (Figure 4, right)
#
# Mean over an answer's tokens and the heads, then over questions; 95 % intervals over questions and seeds.

# %%
questions = runs.measured(profile, "attention/questions", systems)
image = {row["id"]: row["group"] for row in rows}  # of a question
curves = runs.intervals(questions, ["reading", "run", "layer"], "question", "entropy", image)
curves.to_csv(out / "figure_4.csv", index=False, float_format="%.5f")

# %%
if len(curves):
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8))  # figure_4
    for axis, reading in zip(axes, READINGS, strict=True):
        plots.curves(axis, curves[curves["reading"] == reading], "layer", "value", systems)
        plots.mark_layers(axis, [aligned])
        axis.set(xlabel="layer", ylabel="spatial entropy (nats)", title=reading)
    axes[0].legend()
    figure.suptitle(
        plots.wrap(
            f"{settings.label}; mean over heads; n = {curves['n'].max()} questions, "
            f"{plots.seeds(curves['seeds'])}, 95 % intervals; dashed: aligned layer",
            90,
        ),
        fontsize="small",
    )
    plots.save(figure, out, "figure_4")

# %% [markdown]
# ## Layers and heads

# %%
heads = runs.measured(profile, "attention/heads", systems)
if len(heads):
    heads = heads[heads["reading"] == "renormalised"]
    heads.to_csv(out / "figure_4_heads.csv", index=False, float_format="%.5f")
    grids = {
        name: group.pivot_table(index="layer", columns="head", values="entropy") for name, group in heads.groupby("run")
    }
    top = max(grid.max().max() for grid in grids.values())
    figure, axes = plt.subplots(1, len(grids), figsize=(3 * len(grids), 3.1), squeeze=False)  # figure_4_heads
    for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
        sns.heatmap(grid, ax=axis, cmap="Greys", vmin=0, vmax=top, cbar_kws={"label": "entropy (nats)"})
        axis.set_title(systems[name])
    size = f"renormalised; mean over n = {questions['question'].nunique()} questions and "
    size += plots.seeds(heads.groupby("run")["seed"].nunique())
    figure.suptitle(plots.wrap(f"{settings.label}; {size}", 80), fontsize="small")
    plots.save(figure, out, "figure_4_heads")

# %% [markdown]
# ## Maps of a few questions (Figure 4, left; Figure 12)
#
# The first questions of the category, not chosen by us: mean over the answer's tokens and the heads, of the first seed.
# Darker is more attention; each map has its own scale.

# %%
stored = {}
if section:
    seeds = {name: settings.runs[name][0] for name in systems if name in settings.runs}
    stored = {name: runs.attention_maps(profile, name, seed) for name, seed in seeds.items()}
shown = list(next((maps for maps in stored.values() if maps), {}))
by_id = {row["id"]: row for row in rows}
told = {}
for run in stored:
    files = runs.answer_files(profile, run, section.benchmark).get(settings.runs[run][0])
    told[run] = {row["id"]: row["response"] for row in runs.read_all(files)[0]} if files else {}
for number, name in enumerate(shown):
    depth = len(next(maps for maps in stored.values() if maps)[name])
    columns = {"image": [plots.pixels(pad_to_square(open_image(by_id[name]["image"])))] * len(systems)}
    for layer in range(max(1, depth - 7), depth + 1):
        columns[f"layer {layer}"] = [stored[run][name][layer - 1] if stored.get(run) else None for run in systems]
    figure = plots.tiles(columns, list(systems.values()))
    replies = "; ".join(f"{title}: “{told.get(run, {}).get(name, 'not run')}”" for run, title in systems.items())
    said = f"{' '.join(by_id[name]['prompt'].split())} Key: {by_id[name]['answer']}; {replies}"
    under = f"{settings.label}; the first seed"
    figure.suptitle(f"{plots.wrap(said, 120)}\n{plots.wrap(under, 120)}", fontsize="x-small")
    plots.save(figure, out, f"figure_12_{number}")

# %% [markdown]
# ## Differences and claims
#
# VIRAL minus baseline on the same questions and seeds, layer by layer and over all layers, and the difference at the
# aligned layer minus that over all (`middle`); and how many rows had no attention above their mean, hence no entropy,
# and are left out. The p-values are of each row alone.

# %%
differences, overall = [], {}
for reading, group in questions.groupby("reading", sort=False) if len(questions) else ():
    if set(systems) <= set(group["run"]):
        cells = group.pivot_table(index=["layer", "run", "seed"], columns="question", values="entropy")
        change = cells.xs("viral", level="run") - cells.xs("baseline", level="run")  # (layer, seed) x question
        parts = {f"layer {layer}": change.loc[layer] for layer in change.index.unique("layer")}
        parts["all layers"] = change.groupby("seed").mean()
        parts["middle"] = change.loc[aligned] - parts["all layers"]
        level = cells.xs("baseline", level="run")
        levels = {f"layer {layer}": level.loc[layer] for layer in level.index.unique("layer")}
        for part, values in parts.items():
            estimate = runs.over_items(values, image)
            of = levels.get(part, level.groupby("seed").mean())  # the baseline's own
            ratio = np.nanmean(values) / np.nanmean(of)  # whose denominator is measured as well
            overall[reading, part] = runs.over_items(ratio + (values - ratio * of) / np.nanmean(of), image).scaled(100)
            row = {"reading": reading, "comparison": "viral - baseline", "part": part, **estimate.columns()}
            differences.append(row | {"percent": overall[reading, part].value})
columns = ["reading", "comparison", "part", "value", "low", "high", "percent", "n", "seeds", "p"]
differences = pd.DataFrame(differences, columns=columns)
differences.to_csv(out / "differences.csv", index=False, float_format="%.5f")
differences.round(4)

# %%
if len(questions):
    display(questions.groupby(["reading", "run"], sort=False)["undefined"].sum().to_frame())
found = []
for claim, part in (("entropy-lower", "all layers"), ("entropy-lower-middle", "middle")):
    for reading in READINGS:
        estimate = overall.get((reading, part))
        missing = "" if estimate else "attention of viral or baseline"
        found.append(claims.row(claim, estimate, part=reading, missing=missing))
claims.alone(claims.write(out, found))
