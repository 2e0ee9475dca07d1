"""One pipeline at a time in a folder: who holds it, and what a killed DVC has left.

Stages hold the lock together, and so does `repro` for as long as it runs.  Selecting a profile needs it alone, so that
no command changes a pipeline that is under way.
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml

FILE = Path(".dvc/tmp/workbook.lock")


class LockedError(RuntimeError):
    """A pipeline is under way; the message says whose."""


@contextmanager
def shared() -> Iterator[None]:
    """For a stage: wait until no profile is being selected, and let none be until the stage ends."""
    with _open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(what: str) -> Iterator[Callable[[], None]]:
    """For selecting a profile: nothing else of the pipeline runs, until the function that this gives is called.

    That function lets stages take the lock, too, but none select a profile.

    Raises:
        LockedError: something of the pipeline runs.
    """
    with _open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "a stage, started by dvc"
            raise LockedError(f"a pipeline is under way here: {holder}. Wait for it, or end it first") from None
        file.truncate(0)
        print(f"{what}, process {os.getpid()} on {socket.gethostname()} since {datetime.now():%H:%M}", file=file)
        file.flush()
        try:
            yield lambda: fcntl.flock(file, fcntl.LOCK_SH)
        finally:
            file.truncate(0)


def _open():
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.touch()
    return FILE.open("r+", encoding="utf-8")


def mend() -> list[str]:
    """Put away what a killed DVC has left damaged, so that it goes on; what was done.  Only `alone`.

    Raises:
        LockedError: `dvc.lock` is damaged in a way that only a person can mend.
    """
    done = []
    running = Path(".dvc/tmp/rwlock")
    if running.is_file():
        try:
            json.loads(running.read_text(encoding="utf-8"))
        except ValueError:
            running.unlink()
            done.append(f"{running} was damaged and is removed: no stage runs")
    record = Path("dvc.lock")
    if record.is_file() and not record.read_bytes().strip():
        record.unlink()
        done.append(f"{record} was empty and is removed: stages are looked up in DVC's cache of runs, or run again")
    elif record.is_file():
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the file is long
        try:
            content = yaml.load(record.read_text(encoding="utf-8"), loader)
        except (yaml.YAMLError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict):
            raise LockedError(f"{record} is damaged: restore it (git checkout {record}) or delete it, then start again")
    return done
