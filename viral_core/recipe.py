"""The hyperparameters of a training, and what transformers' Trainer is told of them."""

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one stage; the defaults are LLaVA-1.5's where it has one."""

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

    def __post_init__(self):
        for name in ("batch_size", "steps", "epochs", "micro_batch", "max_length", "log_every", "save_every"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it has to be above 0")

    def total_steps(self, samples: int) -> int:
        """Optimiser steps of a training on so many samples."""
        return self.steps or math.ceil(self.epochs * math.ceil(samples / self.batch_size))

    def arguments(self, steps: int, output: Path):
        """TrainingArguments of transformers; `output` holds resume states. ValueError if ranks do not divide."""
        import torch  # here: profiles hold recipes, and are read where nothing is trained
        from transformers import TrainingArguments

        from viral_core import distributed

        ranks = distributed.world_size()
        micro = self.micro_batch or self.batch_size // ranks
        if not micro or self.batch_size % (micro * ranks):
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch {micro} x {ranks} processes")
        cuda = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=self.batch_size // (micro * ranks),
            learning_rate=self.lr,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(self.warmup_ratio * steps),
            max_grad_norm=self.max_grad_norm,
            bf16=self.bf16,
            deepspeed=self.deepspeed,
            seed=self.seed,
            logging_steps=self.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="no" if self.save_every is None else "steps",
            save_steps=self.save_every or steps,
            save_total_limit=2,  # the one before stays until a new one is complete
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            dataloader_num_workers=self.workers,
            dataloader_pin_memory=cuda,
            use_cpu=not cuda,
        )
        if arguments.n_gpu > 1:
            raise ValueError("several GPUs are visible: say `launch: {gpus: ...}` or set CUDA_VISIBLE_DEVICES=0")
        return arguments
