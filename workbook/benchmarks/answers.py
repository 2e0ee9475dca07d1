"""Answer files: what a model said to a benchmark, appended as it says it.

The first line holds the settings under which the answers were made, every further line one answered row (without its
image) and the number of the sampled run.  A file is only ever continued under the same settings.  Every line ends in a
checksum of what stands before it, so that a damaged one is noticed.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from viral_core.files import set_aside

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
        "limit": None,  # in earlier files the number of rows of a trial
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
    data = path.read_bytes() if path.is_file() else b""
    whole = data.rfind(b"\n") + 1
    if not data[:whole].strip():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_line({"settings": wanted}), encoding="utf-8")
        return set()
    if whole < len(data):
        os.truncate(path, whole)
    there, runs = read_answers(path)
    other = [f"{k}: {there.get(k)!r} there, {wanted[k]!r} now" for k in wanted if there.get(k) != wanted[k]]
    if other:
        raise ValueError(f"{path} holds answers made under other settings ({'; '.join(other)}): remove or rename it")
    return {(i, row["id"]) for i, run in enumerate(runs) for row in run}


def set_outdated_aside(path: Path, wanted: Mapping) -> None:
    """Rename the file where it was made under other settings, with a warning that says so."""
    if path.is_file() and path.read_bytes().strip() and _settings(path) != wanted:
        place = set_aside(path, "other-settings")
        warnings.warn(f"{path} was made under other settings, and is now {place.name}: asking again", stacklevel=2)


def append(path: Path, answered: Sequence[Mapping]) -> None:
    """Add answered rows, each with its `run` and `response`."""
    with path.open("a", encoding="utf-8") as file:
        for row in answered:
            file.write(_line({k: v for k, v in row.items() if k != "image" or isinstance(v, str)}))


def read_answers(path: str | Path) -> tuple[dict, Runs]:
    """Settings and answered rows of each run, complete or not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is damaged, or a row answered twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}: evaluate the model on the benchmark first")
    settings = _settings(path)
    runs: Runs = [[] for _ in range(settings["runs"])]
    for row in _lines(path)[1:]:
        runs[row["run"]].append(row)
    for run in runs:
        if len({row["id"] for row in run}) != len(run):
            raise ValueError(f"{path} holds a row twice: remove the file and evaluate again")
    return settings, runs


def _settings(path: Path) -> dict:
    first = _lines(path, 1)
    if not first or set(first[0]) != {"settings"}:
        raise ValueError(f"{path} does not begin with settings: it is no answer file, or damaged; remove it")
    return first[0]["settings"]


def _line(item: Mapping) -> str:
    """A line in ASCII, so that nothing in an answer looks like the end of a line; its last key is the checksum."""
    text = json.dumps(item)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def _lines(path: Path, limit: int | None = None) -> list[dict]:
    """What the lines hold.  Files of an earlier form have no checksums at all."""
    items: list[dict] = []
    sealed = False
    for number, line in enumerate(filter(None, path.read_bytes().split(b"\n")[:limit]), 1):
        try:
            item = json.loads(line)
            checksum = item.pop("crc32", None)
            sealed = sealed or (number == 1 and checksum is not None)
            if sealed and checksum != zlib.crc32(json.dumps(item).encode()):
                raise ValueError("its checksum differs")
        except (ValueError, AttributeError) as error:
            remedy = "remove the line (the whole file, if it is the first), and evaluate again"
            raise ValueError(f"{path}, line {number}: damaged ({error}); {remedy}") from error
        items.append(item)
    return items
