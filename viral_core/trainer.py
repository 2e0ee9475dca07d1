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

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers.trainer
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from viral_core import distributed, environment
from viral_core.aligned import AlignedModel
from viral_core.conversations import Sample
from viral_core.data import IGNORE, Collator, ConversationDataset, Features, GroupedSampler
from viral_core.llava import save_projector
from viral_core.recipe import Recipe
from viral_core.resume import MarkComplete, resume_point, settings, step_of
from viral_core.run_folder import PROJECTOR, gathered, save_run
from viral_core.tap import base_llava
from viral_core.templates import TEMPLATES, Template
from viral_core.tiles import is_tiled
from viral_core.training_log import LOG, LOSSES, LogLast, Progress, TrainingLog, check_finite

ENVIRONMENT = "environment.json"
OnlineTeacher = Callable[[list[Image.Image]], Tensor]
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
    work: str | Path | None = None,
) -> None:
    """Train the projector alone on captions; `folder` gets `projector.safetensors`, `log.jsonl` and `environment.json`.

    `llava` is what `assemble` returns. Interrupted and called again with the same arguments, it resumes from `work`
    (default: `<folder>.work` beside `folder`; removed at the end).

    Args:
        encoder_features: cached features z (n, N, Dz) of image names, in place of the images' way through the encoder.

    Raises:
        ValueError: `llava` is a LLaVA-NeXT, whose projector is that of the LLaVA with the same parts.
    """
    if is_tiled(llava.config):
        raise ValueError("LLaVA-NeXT shares the stage-1 projector of LLaVA-1.5: assemble it without tile_grids")
    aligned = AlignedModel(llava)
    trained = list(base_llava(llava).model.multi_modal_projector.parameters())

    def save(target: Path, _step: int) -> None:
        with gathered(trained):
            if distributed.is_main():
                target.mkdir(parents=True, exist_ok=True)
                save_projector(llava, target / PROJECTOR)

    collator = Collator(processor, encoder=encoder_features)
    _train(aligned, processor, samples, recipe, Path(folder), template, save, work, collator, None)
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
    teacher: OnlineTeacher | None = None,
    latents: Features | None = None,
    encoder_features: Features | None = None,
    work: str | Path | None = None,
    training: dict | None = None,
) -> None:
    """Train what `aligned` trains on the instruction mix; `folder` gets a run (`load_run`), its log and environment.

    Args:
        features: cached teacher features (n, N, d) of image names; or
        teacher: the teacher itself, called on the squared images of each batch.
        latents: cached VAE latents (n, N, c) of image names, for the reconstruction.
        encoder_features, work: as in `train_stage1`.
        training: what else `run.json` is to say of the training.

    `folder/checkpoint-<step>` are runs too, for `recipe.checkpoints`.
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
    _train(aligned, processor, samples, recipe, Path(folder), template, save, work, collator, teacher)


def _train(
    aligned: AlignedModel,
    processor,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: Path,
    template: Template,
    save: Callable[[Path, int], None],
    work: str | Path | None,
    collator: Collator,
    teacher: OnlineTeacher | None,
) -> None:
    work = Path(work) if work else folder.with_name(folder.name + ".work")
    steps = recipe.total_steps(len(samples))
    arguments = recipe.arguments(steps, work / "state")
    trained = [p for p in aligned.parameters() if p.requires_grad]
    if not (recipe.bf16 or recipe.deepspeed) and any(p.dtype != torch.float32 for p in aligned.parameters()):
        raise ValueError("the model is in half precision: set bf16 in the recipe, or assemble it in float32")
    for p in trained:
        p.data = p.data.float()
    if recipe.gradient_checkpointing:
        aligned.gradient_checkpointing_enable()
    dataset = ConversationDataset(samples, processor, template, recipe.max_length)
    if dataset.lengths.cut and distributed.is_main():
        _log.warning("max_length %d: %s", recipe.max_length, dataset.lengths)

    sources = {
        "teacher": teacher.identity() if hasattr(teacher, "identity") else getattr(collator.features, "teacher", None),
        "latents": getattr(collator.latents, "teacher", None),
        "encoder": getattr(collator.encoder, "teacher", None),
    }
    state = resume_point(work, settings(aligned, samples, recipe, template, sources))
    start = step_of(state)
    run = work / "run"
    if distributed.is_main():
        environment.record(run / ENVIRONMENT, start)
    kept_steps = {max(1, round(fraction * steps)) for fraction in recipe.checkpoints} - {steps}
    trainer = AlignmentTrainer(
        aligned,
        arguments,
        recipe,
        GroupedSampler(dataset.encodings, recipe.batch_size, steps, recipe.seed),
        teacher,
        TrainingLog(run / LOG, start, arguments.device) if distributed.is_main() else None,
        train_dataset=dataset,
        data_collator=_KeepTargets(collator),
        callbacks=[LogLast(), MarkComplete(), _KeepRuns(kept_steps, save, run)],
    )
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    save(run, steps)
    trainer.accelerator.wait_for_everyone()
    if distributed.is_main():
        _move(run, folder)
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()


def _move(run: Path, folder: Path) -> None:
    """Move a complete run to where it belongs, over what an earlier one has left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in run.iterdir():
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        shutil.move(path, folder / path.name)


@dataclass(frozen=True)
class Target:
    """A tensor that training compares with.

    transformers' Trainer casts the tensors of a batch to DeepSpeed's half precision; this is none to it, so that cached
    targets stay in float32 as online ones do.
    """

    tensor: Tensor

    def to(self, *args, **kwargs) -> "Target":
        return Target(self.tensor.to(*args, **kwargs))

    def pin_memory(self) -> "Target":
        return Target(self.tensor.pin_memory())


@dataclass(frozen=True)
class _KeepTargets:
    """A collator whose targets keep their dtype on their way to the device."""

    collator: Collator

    def __call__(self, items: list[dict]) -> dict:
        batch = self.collator(items)
        return {
            name: Target(value) if name in ("teacher_features", "latents") else value for name, value in batch.items()
        }


class AlignmentTrainer(Trainer):
    """transformers' Trainer with global loss means, two learning rates, each loss in a log file, and a gate.

    Raises:
        FloatingPointError: at a logging step (the first step is one), when a loss is not finite.
    """

    def __init__(
        self, model, args, recipe: Recipe, sampler, teacher: OnlineTeacher | None, log: TrainingLog | None, **kwargs
    ):
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(Progress)
        self.recipe, self.sampler, self.teacher, self.training_log = recipe, sampler, teacher, log
        self._sums = torch.zeros(len(LOSSES) + 1, device=args.device)  # of each loss, and of steps with images
        self._steps = 0  # since the last log
        self._tried = False  # the longest batches

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
        self._sums[-1] += totals[1] > 0
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
                    with self.compute_loss_context_manager():
                        loss = self.model(**self._with_targets(batch))["loss"]
                    torch.autograd.grad(loss, trained, allow_unused=True)
                except torch.OutOfMemoryError as error:
                    raise RuntimeError(
                        f"the longest batch does not fit into memory ({tuple(batch['input_ids'].shape)} tokens): lower "
                        "micro_batch (the global batch stays), set gradient_checkpointing, or launch with zero3"
                    ) from error

    def _with_targets(self, batch: dict) -> dict:
        """The model's arguments: targets on its device, in their own dtype; features of an online teacher."""
        device = self.args.device
        batch = {name: value.tensor.to(device) if isinstance(value, Target) else value for name, value in batch.items()}
        if pictures := batch.pop("pictures", None):
            with torch.no_grad():
                batch["teacher_features"] = self.teacher(pictures).to(device)
        return batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "pictures" in inputs and self.training_log is not None:
            with self.training_log.teacher_clock:
                inputs = self._with_targets(inputs)
        else:
            inputs = self._with_targets(inputs)
        losses = model(**inputs, totals=num_items_in_batch)
        for i, name in enumerate(LOSSES):
            if name in losses:
                self._sums[i] += losses[name].detach()
        loss = losses["loss"] * self.accelerator.num_processes  # ranks are averaged, these are parts of one mean
        return (loss, losses) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            *sums, pictured = self.accelerator.reduce(self._sums, "sum").tolist()
            pictured /= self.accelerator.num_processes
            logs["lm_loss"] = sums[0] / self._steps
            logs["vra_loss"] = sums[1] / pictured if self.model.align is not None and pictured else None
            names = ["loss", "lm_loss", "vra_loss"]
            if self.model.reconstruct is not None:
                logs["ross_loss"] = sums[2] / pictured if pictured else None
                names.append("ross_loss")
            self._sums.zero_()
            self._steps = 0
            step = self.state.global_step
            values = {name: logs.get(name) for name in (*names, "learning_rate", "grad_norm")}
            if self.training_log is not None:
                self.training_log.write(step, values, online_teacher=self.teacher is not None)
            check_finite(step, values)
        super().log(logs, start_time)


class _KeepRuns(TrainerCallback):
    """Saves `checkpoint-<step>` after each of `steps`."""

    def __init__(self, steps: set[int], save: Callable[[Path, int], None], folder: Path):
        self.steps, self.save, self.folder = steps, save, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.save(self.folder / f"checkpoint-{state.global_step}", state.global_step)
