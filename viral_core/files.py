"""Text files that others wrote, read where their form is clear; our own, whole or not at all; what is set aside."""

import datetime
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
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


def read_json(path: str | Path, text: str | None = None) -> object:
    """What a json file holds, or its `text`.  Errors as of `read_text`, and ValueError where it is not json."""
    try:
        return json.loads(read_text(path) if text is None else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json ({error}): create or download it again") from error


def read_entries(path: str | Path) -> list:
    """The entries of a json list, or of a file with one json object a line; ValueError names the line."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        return read_json(path, text)
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


# What Python, Rust and torch say of a disk that is full or read-only, of a quota, of a file that is forbidden.
DISK = re.compile(r"\[Errno (13|27|28|30|122)\]|os error (13|27|28|30|122)\b|PytorchStreamWriter|inline_container")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """OSError names what cannot be written (the disk is full or read-only, a quota), whichever library notices it."""
    try:
        yield
    except Exception as error:
        told = isinstance(error, ValueError) or str(error).startswith("cannot write")  # of a file that was read; before
        if DISK.search(str(error)) and not told:
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
        raise


@contextmanager
def replacement(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, in a folder that is made; at the end, flushed, it takes the place of `path`.

    After an error it is removed, and what was at `path` stays; errors as of `writing`.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to write to; at the end it takes the place of `path` and of what was there."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, at once."""
    with replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_line(entry: Mapping) -> str:
    """A line in ASCII, so that nothing in a text looks like the end of a line; its last key is a checksum."""
    text = json.dumps(entry)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def read_lines(path: str | Path, remedy: str, limit: int | None = None, unfinished: bool = False) -> list[dict]:
    """What lines of `json_line` hold, the first `limit` of them; files of an earlier form have no checksums at all.

    `unfinished` files are of a process that was killed: a last line without an end is left out. ValueError, with its
    number and the remedy, for a damaged line.
    """
    data, entries = Path(path).read_bytes(), []
    sealed = b', "crc32": ' in data
    *lines, last = data.split(b"\n")
    if last and not unfinished:
        lines.append(last)
    for number, line in enumerate(filter(None, lines[:limit]), 1):
        try:
            entry = json.loads(line)
            checksum = entry.pop("crc32", None)
            if sealed and checksum != zlib.crc32(json.dumps(entry).encode()):
                raise ValueError("its checksum differs")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: damaged ({error}); {remedy}") from error
        entries.append(entry)
    return entries


def set_aside(path: Path, why: str, parts: Sequence[Path] = ()) -> Path:
    """Give a file or folder a name that says when and why it was taken out of use; returns it.

    With `parts` of a folder, these alone are moved, into a folder of that name beside it.
    """
    place = path.with_name(f"{path.name}.{datetime.datetime.now():%Y-%m-%dT%H-%M-%S-%f}.{why}")
    if parts:
        place.mkdir()
    for part in parts or [path]:
        shutil.move(part, place)
    return place
