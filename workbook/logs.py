"""The logs that runs write themselves: VIRAL Section 5.7, Figure 6.

A trained run's folder holds `log.jsonl`, one JSON object per logging event: step, loss, lm_loss, vra_loss (null without
alignment), learning_rate and seconds (of training since its first step, interruptions not counted).
"""

import json
from pathlib import Path

import pandas as pd


def read_log(folder: Path) -> pd.DataFrame:
    """The log of a trained run's folder, one row per logging event.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an empty log, or a line that is not JSON, with its number.
    """
    file = folder / "log.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: train that run first")
    events = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number} is not JSON ({error}): train that run again") from error
    if not events:
        raise ValueError(f"{file} is empty: train that run again")
    return pd.DataFrame(events).apply(pd.to_numeric)
