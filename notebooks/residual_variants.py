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
# # Four ways to give visual information back (Appendix B, Table 4, Figure 8)
#
# **Question.** Visual information can be given back to the middle layer in two ways, by *adding* features to its visual
# tokens or by a *loss* that asks the tokens to stay similar to features; and the features can be taken after the
# projector or before it. Which of the four helps?
#
# > *The paper's answer:* re-injecting raw features "generally performs worse than the baseline", since it "disrupts
# > vision-language alignment in the intermediate layers"; aligning to projected features "generally improves
# > performance over the baseline [...], yet underperforms compared to leveraging raw features".
#
# With $e_i$ short for $e_{\ell,i}$, the state of visual token $i$ after block $\ell$:
#
# | | features after the projector | features before it |
# |---|---|---|
# | add (model) | (b) $e_i \leftarrow e_i + P_\phi(z_i)$, Eq. 3 | (d) $e_i \leftarrow e_i + P_{\phi'}(z_i)$, Eq. 7|
# | align (loss) | (e) $-\mathrm{sim}(P_\pi(e_i), P_\phi(z_i))$, Eq. 8 | (c) $-\mathrm{sim}(P_\pi(e_i), z_i)$, Eq. 4 |

# %% tags=["parameters"]
profile = "laptop"

# %%
import pandas as pd
import torch
from matplotlib import pyplot as plt

from viral_core.aligned import AlignedModel
from viral_core.head import AlignmentHead
from viral_core.images import pad_to_square
from viral_core.losses import cosine
from viral_core.measure.cknna import cknna
from viral_core.measure.inputs import batches
from viral_core.measure.intervals import interval
from viral_core.tap import VisualTap
from viral_core.templates import IMAGE_MARKER, prompt
from viral_core.tiles import view_of
from workbook import claims, plots, runs, scores, tables
from workbook.benchmarks import load_rows, open_image
from workbook.models import load_start
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "residual_variants")
systems = {
    "baseline": "(a) baseline",
    "residual-post": "(b) residual, post-projection (Eq. 3)",
    "align-encoder": "(c) alignment, encoder features (Eq. 4)",
    "residual-pre": "(d) residual, pre-projection (Eq. 7)",
    "align-projector": "(e) alignment, post-projection (Eq. 8)",
}
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## The four equations as four lines
#
# The tap has layer 0, which is $P_\phi(z)$, the encoder's features $z$, and the states of block $\ell$. The model is
# the one before stage 2, adapter and head are new.

# %%
start = load_start(settings, "baseline")
llava, processor, device, dtype = start.model, start.processor, start.model.device, start.model.dtype
blocks, width = llava.config.text_config.num_hidden_layers, llava.config.text_config.hidden_size
encoder_width, middle = llava.config.vision_config.hidden_size, settings.systems["residual-post"].residual.block(blocks)
torch.manual_seed(settings.seed)
adapter = torch.nn.Linear(encoder_width, width, dtype=dtype, device=device)  # P_phi'
head_z = AlignmentHead(width, encoder_width).to(device)  # P_pi
head_projected = AlignmentHead(width, width).to(device)

row = load_rows(settings.cknna.benchmark, settings.data.benchmarks)[0]
picture = pad_to_square(open_image(row["image"]))
question = prompt(start.template, IMAGE_MARKER)
[(_, inputs)] = batches(llava, processor, [picture], question, 1, "")
image_ids = torch.zeros(view_of(processor).tokens(), dtype=torch.long)

# %%
variants = {
    "baseline": lambda tap: None,
    "residual-post": lambda tap: tap.edit(middle, lambda tap: tap.states[0]),  # Eq. 3
    "residual-pre": lambda tap: tap.edit(middle, lambda tap: adapter(tap.features[0])),  # Eq. 7
}
states = {}
for run, attach in variants.items():
    with torch.inference_mode(), VisualTap(llava, range(blocks + 1)) as tap:
        attach(tap)
        llava(**inputs, use_cache=False)
        states[run] = torch.stack([tap.states[layer] for layer in range(blocks + 1)]).float()  # (L + 1, N, D)
        z = tap.features[0].float()

# %%
with torch.inference_mode():
    e, projected = states["baseline"][middle], states["baseline"][0]
    loss_c = cosine(head_z(e), z, image_ids)  # Eq. 4
    loss_e = cosine(head_projected(e), projected, image_ids)  # Eq. 8
print(f"losses of new heads: (c) {loss_c.item():.4f}, (e) {loss_e.item():.4f}")

# %% [markdown]
# In the library a residual belongs to the model, active in every training step and every answer; only the visual
# positions are changed, never text. Its adapter starts from the deviation below, the head of an alignment from the
# profile's `init_std` and width. The target of Eq. 8 passes no gradient on to the projector, which trains: our choice,
# the paper does not say.

# %%
show(AlignedModel._add_residual)
show(VisualTap._visit)

# %% [markdown]
# ## What adding does at once
#
# CKNNA to the encoder of this one image, before stage 2. A residual adds the very features that are compared, so
# that it may raise it where it enters; what later layers keep of it is the question.

# %%
figure, axis = plt.subplots(figsize=(7.4, 2.6))  # one_image
for run, look in plots.of_systems(states).items():
    similarity = cknna(states[run], z, settings.cknna.k)
    axis.plot(range(blocks + 1), similarity.cpu(), label=systems[run], markersize=4, **look)
plots.mark_layers(axis, [middle])
axis.set(xlabel="layer", ylabel=f"CKNNA to z, k = {settings.cknna.k}")
axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
axis.set_title(
    plots.wrap(f"{settings.label}; one image, before stage 2; dashed: where a residual enters", 60), fontsize="small"
)
plots.save(figure, out, "one_image")

# %%
del start, llava, tap

# %% [markdown]
# ## Similarity of the trained runs (Figure 8)
#
# Mean and 95 % interval over images and seeds; see the pilot study for CKNNA.

# %%
similarity = runs.measured(profile, "cknna", systems)
similarity = similarity[similarity["clamp"] == 1] if len(similarity) else similarity
curve = runs.intervals(similarity, ["run", "layer"], "image", "cknna")
curve.to_csv(out / "figure_8_cknna.csv", index=False, float_format="%.5f")
if len(curve):
    counted, chance = f"k = {settings.cknna.k} of {similarity['n'].iat[0]} tokens", similarity["chance"].mean()
    figure = plots.cknna_curves(curve, systems, [middle], counted, chance, settings.label)  # figure_8_cknna
    plots.save(figure, out, "figure_8_cknna")

# %%
rows = []
for layer, group in similarity.groupby("layer") if len(similarity) else ():
    cells = group.pivot(index=["run", "seed"], columns="image", values="cknna")
    for run in systems:
        if run != "baseline" and {run, "baseline"} <= set(group["run"]):
            change = interval(cells.loc[run] - cells.loc["baseline"])
            rows.append({"comparison": f"{run} - baseline", "layer": layer, **change.columns()})
change = pd.DataFrame(rows, columns=["comparison", "layer", "value", "low", "high", "n", "seeds", "p"])
change.to_csv(out / "cknna_differences.csv", index=False, float_format="%.5f")
shown = change.assign(difference=[
    f"{row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}], {plots.seeds([row.seeds])}" for row in change.itertuples()
])  # fmt: skip
shown.pivot(index="layer", columns="comparison", values="difference")

# %% [markdown]
# ## Benchmarks (Table 4)
#
# Official scores, the paper's beside ours, with 95 % intervals over questions and seeds.

# %%
table = tables.side_by_side(profile, 4)
table.to_csv(out / "table_4.csv", index=False, float_format="%.4f")
tables.styled(table, f"Table 4, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label, "gain")  # table_4
plots.save(figure, out, "table_4")

# %% [markdown]
# ## Differences and claims
#
# Paired: the same questions, the same seeds.

# %%
rows = claims.gains(profile, "residual_variants")
claims.alone(claims.write(out, rows))
