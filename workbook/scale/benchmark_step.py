"""Time and memory of one stage-2 step: without alignment, with it, and with it as it is usually transcribed.

    python -m workbook.scale.benchmark_step --shape 7b --out runs/gpu/results/benchmark/step.json

Random weights in the real architectures: what a step costs does not depend on their values.  Four arms:

- baseline: no alignment;
- cached: teacher features (here from memory; a run's loader reads them from disk beside the training);
- online: the teacher runs in every step, its preprocessing included;
- transcription: cached features, but with all hidden states kept (`output_hidden_states`), the head over every token,
  text included, and a loop over the images, as in the released code (without its printing and emptying of the cache).

Arms take turns in rounds, each round in another order; in a round an arm makes a step to warm up and then `steps` more.
Transcription and cached compute the same losses; the benchmark fails where they differ.
"""

import argparse
import gc
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, Dinov2Config, Dinov2Model, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from viral_core.aligned import AlignedModel
from viral_core.data import IGNORE
from viral_core.environment import describe
from viral_core.llava import add_lora
from viral_core.specs import Align
from viral_core.teachers import Teacher

ARMS = ("baseline", "cached", "online", "transcription")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # between the losses of cached and transcription


@dataclass(frozen=True)
class Shape:
    """Sizes of a step: the language model's, the encoder's, the teacher's, LoRA's and the batch's."""

    width: int = 4096
    mlp: int = 11008
    blocks: int = 32
    heads: int = 32
    vocabulary: int = 32064
    vision_width: int = 1024
    vision_mlp: int = 4096
    vision_blocks: int = 24
    vision_heads: int = 16
    image_size: int = 336
    patch: int = 14
    teacher_width: int = 768
    teacher_blocks: int = 12
    teacher_heads: int = 12
    head_hidden: int = 2048
    lora: int = 128
    samples: int = 8
    tokens: int = 2048

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


SHAPES = {
    "7b": Shape(),  # Vicuna-7B, CLIP ViT-L/14-336, DINOv2 ViT-B/14
    "tiny": Shape(
        width=32, mlp=64, blocks=4, heads=4, vocabulary=96, vision_width=16, vision_mlp=32, vision_blocks=2,
        vision_heads=2, image_size=56, teacher_width=16, teacher_blocks=2, teacher_heads=2, head_hidden=32, lora=4,
        samples=2, tokens=64,
    ),
}  # fmt: skip


def build(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module:
    """A LLaVA with LoRA and random weights; what trains is float32, as in a training."""
    image_token = shape.vocabulary - 1
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width, intermediate_size=shape.vision_mlp, num_hidden_layers=shape.vision_blocks,
        num_attention_heads=shape.vision_heads, image_size=shape.image_size, patch_size=shape.patch,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.blocks, num_attention_heads=shape.heads,
        max_position_embeddings=max(shape.tokens, 2048),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=shape.grid**2,
        vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip
    with torch.device(device):
        llava = Llava._from_config(config, dtype=dtype, attn_implementation="sdpa").requires_grad_(False)
    model = add_lora(llava, r=shape.lora, alpha=2 * shape.lora).to(device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def build_teacher(shape: Shape, device: str) -> Teacher:
    """A DINOv2 with random weights, online: float32, with its own preprocessing."""
    config = Dinov2Config(
        hidden_size=shape.teacher_width, num_hidden_layers=shape.teacher_blocks,
        num_attention_heads=shape.teacher_heads, image_size=shape.image_size, patch_size=shape.patch,
    )  # fmt: skip
    return Teacher(
        "dinov2", "random", Dinov2Model(config).requires_grad_(False).eval().to(device),
        lambda model, pixels: model(pixels).last_hidden_state[:, 1:], shape.teacher_width, shape.grid, shape.image_size,
        tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD), Image.Resampling.BICUBIC,
    )  # fmt: skip


def make_batch(shape: Shape, device: str, seed: int = 0) -> dict:
    """`samples` conversations of `tokens` tokens with an image each; the second half of the text is supervised."""
    generator, visual = torch.Generator().manual_seed(seed), shape.grid**2
    ids = torch.randint(shape.vocabulary - 1, (shape.samples, shape.tokens), generator=generator)
    before = min(40, (shape.tokens - visual) // 4)
    ids[:, before : before + visual] = shape.vocabulary - 1
    labels = ids.clone()
    labels[:, : (before + visual + shape.tokens) // 2] = IGNORE
    side = shape.image_size
    pixels = torch.randn(shape.samples, 3, side, side, generator=generator)
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    return {name: tensor.to(device) for name, tensor in tensors.items()} | {"image_tokens": [visual] * shape.samples}


def transcription_loss(model: AlignedModel, batch: dict, features: Tensor) -> dict[str, Tensor]:
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


class Bench:
    """One base model, and the arms that take turns on it."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str):
        torch.manual_seed(0)
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.llava, self.teacher = build(shape, dtype, device), build_teacher(shape, device)
        base = AlignedModel(self.llava)
        base.gradient_checkpointing_enable()  # once: each call puts a hook on the embeddings
        base.remove()
        self.batch = make_batch(shape, device)
        noise = np.random.default_rng(0).integers(0, 255, (shape.samples, shape.image_size, shape.image_size, 3))
        self.images = [Image.fromarray(image.astype(np.uint8)) for image in noise]
        self.features = self.teacher(self.images).cpu()  # as a loader hands them over

    def losses(self, arm: str, model: AlignedModel) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if arm == "baseline":
                return model(**self.batch)
            features = self.teacher(self.images) if arm == "online" else self.features.to(self.device)
            if arm == "transcription":
                return transcription_loss(model, self.batch, features)
            return model(**self.batch, teacher_features=features)

    def model(self, arm: str) -> AlignedModel:
        """The base with what an arm adds; `remove` it before the next."""
        torch.manual_seed(1)
        align = None
        if arm != "baseline":
            layer = math.ceil(self.shape.blocks / 2)
            align = Align(layers=(layer,), dim=self.shape.teacher_width, hidden=self.shape.head_hidden)
        model = AlignedModel(self.llava, align).to(self.device)
        if arm == "transcription":
            model.remove()  # no taps: that is what is transcribed
        return model.train()

    def run(self, arm: str, steps: int) -> dict:
        """Seconds of each of `steps` optimiser steps after one to warm up, and the peak of allocated memory."""
        model, cuda = self.model(arm), self.device.type == "cuda"
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


def spread(values: list[float]) -> dict:
    """Median and range over rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def benchmark(
    shape: Shape,
    *,
    rounds: int = 7,
    steps: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    arms: tuple[str, ...] = ARMS,
) -> dict:
    """Run the arms in turns and summarise.

    Returns:
        `shape`, `settings`, `environment`, `raw` (every block), and per arm `seconds` of a step (median and range over
        rounds of the median within a round), `overhead` (ratio to the baseline of the same round, less 1) and
        `peak_memory_bytes` (the largest; null on a CPU).

    Raises:
        ValueError: transcription and cached give different losses.
    """
    bench, raw = Bench(shape, dtype, device), []
    for number in tqdm(range(rounds), desc="rounds"):
        shift = number % len(arms)
        raw += [bench.run(arm, steps) | {"round": number} for arm in (*arms[shift:], *arms[:shift])]
    losses = {block["arm"]: block["losses"] for block in raw}
    if {"cached", "transcription"} <= losses.keys():
        for name, value in losses["cached"].items():
            other = losses["transcription"][name]
            if not abs(value - other) <= TOLERANCE[dtype] * max(1.0, abs(value)):
                raise ValueError(f"{name}: cached gives {value}, the transcription {other}")
    table = {(block["arm"], block["round"]): statistics.median(block["seconds"]) for block in raw}
    summary = {}
    for arm in arms:
        peaks = [block["peak_memory_bytes"] for block in raw if block["arm"] == arm]
        seconds = [table[arm, number] for number in range(rounds)]
        summary[arm] = {"seconds": spread(seconds), "peak_memory_bytes": None if None in peaks else max(peaks)}
        if "baseline" in arms and arm != "baseline":
            summary[arm]["overhead"] = spread([table[arm, n] / table["baseline", n] - 1 for n in range(rounds)])
    settings = {
        "rounds": rounds,
        "steps": steps,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "gradient_checkpointing": True,
        "weights": "random",
    }
    return {"shape": asdict(shape), "settings": settings, "environment": describe(), "arms": summary, "raw": raw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of an arm in a round")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/results/benchmark/step.json"))
    arguments = parser.parse_args()
    if arguments.shape == "7b" and not arguments.device.startswith("cuda"):
        parser.error("the 7b shape needs a GPU of 40 GB or more: try --shape tiny here")
    result = benchmark(
        SHAPES[arguments.shape],
        rounds=arguments.rounds,
        steps=arguments.steps,
        device=arguments.device,
        dtype=getattr(torch, arguments.dtype),
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"shape_name": arguments.shape, **result}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for arm, values in result["arms"].items():
        seconds, peak = values["seconds"], values["peak_memory_bytes"]
        memory = "" if peak is None else f", {peak / 2**30:.1f} GiB"
        print(f"{arm:14} {seconds['median']:.3f} s [{seconds['low']:.3f}, {seconds['high']:.3f}]{memory}")


if __name__ == "__main__":
    main()
