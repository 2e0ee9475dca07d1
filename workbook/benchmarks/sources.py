"""Reading official files and checking them before any model is loaded.

All that is wrong with a benchmark is collected and raised at once, so that a user mends a download in one go.  Each
benchmark states the columns of its file as a pydantic model, which is what finds missing and odd cells.
"""

import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from viral_core.images import DAMAGED, find_image, open_rgb, to_rgb

AGAIN = "download the file again"

Text = Annotated[str, Field(pattern=r"\S")]
Id = Annotated[str, Field(pattern=r"\S", coerce_numbers_to_str=True)]
# a parquet file's cell {"bytes": ..., "path": ...}, or a path
Photo = Annotated[object, BeforeValidator(lambda cell: cell.get("bytes") if isinstance(cell, dict) else cell)]


class Row(BaseModel):
    """What all rows have (see the package); a benchmark names the columns of its file by aliases, and adds its own."""

    id: Id
    image: Photo = None
    question: Text
    prompt: str = ""
    options: list[str] = []
    answer: Text
    group: str = ""
    category: str = ""


def require(path: Path, remedy: str) -> Path:
    """Return `path` if it exists, else raise FileNotFoundError with the remedy."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return path


def parquet_rows(folder: Path, pattern: str, photos: bool) -> Iterator[dict]:
    """Rows of a snapshot's parquet files with undecoded images, or without them; ValueError names another file."""
    import pyarrow
    from pyarrow import parquet

    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder / pattern} is missing: download the data set's repository to {folder}")
    for path in paths:
        try:
            columns = [name for name in parquet.read_schema(path).names if photos or name != "image"]
            table = parquet.read_table(path, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no readable parquet file ({error}): {AGAIN}") from error
        yield from table.to_pylist()


def validate(model: type[Row], entries: Iterable) -> tuple[list[dict], list[str]]:
    """The rows of entries that have all columns of the model, and the faults of the others, one of many rows once."""
    rows, wrong = [], defaultdict(list)
    for number, entry in enumerate(entries, 1):
        try:
            rows.append(model.model_validate(entry).model_dump())
        except ValidationError as error:
            for fault in error.errors():
                column = ".".join(map(str, fault["loc"])) or "the row"
                wrong[f"{column}: {fault['msg']}"].append(number)
    return rows, [f"row {numbers[0]}{_more(numbers)}: {text}; {AGAIN}" for text, numbers in wrong.items()]


def _more(rows: Sequence) -> str:
    return f" and {len(rows) - 1} more" if len(rows) > 1 else ""


def open_image(image: str | Path | bytes | Image.Image) -> Image.Image:
    """The RGB image of a row, given as a path, encoded bytes or a PIL image.  ValueError: it cannot be read."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    return open_rgb(io.BytesIO(image) if isinstance(image, bytes) else image)


def row_faults(
    rows: Sequence[dict], totals: Sequence[int], expected: Mapping, categories: Sequence[str], first: int | None
) -> Iterator[str]:
    """What is wrong with rows as a whole: repeated or missing ids, none of the `totals`, categories, answers.

    `expected`, `categories` and `first` are a benchmark's `expected` (of one file), `categories` and `first_id`.
    """
    for name, n in Counter(row["id"] for row in rows).items():
        if n > 1:
            yield f"row {name} occurs {n} times; {AGAIN}"
    if len(rows) not in totals:
        yield f"{len(rows)} rows instead of {' or '.join(map(str, totals))}; {AGAIN}"
    if first is not None:
        ids = {row["id"] for row in rows}
        last = first + max([t for t in totals if t <= len(rows)], default=min(totals))
        missing = [number for number in range(first, last) if str(number) not in ids]
        if missing:
            yield f"row {missing[0]}{_more(missing)} is missing; {AGAIN}"
    counts = Counter(row["category"] for row in rows)
    for category, n in expected.get("categories", {}).items():
        if counts[category] != n:
            yield f"{counts[category]} rows of category {category!r} instead of {n}; {AGAIN}"
    for row in rows:
        if row["category"] not in categories:
            yield f"row {row['id']}: unknown category {row['category']!r}; {AGAIN}"
        if row["answer"] is None:
            yield f"row {row['id']}: the answer is none of the options {list(row['options'])}; {AGAIN}"


def photo_faults(rows: Sequence[dict]) -> Iterator[str]:
    """The images that are missing or cannot be read; a file is looked at once, by another ending if need be."""
    faults: dict[str, str] = {}
    for row in rows:
        name = row["id"]
        if isinstance(row["image"], str):
            name = row["image"] = str(find_image(*os.path.split(row["image"])) or row["image"])
        if name not in faults:
            faults[name] = _image_fault(row["image"])
        if faults[name]:
            yield f"row {row['id']}: {faults[name]}; restore the image"


def _image_fault(image: str | bytes | None) -> str:
    """Why an image cannot be used, empty if it decodes (JPEG at reduced size, which reads the whole file)."""
    if image is None:
        return "no image"
    name, source = ("image", io.BytesIO(image)) if isinstance(image, bytes) else (f"image {image}", image)
    try:
        with Image.open(source) as opened:
            opened.draft("RGB", (32, 32))
            to_rgb(opened)
    except FileNotFoundError:
        return f"{name} is missing"
    except DAMAGED as error:
        return f"{name} cannot be read ({error})"
    return ""
