"""The logs that runs write themselves: VIRAL Section 5.7, Figure 6.

A trained run's folder holds `log.jsonl`, one JSON object per logging event: step, loss, lm_loss, vra_loss (null without
alignment), learning_rate and seconds (of training since its first step, interruptions not counted).
"""

from pathlib import Path

import pandas as pd

from viral_core.checkpoints import read_json
from viral_core.files import read_lines


def read_log(folder: Path) -> pd.DataFrame:
    """The log of a trained run's folder, one row per logging event.

    ValueError names a damaged line, or says that the log ends before the training.
    """
    file, run, remedy = folder / "log.jsonl", folder / "run.json", "train that run again"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: train that run first")
    events = read_lines(file, remedy)
    last = events[-1]["step"] if events else 0
    steps = read_json(run, remedy)["training"].get("step", last) if run.is_file() else last
    if not last or last != steps:
        raise ValueError(f"{file} ends at step {last}, before the training: {remedy}")
    return pd.DataFrame(events).apply(pd.to_numeric)
