"""Files that appear whole or not at all, and what is never deleted but set aside."""

import datetime
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacement(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; at the end it is flushed to the disk and takes the place of `path`."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, at once."""
    with replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def set_aside(path: Path, why: str) -> Path:
    """Give a file or folder a name that says when and why it was taken out of use; returns it."""
    when = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    place = path.with_name(f"{path.name}.{when}.{why}")
    number = 1
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}.{when}.{why}-{number}")
    shutil.move(path, place)
    return place
