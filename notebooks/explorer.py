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
# **Question.** What do two runs make of the same image and question?
#
# Open this notebook in JupyterLab (`make lab`), run all cells, and
#
# - click a patch: its cosine similarity to every other patch in the encoder, the teacher and both runs, and the words
#   that its token is closest to (logit lens);
# - move the layer: PCA maps (one basis for all layers and runs), similarity, words and the CKNNA curve follow;
# - click a word of an answer: where it looked, by head, with the spatial entropy of that map;
# - name a word: where in the image, and from which layer on, the tokens say it;
# - shuffle the patches; drop an image of your own, ask a question of your own; copy a link to what you see.
#
# One image is an example, no evidence; the other notebooks measure. Executed by the pipeline, this one shows its first
# view.

# %% tags=["parameters"]
profile = "laptop"

# %%
import io

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from PIL import Image

from workbook import plots
from workbook.explorer import of_profile
from workbook.explorer.widget import Explorer
from workbook.notebook import begin, show

settings, out = begin(profile, "explorer")

# %% [markdown]
# Everything is measured from the states of one pass over image, question and answer:

# %%
from workbook.explorer import look

show(look.look)
show(look.similarity)
show(look.word_map)

# %%
try:
    explorer = Explorer(of_profile(profile), settings.label)
    if "error" in explorer.status:
        raise RuntimeError(explorer.status["error"])
    display(explorer)
except FileNotFoundError as error:
    explorer = None
    display(Markdown(f"**Nothing to explore:** {error}."))

# %% [markdown]
# ## The first view
#
# The similarity of the upper left patch (the darker, the more alike) and the PCA map, of each run in its middle layer.


# %%
def middle(panel: dict, values: bytes, channels: int) -> np.ndarray:
    """The middle layer of a panel's map, (grid, grid) or (grid, grid, 3)."""
    maps = np.frombuffer(values, np.uint8).reshape(panel["layers"], panel["grid"], panel["grid"], channels)
    return maps[panel["layers"] // 2].squeeze()


if explorer:
    panels, picture = explorer.view["panels"], Image.open(io.BytesIO(explorer.view["picture"]))
    columns = {"image": [plots.pixels(picture), ""]} | {
        panel["title"]: [middle(panel, panel["similarity"]["values"], 1), middle(panel, panel["pca"], 3)]
        for panel in panels
    }
    figure = plots.tiles(columns, ["similarity", "PCA"])
    said = (explorer.view["question"], settings.label)
    figure.suptitle("\n".join(plots.wrap(text, 110) for text in said), fontsize="x-small")
    plots.save(figure, out, "first_view")
    answers = {answer["run"]: "".join(word for word, *_ in answer["tokens"]) for answer in explorer.view["answers"]}
    display(pd.DataFrame({"answer": answers, "key": explorer.view["key"]}))
