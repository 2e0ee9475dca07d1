"""What git keeps of a profile's runs, so that tables and figures are made again without a training.

`pack` adds an archive to `runs/<profile>/recorded/`: what evaluations, measurements and stage 1 have written since the
last one, the weights that notebooks load, what stages took (`costs.jsonl`), and the lock entries of all stages, which
say how they were made.  `unpack` puts back what is not there.  What many runs answer to the same questions takes little
room in one archive.
"""

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from viral_core.files import replacement, write_text
from workbook import lock, pipeline, runs, side_by_side
from workbook.paths import ROOT, Paths
from workbook.scale import costs

KEPT = ("stage1", "evaluate", "measure")


def pack(profile: str) -> Path | None:
    """Add an archive of what is there and in none yet, or has been made again since; None where there is nothing.

    Of what came out the same when it was made again the new entry alone.  ProfileError: no such profile.
    """
    folder, stages, weights, files = Paths(profile).recorded, lock.entries(), _weights(profile), []
    root, archives = Paths(profile).root, sorted(folder.glob("*.tar.xz"))
    held = {path for archive in archives for path in _paths(archive)}
    lacking = {out for out in weights if out / "run.json" not in held}  # a notebook loads them that did not before
    known = {name: entry for archive in archives for name, entry in _entries(archive).items()}
    known = {name: entry for name, entry in known.items() if lacking.isdisjoint(_outputs(entry))}
    same = {name for name, entry in known.items() if entry["outs"] == stages.get(name, {}).get("outs")}
    new = {
        name: entry
        for name, entry in stages.items()
        if name.partition("@")[0] in pipeline.KINDS
        and all(out.is_relative_to(root) for out in _outputs(entry))
        and entry != known.get(name)
        and (name in same or all(out.exists() for out in _outputs(entry)))
    }
    for name in side_by_side.modified(new.keys() - same):
        print(f"{name} is left out: its output is not what {lock.RECORD} records of it, finish it first (make repro)")
        del new[name]
    if not new:
        return None
    for name in new.keys() - same:
        for out in _outputs(new[name]):
            if name.startswith(KEPT) or out in weights:
                files += [path for path in out.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.name, path))  # answers to the same questions beside each other
    files += root.glob(costs.FILE)
    last = int(archives[-1].name.partition(".")[0]) if archives else 0
    archive = folder / f"{last + 1:03}.tar.xz"
    with replacement(archive) as temporary, tarfile.open(temporary, "w:xz") as tar:
        text = lock.text_of(new).encode()
        head = tarfile.TarInfo(str(lock.RECORD))
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        for path in files:
            tar.add(path)
    return archive


def unpack(profile: str) -> list[Path]:
    """Put back what is not there of what the archives hold, with its lock entries; the folders that were put back.

    Entries of what is there stay as they are; those of the notebooks in git come from `runs/<profile>/dvc.lock`.

    FileNotFoundError: the profile has no archives.
    """
    archives, back = sorted(Paths(profile).recorded.glob("*.tar.xz"), reverse=True), []
    if not archives:
        raise FileNotFoundError(f"{Paths(profile).recorded} holds no archives: nothing of this profile is recorded")
    archived, times = {}, Paths(profile).root / costs.FILE
    noted = times.read_text(encoding="utf-8").splitlines() if times.is_file() else []
    for archive in archives:  # what was made last comes first
        entries = _entries(archive)
        with tempfile.TemporaryDirectory(dir=Paths(profile).root) as temporary:
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
                tar.extractall(temporary)
            for out in (out for entry in entries.values() for out in _outputs(entry)):
                if (temporary / out).exists() and not out.exists():
                    out.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary / out, out)
                    back.append(out)
            if (packed := temporary / times).is_file():
                noted = packed.read_text(encoding="utf-8").splitlines() + noted
        archived = {**entries, **archived}
    content = {**archived, **lock.entries()}
    content |= {name: entry for name, entry in archived.items() if not set(back).isdisjoint(_outputs(entry))}
    if (committed := Paths(profile).root / lock.RECORD).is_file():  # of the notebooks whose results git holds
        content = {**lock.entries(committed.read_bytes()), **content}
    write_text(lock.RECORD, lock.text_of(content))
    if noted:
        write_text(times, "\n".join(dict.fromkeys(noted)) + "\n")
    return back


def _entries(archive: Path) -> dict[str, dict]:
    """The lock entries of the stages that an archive is of."""
    with tarfile.open(archive) as tar:
        return lock.entries(tar.extractfile(tar.next()).read())


def _paths(archive: Path) -> list[Path]:
    """The files that an archive holds."""
    with tarfile.open(archive) as tar:
        return [Path(name) for name in tar.getnames()]


def _outputs(entry: dict) -> Iterable[Path]:
    return (Path(out["path"]) for out in entry["outs"])


def _weights(profile: str) -> set[Path]:
    """Folders of the runs whose weights notebooks load, by what they depend on in `dvc.yaml`."""
    loaded = re.findall(r"\$\{weights\.([^}]+)\}", (ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return set(runs.trained(profile, loaded).values())
