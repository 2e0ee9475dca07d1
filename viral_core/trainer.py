"""Stage 1 (projector) and stage 2 (LoRA, projector, alignment) of LLaVA-1.5's recipe, on transformers' Trainer.

Losses are means over the tokens and images of the *global* batch. The order of samples depends on the seed alone and a
run is one "epoch" for the Trainer, so that a killed run resumes exactly: weights, optimiser, schedule, random states,
position in the data. Everything is written to `<folder>.work` and copied to `folder` when the run is complete; called
again with the same arguments, an interrupted training goes on from there.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from viral_core import distributed, environment
from viral_core.aligned import AlignedModel
from viral_core.conversations import Sample
from viral_core.data import IGNORE, Collator, ConversationDataset, Features, GroupedSampler
from viral_core.files import json_line, read_lines, replacement, set_aside, write_text, writing
from viral_core.llava import save_projector
from viral_core.recipe import Recipe
from viral_core.resume import MarkComplete, resume_point, settings, step_of
from viral_core.run_folder import PROJECTOR, gathered, save_run
from viral_core.tap import base_llava
from viral_core.templates import TEMPLATES, Template
from viral_core.tiles import is_tiled

LOSSES = ("lm_loss", "vra_loss", "ross_loss")
TARGETS = ("teacher_features", "latents")
_log = logging.getLogger(__name__)


def train_stage1(
    llava: nn.Module,
    processor,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: str | Path,
    *,
    template: Template = TEMPLATES["plain"],
    encoder_features: Features | None = None,
) -> None:
    """Train the projector of what `assemble` returns; `folder` gets it, `log.jsonl` and `environment.json`.

    `encoder_features`: cached features z (n, N, Dz) of image names, in place of their way through the encoder.
    """
    if is_tiled(llava.config):
        raise ValueError("LLaVA-NeXT shares the stage-1 projector of LLaVA-1.5: assemble it without tile_grids")
    aligned = AlignedModel(llava)

    def save(target: Path, _step: int) -> None:
        with gathered(base_llava(llava).model.multi_modal_projector.parameters()):
            if distributed.is_main():
                save_projector(llava, target / PROJECTOR)

    _train(aligned, samples, recipe, Path(folder), template, Collator(processor, encoder=encoder_features), save)
    aligned.remove()


def train_stage2(
    aligned: AlignedModel,
    processor,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: str | Path,
    *,
    template: Template,
    features: Features | None = None,
    teacher: Callable[[list[Image.Image]], Tensor] | None = None,
    latents: Features | None = None,
    encoder_features: Features | None = None,
    training: dict | None = None,
) -> None:
    """Train what `aligned` trains on the instruction mix; `folder` gets a run (`load_run`), its log and environment.

    `features` (n, N, d) of a teacher, `latents` (n, N, c) of a VAE and `encoder_features` (n, N, Dz) are cached, by
    names of images; or the `teacher` itself is called on the squared images of each batch. `training` is what else
    `run.json` is to say. `folder/checkpoint-<step>` are runs too, for `recipe.checkpoints`.
    """
    needed = int(aligned.align is not None and aligned.align.target == "teacher")
    if (features is not None) + (teacher is not None) != needed:
        raise ValueError("alignment to a teacher takes either cached features or the teacher, other runs take neither")
    if (latents is None) != (aligned.reconstruct is None):
        raise ValueError("reconstruction takes cached latents, other runs take none")

    def save(target: Path, step: int) -> None:
        description = {**(training or {}), "recipe": asdict(recipe), "step": step}
        save_run(target, aligned, template, recipe.seed, description)

    collator = Collator(processor, features, teacher is not None, latents, encoder_features)
    _train(aligned, samples, recipe, Path(folder), template, collator, save, teacher)


def _train(aligned, samples, recipe: Recipe, folder: Path, template, collator: Collator, save, teacher=None) -> None:
    work = folder.with_name(f"{folder.name}.work")
    steps = recipe.total_steps(len(samples))
    arguments = recipe.arguments(steps, work / "state")
    if not (recipe.bf16 or recipe.deepspeed) and any(p.dtype != torch.float32 for p in aligned.parameters()):
        raise ValueError("the model is in half precision: set bf16 in the recipe, or assemble it in float32")
    for p in aligned.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    if recipe.gradient_checkpointing:
        aligned.gradient_checkpointing_enable()
    dataset = ConversationDataset(samples, collator.processor, template, recipe.max_length)
    if any(dataset.cut.values()) and distributed.is_main():
        _log.warning("max_length %d leaves out of %d conversations: %s", recipe.max_length, len(dataset), dataset.cut)

    sources = {
        "teacher": teacher.identity() if hasattr(teacher, "identity") else getattr(collator.features, "teacher", None),
        "latents": getattr(collator.latents, "teacher", None),
        "encoder": getattr(collator.encoder, "teacher", None),
        "kept_as": [getattr(cache, "dtype", None) for cache in (collator.features, collator.latents, collator.encoder)],
    }
    base, own = base_llava(aligned.llava).base, sources["encoder"]
    if own and (own["checkpoint"], own["feature_layer"]) != (base.vision_sha256, base.vision_feature_layer):
        raise ValueError("the cached encoder features are those of another encoder or layer: write the cache again")
    state = resume_point(work, settings(aligned, samples, recipe, template, sources))
    start = step_of(state)
    run = work / "run"
    if distributed.is_main():
        environment.record(run / "environment.json", start)
    kept_steps = {max(1, round(fraction * steps)) for fraction in recipe.checkpoints} - {steps}
    trainer = AlignmentTrainer(
        aligned,
        arguments,
        recipe=recipe,
        sampler=GroupedSampler(dataset.encodings, recipe.batch_size, steps, recipe.seed),
        teacher=teacher,
        log=TrainingLog(run / "log.jsonl", start) if distributed.is_main() else None,
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[_EndOfStep(kept_steps, save, run), MarkComplete()],
    )
    trainer.add_callback(_WithoutFrozen(trainer))
    if distributed.rank():  # else dropout and noise are the same in all processes
        torch.manual_seed(recipe.seed + distributed.rank())
    with writing(work):
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    save(run, steps)
    trainer.accelerator.wait_for_everyone()
    if distributed.is_main():
        _publish(work, run, folder)
        shutil.rmtree(work / "state", ignore_errors=True)  # before the run, without which no state is gone on from
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()


def _publish(work: Path, run: Path, folder: Path) -> None:
    """Copy a complete run to where it belongs; killed meanwhile and called again, a training has all that it needs."""
    begun = work / "published"
    if not begun.exists():
        if folder.is_dir() and (earlier := list(folder.iterdir())):
            set_aside(folder, "replaced", earlier)
        begun.touch()
    shutil.copytree(run, folder, copy_function=_copy, dirs_exist_ok=True)


def _copy(source: str, target: str) -> None:
    with replacement(target) as temporary:
        shutil.copyfile(source, temporary)


class TrainingLog:
    """A log file that a resumed training goes on with, from the step of its state; half a last line is left out."""

    def __init__(self, file: Path, start: int):
        entries = read_lines(file, "remove that line", unfinished=True) if file.is_file() else []
        self.file, entries = file, [entry for entry in entries if entry["step"] <= start]
        self._began = time.monotonic() - (entries[-1]["seconds"] if entries else 0.0)
        write_text(file, "".join(map(json_line, entries)))

    def write(self, step: int, values: dict) -> None:
        """Append one entry, with the seconds since the start of the training."""
        entry = {"step": step, **values, "seconds": round(time.monotonic() - self._began, 3)}
        with writing(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json_line(entry))


class AlignmentTrainer(Trainer):
    """transformers' Trainer with global loss means and two learning rates; FloatingPointError if a loss is infinite."""

    def __init__(self, *args, recipe: Recipe, sampler, teacher, log: TrainingLog | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe, self.sampler, self.teacher, self.training_log = recipe, sampler, teacher, log
        self._sums = torch.zeros(len(LOSSES) + 1, device=self.args.device)  # of each loss, and of steps with images
        self._steps = 0  # since the last log

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def save_model(self, *args, **kwargs):
        """Part of a resume state, which DeepSpeed writes itself."""
        if not self.is_deepspeed_enabled:
            super().save_model(*args, **kwargs)

    def create_optimizer(self, model=None):
        if self.optimizer is not None:
            return self.optimizer
        recipe = self.recipe
        rates = {"rest": recipe.lr, "projector": recipe.lr if recipe.projector_lr is None else recipe.projector_lr}
        parts = {name: params for name, params in self.model.parameter_groups().items() if params}
        groups = [{"params": params, "lr": rates[name]} for name, params in parts.items()]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(groups, **options, weight_decay=recipe.weight_decay)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples, device):
        """(supervised tokens, images) of the global batch; the first label of a row is never a target."""
        if not batch_samples:
            return None
        tokens = sum((batch["labels"][:, 1:] != IGNORE).sum() for batch in batch_samples).to(device)
        images = torch.tensor(sum(len(batch["image_tokens"]) for batch in batch_samples), device=device)
        totals = self.accelerator.gather(torch.stack([tokens, images])).view(-1, 2).sum(0)
        self._sums[-1] += totals[1] > 0
        self._steps += 1
        return totals

    def training_step(self, model, inputs, num_items_in_batch=None):
        shape = tuple(inputs["input_ids"].shape)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:  # the longest batch comes first
            raise RuntimeError(
                f"a batch of {shape} tokens does not fit into memory: lower micro_batch (the global batch stays), set "
                "gradient_checkpointing, or launch with zero3"
            ) from error

    def _prepare_inputs(self, inputs):
        """On the device; cached targets stay in float32 as online ones do, where DeepSpeed's precision is half."""
        targets = {name: inputs.pop(name).to(self.args.device) for name in TARGETS if name in inputs}
        return {**super()._prepare_inputs(inputs), **targets}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if pictures := inputs.pop("pictures", None):
            with torch.no_grad():
                inputs["teacher_features"] = self.teacher(pictures).to(self.args.device)
        losses = model(**inputs, totals=num_items_in_batch)
        for i, name in enumerate(LOSSES):
            if name in losses:
                self._sums[i] += losses[name].detach()
        return losses["loss"] * self.accelerator.num_processes  # ranks are averaged, these are parts of one mean

    def log(self, logs, start_time=None):
        if "loss" in logs:
            *sums, pictured = self.accelerator.reduce(self._sums, "sum").tolist()
            pictured /= self.accelerator.num_processes
            logs["lm_loss"] = sums[0] / self._steps
            logs["vra_loss"] = sums[1] / pictured if self.model.align is not None and pictured else None
            if self.model.reconstruct is not None:
                logs["ross_loss"] = sums[2] / pictured if pictured else None
            self._sums.zero_()
            self._steps = 0
            step, names = self.state.global_step, [name for name in LOSSES if name in logs]
            values = {name: logs.get(name) for name in ("loss", *names, "learning_rate", "grad_norm")}
            if self.training_log is not None:
                self.training_log.write(step, values)
            losses = {name: values[name] for name in ("loss", *names) if values[name] is not None}
            if not all(map(math.isfinite, losses.values())):
                raise FloatingPointError(f"step {step}: the loss is not finite ({losses}): lower the learning rate")
        super().log(logs, start_time)


class _WithoutFrozen(TrainerCallback):
    """Leaves frozen weights out of DeepSpeed's resume states, as transformers does for a model of peft."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if (engine := self.trainer.deepspeed) is not None:
            engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


class _EndOfStep(TrainerCallback):
    """Saves `checkpoint-<step>` after each of `steps`; logs the last step, whose loss is checked before it is saved."""

    def __init__(self, steps: set[int], save: Callable[[Path, int], None], folder: Path):
        self.steps, self.save, self.folder = steps, save, folder

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps
        if state.global_step in self.steps:
            self.save(self.folder / f"checkpoint-{state.global_step}", state.global_step)
