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
# # Explorer: look into a run
#
# **Question.** What do two runs make of the same image and question? Choose runs, a question of a benchmark or an image
# and a question of your own, a layer and a head: the answers, the visual tokens of the layer as colours (PCA), where
# the answer looks, and the similarity to the encoder, layer by layer. "Shuffle" permutes the visual tokens before the
# projector.
#
# Open this notebook in JupyterLab (`make lab`) and run all cells: the controls are live there. Executed by the pipeline
# it shows its first view. One image is an example, no evidence; the other notebooks measure.

# %% tags=["parameters"]
profile = "laptop"

# %%
import os

# A look takes a second: no progress bars, no reports of what was loaded.
os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")

from IPython.display import Image, Markdown, display

from workbook.notebook import begin

settings, out = begin(profile, "explorer")

# %%
from workbook.explorer import Explorer

try:
    explorer = Explorer(profile)
except FileNotFoundError as nothing:
    explorer = None
    display(Markdown(f"**Nothing to explore:** {nothing}."))

# %%
if explorer:
    display(explorer.panel)

# %% [markdown]
# ## The first view

# %%
if explorer:
    (out / "first_view.png").write_bytes(explorer.image.value)
    display(Image(explorer.image.value), Markdown(explorer.answers.value))
