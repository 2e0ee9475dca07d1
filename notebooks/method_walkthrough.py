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
# # The method, step by step in code (Section 4.3, Figure 3)
#
# One image and its conversation go through everything that VIRAL adds to LLaVA: visual tokens, tap, alignment head,
# teacher, loss, and one training step. The models are the active profile's own, before stage 2.
#
# > The paper: "we align intermediate MLLM visual representations with features from a pretrained VFM" by
# > $\mathcal{L}_\mathrm{VRA} = -\frac{1}{N}\sum_i \mathrm{sim}(P_\pi(e_{\ell,i}), y_i)$ (Eq. 6) and trains
# > $\mathcal{L}_\mathrm{LM} + \lambda \mathcal{L}_\mathrm{VRA}$ (Eq. 5), $\lambda = 0.5$, $\ell = 16$ of 32.

# %% tags=["parameters"]
profile = "laptop"

# %%
from dataclasses import replace

import torch
import torch.nn.functional as F
from IPython.display import display

from viral_core.aligned import AlignedModel
from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.llava import add_lora, assemble
from viral_core.measure.pca import pca_map
from viral_core.tap import VisualTap
from viral_core.templates import TEMPLATES
from viral_core.tiles import view_of
from workbook import plots
from workbook.notebook import begin, conclude
from workbook.paths import Paths
from workbook.results.qualitative import teacher_of

settings, out = begin(profile, "method_walkthrough")
torch.manual_seed(settings.seed)
language, vision = settings.languages["vicuna-7b"], settings.visions["clip"]

# %% [markdown]
# ## A LLaVA
#
# A vision encoder, a projector and a language model, in transformers' own class. The projector comes from stage 1.

# %%
projector = Paths(profile).stage1("vicuna-7b", "clip") / "projector.safetensors"
llava, processor = assemble(vision.path, language.path, projector=projector,
                            vision_revision=vision.revision, language_revision=language.revision)  # fmt: skip
blocks, width = llava.config.text_config.num_hidden_layers, llava.config.text_config.hidden_size
n = view_of(processor).tokens()
print(f"{blocks} blocks of width {width}; {n} visual tokens; encoder width {llava.config.vision_config.hidden_size}")

# %% [markdown]
# ## One image and its conversation
#
# The image is padded to a square; `<image>` becomes one position per patch; only the answers and the stop token are
# supervised.

# %%
samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
sample = next(sample for sample in samples if len(sample.images) == 1)
image = view_of(processor).prepare(sample.open_images()[0])
dataset = ConversationDataset(
    [sample], processor, TEMPLATES[language.template], settings.stage2.max_length
)
item = dataset[0]
supervised = item["labels"][item["labels"] >= 0]
print(f"{len(item['input_ids'])} tokens, {(item['input_ids'] == llava.config.image_token_id).sum()} of them visual")
print("supervised:", processor.tokenizer.decode(supervised)[:200])
display(image)

# %% [markdown]
# ## The tap
#
# Hooks on the chosen blocks keep the hidden states at the visual positions, and on the projector the features $z$ that
# it got. Nothing of the model's own code is changed.

# %%
middle = settings.systems["viral"].align.blocks(blocks)[0]
batch = Collator(processor)([item])
inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
with torch.inference_mode(), VisualTap(llava, range(blocks + 1)) as tap:
    llava(**inputs, use_cache=False)
    states, z = dict(tap.states), tap.features[0]
print(f"z: {tuple(z.shape)}; layer 0 and layer {middle}: {tuple(states[0].shape)}, {tuple(states[middle].shape)}")

# %% [markdown]
# ## The teacher
#
# DINOv2 sees the same padded square, with its own preprocessing, and gives one feature per patch on the same grid.

# %%
teacher = teacher_of(profile, settings.systems["viral"].align.teacher)
y = teacher([image])[0]
print(f"y: {tuple(y.shape)}")
figure = plots.tiles({"image": [plots.pixels(image)], "encoder z": [pca_map(z)], "layer 0": [pca_map(states[0])],
                      f"layer {middle}": [pca_map(states[middle])], "teacher y": [pca_map(y)]}, [""])  # fmt: skip
plots.save(figure, out, "figure_3")

# %% [markdown]
# ## Head and loss
#
# $P_\pi$ is a three-layer MLP with SiLU. The loss is the mean of $-\cos$ over the visual tokens; no gradient reaches
# the teacher. `AlignedModel` computes it with the language loss in one forward pass; below it is computed by hand
# too.

# %%
wanted = settings.systems["viral"].align
llava = add_lora(llava, **dict(settings.lora))
align = replace(wanted, dim=y.shape[-1])
aligned = AlignedModel(llava, align).train()
step = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels", "image_tokens")}
losses = aligned(**step, teacher_features=y[None])
by_hand = -F.cosine_similarity(aligned.heads[str(middle)](aligned.tap.states[middle]), y, dim=-1).mean()
{name: round(value.item(), 4) for name, value in losses.items()} | {"vra_loss by hand": round(by_hand.item(), 4)}

# %% [markdown]
# ## One training step
#
# What trains: LoRA in the language model, the projector, and the head. What does not: encoder, language model,
# teacher.

# %%
trained = {name: p for name, p in aligned.named_parameters() if p.requires_grad}
frozen = {name: p for name, p in aligned.named_parameters() if not p.requires_grad}
before = {name: p.detach().double().sum() for name, p in {**trained, **frozen}.items()}
optimizer = torch.optim.AdamW(trained.values(), lr=settings.stage2.lr, weight_decay=0)
losses["loss"].backward()
optimizer.step()
changed = {name for name, p in {**trained, **frozen}.items() if p.detach().double().sum() != before[name]}
after = aligned(**step, teacher_features=y[None])

# %% [markdown]
# ## What these numbers say

# %%
count = sum(p.numel() for p in trained.values()), sum(p.numel() for p in frozen.values())
conclude([
    f"One step changes {len(changed & set(trained))} of {len(trained)} tensors that train ({count[0]:,} parameters) "
    f"and {len(changed & set(frozen))} of {len(frozen)} frozen ones ({count[1]:,} parameters).",
    f"The loss of this one sample goes from {losses['loss'].item():.4f} to {after['loss'].item():.4f}, the language "
    f"part from {losses['lm_loss'].item():.4f} to {after['lm_loss'].item():.4f}, the alignment part from "
    f"{losses['vra_loss'].item():.4f} to {after['vra_loss'].item():.4f}.",
    f"The loss by hand differs from the model's by {abs((by_hand - losses['vra_loss']).item()):.1e}.",
])  # fmt: skip
