"""Learning curves and the cost of training, from the logs that runs write themselves: VIRAL Section 5.7, Figure 6.

A trained run's folder holds `log.jsonl`, one JSON object per logging event: step, loss, lm_loss, vra_loss (null without
alignment), learning_rate, seconds (of training since its first step, interruptions not counted) and, where a teacher
runs online, teacher_seconds (the teacher's part of them).
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


def step_costs(logs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """What a training step costs, and what alignment adds to it ("about 3 %" in the paper).

    The time of a step is the median over the intervals between logging events, so that a checkpoint or a hiccup does
    not count; the first interval starts at the first event, after the warm-up of the machine.

    Args:
        logs: of trained runs, below each other, with columns run and seed; those of the baseline among them.
        baseline: the run that the others are compared with, seed by seed; the mean of its seeds where it lacks one.

    Returns:
        One row per run and seed: run, seed, steps, hours, step_seconds, teacher_share (of the time, NaN for a run that
        logs no teacher) and overhead (0.03 is 3 % more than the baseline).

    Raises:
        ValueError: the baseline is not among the runs, or a log has fewer than two events.
    """
    rows = []
    for (run, seed), log in logs.groupby(["run", "seed"], sort=False):
        if len(log) < 2:
            raise ValueError(f"{run}, seed {seed}: one logging event gives no time per step: log more often")
        last, spans = log.iloc[-1], log[["step", "seconds"]].diff().iloc[1:]
        rows.append(
            {
                "run": run,
                "seed": seed,
                "steps": last["step"],
                "hours": last["seconds"] / 3600,
                "step_seconds": (spans["seconds"] / spans["step"]).median(),
                "teacher_share": last.get("teacher_seconds", float("nan")) / last["seconds"],
            }
        )
    table = pd.DataFrame(rows)
    reference = table[table["run"] == baseline].set_index("seed")["step_seconds"]
    if reference.empty:
        raise ValueError(f"no run {baseline!r} among {sorted(set(table['run']))}: add its folder or name another")
    table["overhead"] = table["step_seconds"] / table["seed"].map(reference).fillna(reference.mean()) - 1
    return table
