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
# # Alignment or reconstruction? (Appendix D, Table 6)
#
# **Question.** ROSS asks the visual tokens to reconstruct the image: a small denoiser, conditioned on them, predicts
# the noise in the latents of a variational autoencoder. Is that as good as aligning with a teacher?
#
# > *The paper's answer:* "our method significantly outperforms both ROSS variants across all benchmarks";
# > "reconstruction-based objectives that excel at preserving low-level fidelity [...] are inherently less suited for
# > capturing the higher-level semantic abstractions".
#
# By its own numbers not on MMStar (34.73 for ROSS, 33.93 for VIRAL). `ross-default` conditions on the last hidden
# states after the final norm, as ROSS does; `ross-middle` on the block that VIRAL aligns.

# %% tags=["parameters"]
profile = "laptop"

# %%
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

from viral_core import distributed
from viral_core.conversations import load_conversations
from viral_core.images import pad_to_square
from viral_core.measure.inputs import batches
from viral_core.measure.intervals import interval
from viral_core.ross import Denoiser, Reconstruction
from viral_core.run_folder import load_run
from viral_core.teachers import load_teacher, load_vae
from viral_core.templates import IMAGE_MARKER, prompt
from workbook import claims, paper, plots, runs, scores, tables
from workbook.notebook import begin, show, show_missing

settings, out = begin(profile, "ross")
systems = list(dict.fromkeys(paper.table(6)["run"]))
show_missing(runs.not_run(profile, systems))

# %% [markdown]
# ## The objective
#
# With $y$ the latents of the image, one token of $d$ channels per visual token, $\epsilon$ noise, $t$ a uniform
# timestep and $\bar\alpha_t$ the cosine schedule,
#
# $$\mathcal{L}_\mathrm{ROSS} = \frac{1}{N d}\, \mathbb{E}_{t, \epsilon} \left\lVert
# \epsilon_\pi\!\left(\sqrt{\bar\alpha_t}\, y + \sqrt{1 - \bar\alpha_t}\, \epsilon,\; t,\; e_\ell\right)
# - \epsilon \right\rVert^2$$
#
# is added to the language loss with weight 1, where $e_\ell$ are the layer's visual states, normalised (LayerNorm), and
# each image counts `repeats` times, with other noise.

# %%
show(Reconstruction.forward)

# %% [markdown]
# The denoiser $\epsilon_\pi$ is a DiT whose adaLN condition differs from token to token: the timestep plus that token's
# hidden state. So what the visual tokens know of their patch is what makes the prediction better.

# %%
show(Denoiser.forward)

# %% [markdown]
# The latents come from a pretrained autoencoder, 2 x 2 of them to a token:

# %%
show(load_vae)

# %% [markdown]
# ## One image, live
#
# The first trained run of the two, eight instruction images, the same timestep and noise for all. The noisy latents,
# the predicted noise taken out of them in a single step, and both decoded by the autoencoder: $\hat y = (y_t - \sqrt{1
# - \bar\alpha_t}\, \hat\epsilon) / \sqrt{\bar\alpha_t}$.

# %%
folders = runs.trained(profile, ("ross-middle", "ross-default"))
trained = next(iter(folders), None)
if trained is None:
    display(Markdown("Not run: no run of this profile that trains the reconstruction is there yet."))
else:
    device, dtype = distributed.device(), getattr(torch, settings.compute.dtype)
    run = load_run(folders[trained], dtype=dtype, device=device)
    reconstruct, reconstruction = run.aligned.reconstruct, run.aligned.reconstruction
    spec = settings.teachers[settings.systems[trained].reconstruct.vae]
    vae = load_teacher(
        "vae", spec.path, reconstruct.grid, revision=spec.revision, subfolder=spec.subfolder, device=device
    )
    samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
    images = [sample.open_images()[0] for sample in samples if sample.images][:8]
    clean = vae(images)  # (8, N, d)
    question = prompt(run.template, IMAGE_MARKER)
    with torch.inference_mode():
        [(_, inputs)] = batches(run.model, run.processor, images, question, len(images), "")
        run.model(**inputs, use_cache=False, logits_to_keep=1)
        tap, last = run.aligned.tap, run.aligned.config.text_config.num_hidden_layers
        hidden = tap.post_norm(last) if reconstruct.layer == last else tap.states[reconstruct.layer]  # (8 * N, D)
        condition = F.layer_norm(hidden.float(), hidden.shape[-1:]).unflatten(0, (len(images), -1))


# %%
def decode(latents: torch.Tensor) -> list:
    """(n, N, d) latents as pictures."""
    maps = latents.transpose(1, 2).unflatten(2, (reconstruct.grid,) * 2)
    config = vae.model.config
    z = F.pixel_shuffle(maps, 2) / config.scaling_factor + (config.shift_factor or 0.0)
    pixels = vae.model.decode(z).sample.clamp(-1, 1) / 2 + 0.5
    return [picture.permute(1, 2, 0).cpu().numpy() for picture in pixels]


if trained:
    schedule, generator = reconstruction.schedule, torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    step = torch.full((len(images),), 400, device=device)
    noisy = schedule.add_noise(clean, noise, step)
    alpha = schedule.alphas_cumprod[400].item()
    with torch.inference_mode():
        predicted = reconstruction.denoiser(noisy, step, condition).float()
        denoised = (noisy - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
        columns = {
            "image": [plots.pixels(pad_to_square(image)) for image in images[:3]],
            "latents y, decoded": decode(clean)[:3],
            "noisy, t = 400": decode(noisy / alpha**0.5)[:3],
            "denoised in one step": decode(denoised)[:3],
        }
    figure = plots.tiles(columns, ["", "", ""])
    figure.suptitle(plots.wrap(f"{settings.label}; {trained}, seed {settings.runs[trained][0]}", 60), fontsize="small")
    plots.save(figure, out, "denoising")

# %% [markdown]
# ## What the visual tokens tell the denoiser
#
# The same loss with the image's own visual tokens and with those of another image, timestep by timestep, on the first
# pictures of the instruction mix. The difference is what the denoiser takes from the tokens; how much of it they would
# carry without the objective is not asked.

# %%
losses = []
if trained:
    for t in range(50, 1000, 100):
        step = torch.full((len(images),), t, device=device)
        noisy = schedule.add_noise(clean, noise, step)
        for name, tokens in (("its own image", condition), ("another image", condition.roll(1, 0))):
            with torch.inference_mode():
                error = (reconstruction.denoiser(noisy, step, tokens).float() - noise).square().mean((1, 2))
            losses += [{"t": t, "condition": name, "image": i, "loss": loss} for i, loss in enumerate(error.tolist())]
losses = pd.DataFrame(losses, columns=["t", "condition", "image", "loss"])
losses.to_csv(out / "conditions.csv", index=False, float_format="%.5f")
if len(losses):
    figure, axis = plt.subplots(figsize=(4.6, 2.6))  # conditions
    sns.lineplot(losses, x="t", y="loss", hue="condition", style="condition", markers=True, errorbar=None, ax=axis)
    axis.set(xlabel="timestep t of 1000", ylabel="squared error of the noise")
    axis.set_title(
        plots.wrap(
            f"{settings.label}; {trained}, seed {settings.runs[trained][0]}; n = {len(images)} training images", 60
        ),
        fontsize="small",
    )
    plots.save(figure, out, "conditions")
    cells = losses.pivot(index="image", columns=["condition", "t"], values="loss")
    more = cells["another image"] - cells["its own image"]  # image by image
    table = {t: interval(more[t]).columns() for t in more}
    display(pd.DataFrame(table).T[["value", "low", "high", "n"]].rename_axis("t: another - its own").round(4))

# %% [markdown]
# ## Benchmarks (Table 6)
#
# Official scores, the paper's beside ours, with 95 % intervals over questions and seeds.

# %%
table = tables.side_by_side(profile, 6)
table.to_csv(out / "table_6.csv", index=False, float_format="%.4f")
tables.styled(table, f"Table 6, the paper's numbers beside ours. Ours: {settings.label}.")

# %%
figure = plots.score_panels(table, scores.TITLES, settings.label, "gain")  # table_6
plots.save(figure, out, "table_6")

# %% [markdown]
# ## Differences and claims
#
# Paired: the same questions, the same seeds.

# %%
rows = claims.gains(profile, "ross")
claims.alone(claims.write(out, rows))
