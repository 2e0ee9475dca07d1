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
# # VIRAL in a training of your own (Section 4.3)
#
# **Question.** You fine-tune a LLaVA with transformers and peft. What do you add to align its visual tokens with a
# vision foundation model?
#
# > *The paper:* VIRAL "aligns intermediate MLLM visual representations with features from a pretrained VFM"
#
# Three things of `viral_core`, marked `# VIRAL` in the cell below: a **tap** that reads the hidden states at the visual
# positions of one block, a **head** that maps them to the teacher's width, and the **loss**
# $-\frac{1}{N} \sum_i \cos(P_\pi(e_{\ell,i}), y_i)$ (Eq. 6), added to the language loss with $\lambda = 0.5$ (Eq. 5).
# Nothing else of the training changes, and nothing of the model's code. This notebook needs `pip install .`, for its
# pictures seaborn, and no more of this repository; it trains a LLaVA that is small enough for any CPU, so that it runs
# as it stands. Where the real models go is said above the cell that makes the tiny ones.

# %% tags=["parameters"]
profile = "laptop"  # every notebook has it; nothing here depends on it

# %%
import inspect
import tempfile
import warnings

from viral_core.head import AlignmentHead
from viral_core.losses import cosine
from viral_core.tap import VisualTap

warnings.filterwarnings("ignore", category=FutureWarning)  # peft and transformers about each other
print(inspect.getsource(cosine))

# %% [markdown]
# ## A tiny LLaVA, a tiny teacher and some pictures
#
# Random weights in transformers' own classes, and pictures of 6 x 6 coloured squares. The text of a picture names the
# colour of its upper left quarter, so that text says little of what can be seen. With real models, this cell is
#
# ```python
# llava = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf", dtype=torch.bfloat16)
# teacher = Dinov2Model.from_pretrained("facebook/dinov2-base").eval()
# ```
#
# and `data` is your dataset with one more entry, `teacher_features`: the teacher's, of the same padded square, prepared
# as it wants it (see the end). The tap finds the visual tokens of transformers' LLaVA and LLaVA-NeXT, from version 5.23
# on; `tap.py`, `head.py` and `losses.py` import torch alone.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

torch.manual_seed(0)
IMAGE, START, QUESTION, FIRST_COLOUR = 31, 1, 2, 3  # token ids
COLOURS = torch.cat([torch.eye(3), 1 - torch.eye(3)])  # red, green, blue, and what they leave of white
size = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
}
vision_config = CLIPVisionConfig(**size, image_size=48, patch_size=8, projection_dim=64)
text_config = LlamaConfig(**size, vocab_size=32, max_position_embeddings=64)
config = LlavaConfig(vision_config=vision_config, text_config=text_config, image_token_index=IMAGE)
llava = LlavaForConditionalGeneration(config)
teacher = Dinov2Model(Dinov2Config(**size, image_size=48, patch_size=8)).eval()

colour = torch.randint(len(COLOURS), (256, 6, 6))
colour[:, :3, :3] = torch.randint(len(COLOURS), (256, 1, 1))
pixels = COLOURS[colour].permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)  # (256, 3, 48, 48)
with torch.no_grad():
    features = teacher(pixels).last_hidden_state[:, 1:]  # (256, N, d) without the class token, N = 36

prompt = torch.tensor([START, *[IMAGE] * features.shape[1], QUESTION])
data = []
for image, target, answer in zip(pixels, features, colour[:, 0, 0] + FIRST_COLOUR, strict=True):
    input_ids = torch.cat([prompt, answer[None]])
    labels = torch.cat([torch.full_like(prompt, -100), answer[None]])  # only the answer is supervised
    data.append({"input_ids": input_ids, "labels": labels, "pixel_values": image, "teacher_features": target})
print(f"{len(data)} pictures, {features.shape[1]} visual tokens each, teacher features of width {features.shape[2]}")

# %% [markdown]
# ## The training
#
# LoRA on the language model, the projector trained in full, as LLaVA's recipe does; and the additions. The head hangs
# on the model, and peft is told to train and to save it with the projector (`modules_to_save`), so that the trainer's
# optimizer and checkpoints have both. `cosine` wants to know which image a token belongs to, since images may differ in
# their number of tokens; the tap returns tokens in reading order, image by image.

# %% tags=["training"]
LAYER, WEIGHT = 2, 0.5  # of 4 blocks; the paper: 16 of 32, and lambda = 0.5

width = llava.config.text_config.hidden_size
llava.alignment_head = AlignmentHead(width, features.shape[-1], hidden=128, std=0.1)  # VIRAL
lora = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=r".*language_model.*(q|k|v|o|gate|up|down)_proj",
    modules_to_save=["multi_modal_projector", "alignment_head"],  # VIRAL: the second
)
model = get_peft_model(llava, lora)
tap = VisualTap(model, [LAYER])  # VIRAL


class AlignedTrainer(Trainer):
    losses = []

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        target = inputs.pop("teacher_features")  # (B, N, d)
        lm_loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        image = torch.arange(len(target)).repeat_interleave(target.shape[1])  # VIRAL: (B * N,) image of each token
        predicted = llava.alignment_head(tap.states[LAYER])  # VIRAL: (B * N, d)
        vra_loss = cosine(predicted, target.flatten(0, 1), image)  # VIRAL: Eq. 6
        self.losses.append({"language": lm_loss.detach(), "alignment": vra_loss.detach()})
        loss = lm_loss + WEIGHT * vra_loss  # VIRAL: Eq. 5
        return (loss, outputs) if return_outputs else loss


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=16,
        num_train_epochs=2,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        ddp_find_unused_parameters=False,  # VIRAL: of several processes; the head runs outside of their wrapper
        disable_tqdm=True,
        use_cpu=True,
    )
    AlignedTrainer(model, arguments, train_dataset=data).train()
tap.remove()  # the head is not needed to answer

# %% [markdown]
# ## Both losses

# %%
losses = pd.DataFrame(AlignedTrainer.losses).map(float).rename_axis("step").reset_index()
figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.2), layout="constrained")  # losses
for axis, name in zip(axes, ("language", "alignment"), strict=True):
    sns.lineplot(losses, x="step", y=name, color="black", ax=axis)
    axis.set_title({"language": "language loss (Eq. 2)", "alignment": "alignment loss (Eq. 6)"}[name])
sns.despine(figure)

# %% [markdown]
# ## For a training that matters
#
# - **Layer.** The middle one: block 16 of 32 in the paper; 20 of 40 and 14 of 28 are the same relative depth. Layer
#   $\ell$ is the output of block $\ell$, before any final norm; layer 0 is what the projector gives.
# - **Teacher's grid.** One teacher feature per visual token, in reading order: DINOv2 with patches of 14 sees 336
#   pixels for LLaVA-1.5's 24 x 24 tokens, a teacher with patches of 16 sees 384. It must see the *same padded square*
#   as the encoder, with its *own* normalisation. `viral_core.teachers` does this for DINOv2, CLIP, SAM, Depth Anything
#   and RADIO: `load_teacher("dinov2", "facebook/dinov2-base", grid=24)([image])` is (1, 576, 768). transformers'
#   processor of LLaVA crops where LLaVA pads: give it `pad_to_square(image, mean_color(processor.image_processor))`
#   (`viral_core.images`), or the tokens of oblong images are aligned with other places. `viral_core.cache` keeps
#   features on disk.
# - **Head.** 2,048 wide with `std=0.02` at the paper's size (the defaults). A narrow head needs a larger `std`.
# - **Precision and learning rates.** What trains stays in float32, under bf16 autocast: peft sees to LoRA; of a model
#   loaded in bfloat16 convert the projector with `.float()` first. LLaVA's recipe has 2e-4 for LoRA (and the head),
#   2e-5 for the projector: two parameter groups.
# - **Gradient accumulation.** transformers divides the language loss by the tokens of the whole batch; divide
#   `vra_loss` by `gradient_accumulation_steps`, or use `viral_core.aligned.AlignedModel`, which weighs both exactly.
# - **Batches without an image** must keep what trains in the graph, or distributed training fails. The head stays:
#   `cosine` of no tokens, of features (0, N, d), is 0 and depends on it. The projector does not: add 0 times what it
#   makes of a blank image, as `AlignedModel` does. Your collator has to allow for both kinds of samples.
# - **Saving.** peft's checkpoint has the head; to load one, add the head first, as above. For a plain LLaVA
#   `merged = model.merge_and_unload(); del merged.alignment_head; merged.save_pretrained(...)`.
# - **What must have changed** after a step: head, projector, LoRA. What must not: encoder, teacher, language model.

# %%
trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
parts = (
    pd.Series(trained)
    .groupby(lambda name: "head" if "alignment_head" in name else "projector" if "projector" in name else "LoRA")
    .sum()
)
parts.rename("trained parameters").to_frame()
