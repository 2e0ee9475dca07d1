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

from viral_core.images import pad_to_square
from viral_core.measure.cknna import _hsic, cknna, clamp_outliers
from viral_core.measure.intervals import interval
from viral_core.measure.permutation import patch_order
from viral_core.measure.states import stream_states
from viral_core.specs import block_at
from viral_core.templates import IMAGE_MARKER, prompt
from workbook import claims, models, paper, plots, runs, scores, tables
from workbook.benchmarks import load_rows, open_image
from workbook.layers import slower_middle
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
    trained = models.load(settings, folder)
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
looks = {systems[run]: look for run, look in plots.of_systems(systems).items()}
for name in dict.fromkeys(one["system"]):
    mean = one[one["system"] == name].groupby("layer")["cknna"].mean()
    look = looks.get(name, {"color": "grey", "linestyle": ":"})
    right.plot(mean.index, mean, label=name, markersize=3, **look)
right.set(xlabel="layer", ylabel=f"CKNNA, k = {settings.cknna.k}", title="this image")
if len(one):
    right.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
figure.suptitle(plots.wrap(f"{settings.label}; one image, the first seed", 100), fontsize="small")
plots.save(figure, out, "one_image")

# %% [markdown]
# ## Over many images (Figure 2d)
#
# The `measure` stage did the same for every image and seed, and for the baseline before stage 2, which the paper does
# not show. The band is the 95 % interval of the mean over images and seeds; seeds are of stage 2, before which there is
# one model.

# %%
show(runs.intervals)
similarity = runs.measured(profile, "cknna", systems)
start = runs.measured(profile, "cknna_start", ["baseline"]).assign(run="before stage 2")  # the same for every seed
once = start[start["seed"] == start["seed"].min()] if len(start) else start
shown = pd.concat([similarity, once])
shown = shown[shown["clamp"] == 1] if len(shown) else shown
curve = runs.intervals(shown, ["run", "layer"], "image", "cknna")
curve.to_csv(out / "figure_2d.csv", index=False, float_format="%.5f")
curve.pivot(index="layer", columns="run", values="value").round(3)

# %%
if len(curve):
    middle = settings.systems["viral"].align.blocks(settings.blocks("viral"))
    counted = f"k = {settings.cknna.k} of {shown['n'].iat[0]} tokens"
    names = systems | {"before stage 2": "(a) before stage 2"}
    figure = plots.cknna_curves(curve, names, middle, counted, shown["chance"].mean(), settings.label)  # figure_2d
    plots.save(figure, out, "figure_2d")

# %% [markdown]
# ## With and without clamp
#
# The code published with CKNNA (Huh et al.) clamps both sides to the 0.95 quantile of their magnitudes first, so that a
# few channels of massive activations do not decide every neighbour. The curves above do not.

# %%
show(clamp_outliers)

# %%
both = pd.concat([similarity, once])
both = both[both["layer"].isin([*middle, both["layer"].max()])] if len(both) else both
clamps = runs.intervals(both, ["run", "layer", "clamp"], "image", "cknna")
clamps.to_csv(out / "clamps.csv", index=False, float_format="%.5f")
clamps.round(3)

# %% [markdown]
# ## Benchmarks of the same runs (Figure 2e)
#
# Official scores with 95 % intervals over questions and seeds; dotted: the best constant answer. The paper's numbers
# are those of its Table 4.

# %%
table = tables.side_by_side(profile, 4, {"viral": systems["viral"]}, only=systems)
table.to_csv(out / "figure_2e.csv", index=False, float_format="%.4f")
tables.styled(table, f"Numbers of Figure 2e, the paper's beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label)  # figure_2e
plots.save(figure, out, "figure_2e")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label, "gain")  # figure_2e_gains
plots.save(figure, out, "figure_2e_gains")

# %% [markdown]
# ## Differences in CKNNA, and their claims
#
# On the same images and seeds: the baseline's change from one depth to another; how much less it falls over the blocks
# from a quarter to the middle than over as many up to the quarter, which every curve that flattens does, and than over
# as many from the middle on, which makes the middle special; its last layer against that before stage 2; and the
# difference of two systems, mean over the layers from the middle to the last.

# %%
every = pd.concat([similarity, start])
every = every[every["clamp"] == 1] if len(every) else every
cells = {
    run: rows.pivot_table(index=["layer", "seed"], columns="image", values="cknna")
    for run, rows in (every.groupby("run") if len(every) else ())
}
last = settings.blocks("baseline")
between, half = (block_at(depth, last) for depth in (0.375, 0.5))
slower = slower_middle(cells["baseline"], last) if "baseline" in cells else {}


def at(run: str, *layers: int) -> pd.DataFrame:
    """CKNNA (seeds, images) of a run, mean over the layers."""
    return cells[run].loc[list(layers)].groupby("seed").mean()


def later(run: str, other: str) -> pd.DataFrame:
    """Difference of two runs, mean over the layers from the middle to the last."""
    return at(run, *range(half, last + 1)) - at(other, *range(half, last + 1))


comparisons = {  # claim and part: the runs that it takes, and the difference
    ("cknna-falls", ""): (["baseline"], lambda run: at(run, last) - at(run, 0)),
    ("cknna-middle-slows", "than before"): (["baseline"], lambda _: slower["than before"]),
    ("cknna-middle-slows", "than after"): (["baseline"], lambda _: slower["than after"]),
    ("cknna-middle-rise", ""): (["baseline"], lambda run: at(run, half) - at(run, between)),
    ("training-lowers-cknna", ""): (
        ["baseline", "before stage 2"],
        lambda run, before: at(run, last) - at(before, last),
    ),
    ("residual-keeps-cknna", ""): (["residual-post", "baseline"], later),
    ("viral-keeps-cknna", ""): (["viral", "baseline"], later),
    ("align-beats-residual-cknna", ""): (["align-encoder", "residual-post"], later),
}
show(slower_middle)
found = []
for (claim, part), (names, difference) in comparisons.items():
    absent = [name for name in names if name not in set(curve["run"])]
    estimate = None if absent else interval(difference(*names))
    found.append(claims.row(claim, estimate, part=part, missing=f"cknna of {', '.join(absent)}" if absent else ""))

# %% [markdown]
# ## Differences in answers, and their claims
#
# Paired: the same questions, the same seeds.

# %%
contrast, ways = {"mmvp": 1, "cv_bench": -1 / 2, "pope": -1 / 2}, ["residual-post", "align-encoder"]
estimate = scores.change(profile, ways, "baseline", contrast, together=systems)
printed = [
    share * (paper.score(run, name) - paper.score("baseline", name)) for run in ways for name, share in contrast.items()
]
missing = "" if estimate else "residual-post, align-encoder or baseline"
found.append(claims.row("mmvp-is-the-exception", estimate, missing=missing, paper=sum(printed) / len(ways)))
rows = claims.gains(profile, "pilot_study")
claims.alone(claims.write(out, found + rows))
