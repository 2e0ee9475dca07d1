"""Reading official files and checking them before any model is loaded.

Every loader collects all that is wrong in `Faults` and raises once, so that a user mends a download in one go.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas
from PIL import Image

LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
_LISTED = 50  # faults shown in full by one error message


class Faults:
    """What is wrong with one benchmark's files: where, what, and what to do about it."""

    def __init__(self, benchmark: str):
        self.benchmark = benchmark
        self.found: list[str] = []

    def add(self, where: object, what: str, remedy: str) -> None:
        self.found.append(f"{where}: {what}; {remedy}")

    def raise_if_any(self) -> None:
        """Raises ValueError with the list of faults, if there are any."""
        if self.found:
            shown = "\n  ".join(self.found[:_LISTED])
            more = f"\n  ... and {len(self.found) - _LISTED} more" if len(self.found) > _LISTED else ""
            raise ValueError(f"benchmark {self.benchmark}: {len(self.found)} faults\n  {shown}{more}")


def require(path: Path, remedy: str) -> Path:
    """Return `path` if it exists, else raise FileNotFoundError with the remedy."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return path


def json_lines(path: Path) -> Iterator[dict]:
    """The objects of a file with one json object a line; ValueError names the line that is none."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not json ({error}); download the file again") from error


def parquet_rows(source: Path | str, files: str, hub: str | None, config: str | None, split: str) -> list[dict]:
    """Rows of a Hugging Face data set with undecoded images.

    Args:
        source: local snapshot; its parquet files match the pattern `files`.
        hub: read with `datasets` instead: a hub id, or a mirror folder of the repository with its README.md.
    """
    if hub:
        import datasets

        data = datasets.load_dataset(str(hub), config, split=split)
        return data.cast_column("image", datasets.Image(decode=False)).to_list()
    paths = sorted(Path(source).glob(files))
    if not paths:
        raise FileNotFoundError(f"{Path(source) / files} is missing: download the data set's repository to {source}")
    return [row for path in paths for row in pandas.read_parquet(path).to_dict("records")]


def open_image(image: str | Path | bytes | Image.Image) -> Image.Image:
    """The RGB image of a row, given as a path, encoded bytes or a PIL image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        return opened.convert("RGB")


def image_fault(image: str | Path | bytes | None) -> str | None:
    """Why an image cannot be used, None if it decodes (JPEG at reduced size, which reads the whole file)."""
    if image is None:
        return "no image"
    if isinstance(image, str | Path) and not Path(image).is_file():
        return f"image {image} is missing"
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            opened.draft("RGB", (32, 32))
            opened.load()
    except Exception as error:  # Pillow's decoders raise many kinds; whatever it is becomes a listed fault
        return f"image {'' if isinstance(image, bytes) else image} cannot be read ({error})"
    return None


def embedded_bytes(image: object) -> bytes | None:
    """The bytes of a parquet image cell, None where it holds none."""
    return image.get("bytes") if isinstance(image, Mapping) else image


def check(rows: Sequence[dict], expected: Mapping, file: object, faults: Faults, first: int | None = None) -> None:
    """Add what is wrong with rows: repeated or missing ids, totals, categories, answers, images.

    Args:
        expected: `rows`, a total or a tuple of admitted totals; optionally `categories`, a total for each category.
        first: where given, ids are numbers that run from here without a gap.
    """
    again = "download the file again"
    for name, n in Counter(row["id"] for row in rows).items():
        if n > 1:
            faults.add(file, f"row {name} occurs {n} times", again)
    totals = expected["rows"] if isinstance(expected["rows"], tuple | list) else (expected["rows"],)
    if len(rows) not in totals:
        faults.add(file, f"{len(rows)} rows instead of {' or '.join(map(str, totals))}", again)
    if first is not None:
        ids = {row["id"] for row in rows}
        last = first + max([t for t in totals if t <= len(rows)], default=min(totals))
        for number in range(first, last):
            if str(number) not in ids:
                faults.add(file, f"row {number} is missing", again)
    counts = Counter(row["category"] for row in rows)
    for category, n in expected.get("categories", {}).items():
        if counts[category] != n:
            faults.add(file, f"{counts[category]} rows of category {category!r} instead of {n}", again)
    checked: dict[object, str | None] = {}
    for row in rows:
        if row["answer"] is None:
            faults.add(file, f"row {row['id']}: the answer is none of the options {list(row['options'])}", again)
        key = row["image"] if isinstance(row["image"], str) else row["id"]
        if key not in checked:
            checked[key] = image_fault(row["image"])
        if checked[key]:
            faults.add(file, f"row {row['id']}: {checked[key]}", "restore the image")
