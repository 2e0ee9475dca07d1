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
# # Does alignment pay its way? (Section 5.7, Figure 6, overhead)
#
# **Question.** Is an aligned model ahead earlier in training, and what does a training step cost more?
#
# > *The paper's answer:* "the models trained with VIRAL show that convergence is faster and quickly surpasses the
# > baseline performance in 3K steps"; "our method introduces only about a 3% overhead in total training time".
#
# Unlike the paper we show the baseline's own curve: its end alone hides how early it got there.

# %% tags=["parameters"]
profile = "laptop"

# %%
import json
import os
import time

os.environ["KINETO_LOG_LEVEL"] = "6"  # read as torch is loaded: its profiler is silent about its start and stop

import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from torch.profiler import record_function

from viral_core import distributed
from viral_core.cache import FeatureCache
from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.measure.intervals import interval
from viral_core.run_folder import load_run
from viral_core.tap import base_llava
from workbook import claims, plots, runs, scores
from workbook.notebook import begin, show_missing
from workbook.paths import ROOT, Paths

settings, out = begin(profile, "efficiency")
models = {"": "CLIP, Vicuna-7B", "qwen-": "CLIP, Qwen2.5-7B", "13b-": "CLIP, Vicuna-13B"}
pairs = {f"{prefix}viral": f"{prefix}baseline" for prefix in models}
systems = [name for pair in pairs.items() for name in pair]
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## Learning curves (Figure 6)
#
# Run folders kept at fixed fractions of the training answer the benchmarks of the learning curve. The paper draws their
# mean; below it are its parts. Step 0 is the model before stage 2, the same with and without alignment. Bands are 95 %
# intervals over questions and seeds.

# %%
logs = runs.measured(profile, "log", systems)
last = logs.groupby("run")["step"].max() if len(logs) else {}
benchmarks = settings.learning_curve.benchmarks if settings.learning_curve else []
mean = {name: 1 / len(benchmarks) for name in benchmarks}
curve = []
for run in systems:
    steps = runs.checkpoints(profile, run)
    for step in [*steps, None] if steps else ():
        part = scores.scores(profile, [run], benchmarks, checkpoint=step)
        both = {"run": run, "benchmark": "mean"} | scores.change(profile, run, (), mean, checkpoint=step).columns()
        part = pd.concat([pd.DataFrame([both]).rename(columns={"value": "score"}), part])
        curve.append(part.assign(step=last[run] if step is None else step))
columns = ["run", "step", "benchmark", "score", "low", "high", "n", "seeds"]
curve = pd.concat(curve)[columns] if curve else pd.DataFrame(columns=columns)
start = curve[(curve["step"] == 0) & curve["run"].isin(pairs.values())]  # shared by what is aligned
curve = pd.concat([curve, *(start[start["run"] == pairs[run]].assign(run=run) for run in pairs if run in last)])
curve.to_csv(out / "figure_6.csv", index=False, float_format="%.4f")

# %%
if len(curve):
    panels = ["mean", *benchmarks]
    size = (7.6, 1.8 * len(panels))
    figure, axes = plt.subplots(len(panels), len(models), figsize=size, squeeze=False, sharex=True)  # figure_6
    for row, benchmark in zip(axes, panels, strict=True):
        part = curve[curve["benchmark"] == benchmark].rename(columns={"score": "value"})
        for axis, (prefix, title) in zip(row, models.items(), strict=True):
            names = {f"{prefix}baseline": "without alignment", f"{prefix}viral": "with alignment"}
            plots.curves(axis, part, "step", "value", names)
            end = part[(part["run"] == f"{prefix}baseline") & (part["step"] == part["step"].max())]["value"]
            if len(end):
                axis.axhline(end.iat[0], color="grey", linewidth=0.8, linestyle="--", zorder=0)
            own = part[part["run"].isin(names)]
            if benchmark == "mean":
                counted = "" if own.empty else f"\n{plots.seeds(own['seeds'])}"
                axis.set_title(title + counted, fontsize="small")
            if own.empty:
                axis.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", color="grey")
                axis.set_yticks([])
        row[0].set_ylabel(f"{scores.TITLES.get(benchmark, benchmark)} (%)")
    axes[0, -1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    n = ", ".join(
        f"{scores.TITLES.get(name, name)} {part['n'].max()}"
        for name, part in curve.groupby("benchmark")
        if name != "mean"
    )
    caption = f"{settings.label}; n = {n} questions; 95 % intervals; dashed: the finished baseline"
    figure.suptitle(plots.wrap(caption, 90), fontsize="small")
    plots.save(figure, out, "figure_6")

# %% [markdown]
# At equal steps: with alignment minus without, in points, mean of the benchmarks.

# %%
equal = []
for run, reference in pairs.items():
    common = sorted(set(runs.checkpoints(profile, run)) & set(runs.checkpoints(profile, reference)))
    for step in [*common, None] if common else ():
        change = scores.change(profile, run, reference, mean, checkpoint=step, over_checkpoint=step)
        if change:
            equal.append({"run": run, "step": last[run] if step is None else step, **change.columns()})
equal = pd.DataFrame(equal, columns=["run", "step", "value", "low", "high", "p", "n", "seeds"])
equal.to_csv(out / "equal_steps.csv", index=False, float_format="%.4f")
equal.round(3)

# %% [markdown]
# ## The losses

# %%
if len(logs):
    named = logs[logs["run"].isin(["baseline", "viral"])]
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.4))  # losses
    titles = {"lm_loss": "language loss (Eq. 2)", "vra_loss": "alignment loss (Eq. 6)"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        hues = {"hue": "run", "hue_order": ["baseline", "viral"], "style": "run", "style_order": ["baseline", "viral"]}
        drawn = named.dropna(subset=column)
        sns.lineplot(drawn, x="step", y=column, **hues, errorbar=("pi", 100), legend=column == "lm_loss", ax=axis)
        axis.set(title=title, ylabel="")
    counted = plots.seeds(named.groupby("run")["seed"].nunique())
    figure.suptitle(plots.wrap(f"{settings.label}; {counted}; band: lowest and highest", 90), fontsize="small")
    plots.save(figure, out, "losses")
    curves = named.groupby(["run", "step"], sort=False)["lm_loss"].agg(["mean", "min", "max", "count"])
    curves.rename(columns={"count": "seeds"}).to_csv(out / "learning_curves.csv", float_format="%.5f")

# %% [markdown]
# ## What a step costs
#
# Every run logs the seconds of its training. The time of a step is the median over the intervals between two entries of
# the log, so that a checkpoint or a hiccup does not count; the first interval, which warms the machine up, is left out.
# Trainings shared their machine with others and ran with different numbers of threads: these times say how long one
# waits, and not what alignment adds.

# %%
costs = []
for (run, seed), log in logs.groupby(["run", "seed"], sort=False) if len(logs) else ():
    spans = log[["step", "seconds"]].diff().iloc[1:]
    sessions = runs.sessions(profile, run, seed)
    threads = "/".join(dict.fromkeys(str(session["torch_threads"]) for session in sessions))
    step_seconds = (spans["seconds"] / spans["step"]).median()
    costs.append({"run": run, "seed": seed, "threads": threads, "step_seconds": step_seconds})
costs = pd.DataFrame(costs, columns=["run", "seed", "threads", "step_seconds"])
costs.to_csv(out / "step_costs.csv", index=False, float_format="%.5f")
by_seed = costs.pivot(index="run", columns=["seed", "threads"], values="step_seconds")
by_seed.round(4).style.format("{:.4f}", na_rep="").set_caption("seconds of a step").set_uuid("seconds")

# %% [markdown]
# ## Where the time of a step goes, live
#
# Stage-2 steps of the baseline and of VIRAL, part by part, by torch's profiler: with the images going through the
# vision tower in every step, and with the encoder's features cached, where the profile caches them. The teacher's
# features are cached in all: without a cache of them VIRAL is left out here. *losses* is the rest of the forward pass:
# the vocabulary, taps, heads, Eq. 2 and 6. A round takes a step of each on the same samples, in turn from the first and
# from the last, so that what else the machine does falls on all alike. A few rounds tell where the time goes, not what
# alignment adds, for which see below. These are medians over the rounds, and of the whole step the lowest and the
# highest, with what the profiler itself takes.


# %%
def name_parts(aligned) -> None:
    """Let the profiler see the modules of a model by name."""
    core = base_llava(aligned.llava).model
    modules = {"vision tower": core.vision_tower, "projector": core.multi_modal_projector}
    for part, module in {**modules, "language model": core.language_model}.items():
        begun = []
        enter = lambda *_, part=part, begun=begun: begun.append(record_function(part).__enter__())  # noqa: E731
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(lambda *_, begun=begun: begun.pop().__exit__(None, None, None))


def stepper(aligned, optimizer, dataset, collator):
    """A function that takes a training step on the samples with these indices."""

    def step(indices) -> None:
        with record_function("data"):
            batch = collator([dataset[i] for i in indices])
            batch = {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        with record_function("forward"), torch.autocast(device.type, torch.bfloat16, recipe.bf16):
            loss = aligned(**batch)["loss"]
        with record_function("backward"):
            loss.backward()
        with record_function("optimiser"):
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def profiled(step, indices) -> dict[str, float]:
    """Milliseconds of each part of a step."""
    with torch.profiler.profile() as record:
        step(indices)
    clock = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    times = {event.key: getattr(event, clock) / 1000 for event in record.key_averages()}
    modules = {part: times.get(part, 0.0) for part in ("vision tower", "projector", "language model")}
    others = {part: times[part] for part in ("data", "backward", "optimiser")}
    parts = {**others, **modules, "losses": times["forward"] - sum(modules.values())}
    return {**parts, "step": sum(parts.values())}


# %%
recipe, device, steps = settings.stage2, distributed.device(), {}
encoders, vision = {"images": None}, settings.systems["baseline"].vision  # VIRAL's, too
if (cached := Paths(profile).encoder_cache(vision, "conversations")).is_dir():
    encoders["cached features"] = FeatureCache(cached)
targets = Paths(profile).cache(settings.systems["viral"].teacher, vision)
there = ("baseline", "viral") if (targets / "index.json").is_file() else ("baseline",)
folders = runs.trained(profile, there)
if folders:
    samples = load_conversations(settings.data.conversations, settings.data.conversation_images)[:400]
    samples = [sample for sample in samples if sample.images]
for run, folder in folders.items():
    loaded = load_run(folder, dtype=getattr(torch, settings.compute.dtype), device=device)
    loaded.aligned.train()
    if recipe.gradient_checkpointing:
        loaded.aligned.gradient_checkpointing_enable()
    name_parts(loaded.aligned)
    optimizer = torch.optim.AdamW([p for p in loaded.aligned.parameters() if p.requires_grad], lr=0.0)
    dataset = ConversationDataset(samples, loaded.processor, loaded.template, recipe.max_length)
    features = FeatureCache(targets) if settings.systems[run].teacher else None
    for name, encoder in encoders.items():
        collator = Collator(loaded.processor, features, encoder=encoder)
        steps[run, name] = stepper(loaded.aligned, optimizer, dataset, collator)

size = recipe.micro_batch or recipe.batch_size
batches = [range(i, i + size) for i in range(0, len(samples) - size + 1, size)] if steps else []
for step in steps.values():  # the first warms up
    step(batches[0])
rounds = [
    {"round": number, "run": run, "encoder": encoder, **profiled(step, indices)}
    for number, indices in enumerate(batches[1:10])
    for (run, encoder), step in list(steps.items())[:: 1 if number % 2 else -1]
]
parts = ["data", "vision tower", "projector", "language model", "losses", "backward", "optimiser", "step"]
rounds = pd.DataFrame(rounds, columns=["round", "run", "encoder", *parts])
rounds.to_csv(out / "step_profile.csv", index=False, float_format="%.3f")
grouped = rounds.drop(columns="round").groupby(["run", "encoder"])
table = grouped.median().assign(lowest=grouped["step"].min(), highest=grouped["step"].max())
table.T.rename_axis("milliseconds").round(1)

# %% [markdown]
# What alignment adds to a step, without the profiler: VIRAL's and the baseline's in turn, on the same samples, and
# which is first changes from round to round. The teacher's features are cached, and the encoder's, too, where they
# are.


# %%
def seconds(step, indices) -> float:
    """Wall time of a step."""
    began = time.perf_counter()
    step(indices)
    return time.perf_counter() - began


compared, added = {run: steps[run, list(encoders)[-1]] for run in folders}, None
if len(compared) == 2:
    turns = []
    for number in range(60):
        order = list(compared)[:: 1 if number % 2 else -1]
        turns.append({run: seconds(compared[run], batches[number % len(batches)]) for run in order})
    turns = pd.DataFrame(turns)
    turns.to_csv(out / "overhead.csv", index_label="round", float_format="%.5f")
    added = interval(turns["viral"] / turns["baseline"] - 1)
    print(f"{100 * added.value:+.1f} % [{100 * added.low:+.1f}, {100 * added.high:+.1f}], n = {added.n} rounds")

# %% [markdown]
# ## On a GPU
#
# Measured on a GPU, if it was: one stage-2 step without alignment, with cached and with online teacher features, and
# with the loss as the released code computes it (`transcription`: cached features too, and without its printing and
# emptying of caches); seconds and overhead are medians with the lowest and highest round. The paper's 3 % is presumably
# `online`; it does not say how it was measured.


# %%
def spread(rounds: dict, factor: float = 1) -> str:
    """Median of the rounds with the lowest and the highest."""
    median, low, high = (factor * rounds[name] for name in ("median", "low", "high"))
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


rows = []
for file in sorted((ROOT / "runs" / "gpu" / "results" / "benchmark").glob("step*.json")):
    made = json.loads(file.read_text(encoding="utf-8"))
    for name, arm in made["arms"].items():
        row = {"shape": made["shape_name"], "GPU": made["environment"]["gpus"][0]["model"], "step": name}
        row |= {"rounds": arm["seconds"]["n"], "seconds": spread(arm["seconds"])}
        row["overhead (%)"] = spread(arm["overhead"], 100) if "overhead" in arm else ""
        rows.append(row | {"peak memory (GiB)": round(arm["peak_memory_bytes"] / 2**30, 1)})
display(pd.DataFrame(rows) if rows else Markdown("Not run: none was made on a GPU."))

# %% [markdown]
# ## Differences and claims
#
# The aligned checkpoint nearest to 3 of 5.2 thousand steps against the *finished* baseline, as the paper has it: mean
# of the two benchmarks, which share no question. (Whether alignment is ahead at equal steps is in the table above.)
# And, as a control, what alignment adds to a step here: the paper's 3 % is no number of the same thing, and beside it
# stands the table of the GPU alone.

# %%
found = []
for run, reference in pairs.items():
    kept = [step for step in runs.checkpoints(profile, run) if step]
    early = min(kept, key=lambda step: abs(step / last[run] - 3 / 5.2), default=None)
    estimate = None
    if early:
        estimate = scores.change(profile, run, reference, mean, checkpoint=early)
    claim = {"": "early-7b", "qwen-": "early-qwen", "13b-": "early-13b"}[run.removesuffix("viral")]
    missing = "" if estimate else f"checkpoints of {run}, or {reference}"
    found.append(claims.row(claim, estimate, part=f"step {early}" if early else "", missing=missing))

missing = "" if added else "weights of baseline or viral, or the teacher's cached features"
found.append(claims.row("overhead", added, missing=missing))
claims.alone(claims.write(out, found))
