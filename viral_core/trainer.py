"""Stage 1 (projector) and stage 2 (LoRA, projector, alignment) of LLaVA-1.5's recipe, on transformers' Trainer.

Design choices:
- Both losses are means over the tokens and images of the *global* batch, whatever the micro-batch and the number of
  ranks; they are summed on the device and read only at logging steps, for every arm.
- The order of samples depends on the seed alone and a run is one "epoch" for the Trainer, so that a killed run resumes
  exactly: weights, optimiser, schedule, random states, position in the data.
- Before its first step a process tries the longest batches, forward and backward, and throws the gradients away.
- Everything is written to a work folder and moved to its destination when the run is complete: a destination that a
  pipeline deletes before it runs a stage loses nothing.
"""

import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers.trainer
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from viral_core import distributed, environment
from viral_core.aligned import AlignedModel
from viral_core.data import (
    IGNORE,
    Collator,
    ConversationDataset,
    GroupedSampler,
    Sample,
    check_supervision,
    visual_tokens,
)
from viral_core.llava import save_projector
from viral_core.recipe import Recipe
from viral_core.run_folder import PROJECTOR, gathered, save_run
from viral_core.tap import base_llava
from viral_core.templates import TEMPLATES, Template
from viral_core.tiles import is_tiled

LOG, ENVIRONMENT = "log.jsonl", "environment.json"
COMPLETE = "complete"  # marks a resume state that every process has written, and says how many there were


def train_stage1(
    llava: nn.Module,
    processor,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: str | Path,
    *,
    template: Template = TEMPLATES["plain"],
    work: str | Path | None = None,
) -> None:
    """Train the projector alone on captions; `folder` gets `projector.safetensors`, `log.jsonl` and `environment.json`.

    `llava` is what `assemble` returns. Interrupted and called again with the same arguments, it resumes from `work`
    (default: `<folder>.work` beside `folder`; removed at the end).

    Raises:
        ValueError: `llava` is a LLaVA-NeXT, whose projector is that of the LLaVA with the same parts.
    """
    if is_tiled(llava.config):
        raise ValueError("LLaVA-NeXT shares the stage-1 projector of LLaVA-1.5: assemble it without tile_grids")
    aligned = AlignedModel(llava)
    trained = list(base_llava(llava).model.multi_modal_projector.parameters())

    def save(target: Path, _step: int) -> None:
        with gathered(trained):
            if _is_main():
                target.mkdir(parents=True, exist_ok=True)
                save_projector(llava, target / PROJECTOR)

    _train(aligned, processor, samples, recipe, Path(folder), template, save, work)
    aligned.remove()


def train_stage2(
    aligned: AlignedModel,
    processor,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: str | Path,
    *,
    template: Template,
    features: Callable[[list[str]], Tensor] | None = None,
    teacher: Callable[[list[Image.Image]], Tensor] | None = None,
    latents: Callable[[list[str]], Tensor] | None = None,
    work: str | Path | None = None,
    training: dict | None = None,
) -> None:
    """Train what `aligned` trains on the instruction mix; `folder` gets a run (`load_run`), its log and environment.

    Args:
        features: cached teacher features (n, N, d) of image names; or
        teacher: the teacher itself, called on the squared images of each batch.
        latents: cached VAE latents (n, N, c) of image names, for the reconstruction.
        work: as in `train_stage1`.
        training: further facts for `run.json`.

    `folder/checkpoint-<step>` are runs too, for `recipe.checkpoints`.
    """
    needed = int(aligned.align is not None and aligned.align.target == "teacher")
    if (features is not None) + (teacher is not None) != needed:
        raise ValueError("alignment to a teacher takes either cached features or the teacher, other runs take neither")
    if (latents is None) != (aligned.reconstruct is None):
        raise ValueError("reconstruction takes cached latents, other runs take none")

    def save(target: Path, step: int) -> None:
        facts = {**(training or {}), "recipe": asdict(recipe), "step": step}
        save_run(target, aligned, template, recipe.seed, facts)

    _train(aligned, processor, samples, recipe, Path(folder), template, save, work, features, teacher, latents)


def _train(
    aligned, processor, samples, recipe, folder, template, save, work, features=None, teacher=None, latents=None
) -> None:
    work = Path(work) if work else folder.with_name(folder.name + ".work")
    steps = recipe.total_steps(len(samples))
    check_supervision(samples, processor, template, recipe.max_length)
    sizes = tqdm(samples, "sizes of images", unit="sample", disable=not is_tiled(processor))
    image_tokens = [sum(visual_tokens(sample, processor)) for sample in sizes]
    sampler = GroupedSampler(samples, image_tokens, recipe.batch_size, steps, recipe.seed)
    args = _arguments(recipe, steps, work / "state")
    if args.n_gpu > 1:
        raise ValueError(
            "several GPUs are visible to one process: say `launch: {gpus: ...}` in the profile, or set "
            "CUDA_VISIBLE_DEVICES=0"
        )
    trained = [p for p in aligned.parameters() if p.requires_grad]
    if not (recipe.bf16 or recipe.deepspeed) and any(p.dtype != torch.float32 for p in aligned.parameters()):
        raise ValueError("the model is in half precision: set bf16 in the recipe, or assemble it in float32")
    for p in trained:
        p.data = p.data.float()
    if recipe.gradient_checkpointing:
        aligned.gradient_checkpointing_enable()

    source = teacher.identity() if hasattr(teacher, "identity") else getattr(features, "teacher", None)
    sources = {"teacher": source, "latents": getattr(latents, "teacher", None)}
    state = _resume_point(work, _settings(aligned, samples, recipe, template, sources), _is_main())
    start = int(state.name.split("-")[1]) if state else 0
    if _is_main():
        environment.record(work / "run" / ENVIRONMENT, start)
    trainer = AlignmentTrainer(
        aligned,
        args,
        recipe,
        sampler,
        teacher,
        work / "run" / LOG,
        start,
        train_dataset=ConversationDataset(samples, processor, template, recipe.max_length),
        data_collator=Collator(processor, features, keep_images=teacher is not None, latents=latents),
        callbacks=[
            _LogLast(),
            _MarkComplete(),
            _KeepRuns({max(1, round(f * steps)) for f in recipe.checkpoints} - {steps}, save, work / "run"),
        ],
    )
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    save(work / "run", steps)
    trainer.accelerator.wait_for_everyone()
    if _is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for path in (work / "run").iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            shutil.move(path, folder / path.name)
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()


def _arguments(recipe: Recipe, steps: int, output: Path) -> TrainingArguments:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    micro = recipe.micro_batch or recipe.batch_size // ranks
    if not micro or recipe.batch_size % (micro * ranks):
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of micro_batch {micro} times {ranks} processes"
        )
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * ranks),
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(recipe.warmup_ratio * steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.bf16,
        deepspeed=recipe.deepspeed,
        seed=recipe.seed,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no" if recipe.save_every is None else "steps",
        save_steps=recipe.save_every or steps,
        save_total_limit=2,  # the one before stays until a new one is complete
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=recipe.workers,
        dataloader_persistent_workers=recipe.workers > 0,
        dataloader_pin_memory=cuda,
        use_cpu=not cuda,
    )


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _settings(aligned, samples: Sequence[Sample], recipe: Recipe, template: Template, sources: dict) -> str:
    """Everything a resume state depends on, as json; data and initial projector by their hashes."""
    data, projector = hashlib.sha256(), hashlib.sha256()
    for sample in samples:
        data.update(repr((sample.id, sample.turns, sample.images)).encode())
    llava = base_llava(aligned.llava)
    for p in llava.model.multi_modal_projector.parameters():
        projector.update(p.detach().float().cpu().numpy().tobytes())
    return json.dumps(
        {
            "recipe": asdict(recipe),
            "template": asdict(template),
            "base": asdict(llava.base),
            "align": aligned.align and asdict(aligned.align),
            "residuals": [asdict(residual) for residual in aligned.residuals],
            "reconstruct": aligned.reconstruct and asdict(aligned.reconstruct),
            **sources,
            "data": data.hexdigest(),
            "projector": projector.hexdigest(),
        },
        indent=2,
    )


def _resume_point(work: Path, settings: str, main: bool) -> Path | None:
    """The newest complete resume state in `work`; what other settings have left there is removed.

    Raises:
        ValueError: the state is of another number of processes, whose optimiser and random states it holds.
    """
    known = work / "settings.json"
    if work.is_dir() and not (known.is_file() and known.read_text() == settings) and main:
        warnings.warn(f"{work} holds an interrupted run with other settings: starting over", stacklevel=2)
        shutil.rmtree(work)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if main:
        work.mkdir(parents=True, exist_ok=True)
        known.write_text(settings)
    states = [path for path in (work / "state").glob("checkpoint-*") if (path / COMPLETE).is_file()]
    newest = max(states, key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest and (before := int((newest / COMPLETE).read_text())) != distributed.world_size():
        raise ValueError(
            f"{newest} is the state of {before} processes, and these are {distributed.world_size()}: go on with as many"
            f" (`launch` in the profile), or remove {work} to start over"
        )
    return newest


class AlignmentTrainer(Trainer):
    """transformers' Trainer with global loss means, two learning rates, each loss in a log file, and a gate.

    Raises:
        FloatingPointError: at a logging step (the first step is one), when a loss is not finite.
    """

    def __init__(self, model, args, recipe: Recipe, sampler, teacher, log_file: Path, start: int, **kwargs):
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(_Progress)
        self.recipe, self.sampler, self.teacher = recipe, sampler, teacher
        self._sums = torch.zeros(4, device=args.device)  # lm_loss, vra_loss, ross_loss, steps with images
        self._steps = 0  # since the last log
        self._tried = False  # the longest batches
        self._log_file, self._began = log_file, time.monotonic()
        self._teacher_clock, self._teacher_before = _Clock(args.device), 0.0
        if self.is_world_process_zero():
            kept = self._kept_log(start)
            self._began -= kept[-1]["seconds"] if kept else 0.0
            self._teacher_before = kept[-1].get("teacher_seconds", 0.0) if kept else 0.0
            log_file.parent.mkdir(parents=True, exist_ok=True)
            log_file.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def _kept_log(self, start: int) -> list[dict]:
        if not start or not self._log_file.is_file():
            return []
        entries = [json.loads(line) for line in self._log_file.read_text().splitlines()]
        return [entry for entry in entries if entry["step"] <= start]

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            recipe = self.recipe
            rates = {"rest": recipe.lr, "projector": recipe.lr if recipe.projector_lr is None else recipe.projector_lr}
            groups = [
                {"params": params, "lr": rates[name], "weight_decay": recipe.weight_decay}
                for name, params in self.model.parameter_groups().items()
                if params
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples, device):
        """(supervised tokens, images) of the global batch; the first label of a row is never a target."""
        if not batch_samples:
            return None
        tokens = sum((batch["labels"][:, 1:] != IGNORE).sum() for batch in batch_samples).to(device)
        images = torch.tensor(sum(len(batch["image_tokens"]) for batch in batch_samples), device=device)
        totals = self.accelerator.gather(torch.stack([tokens, images])).view(-1, 2).sum(0)
        self._sums[3] += totals[1] > 0
        self._steps += 1
        return totals

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._tried:
            self._tried = True
            self._try_longest_batches()
        return super().training_step(model, inputs, num_items_in_batch)

    def _try_longest_batches(self) -> None:
        """Forward and backward pass on the longest micro-batch with images and on the longest without.

        If memory does not suffice, the run ends at once, resumed or not.  Weights, gradients, losses and random states
        stay as they were: the model is run without DDP or DeepSpeed around it, and `autograd.grad` hands the gradients
        out, so that no hook on a parameter's gradient runs.
        """
        size, lengths = self.args.per_device_train_batch_size, self.sampler.lengths
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            for group in filter(None, self.sampler.groups):
                longest = sorted(group, key=lambda i: -lengths[i])[:size]
                batch = self._prepare_inputs(self.data_collator([self.train_dataset[i] for i in longest]))
                try:
                    if images := batch.pop("images", None):
                        batch["teacher_features"] = self.teacher(images).to(self.args.device)
                    with self.compute_loss_context_manager():
                        loss = self.model(**batch)["loss"]
                    torch.autograd.grad(loss, trained, allow_unused=True)
                except torch.OutOfMemoryError as error:
                    raise RuntimeError(
                        f"the longest batch does not fit into memory ({tuple(batch['input_ids'].shape)} tokens): lower "
                        "micro_batch (the global batch stays), set gradient_checkpointing, or launch with zero3"
                    ) from error

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images = inputs.pop("images", None)
        if images:
            with torch.no_grad(), self._teacher_clock:
                inputs["teacher_features"] = self.teacher(images).to(self.args.device)
        losses = model(**inputs, totals=num_items_in_batch)
        for i, name in enumerate(("lm_loss", "vra_loss", "ross_loss")):
            if name in losses:
                self._sums[i] += losses[name].detach()
        loss = losses["loss"] * self.accelerator.num_processes  # ranks are averaged, these are parts of one mean
        return (loss, losses) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            lm_loss, vra_loss, ross_loss, pictured = self.accelerator.reduce(self._sums, "sum").tolist()
            logs["lm_loss"] = lm_loss / self._steps
            pictured /= self.accelerator.num_processes
            logs["vra_loss"] = vra_loss / pictured if self.model.align is not None and pictured else None
            if self.model.reconstruct is not None:
                logs["ross_loss"] = ross_loss / pictured if pictured else None
            self._sums.zero_()
            self._steps = 0
            self._write(logs)
        super().log(logs, start_time)

    def _write(self, logs: dict) -> None:
        step = self.state.global_step
        entry = {
            "step": step,
            **{key: logs.get(key) for key in ("loss", "lm_loss", "vra_loss")},
            **({"ross_loss": logs["ross_loss"]} if "ross_loss" in logs else {}),
            **{key: logs.get(key) for key in ("learning_rate", "grad_norm")},
            "seconds": round(time.monotonic() - self._began, 3),
        }
        if self.teacher is not None:
            entry["teacher_seconds"] = round(self._teacher_before + self._teacher_clock.seconds(), 3)
        if self.is_world_process_zero():
            with self._log_file.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        losses = {key: value for key, value in entry.items() if key.endswith("loss") and value is not None}
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(f"step {step}: the loss is not finite ({losses}): lower the learning rate")


class _Clock:
    """Seconds spent in `with` blocks; on a GPU measured by events that are read with the log, so that no step waits."""

    def __init__(self, device: torch.device):
        self._cuda, self._spans, self._seconds = device.type == "cuda", [], 0.0

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_) -> None:
        self._spans.append((self._start, self._now()))

    def seconds(self) -> float:
        for start, end in self._spans:
            if self._cuda:
                end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000 if self._cuda else end - start
        self._spans.clear()
        return self._seconds


class _Progress(ProgressCallback):
    """The usual bar, with the losses beside it and not above."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "lm_loss" in (logs or {}):
            shown = {key: logs[key] for key in ("lm_loss", "vra_loss", "ross_loss") if logs.get(key) is not None}
            self.training_bar.set_postfix({key: f"{value:.3f}" for key, value in shown.items()})


class _LogLast(TrainerCallback):
    """Logs the last step, so that its loss is checked before anything is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps


class _MarkComplete(TrainerCallback):
    """Marks a resume state once every process has written its part of it."""

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            complete = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            complete.write_text(f"{distributed.world_size()}\n")


class _KeepRuns(TrainerCallback):
    """Saves `checkpoint-<step>` after each of `steps`."""

    def __init__(self, steps: set[int], save: Callable[[Path, int], None], folder: Path):
        self.steps, self.save, self.folder = steps, save, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.save(self.folder / f"checkpoint-{state.global_step}", state.global_step)
