"""What a training writes down: losses and times, one json object per logging step, and the progress bar."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

LOG = "log.jsonl"
LOSSES = ("lm_loss", "vra_loss", "ross_loss")


def read_log(file: Path, until: int | None = None) -> list[dict]:
    """Entries of a log, up to step `until`; half a last line, of a run that was killed, is left out.

    Raises:
        ValueError: another line that is not json, with file and number.
    """
    entries = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}, is damaged ({error}): remove that line") from error
    return [entry for entry in entries if until is None or entry["step"] <= until]


class TrainingLog:
    """A log file that a resumed training goes on with, from the step of its state."""

    def __init__(self, file: Path, start: int, device: torch.device):
        self.file, self.teacher_clock = file, Clock(device)
        entries = read_log(file, start)
        last = entries[-1] if entries else {}
        self._began = time.monotonic() - last.get("seconds", 0.0)
        self._teacher_before = last.get("teacher_seconds", 0.0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    def write(self, step: int, values: dict, online_teacher: bool) -> None:
        """Append one entry, with the seconds since the start of the training."""
        entry = {"step": step, **values, "seconds": round(time.monotonic() - self._began, 3)}
        if online_teacher:
            entry["teacher_seconds"] = round(self._teacher_before + self.teacher_clock.seconds(), 3)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def check_finite(step: int, values: dict) -> None:
    """Raise FloatingPointError if a loss is not finite."""
    losses = {key: value for key, value in values.items() if key.endswith("loss") and value is not None}
    if not all(map(math.isfinite, losses.values())):
        raise FloatingPointError(f"step {step}: the loss is not finite ({losses}): lower the learning rate")


class Clock:
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


class Progress(ProgressCallback):
    """The usual bar, with the losses beside it and not above."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "lm_loss" in (logs or {}):
            shown = {key: f"{logs[key]:.3f}" for key in LOSSES if logs.get(key) is not None}
            self.training_bar.set_postfix(shown)


class LogLast(TrainerCallback):
    """Logs the last step, so that its loss is checked before anything is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps
