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
# **Question.** What exactly does VIRAL add to LLaVA's visual instruction tuning?
#
# > *The paper's answer:* VIRAL "aligns intermediate MLLM visual representations with features from a pretrained VFM" by
# > $\mathcal{L}_\mathrm{VRA} = -\frac{1}{N}\sum_i \mathrm{sim}(P_\pi(e_{\ell,i}), y_i)$ (Eq. 6), and trains
# > $\mathcal{L}_\mathrm{LM} + \lambda \mathcal{L}_\mathrm{VRA}$ (Eq. 5).
#
# One image and its conversation go through everything: visual tokens, tap, teacher, head, loss, one training step. The
# models are the active profile's own, before stage 2. Each piece of the library is shown as it is running, with the
# file and line where it lies, and then run.

# %% tags=["parameters"]
profile = "laptop"

# %%
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display

from viral_core import distributed, losses
from viral_core.aligned import AlignedModel
from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.head import AlignmentHead
from viral_core.llava import add_lora
from viral_core.measure.pca import pca_map
from viral_core.tap import VisualTap
from viral_core.teachers import Teacher
from viral_core.templates import TEMPLATES
from viral_core.tiles import view_of
from workbook import models, plots
from workbook.notebook import begin, show
from workbook.paths import Paths

settings, out = begin(profile, "method_walkthrough")
torch.manual_seed(settings.seed)
device, dtype = distributed.device(), getattr(torch, settings.compute.dtype)
system = settings.systems["viral"]

# %% [markdown]
# ## A LLaVA
#
# A vision encoder $V_\psi$, a projector $P_\phi$ and a language model $LM_\theta$ in transformers' own class. Encoder
# and language model are pretrained; the projector comes from stage 1, which trains it alone, on captions.

# %%
projector = Paths(profile).stage1(system.language, system.vision) / "projector.safetensors"
llava, processor = models.llava(settings, system.language, system.vision, dtype, device, projector=projector)
llava.to(device)
blocks, width = llava.config.text_config.num_hidden_layers, llava.config.text_config.hidden_size
n = view_of(processor).tokens()
grid = round(n**0.5)
middle = system.align.blocks(blocks)[0]
sizes = {
    "blocks of the language model": blocks,
    "width D": width,
    "width Dz of the encoder": llava.config.vision_config.hidden_size,
    "visual tokens N": n,
    "aligned block": middle,
}
pd.Series(sizes, name="size").to_frame()

# %% [markdown]
# ## One image and its conversation
#
# The image is padded to a square, `<image>` becomes one position per patch, and only the answers and the stop token are
# supervised. So of a sequence that is mostly visual, the language loss
# $\mathcal{L}_\mathrm{LM} = -\frac{1}{K}\sum_i \log p(e_i^\mathrm{text} \mid e_{<i}^\mathrm{text}, e^\mathrm{img})$
# (Eq. 2) looks at a few text tokens only: its $K$ are the supervised ones, as in LLaVA.

# %%
samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
sample = next(sample for sample in samples if len(sample.images) == 1)
image = view_of(processor).prepare(sample.open_images()[0])
template = TEMPLATES[settings.languages[system.language].template]
item = ConversationDataset([sample], processor, template, settings.stage2.max_length)[0]
visual = item["input_ids"] == llava.config.image_token_id
supervised = item["labels"] >= 0
display(image.reduce(max(1, image.width // 192)))
kinds = {"visual": visual, "supervised text": supervised, "other text": ~visual & ~supervised}
pd.Series({name: int(chosen.sum()) for name, chosen in kinds.items()}, name="tokens").to_frame()

# %%
for turn in sample.turns[:4]:
    print(f"{turn['from']:>6}: {turn['value'][:160]}")
print("supervised:", processor.tokenizer.decode(item["labels"][supervised])[:200])

# %% [markdown]
# ## The tap
#
# $e_\ell \in \mathbb{R}^{N \times D}$, the hidden states at the visual positions after block $\ell$, and the encoder's
# features $z$ are read by hooks on the blocks and on the projector. Nothing of the model's own code is changed, so the
# same tap works under LoRA, gradient checkpointing and DeepSpeed.

# %%
show(VisualTap._visit)

# %%
batch = Collator(processor)([item])
batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
with torch.inference_mode(), VisualTap(llava, range(blocks + 1)) as tap:
    llava(**inputs, use_cache=False)
    states, z = {layer: state.float() for layer, state in tap.states.items()}, tap.features[0].float()
print(f"z: {tuple(z.shape)}; layer 0 (the projector's output): {tuple(states[0].shape)}; layer {middle}: the same")

# %% [markdown]
# ## The teacher
#
# $y = E(I)$: a frozen vision foundation model, DINOv2 by default, sees the same padded square with its *own*
# normalisation and input size, and gives one feature per visual token, on the same grid.

# %%
show(Teacher.preprocess)
show(Teacher.encode)
teacher = models.teacher(settings, system.align.teacher, system.vision, "intact")
y = teacher([image])[0]
print(f"y: {tuple(y.shape)} from an input of {teacher.size} px")

# %% [markdown]
# The tokens as colours, three principal components each (Figure 3, with real tensors in place of its boxes):

# %%
tokens = {"encoder z": z, "layer 0": states[0], f"layer {middle}": states[middle], "teacher y": y}
maps = {name: [pca_map(values.cpu())] for name, values in tokens.items()}
figure = plots.tiles({"image": [plots.pixels(image)], **maps}, [""])
figure.suptitle(plots.wrap(settings.label, 70), fontsize="x-small")
plots.save(figure, out, "figure_3")

# %% [markdown]
# Which tokens does a token resemble? Cosine similarity of the marked token to all others, tokens centred. The loss asks
# that a head can map the states behind the fourth picture to the features behind the fifth. (The relation objective
# asks that the head's *output* has the teacher's similarities. Neither asks it of the states themselves.)

# %%
figure = plots.similarities(image, {name: values.cpu() for name, values in tokens.items()})  # similarity
plots.save(figure, out, "similarity")

# %% [markdown]
# ## The head
#
# $P_\pi$: three linear layers with SiLU between them, from the language model's width to the teacher's.

# %%
show(AlignmentHead)

# %% [markdown]
# ## The loss
#
# The mean of $-\cos$ over the visual tokens of an image, averaged over images; no gradient reaches the teacher (Eq. 6).

# %%
show(losses.cosine)

# %% [markdown]
# ## Both losses in one forward pass
#
# `AlignedModel` wraps the LLaVA: it owns tap and head and returns both losses of a batch. Without `align` it is the
# baseline, and the same code runs.

# %%
show(AlignedModel.forward)

# %%
llava = add_lora(llava, settings.lora.r, settings.lora.alpha, settings.lora.dropout)
aligned = AlignedModel(llava, replace(system.align, dim=y.shape[-1])).to(device).train()
step = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels", "image_tokens")}
first = aligned(**step, teacher_features=y[None])

# %% [markdown]
# By hand, from the states that the tap has just read:

# %%
head = aligned.heads[str(middle)]
by_hand = -F.cosine_similarity(head(aligned.tap.states[middle]), y, dim=-1).mean()
print(f"L_VRA of the model {first['vra_loss'].item():.6f}, by hand {by_hand.item():.6f}")

# %% [markdown]
# ## One training step
#
# What trains: LoRA in the language model, the projector and the head. What must not change: encoder, language model,
# teacher. (The recipe of a run clips gradients too, and has a learning rate of its own for the projector.)

# %%
parameters = dict(aligned.named_parameters())
before = {name: p.detach().double().sum().item() for name, p in parameters.items()}
optimizer = torch.optim.AdamW([p for p in parameters.values() if p.requires_grad], settings.stage2.lr, weight_decay=0)
first["loss"].backward()
optimizer.step()
with torch.no_grad():
    after = aligned(**step, teacher_features=y[None])

# %%
rows = []
for name, p in parameters.items():
    part = "encoder" if "vision_tower" in name else "language model"
    part = "head" if "heads." in name else "projector" if "projector" in name else "LoRA" if "lora_" in name else part
    changed = p.detach().double().sum().item() != before[name]
    rows.append({"part": part, "trains": p.requires_grad, "parameters": p.numel(), "tensors": 1, "changed": changed})
parts = (
    pd.DataFrame(rows).groupby("part").agg({"trains": "any", "parameters": "sum", "tensors": "sum", "changed": "sum"})
)
parts.to_csv(out / "parts.csv")
parts

# %% [markdown]
# LoRA's second factors start at zero, so in the very first step its first factors have no gradient yet: half of its
# tensors change. The teacher is not in the table: the model is given its features. The losses of this one sample,
# before and after the step (where LoRA has dropout, they vary a little by that):

# %%
change = {name: {"before": value.item(), "after": after[name].item()} for name, value in first.items()}
change = pd.DataFrame(change).T
change.to_csv(out / "losses.csv", float_format="%.5f")
change.round(4)
