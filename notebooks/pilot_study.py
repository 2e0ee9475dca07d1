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
# # Do visual tokens lose what the encoder saw, and does giving it back help? (Section 4, Figure 2)
#
# **Question.** LLaVA is trained on text alone. Do its visual tokens, layer by layer, become less similar to the
# encoder's features? And does a model answer better that has been made to keep the similarity?
#
# > *The paper's answer:* "similarity to CLIP features drops sharply after the early layers and remains low in deeper
# > layers"; in the middle layers "a clear attenuation of this trend, with even slight increase"; and alignment
# > "outperforms residual connection in both CKNNA similarity and multimodal benchmarks."
#
# Three of the systems here are the paper's (a), (b) and (c); the fourth is VIRAL itself, aligned to DINOv2, which
# Figure 2 does not have.

# %% tags=["parameters"]
profile = "laptop"

# %%
import pandas as pd
import torch
from matplotlib import pyplot as plt

from viral_core import distributed
from viral_core.images import pad_to_square
from viral_core.measure.cknna import _hsic, cknna, clamp_outliers
from viral_core.measure.intervals import interval
from viral_core.measure.permutation import patch_order
from viral_core.measure.states import stream_states
from viral_core.run_folder import load_run
from viral_core.templates import IMAGE_MARKER, prompt
from workbook import claims, plots, runs, scores, tables
from workbook.benchmarks import load_rows, open_image
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "pilot_study")
systems = {
    "baseline": "(a) baseline",
    "residual-post": "(b) residual, post-projection (Eq. 3)",
    "align-encoder": "(c) alignment to the encoder (Eq. 4)",
    "viral": "VIRAL, alignment to DINOv2 (Eq. 6)",
}
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## CKNNA
#
# Two representations of the same $n$ samples, $A$ and $B$ with rows of unit length, have the kernels $K = AA^\top$ and
# $L = BB^\top$. CKNNA asks whether they agree on *who is near whom*: let $m$ be the mask of pairs that are among the
# $k$ nearest neighbours in both, then
#
# $$\mathrm{CKNNA} = \frac{H(m \cdot K, m \cdot L)}{\sqrt{H(m_K \cdot K, m_K \cdot K)\, H(m_L \cdot L, m_L \cdot L)}}$$
#
# with $H$ the unbiased HSIC. 1 is the same neighbourhood; independent features are at chance (dotted below), which
# grows with $k / n$. The samples are the $N$ visual tokens of *one image*: $A$ their hidden states after block $\ell$,
# $B$ the encoder's raw features $z$, before the projector. The paper gives neither $k$ nor the samples; both are our
# choice.

# %%
show(cknna)
show(_hsic)

# %% [markdown]
# ## One image, live
#
# Through the tap of each trained system: a forward pass, the hidden states at the visual positions of every layer, and
# their CKNNA to $z$; dotted, to $z$ in an arbitrary order.

# %%
rows = load_rows(settings.cknna.benchmark, settings.data.benchmarks)
picture = pad_to_square(open_image(rows[0]["image"]))
one = []
for run, folder in runs.trained(profile, systems).items():
    trained = load_run(folder, dtype=getattr(torch, settings.compute.dtype), device=distributed.device())
    layers = range(trained.model.config.text_config.num_hidden_layers + 1)
    question = prompt(trained.template, IMAGE_MARKER)
    [image] = stream_states(trained.model, trained.processor, [picture], question, layers, 1, "")
    order = torch.from_numpy(patch_order(0, "chance", len(image.features)))
    for name, target in ((systems[run], image.features), ("chance", image.features[order])):
        values = cknna(image.states.float(), target.float(), settings.cknna.k)
        one += [{"system": name, "layer": layer, "cknna": value} for layer, value in enumerate(values.tolist())]
    del trained, image
one = pd.DataFrame(one, columns=["system", "layer", "cknna"])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=[1, 1.6])  # one_image
left.imshow(plots.pixels(picture))
left.axis("off")
for name in dict.fromkeys(one["system"]):
    mean = one[one["system"] == name].groupby("layer")["cknna"].mean()
    style = {"color": "grey", "linestyle": ":"} if name == "chance" else plots.line(list(systems.values()).index(name))
    right.plot(mean.index, mean, label=name, markersize=3, **style)
right.set(xlabel="layer", ylabel=f"CKNNA, k = {settings.cknna.k}", title="this image")
if len(one):
    right.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
plots.save(figure, out, "one_image")

# %% [markdown]
# ## Over many images (Figure 2d)
#
# The `measure` stage did the same for every image and seed, and for the baseline before stage 2, which the paper does
# not show. The band is the 95 % interval of the mean over images and seeds; seeds are of stage 2, before which there is
# one model.

# %%
similarity = runs.measured(profile, "cknna", systems)
start = runs.measured(profile, "cknna_start", ["baseline"]).assign(run="before stage 2")
similarity = pd.concat([similarity, start]) if len(similarity) else similarity
unclamped = similarity[similarity["clamp"] == 1] if len(similarity) else similarity
curve = []
for (run, layer), group in unclamped.groupby(["run", "layer"], sort=False) if len(unclamped) else ():
    cells = group.pivot(index="seed", columns="image", values="cknna")  # (seeds, images)
    cells = cells[:1] if run == "before stage 2" else cells  # the same for every seed
    curve.append({"run": run, "layer": layer, **interval(cells).columns(), "chance": group["chance"].mean()})
curve = pd.DataFrame(curve, columns=["run", "layer", "value", "low", "high", "n", "seeds", "chance"])
curve.to_csv(out / "figure_2d.csv", index=False, float_format="%.5f")
curve.pivot(index="layer", columns="run", values="value").round(3)

# %%
if len(curve):
    figure, axis = plt.subplots(figsize=(7.8, 3.4))  # figure_2d
    plots.curves(axis, curve, "layer", "value", systems | {"before stage 2": "(a) before stage 2"})
    middle = settings.systems["viral"].align.blocks(settings.blocks("viral"))
    plots.mark_layers(axis, middle, curve["chance"].mean())
    axis.set(xlabel="layer (0 = input of the language model)", ylabel="CKNNA to the encoder's z")
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    size = f"k = {settings.cknna.k} of {unclamped['n'].iat[0]} tokens; n = {curve['n'].max()} images"
    trained = plots.seeds(curve.loc[curve["run"] != "before stage 2", "seeds"])
    caption = f"{settings.label}; {size}, {trained}; dashed: layer of re-injection or alignment"
    axis.set_title(plots.wrap(caption), fontsize="small")
    plots.save(figure, out, "figure_2d")

# %% [markdown]
# ## With and without clamp
#
# The code published with CKNNA (Huh et al.) clamps both sides to the 0.95 quantile of their magnitudes first, so that a
# few channels of massive activations do not decide every neighbour. The curves above do not.

# %%
show(clamp_outliers)

# %%
cells = []
for (run, clamp, layer), group in similarity.groupby(["run", "clamp", "layer"]) if len(similarity) else ():
    if layer in (middle[0], similarity["layer"].max()):
        cell = group.pivot(index="seed", columns="image", values="cknna")
        cell = cell[:1] if run == "before stage 2" else cell
        cells.append({"run": run, "layer": layer, "clamp": clamp, **interval(cell).columns()})
cells = pd.DataFrame(cells, columns=["run", "layer", "clamp", "value", "low", "high", "n", "seeds"])
cells.to_csv(out / "clamps.csv", index=False, float_format="%.5f")
cells.round(3)

# %% [markdown]
# ## Benchmarks of the same runs (Figure 2e)
#
# Official scores with 95 % intervals over questions and seeds; dotted: the best constant answer. The paper's numbers
# are those of its Table 4.

# %%
table = tables.side_by_side(profile, 4, {"viral": systems["viral"]})
table = table[table["run"].isin(systems)]
table.to_csv(out / "figure_2e.csv", index=False, float_format="%.4f")
tables.styled(table, f"Numbers of Figure 2e, the paper's beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, scores.TITLES)  # figure_2e
figure.suptitle(plots.wrap(f"{settings.label}; 95 % intervals; dotted: best constant answer", 90), fontsize="small")
plots.save(figure, out, "figure_2e")

# %% [markdown]
# ## Differences in CKNNA, and their claims
#
# On the same images and seeds: the baseline's change from one depth to another, how much smaller its fall is from a
# quarter to the middle than up to the quarter, its last layer against that before stage 2, and the difference of two
# systems, mean over the layers from the middle to the last.

# %%
found, middle, last = [], 0, 0
cells = late = early_fall = middle_fall = pd.DataFrame()
if len(unclamped):
    last = unclamped["layer"].max()
    middle = round(last / 2)
    cells = unclamped.pivot_table(index=["run", "seed"], columns=["layer", "image"], values="cknna")
    late = cells.loc[:, middle:last].T.groupby("image").mean().T  # mean over layers
    quarter = cells[round(0.25 * last)]
    early_fall, middle_fall = quarter - cells[0], cells[middle] - quarter
comparisons = {  # claim: the values of one run minus those of another
    "cknna-falls": ("baseline", cells.get(last), "baseline", cells.get(0)),
    "cknna-middle-slows": ("baseline", middle_fall, "baseline", early_fall),
    "cknna-middle-rise": ("baseline", cells.get(middle), "baseline", cells.get(round(0.375 * last))),
    "training-lowers-cknna": ("baseline", cells.get(last), "before stage 2", cells.get(last)),
    "residual-keeps-cknna": ("residual-post", late, "baseline", late),
    "align-beats-residual-cknna": ("align-encoder", late, "residual-post", late),
}
for claim, (run, values, reference, other) in comparisons.items():
    absent = {run, reference} - set(curve["run"])
    estimate = None if absent else interval(values.loc[run] - other.loc[reference])
    found.append(claims.row(claim, estimate, missing=f"cknna of {', '.join(sorted(absent))}" if absent else ""))
pd.DataFrame(found)[["id", "value", "low", "high", "n", "seeds", "missing"]].round(4)

# %% [markdown]
# ## Differences in answers, and their claims
#
# Paired: the same questions, the same seeds.

# %%
rows = claims.gains(profile, "pilot_study")
claims.write(out, found + rows)
pd.DataFrame(rows)[["id", "part", "unit", "value", "low", "high", "n", "seeds", "paper", "missing"]].round(3)
