"""Text files that others wrote: read where their form is clear, else an error that says what the file is.  No torch."""

import codecs
import json
from pathlib import Path

_BOMS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_OTHER = (  # what files are mistaken for text, by their first bytes
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
)


def read_text(path: str | Path, fallback: str | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        fallback: the encoding of a file that is not UTF-8, where only one is plausible (cp1252 for spreadsheets).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such text; says what it is.
    """
    data = Path(path).read_bytes()
    for start, what in _OTHER:
        if data[: len(start)].lower() == start.lower():
            raise ValueError(f"{path} is {what}")
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), None)
    if encoding is None and b"\0" in data[:100]:
        raise ValueError(f"{path} is binary, or UTF-16 without a byte order mark: save it as UTF-8")
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if fallback is not None and encoding is None:
            return data.decode(fallback)
        place = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"{path} is not {encoding or 'UTF-8'} ({place}; perhaps cp1252): save it as UTF-8") from error


def read_json(path: str | Path) -> object:
    """What a json file holds.  Errors as of `read_text`, and ValueError where it is not json."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json ({error}): create or download it again") from error


def read_entries(path: str | Path) -> list:
    """The entries of a json list, or of a file with one json object a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither; names the line.
    """
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
            kind = "the file must be a json list, or hold one object a line"
            message = f"{path}, line {number}: not json ({error}); {kind}: create or download it again"
            raise ValueError(message) from error
    return entries
