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
    """Each stage as it last finished: stage, key, began, ended, seconds.

    Seconds of attempts that it continued are among its own, and it began so many before it ended: the pauses between
    them are left out.
    """
    file = Path(folder) / FILE
    finished: dict[tuple[str, str], dict] = {}
    seconds: dict[tuple[str, str], float] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # half a line, of a full disk; of times nothing else depends
            continue
        name = entry["stage"], entry["key"]
        seconds[name] = seconds.get(name, 0.0) + entry["seconds"]
        if entry["done"]:
            ended = datetime.fromisoformat(entry["began"]) + timedelta(seconds=entry["seconds"])
            took = seconds.pop(name)
            times = {"began": ended - timedelta(seconds=took), "ended": ended, "seconds": took}
            finished[name] = {"stage": name[0], "key": name[1], **times}
    return list(finished.values())
