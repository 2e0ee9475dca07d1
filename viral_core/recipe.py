"""The hyperparameters of a training."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one stage; the defaults are LLaVA-1.5's where it has one (method facts, section 7)."""

    batch_size: int  # global: micro_batch x accumulation x ranks
    lr: float  # LoRA, heads and adapters; the projector too unless projector_lr is given
    projector_lr: float | None = None
    steps: int | None = None  # optimiser steps; None: from epochs
    epochs: float = 1.0
    micro_batch: int | None = None  # per rank and forward pass; None: no accumulation
    warmup_ratio: float = 0.03  # of the steps; then cosine to 0
    weight_decay: float = 0.0  # on everything that trains
    max_grad_norm: float = 1.0
    max_length: int = 2048
    bf16: bool = False
    gradient_checkpointing: bool = False
    deepspeed: dict | None = None
    seed: int = 0
    log_every: int = 10
    checkpoints: tuple[float, ...] = ()  # fractions of the training after which a run folder is kept
    save_every: int | None = None  # steps between resume states
    workers: int = 0  # data loading processes

    def total_steps(self, samples: int) -> int:
        return self.steps or math.ceil(self.epochs * math.ceil(samples / self.batch_size))
