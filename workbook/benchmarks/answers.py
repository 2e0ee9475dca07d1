"""Answer files: what a model said to a benchmark, appended as it says it.

The first line holds the settings under which the answers were made, every further line one answered row (without its
image) and the number of the sampled run.  A file is only ever continued under the same settings.  Every line ends in a
checksum of what stands before it, so that a damaged one is noticed.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from viral_core.files import json_line, read_lines, set_aside, write_text, writing

REMEDY = "remove the line (the whole file, if it is the first), and evaluate again"
Runs = list[list[dict]]  # answered rows of each run; greedy decoding has one


def settings(
    benchmark: str,
    rows: Sequence[Mapping],
    prompts: Sequence[str],
    *,
    model: str,
    template: str,
    max_new_tokens: int,
    protocol: Mapping | None = None,
    variant: str = "",
) -> dict:
    """All that answers depend on.  `protocol` is None for greedy decoding, else how it samples."""
    asked = json.dumps([[row["id"], row["category"], row["answer"], p] for row, p in zip(rows, prompts, strict=True)])
    return {
        "benchmark": benchmark,
        "model": model,
        "template": template,
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "protocol": dict(protocol) if protocol else "greedy",
        "variant": variant,
        "rows": len(rows),
        "runs": protocol["runs"] if protocol else 1,
    }


def continue_file(path: Path, wanted: Mapping) -> set[tuple[int, str]]:
    """Create the file, or cut off a half-written last line; returns (run, row id) of the answers that are there.

    A file that was made under other settings is set aside, with a warning that names them.
    """
    data = path.read_bytes() if path.is_file() else b""
    whole = data.rfind(b"\n") + 1
    if data[:whole].strip():
        there = _settings(path)
        other = [f"{k}: {there.get(k)!r} there, {wanted[k]!r} now" for k in wanted if there.get(k) != wanted[k]]
        if not other:
            if whole < len(data):
                os.truncate(path, whole)
            return {(i, row["id"]) for i, run in enumerate(read_answers(path)[1]) for row in run}
        place = set_aside(path, "other-settings")
        reason = f"made under other settings ({'; '.join(other)})"
        warnings.warn(f"{path} was {reason}, and is now {place.name}: asking again", stacklevel=2)
    write_text(path, json_line({"settings": wanted}))
    return set()


def append(path: Path, answered: Sequence[Mapping]) -> None:
    """Add answered rows, each with its `run` and `response`."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        for row in answered:
            file.write(json_line({k: v for k, v in row.items() if k != "image" or isinstance(v, str)}))


def read_answers(path: str | Path) -> tuple[dict, Runs]:
    """Settings and answered rows of each run, complete or not; ValueError: a damaged line, or a row answered twice."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}: evaluate the model on the benchmark first")
    settings = _settings(path)
    runs: Runs = [[] for _ in range(settings["runs"])]
    for row in read_lines(path, REMEDY)[1:]:
        runs[row["run"]].append(row)
    for run in runs:
        if len({row["id"] for row in run}) != len(run):
            raise ValueError(f"{path} holds a row twice: remove the file and evaluate again")
    return settings, runs


def _settings(path: Path) -> dict:
    first = read_lines(path, REMEDY, limit=1)
    if not first or set(first[0]) != {"settings"}:
        raise ValueError(f"{path} does not begin with settings: it is no answer file, or damaged; remove it")
    return first[0]["settings"]
