"""What stages cost: their wall time, noted beside the results as they run.

`runs/<profile>/costs.jsonl` has one line per run of a stage: stage, key, began (UTC), seconds, done (false if it failed
or was interrupted).  It is no output of a stage: DVC leaves it alone, and a stage that runs again adds to it.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

FILE = "costs.jsonl"


@contextmanager
def timed(folder: str | Path, stage: str, key: str) -> Iterator[None]:
    """Time a stage and note it in `folder`, the results of its profile; of several processes the first one does."""
    if int(os.environ.get("RANK", 0)):
        yield
        return
    start, done = time.monotonic(), False
    try:
        yield
        done = True
    finally:
        note(folder, stage, key, time.monotonic() - start, done)


def note(folder: str | Path, stage: str, key: str, seconds: float, done: bool = True) -> None:
    """Note a stage that has just ended."""
    began = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="seconds")
    line = {"stage": stage, "key": key, "began": began, "seconds": round(seconds, 3), "done": done}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_costs(folder: str | Path) -> list[dict]:
    """Each stage as it last finished, attempts that it continued included: stage, key, began, ended, its seconds."""
    file = Path(folder) / FILE
    finished: dict[tuple[str, str], dict] = {}
    attempts: dict[tuple[str, str], dict] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # half a line, of a full disk; of times nothing else depends
            continue
        name, began = (entry["stage"], entry["key"]), datetime.fromisoformat(entry["began"])
        cost = attempts.setdefault(name, {"stage": name[0], "key": name[1], "began": began, "seconds": 0.0})
        cost["seconds"] += entry["seconds"]
        if entry["done"]:
            finished[name] = attempts.pop(name) | {"ended": began + timedelta(seconds=entry["seconds"])}
    return list(finished.values())
