"""Resume states of a training: which one to go on from, and what becomes of those that do not serve.

A state is complete once every process has written its part; then it is marked, with the number of processes and the
checksum of every file. The newest undamaged one is taken; what does not serve is set aside.
"""

import hashlib
import json
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.checkpoints import read_json, write_json
from viral_core.conversations import Sample
from viral_core.files import set_aside, write_text
from viral_core.recipe import Recipe
from viral_core.tap import base_llava
from viral_core.templates import Template

COMPLETE = "complete"  # the mark of a state
# How a training is carried out, and not what it computes.
FREE = ("micro_batch", "gradient_checkpointing", "log_every", "save_every", "workers")


def settings(
    aligned: AlignedModel, samples: Sequence[Sample], recipe: Recipe, template: Template, sources: dict
) -> dict:
    """Everything a resume state depends on; data and initial projector by their hashes."""
    data, projector = hashlib.sha256(), hashlib.sha256()
    for sample in samples:
        data.update(repr((sample.id, sample.turns, sample.images, sample.targets)).encode(errors="backslashreplace"))
    llava = base_llava(aligned.llava)
    for p in llava.model.multi_modal_projector.parameters():
        projector.update(p.detach().float().cpu().numpy().tobytes())
    adapters = getattr(aligned.llava, "peft_config", {})
    content = {
        "recipe": {key: value for key, value in asdict(recipe).items() if key not in FREE},
        "template": asdict(template),
        "base": asdict(llava.base),
        "align": aligned.align and asdict(aligned.align),
        "residuals": [asdict(residual) for residual in aligned.residuals],
        "reconstruct": aligned.reconstruct and asdict(aligned.reconstruct),
        "lora": [(lora.r, lora.lora_alpha, lora.lora_dropout) for lora in adapters.values()],
        **sources,
        "data": data.hexdigest(),
        "projector": projector.hexdigest(),
    }
    return json.loads(json.dumps(content))


def resume_point(work: Path, current: dict) -> Path | None:
    """The newest undamaged state in `work`, prepared for `current` settings; ValueError if of other processes."""
    if distributed.is_main():
        _prepare(work, current)
    distributed.barrier()
    newest = max(_complete_states(work), key=step_of, default=None)
    if newest is None:
        return None
    before = read_json(newest / COMPLETE, "remove it")["processes"]
    if before != distributed.world_size():
        raise ValueError(
            f"{newest} is the state of {before} processes, and these are {distributed.world_size()}: go on with as many"
            f" (`launch` in the profile), or move {work} away to start over"
        )
    return newest


def _prepare(work: Path, current: dict) -> None:
    """Leave in `work` only what a training with these settings may go on from; the rest is set aside."""
    known, before = work / "settings.json", {}
    with suppress(OSError, ValueError):
        before = json.loads(known.read_text(encoding="utf-8"))
    if before != current and (before or _complete_states(work)):  # else killed before there was anything to go on from
        changed = sorted(key for key in current if before.get(key) != current[key])
        place = set_aside(work, "other-settings")
        warnings.warn(
            f"{work} held an interrupted run with other settings ({', '.join(changed)}): it lies in {place} now, and "
            "this one starts over",
            stacklevel=2,
        )
    write_text(known, json.dumps(current, indent=2))
    for state in sorted(_complete_states(work), key=step_of, reverse=True):
        fault = _fault(state)
        if fault is None:
            break
        place = set_aside(work, "damaged", [state])  # out of the folder that the trainer counts states in
        warnings.warn(f"{state}: {fault}; it lies in {place} now, and an older state is used", stacklevel=2)


def _complete_states(work: Path) -> list[Path]:
    return [path for path in (work / "state").glob("checkpoint-*") if (path / COMPLETE).is_file()]


def step_of(state: Path | None) -> int:
    """The optimiser step after which a state was written; 0 without a state."""
    return int(state.name.split("-")[1]) if state else 0


def _fault(state: Path) -> str | None:
    """What is wrong with a state; None if nothing is."""
    try:
        files = read_json(state / COMPLETE, "remove it")["files"]
        damaged = [name for name, expected in files.items() if zlib.crc32((state / name).read_bytes()) != expected]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return f"{damaged[0]} is damaged" if damaged else None


class MarkComplete(TrainerCallback):
    """Marks a resume state once every process has written its part of it."""

    def on_save(self, args, state, control, **kwargs):
        distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE]
            sums = {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}
            write_json(folder / COMPLETE, {"processes": distributed.world_size(), "files": sums})
