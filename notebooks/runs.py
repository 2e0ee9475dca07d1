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
# # Run cards, time and disk
#
# **Question.** What exactly was trained, on what, how did it go, how long did it take and how much room does it need?
#
# > *The paper:* "All experiments in this paper are conducted on four NVIDIA A100 GPUs (40 GB each)" (Appendix A); times
# > and sizes are not given.
#
# Everything here is read from what the runs have written themselves: `run.json` (what was trained, and on the weights
# of which models), `environment.json` (where), the log (how it went), and `costs.jsonl` (what every stage took).

# %% tags=["parameters"]
profile = "laptop"

# %%
from pathlib import Path

import pandas as pd
import seaborn as sns
import yaml
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

from viral_core.files import read_json
from viral_core.run_folder import save_run
from viral_core.trainer import train_stage2
from workbook import plots, runs
from workbook.notebook import begin, show
from workbook.paths import Paths
from workbook.scale.costs import read_costs

settings, out = begin(profile, "runs")
paths = Paths(profile)
evaluated = runs.evaluated(profile)
display(Markdown(f"{len(evaluated)} of {len(runs.names(profile))} runs of this profile are trained and evaluated."))

# %% [markdown]
# ## The profile
#
# What a profile asks of every run: recipe of both stages, LoRA, and how many of what.

# %%
stage1, stage2 = pd.Series(vars(settings.stage1), name="stage 1"), pd.Series(vars(settings.stage2), name="stage 2")
recipe = pd.concat([stage1, stage2], axis=1)
recipe[recipe.notna().any(axis=1)].astype(str)

# %%
show(train_stage2)

# %% [markdown]
# ## A run folder
#
# It holds what was trained and nothing else: projector, LoRA, head. The frozen models are named, with a fingerprint of
# their weights, which is checked when the run is loaded.

# %%
show(save_run)

# %%
card = {}
if folders := runs.folders(profile):
    (run, seed), folder = next(iter(folders.items()))
    card = read_json(folder / "run.json")
    listing = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in listing}
    display(pd.Series(sizes, name=f"bytes in {run}, seed {seed}").to_frame())
    shown = {key: value for key, value in card.items() if key != "training"}
    display(Markdown(f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"))

# %% [markdown]
# ## Cards of all systems
#
# Models, objective, steps; of its seeds the number, and the mean of seconds and last losses (mean of the last entries
# of the log). A row for each seed is in `cards.csv`.


# %%
def besides(align: dict) -> dict[str, bool]:
    """What is unlike VIRAL in an alignment, but for target, layers and weight."""
    return {
        "features of another image": align.get("shuffled", False),
        "teacher as released": align.get("teacher_state", "intact") != "intact",
        "head not trained": not align.get("train_head", True),
    }


cards, machines, logs = [], [], runs.measured(profile, "log")
for (run, seed), log in logs.groupby(["run", "seed"], sort=False) if len(logs) else ():
    card = read_json(evaluated[run, seed] / "run.json")
    align, reconstruct = card["align"] or {}, card["reconstruct"] or {}
    cards.append(
        {
            "run": run,
            "seed": seed,
            "language": Path(card["base"]["language"]).name,
            "vision": Path(card["base"]["vision"]).name,
            "architecture": card["architecture"],
            "objective": align.get("objective") or ("reconstruction" if reconstruct else "language only"),
            "target": align.get("teacher") if align.get("target") == "teacher" else align.get("target", ""),
            "weight": align.get("weight", ""),
            "besides": ", ".join(words for words, so in besides(align).items() if so),
            "images": settings.systems[run].images or "all",
            "residual": ", ".join(one["source"] for one in card["residuals"]),
            "blocks": [
                *align.get("layers", ()),
                *(one["layer"] for one in card["residuals"]),
                *(() if not reconstruct else [reconstruct["layer"]]),
            ],
            "steps": log["step"].iat[-1],
            "seconds": log["seconds"].iat[-1],
            "lm_loss": log["lm_loss"].tail(3).mean(),
            "vra_loss": log["vra_loss"].tail(3).mean(),
        }
    )
    machines += runs.sessions(profile, run, seed)
cards = pd.DataFrame(cards)
cards.to_csv(out / "cards.csv", index=False, float_format="%.5f")
if len(cards):
    same = ["language", "vision", "architecture", "objective", "target", "weight", "besides", "images", "residual"]
    same += ["blocks", "steps"]
    means = dict.fromkeys(("seconds", "lm_loss", "vra_loss"), "mean")
    by_system = cards.groupby("run", sort=False).agg({**dict.fromkeys(same, "first"), "seed": "size", **means})
    by_system = by_system.rename(columns={"seed": "seeds"}).round({"seconds": 0, "lm_loss": 3, "vra_loss": 3})
    display(Markdown(by_system.to_html(na_rep="")))

# %%
if len(logs):
    figure, axis = plt.subplots(figsize=(6, 2.6))  # losses
    models = {run: f"{system.language}, {system.vision}" for run, system in settings.systems.items()}
    models = {run: name + ", tiles" * settings.systems[run].tiled for run, name in models.items()}
    lines = logs.groupby(["run", "step"], sort=False, as_index=False)["lm_loss"].mean()
    lines["models"] = lines["run"].map(models)
    lines["images"] = lines["run"].map(lambda run: str(settings.systems[run].images or "all"))
    looks = {"hue": "images", "style": "models", "units": "run", "estimator": None, "linewidth": 0.8}
    sns.lineplot(
        lines, x="step", y="lm_loss", **looks, palette=list(plots.COLOURS[: lines["images"].nunique()]), ax=axis
    )
    axis.set_yscale("log")
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set(ylabel="language loss")
    axis.set_title(
        plots.wrap(
            f"{settings.label}; a line a system, the mean of its {plots.seeds(logs.groupby('run')['seed'].nunique())}; "
            f"{logs['run'].nunique()} systems"
        ),
        fontsize="small",
    )
    plots.save(figure, out, "losses")

# %% [markdown]
# ## Where it ran

# %%
machines = pd.json_normalize(machines)
if len(machines):
    varying = machines.astype(str).nunique()
    display(machines.loc[[0]].T.rename(columns={0: "first run"}).assign(different_values=varying))

# %% [markdown]
# ## Time
#
# Wall time of each stage as it last finished, attempts that it continued included. `minutes` adds up what ran side by
# side too; `began` to `ended` is from the first to the last, with the pauses between. What one waits is the time in
# which any stage ran: pauses are left out of it, and of the figure.

# %%
finished = pd.DataFrame(read_costs(paths.root), columns=["stage", "key", "began", "ended", "seconds"])
times = finished.groupby("stage", sort=False).agg(
    stages=("key", "size"), minutes=("seconds", "sum"), began=("began", "min"), ended=("ended", "max")
)
times["minutes"] /= 60
times.sort_values("began").to_csv(out / "times.csv", float_format="%.3f")
times.sort_values("began").round({"minutes": 2})

# %%
if len(finished):
    figure, axis = plt.subplots(figsize=(6.4, 0.28 * len(times) + 0.8))  # times
    finished = finished.sort_values("began")
    pauses = (finished["began"] - finished["ended"].cummax().shift()).dt.total_seconds().clip(lower=0).fillna(0)
    begins = ((finished["began"] - finished["began"].min()).dt.total_seconds() - pauses.cumsum()) / 60
    wall = (begins + (finished["ended"] - finished["began"]).dt.total_seconds() / 60).max()
    print(f"{wall:.0f} minutes of wall time in which a stage of this profile ran")
    order = {name: place for place, name in enumerate(times.sort_values("began").index)}
    bars = {"left": begins, "height": 0.6, "color": "#0072B2", "alpha": 0.5}
    axis.barh(finished["stage"].map(order), finished["seconds"] / 60, **bars)
    axis.set_yticks(list(order.values()), list(order))
    axis.invert_yaxis()
    axis.set(xlabel="minutes since the first stage began, without pauses; a bar a stage")
    axis.set_title(plots.wrap(settings.label), fontsize="small")
    plots.save(figure, out, "times")

# %% [markdown]
# ## Disk

# %%
disk = {}
for folder in sorted(path for path in paths.root.glob("*") if path.is_dir()):
    every = [path for path in folder.rglob("*") if path.is_file()]
    disk[folder.name] = {"files": len(every), "megabytes": sum(path.stat().st_size for path in every) / 1e6}
disk = pd.DataFrame(disk, index=["files", "megabytes"]).T
disk.to_csv(out / "disk.csv", float_format="%.3f")
disk.round(2)
