"""Every training image opened once, in parallel, before a GPU waits for it: what it is, or what is wrong with it.

A manifest is two files.  `<part>.json` is a summary that changes only with the content: a pipeline tracks it in place
of hundreds of thousands of images.  `<part>.images.jsonl` has one line per image with size, time and sha256, so that a
second start opens only what has changed since.  An interrupted pass goes on where it was.
"""

import hashlib
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from viral_core.conversations import check_conversations, describe_faults
from viral_core.files import read_entries, replacement, write_text
from viral_core.images import find_image
from workbook.scale.fetch import sha256

CONTENT = ("name", "file", "size", "sha256", "width", "height")  # of an image; with its time they are one line
WORKERS = 4 * (os.cpu_count() or 1)  # threads that read and decode: disks are slower than decoders


class FaultyEntriesError(ValueError):
    """Some entries of a json file, not all, have faults, or their images have."""


def write_manifest(conversations: Path, folder: Path, out: Path, drop_faulty: bool = False) -> dict:
    """Check a json file of conversations and all its images, and write the manifest `out`.

    `drop_faulty`: take faulty entries out of the json file; as it was it is kept beside it, as `<name>.original`.
    Returns the summary: counts, bytes, the sha256 of the json file and of all images together; and how many entries
    were `dropped`, which is not written.  FileNotFoundError: no json file or image folder.  FaultyEntriesError: faults
    of entries and images, all in one message, and all in full in `<part>.faults.jsonl`.  ValueError: no list of
    entries, or not a good one among them; then nothing is taken out.
    """
    checked = check_conversations(conversations, folder)
    samples, faults = checked.samples, checked.faults
    positions = [i for i in range(len(samples) + len(faults)) if i not in faults]
    names = list(dict.fromkeys(name for sample in samples for name in sample.images))
    out.parent.mkdir(parents=True, exist_ok=True)
    images, unreadable = _open_all(names, folder, out.with_suffix(".images.jsonl"))
    for position, sample in zip(positions, samples, strict=True):
        if broken := [unreadable[name] for name in sample.images if name in unreadable]:
            faults[position] = f"sample {sample.id}: {'; '.join(broken)}"
    positions = [position for position in positions if position not in faults]
    report = out.with_suffix(".faults.jsonl")
    report.unlink(missing_ok=True)
    if faults and (not positions or not drop_faulty):
        out.unlink(missing_ok=True)
        found = [{"position": position, "fault": faults[position]} for position in sorted(faults)]
        write_text(report, _lines(found))
        listed = describe_faults(conversations, [faults[position] for position in sorted(faults)])
        kind, more = (FaultyEntriesError, "") if positions else (ValueError, "; not one entry is good")
        raise kind(f"{listed}\n  (all of them: {report}{more})")
    if faults:
        good = [entry for position, entry in enumerate(read_entries(conversations)) if position not in faults]
        original = conversations.with_name(conversations.name + ".original")
        if not original.exists():
            with replacement(original) as temporary:
                shutil.copyfile(conversations, temporary)
        write_text(conversations, json.dumps(good))
        return {**write_manifest(conversations, folder, out), "dropped": len(faults)}
    digest = hashlib.sha256()
    for image in images:
        digest.update(json.dumps([image[key] for key in CONTENT]).encode())
    summary = {
        "conversations": str(conversations),
        "conversations_sha256": sha256(conversations),
        "samples": len(samples),
        "samples_with_images": sum(bool(sample.images) for sample in samples),
        "images": len(images),
        "bytes": sum(image["size"] for image in images),
        "under_another_suffix": sum(image["file"] != image["name"] for image in images),
        "adapted": dict(checked.adapted),
        "images_sha256": digest.hexdigest(),
    }
    text = json.dumps(summary, indent=2) + "\n"
    if not out.is_file() or out.read_text(encoding="utf-8") != text:  # a new time would have DVC read it again
        write_text(out, text)
    return {**summary, "dropped": 0}


def _lines(entries: list[dict]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _open_all(names: list[str], folder: Path, details: Path) -> tuple[list[dict], dict[str, str]]:
    """One line per image, in the order of `names`, and the faults of those that do not open, by name."""
    known, unreadable = _known(details), {}
    files = {name: find_image(folder, name) for name in names}
    states = {}
    for name, file in files.items():
        stat = file.stat()
        states[name] = {"file": str(file.relative_to(folder)), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    changed = [name for name in names if not states[name].items() <= known.get(name, {}).items()]
    if changed:
        with details.open("a", encoding="utf-8") as out, ThreadPoolExecutor(WORKERS) as pool:
            contents = pool.map(_look, [files[name] for name in changed])
            progress = tqdm(contents, "opening images", len(changed), unit="image")
            for name, content in zip(changed, progress, strict=True):
                if isinstance(content, str):
                    unreadable[name] = content
                    continue
                known[name] = {"name": name, **states[name], **content}
                out.write(json.dumps(known[name]) + "\n")
        write_text(details, _lines([known[name] for name in names if name in known]))
    return [known[name] for name in names if name not in unreadable], unreadable


def _known(details: Path) -> dict[str, dict]:
    """Lines of an earlier pass, by name; the last one of an interrupted pass may be cut off."""
    known = {}
    for line in details.read_text(encoding="utf-8").splitlines() if details.is_file() else ():
        try:
            image = json.loads(line)
        except ValueError:
            continue
        known[image["name"]] = image
    return known


def _look(file: Path) -> dict | str:
    """Sha256 and shape of an image file that decodes to its end; else what is wrong with it."""
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            image.draft("RGB", (32, 32))  # JPEG at reduced size: as thorough, and faster
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds; whatever it is becomes a listed fault
        return f"image {file} cannot be read ({error})"
    return {"sha256": hashlib.sha256(data).hexdigest(), "width": width, "height": height}
