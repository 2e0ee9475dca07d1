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
# # What do the visual tokens look like? (Section 5.6, Figures 5, 10 and 11)
#
# **Question.** Drawn as colours, are the visual tokens of an aligned model more ordered than the baseline's?
#
# > **The paper's answer**: yes, "more structured and semantically coherent", and the aligned model answers counting
# > and spatial questions where the baseline fails. The examples are chosen.
#
# **How we measure.** PCA of the $N$ tokens of one image in one layer: three components, each scaled robustly and
# squashed into a colour channel, the sign of a component fixed. Pictures are no evidence; how similar tokens are to
# the encoder's is measured in the pilot study. The examples are found by a rule: the first questions of CV-Bench2D
# that the aligned model answers right and the baseline wrong, and as many the other way round.

# %% tags=["parameters"]
profile = "laptop"

# %%
from IPython.display import Markdown, display

from viral_core.images import pad_to_square
from workbook import plots, results
from workbook.benchmarks import load_rows, open_image
from workbook.notebook import begin, conclude
from workbook.results.qualitative import layer_states, teacher_tokens, token_colours

settings, out = begin(profile, "qualitative")
systems = {"baseline": "baseline", "viral": "VIRAL"}
rows = {row["id"]: row for row in load_rows("cv_bench", settings.data.benchmarks)}
examples = results.disagreements(profile, "viral", "baseline", "cv_bench", 2)
if examples.empty:
    display(Markdown("Baseline and VIRAL answer alike, or have not been evaluated: the first questions are shown."))
chosen = list(examples["id"]) or list(rows)[:2]
pictures = [pad_to_square(open_image(rows[question]["image"])) for question in chosen]
middle = results.aligned_layers(profile, ["viral"])[0]

# %% [markdown]
# ## Questions that the two answer differently (Figure 5)

# %%
states = {run: layer_states(profile, run, pictures) for run in systems}
figure = plots.tiles(
    {"image": [plots.pixels(picture) for picture in pictures]}
    | {f"{name}, layer {middle}": token_colours(states[run], middle, len(pictures)) for run, name in systems.items()},
    [plots.wrap(rows[question]["question"], 45) for question in chosen],
)
figure.suptitle(plots.wrap(settings.label, 60), fontsize="small")
plots.save(figure, out, "figure_5")
examples.to_csv(out / "figure_5.csv", index=False)
display(examples)

# %% [markdown]
# ## Layer by layer (Figure 10)
#
# The first example. Every map has a basis of its own: a colour means nothing across maps.

# %%
layers = next((len(found[0]) for found in states.values() if found), 1)
shown = range(layers) if layers <= 12 else [*range(layers // 4, layers // 2), *range(3 * layers // 4, layers)]
columns = {f"layer {layer}": [(token_colours(states[run], layer, 1))[0] for run in systems] for layer in shown}
figure = plots.tiles({"image": [plots.pixels(pictures[0])] * len(systems)} | columns, list(systems.values()), 0.95)
figure.suptitle(plots.wrap(settings.label, 90), fontsize="small")
plots.save(figure, out, "figure_10")

# %% [markdown]
# ## Aligned with different teachers (Figure 11)
#
# Above, the teacher's own features of the image; below, the aligned layer of the model that was trained with it.

# %%
teachers = {"clip": "teacher-clip", "dinov2": "viral", "sam": "teacher-sam", "depth_anything": "teacher-depth_anything",
            "radio": "teacher-radio"}  # fmt: skip
columns = {
    "image": [plots.pixels(pictures[0]), ""],
    "baseline": ["", token_colours(states["baseline"], middle, 1)[0]],
}
for teacher, run in teachers.items():
    trained = states[run] if run in states else layer_states(profile, run, pictures[:1])
    columns[teacher] = [teacher_tokens(profile, teacher, pictures[0]), token_colours(trained, middle, 1)[0]]
figure = plots.tiles(columns, ["teacher", f"layer {middle}"])
figure.suptitle(plots.wrap(settings.label, 90), fontsize="small")
plots.save(figure, out, "figure_11")

# %% [markdown]
# ## What these numbers say
#
# How often the two disagree, over all questions of CV-Bench2D; the examples above are the first of each kind.

# %%
conclude(results.disagreement_lines(profile, "viral", "baseline", "cv_bench"))
