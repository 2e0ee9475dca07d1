"""How fast it is here: a step of stage 2 with and without alignment, and CKNNA against its published formula.

    python tests/speed.py paper runs/gpu/results/benchmark

writes `step.json` and `cknna.csv`.  The step is that of the run `viral` of a profile (Vicuna-7B, CLIP and DINOv2), with
random weights: what it costs does not depend on their values.  The profile `rehearsal` has them thin.  Four arms:

- baseline: no alignment;
- cached: teacher features (here from memory; a run's loader reads them from disk beside the training);
- online: the teacher runs in every step, its preprocessing included;
- transcription: cached features, but with all hidden states kept (`output_hidden_states`), the head over every token,
  text included, and a loop over the images, as in the released code (without its printing and emptying of the cache).

Arms take turns in rounds, each round in another order; in a round an arm makes a step to warm up and then `steps` more.
"""

import gc
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import pandas as pd
import rehearsal
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, Dinov2Model, LlavaConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from viral_core.aligned import AlignedModel
from viral_core.data import IGNORE
from viral_core.environment import describe
from viral_core.llava import add_lora
from viral_core.measure.cknna import EPSILON, cknna
from viral_core.recipe import Recipe
from viral_core.teachers import Teacher
from workbook import config
from workbook.sections import Profile

ARMS = ("baseline", "cached", "online", "transcription")
LANGUAGE, VISION, TEACHER = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "facebook/dinov2-base"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # between the losses of cached and transcription
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Bench:
    """One LLaVA with LoRA, a teacher and a batch; the arms take turns on them.

    The batch has `micro_batch` conversations of `max_length` tokens with an image each; the second half of the text is
    supervised.  What trains is float32, as in a training.
    """

    def __init__(self, profile: Profile, dtype: torch.dtype):
        torch.manual_seed(0)
        self.dtype, thin = dtype, profile.name.startswith("rehearsal")
        text, vision, teacher = (rehearsal.config(name, thin) for name in (LANGUAGE, VISION, TEACHER))
        text.vocab_size += 64  # room for the image token, as LLaVA makes it
        image_token, grid = text.vocab_size - 1, vision.image_size // vision.patch_size
        settings = LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=grid**2,
            vision_feature_select_strategy="default", vision_feature_layer=-2,
        )  # fmt: skip
        with torch.device(DEVICE):
            llava = AutoModelForImageTextToText.from_config(settings, dtype=dtype).requires_grad_(False)
        self.llava = add_lora(llava, profile.lora.r, profile.lora.alpha).to(DEVICE)
        for parameter in self.llava.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        base = AlignedModel(self.llava)
        base.gradient_checkpointing_enable()  # once: each call puts a hook on the embeddings
        base.remove()
        self.teacher = Teacher(
            "dinov2", "random", Dinov2Model(teacher).to(DEVICE), lambda m, x: m(x).last_hidden_state[:, 1:],
            teacher.hidden_size, grid, vision.image_size, tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD),
            Image.Resampling.BICUBIC,
        )  # fmt: skip
        self.align = replace(profile.systems["viral"].align, dim=self.teacher.dim)
        self.batch = make_batch(profile.stage2, grid**2, image_token, vision.image_size)
        side = vision.image_size
        self.images = [Image.effect_noise((side, side), 90).convert("RGB") for _ in self.batch["input_ids"]]
        self.features = self.teacher(self.images).cpu()  # as a loader hands them over

    def losses(self, arm: str, model: AlignedModel) -> dict[str, Tensor]:
        with torch.autocast(DEVICE, self.dtype, enabled=self.dtype != torch.float32):
            if arm == "baseline":
                return model(**self.batch)
            features = self.teacher(self.images) if arm == "online" else self.features.to(DEVICE)
            if arm == "transcription":
                return transcribed_loss(model, self.batch, features)
            return model(**self.batch, teacher_features=features)

    def model(self, arm: str) -> AlignedModel:
        """The LLaVA with what an arm adds; `remove` it before the next."""
        torch.manual_seed(1)
        model = AlignedModel(self.llava, None if arm == "baseline" else self.align).to(DEVICE)
        if arm == "transcription":
            model.remove()  # no taps: that is what is transcribed
        return model.train()

    def run(self, arm: str, steps: int) -> dict:
        """Seconds of each of `steps` optimiser steps after one to warm up, and the peak of allocated memory."""
        model, cuda = self.model(arm), DEVICE == "cuda"
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)  # weights stay
        wait = torch.cuda.synchronize if cuda else lambda: None
        seconds = []
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(steps + 1):
            wait()
            start = time.perf_counter()
            losses = self.losses(arm, model)
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            wait()
            seconds.append(time.perf_counter() - start)
        values = {name: value.item() for name, value in losses.items()}
        peak = torch.cuda.max_memory_allocated() if cuda else None
        model.remove()
        del model, optimizer, losses
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
        return {"arm": arm, "seconds": seconds[1:], "peak_memory_bytes": peak, "losses": values}


def make_batch(recipe: Recipe, visual: int, image_token: int, side: int) -> dict:
    """A micro-batch of `visual` visual tokens a sample, and pixels (samples, 3, side, side)."""
    generator, samples = torch.Generator().manual_seed(0), recipe.micro_batch
    ids = torch.randint(image_token, (samples, recipe.max_length), generator=generator)
    ids[:, 40 : 40 + visual] = image_token
    labels = ids.clone()
    labels[:, : (40 + visual + recipe.max_length) // 2] = IGNORE
    pixels = torch.randn(samples, 3, side, side, generator=generator)
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()} | {"image_tokens": [visual] * samples}


def transcribed_loss(model: AlignedModel, batch: dict, features: Tensor) -> dict[str, Tensor]:
    """Eq. 5 as the released code writes it down; the same value as `AlignedModel`'s."""
    batch, align = {name: value for name, value in batch.items() if name != "image_tokens"}, model.align
    out = model.llava(**batch, output_hidden_states=True, use_cache=False)
    projected = model.heads[str(align.layers[0])](out.hidden_states[align.layers[0]])
    losses = []
    for row, ids, wanted in zip(projected, batch["input_ids"], features, strict=True):
        visual = row[ids == model.config.image_token_id]
        losses.append(-F.cosine_similarity(visual.float(), wanted.float(), dim=-1).mean())
    vra_loss = torch.stack(losses).mean()
    return {"loss": out.loss + align.weight * vra_loss, "lm_loss": out.loss, "vra_loss": vra_loss}


def time_steps(profile: Profile, rounds: int, steps: int, dtype: torch.dtype = torch.bfloat16) -> dict:
    """Run the arms in turns and summarise.

    Returns:
        `profile`, `samples` and `tokens` of a step, `settings`, `environment`, `raw` (every block), and per arm
        `seconds` of a step (median and range over rounds of the median within a round), `overhead` (ratio to the
        baseline of the same round, less 1) and `peak_memory_bytes` (the largest; null on a CPU).

    Raises:
        ValueError: transcription and cached give different losses.
    """
    bench, raw = Bench(profile, dtype), []
    for number in tqdm(range(rounds), desc="rounds"):
        shift = number % len(ARMS)
        raw += [bench.run(arm, steps) | {"round": number} for arm in (*ARMS[shift:], *ARMS[:shift])]
    losses = {block["arm"]: block["losses"] for block in raw}
    for name, value in losses["cached"].items():
        other = losses["transcription"][name]
        if not abs(value - other) <= TOLERANCE[dtype] * max(1.0, abs(value)):
            raise ValueError(f"{name}: cached gives {value}, the transcription {other}")
    blocks = pd.DataFrame([block | {"seconds": statistics.median(block["seconds"])} for block in raw])
    table, summary = blocks.pivot(index="round", columns="arm", values="seconds"), {}
    for arm in ARMS:
        peaks = [block["peak_memory_bytes"] for block in raw if block["arm"] == arm]
        summary[arm] = {
            "seconds": spread(table[arm]),
            "overhead": spread(table[arm] / table["baseline"] - 1),
            "peak_memory_bytes": None if None in peaks else max(peaks),
        }
    samples, tokens = bench.batch["input_ids"].shape
    settings = {"rounds": rounds, "steps": steps, "dtype": str(dtype).removeprefix("torch."), "device": DEVICE}
    return {
        "profile": profile.name,
        "samples": samples,
        "tokens": tokens,
        "settings": {**settings, "gradient_checkpointing": True, "weights": "random"},
        "environment": describe(),
        "arms": summary,
        "raw": raw,
    }


def spread(values: pd.Series) -> dict:
    """Median and range over rounds."""
    return {"median": values.median(), "low": values.min(), "high": values.max(), "n": len(values)}


def transcribed_cknna(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    """CKNNA of (n, d) float64 features as the formula stands, matrix products and all."""

    def masked(features):
        kernel = features @ features.T
        others = kernel - torch.diag(torch.full((len(kernel),), torch.inf, dtype=kernel.dtype, device=kernel.device))
        return kernel, torch.zeros_like(kernel).scatter(1, others.topk(k, dim=1).indices, 1.0)

    def hsic(p, q):
        n = len(p)
        total = (p * q.T).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * (p @ q).sum() / (n - 2)
        return total / (n * (n - 3))

    (kernel_x, mask_x), (kernel_y, mask_y) = (masked(f / f.norm(dim=1, keepdim=True)) for f in (x, y))
    both = mask_x * mask_y
    self_x = hsic(mask_x * kernel_x, mask_x * kernel_x)
    self_y = hsic(mask_y * kernel_y, mask_y * kernel_y)
    return float(hsic(both * kernel_x, both * kernel_y) / (torch.sqrt(self_x * self_y) + EPSILON))


def time_cknna(sizes: tuple[int, ...] = (576, 1000, 4000), d: int = 256, k: int = 10) -> pd.DataFrame:
    """Median seconds of a call per n, on two related random representations of (n, d), on a GPU if there is one.

    Returns:
        One row per n: n, d, k, cknna_seconds, transcription_seconds, speedup, value, difference, and the machine.

    Raises:
        ValueError: the values differ by more than 1e-9.
    """
    machine = describe()
    processor = (machine["gpus"] or [machine["cpu"]])[0]["model"]
    rows = []
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        y = (x + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(DEVICE)
        x = x.to(DEVICE)
        value, other = float(cknna(x, y, k)), transcribed_cknna(x, y, k)
        if abs(value - other) > 1e-9:
            raise ValueError(f"n = {n}: cknna gives {value}, the transcription {other}")
        row = {"n": n, "d": d, "k": k}
        for name, measure in (("cknna", cknna), ("transcription", transcribed_cknna)):
            variables = {"measure": measure, "x": x, "y": y, "k": k}
            row[f"{name}_seconds"] = Timer("measure(x, y, k)", globals=variables).blocked_autorange().median
        row |= {"speedup": row["transcription_seconds"] / row["cknna_seconds"], "value": value}
        row |= {"difference": abs(value - other), "device": DEVICE, "processor": processor, "torch": torch.__version__}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    name, out = sys.argv[1], Path(sys.argv[2])
    if name == "paper" and DEVICE == "cpu":
        sys.exit("the paper's sizes need a GPU of 40 GB or more: take the rehearsal's here")
    result, table = time_steps(config.load(name), rounds=3, steps=3), time_cknna()
    (out / "step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table.to_csv(out / "cknna.csv", index=False)
    print(json.dumps(result["arms"], indent=1), table.to_string(index=False), sep="\n")
