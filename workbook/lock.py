"""One pipeline at a time in a folder: who holds it, what DVC records of it, and what a killed DVC has left.

Stages hold the lock together, and so does `repro` for as long as it runs.  Selecting a profile needs it alone, so that
no command changes a pipeline that is under way.

For every stage DVC reads all of `dvc.lock` and writes it anew, one DVC at a time; with hundreds of stages that takes
longer than some of them do.  While `repro` runs, the file holds little, and `WHOLE` what has been recorded besides.
"""

import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil
import yaml

from viral_core.files import write_text

FILE = Path(".dvc/tmp/workbook.lock")
RECORD = Path("dvc.lock")
WHOLE = FILE.with_name("whole.lock")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # in C, for dvc.lock is long
    pass


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    pass


for kind in (Loader, Dumper):  # DVC writes YAML 1.2, where these are numbers too, and a sum of such digits is quoted
    kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class LockedError(RuntimeError):
    """A pipeline is under way; the message says whose."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """For a stage: wait until no profile is being selected, and let none be until the stage ends.

    LockedError if another process runs it, such as one that has outlived its starter, and none that shares it.
    """
    with _open(FILE) as file, _open(FILE.with_name(f"{name}.lock")) as own:
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.environ.get("RANK", "0") == "0" and (holder := _take(own, str(os.getpid()))):
            raise LockedError(f"{name} is being run by process {holder}: wait for it, or end it first")
        yield


@contextmanager
def alone(what: str) -> Iterator[Callable[[], int]]:
    """For selecting a profile: nothing else of the pipeline runs, until the function that this gives is called.

    What a killed DVC has left is put in order first (`mend`), and said.
    That function lets stages take the lock, too, but none select a profile; it returns the file that processes inherit
    which are to hold it as long as they live.  LockedError: something of the pipeline runs.
    """
    with _open(FILE) as file:
        own = f"{what}, process {os.getpid()} on {socket.gethostname()} since {datetime.now():%H:%M}"
        if holder := _take(file, own):
            known = re.search(r"process (\d+) on (\S+)", holder)
            if known and known[2] == socket.gethostname() and not psutil.pid_exists(int(known[1])):
                holder += " (it was killed, and its stages live on)"
            raise LockedError(f"a pipeline is under way here: {holder}. Wait for it, or end it first")

        def share() -> int:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.fileno()

        try:
            for line in mend():
                print(line)
            yield share
        finally:
            file.truncate(0)


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path.open("r+", encoding="utf-8")


def _take(file: TextIO, own: str) -> str:
    """Lock a file for this process, and write `own` into it; or say who has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return file.read().strip() or "a stage, started by dvc"
    file.truncate(0)
    print(own, file=file, flush=True)
    return ""


def entries(text: str | bytes | None = None) -> dict[str, dict]:
    """What DVC has recorded of each stage, by name: of the text of a lock file, or here."""
    if text is not None:
        return yaml.load(text, Loader=Loader).get("stages", {})
    files = [file for file in (WHOLE, RECORD) if file.is_file()]
    return {name: entry for file in files for name, entry in entries(file.read_bytes()).items()}


def text_of(stages: dict[str, dict]) -> str:
    """The text of a lock file that holds these entries."""
    content = {"schema": "2.0"} | ({"stages": stages} if stages else {})
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=False)


def shorten(pending: Iterable[str]) -> None:
    """Take out of `dvc.lock` what DVC does not ask for while it runs the `pending` stages, unless a DVC is busy.

    That is all but the entries of those of them whose outputs are there: by these it sees that nothing has changed.
    """
    with suppress(LockedError), _dvc_waits():
        whole = entries()
        write_text(WHOLE, text_of(whole))
        asked = {name: whole[name] for name in pending if name in whole}
        write_text(RECORD, text_of({name: entry for name, entry in asked.items() if _is_there(entry)}))


def join() -> None:
    """Put back into `dvc.lock` what `shorten` has taken out; LockedError if a DVC is busy."""
    if WHOLE.is_file():
        with _dvc_waits():
            write_text(RECORD, text_of(entries()))
            WHOLE.unlink()


@contextmanager
def _dvc_waits() -> Iterator[None]:
    """Hold DVC's own lock, in which it reads and writes `dvc.lock`; LockedError if a DVC keeps it for seconds."""
    from dvc.lock import LockError  # not for every stage: it takes a second
    from dvc.repo import Repo

    held = Repo().lock
    try:
        held.lock()
    except LockError as error:
        raise LockedError(f"a DVC is busy here, and {RECORD} is not whole: wait for it, and start again") from error
    try:
        yield
    finally:
        held.unlock()


def _is_there(entry: dict) -> bool:
    return all(Path(out["path"]).exists() for out in entry["outs"])


def mend() -> list[str]:
    """Put away what a killed DVC has left damaged, so that it goes on; what was done.  Only `alone`.

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
    if RECORD.is_file():
        try:
            content = yaml.load(RECORD.read_text(encoding="utf-8"), Loader=Loader)
        except (yaml.YAMLError, UnicodeDecodeError):
            content = "damaged"
        if content is None or (not isinstance(content, dict) and WHOLE.is_file()):
            RECORD.unlink()
            fault = "empty" if content is None else "damaged"
            then = "stages are looked up in DVC's cache of runs, or run again"
            done.append(f"{RECORD} was {fault} and is removed: {then}")
        elif not isinstance(content, dict):
            raise LockedError(f"{RECORD} is damaged: restore it (git checkout {RECORD}) or delete it, then start again")
    join()
    return done
