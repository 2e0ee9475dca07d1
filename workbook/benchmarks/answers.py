"""Answer files: what a model said to a benchmark, appended as it says it.

The first line holds the settings under which the answers were made, every further line one answered row (without its
image) and the number of the sampled run.  A file is only ever continued under the same settings.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

Runs = list[list[dict]]  # answered rows of each run; greedy decoding has one


def settings(
    benchmark: str,
    rows: Sequence[Mapping],
    *,
    model: str,
    template: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    protocol: Mapping | None = None,
    limit: int | None = None,
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
        "limit": limit,
        "variant": variant,
        "rows": len(rows),
        "runs": protocol["runs"] if protocol else 1,
    }


def continue_file(path: Path, wanted: Mapping) -> set[tuple[int, str]]:
    """Create the file, or check that it may be continued and cut off a half-written last line.

    Returns:
        (run, row id) of the answers that are there.

    Raises:
        ValueError: the file was made under other settings; names them.
    """
    if not path.is_file() or not path.read_bytes().strip():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": wanted}) + "\n", encoding="utf-8")
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    if not whole:
        return continue_file(path, wanted)
    found, runs = read_answers(path)
    other = [f"{k}: {found.get(k)!r} there, {wanted[k]!r} now" for k in wanted if found.get(k) != wanted[k]]
    if other:
        raise ValueError(f"{path} holds answers made under other settings ({'; '.join(other)}): remove or rename it")
    return {(i, row["id"]) for i, run in enumerate(runs) for row in run}


def remove_outdated(path: Path, wanted: Mapping) -> None:
    """Remove the file and its parts where they were made under other settings, with a warning that says so."""
    for file in (path, *path.parent.glob(f"{path.name}.part-*")):
        first = file.read_text(encoding="utf-8").partition("\n")[0] if file.is_file() else ""
        if first and json.loads(first).get("settings") != wanted:
            warnings.warn(f"{file} holds answers made under other settings: asking again", stacklevel=2)
            file.unlink()


def part_file(path: Path, rank: int) -> Path:
    """Where one of several processes appends its answers to `path`."""
    return path.with_name(f"{path.name}.part-{rank:04d}")


def merge_parts(path: Path, wanted: Mapping, order: Sequence[str]) -> None:
    """Move what the part files hold into `path`, its rows in `order` of their ids, run by run; parts are removed.

    Interrupted and called again, it goes on: a row that is in several files is kept once.

    Raises:
        ValueError: a file was made under other settings.
    """
    parts = sorted(path.parent.glob(f"{path.name}.part-*"))
    if not parts:
        return
    rows = {}
    for file in (path, *parts):
        continue_file(file, wanted)
        rows |= {(row["run"], row["id"]): row for run in read_answers(file)[1] for row in run}
    place = {name: i for i, name in enumerate(order)}
    temporary = path.with_name(f"{path.name}.merging")
    temporary.unlink(missing_ok=True)
    continue_file(temporary, wanted)
    append(temporary, [rows[key] for key in sorted(rows, key=lambda key: (key[0], place[key[1]]))])
    os.replace(temporary, path)
    for part in parts:
        part.unlink()


def append(path: Path, answered: Sequence[Mapping]) -> None:
    """Add answered rows, each with its `run` and `response`."""
    with path.open("a", encoding="utf-8") as file:
        for row in answered:
            kept = {k: v for k, v in row.items() if k != "image" or isinstance(v, str)}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def read_answers(path: str | Path) -> tuple[dict, Runs]:
    """Settings and answered rows of each run, complete or not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that cannot be read, or a row answered twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}: evaluate the model on the benchmark first")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: cannot be read ({error}); remove the file") from error
    if not rows or "settings" not in rows[0]:
        raise ValueError(f"{path} does not begin with settings: it is no answer file")
    runs: Runs = [[] for _ in range(rows[0]["settings"]["runs"])]
    for row in rows[1:]:
        runs[row["run"]].append(row)
    for run in runs:
        if len({row["id"] for row in run}) != len(run):
            raise ValueError(f"{path} holds a row twice: remove the file and evaluate again")
    return rows[0]["settings"], runs
