"""Text files that others wrote, read where their form is clear; our own, whole or not at all; what is set aside."""

import datetime
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_OTHER = (  # what files are mistaken for text, by their first bytes
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
)


def read_text(path: str | Path, fallback: str | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; ValueError says what another file is.

    `fallback`: the encoding of a file that is not UTF-8, where only one is plausible (cp1252 for spreadsheets).
    """
    data = Path(path).read_bytes()
    for start, what in _OTHER:
        if data[: len(start)].lower() == start.lower():
            raise ValueError(f"{path} is {what}")
    encoding = json.detect_encoding(data)  # by its byte order mark
    if b"\0" in data[:100] and encoding not in ("utf-16", "utf-32"):
        raise ValueError(f"{path} is binary, or UTF-16 without a byte order mark: save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if fallback is not None and encoding == "utf-8":
            return data.decode(fallback)
        place = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"{path} is not {encoding.upper()} ({place}; perhaps cp1252): save it as UTF-8") from error


def read_json(path: str | Path) -> object:
    """What a json file holds.  Errors as of `read_text`, and ValueError where it is not json."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json ({error}): create or download it again") from error


def read_entries(path: str | Path) -> list:
    """The entries of a json list, or of a file with one json object a line; ValueError names the line."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        return read_json(path)
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            form = "it must be a json list, or hold one object a line: create or download it again"
            raise ValueError(f"{path}, line {number}: not json ({error}); {form}") from error
    return entries


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


def set_aside(path: Path, why: str, parts: Sequence[Path] = ()) -> Path:
    """Give a file or folder a name that says when and why it was taken out of use; returns it.

    With `parts` of a folder, these alone are moved, into a folder of that name beside it.
    """
    name = f"{path.name}.{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}.{why}"
    place, number = path.with_name(name), 1
    while place.exists():
        number += 1
        place = path.with_name(f"{name}-{number}")
    if parts:
        place.mkdir()
    for part in parts or [path]:
        shutil.move(part, place)
    return place
