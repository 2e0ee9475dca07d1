"""Bring a profile's models and data here where there is a network, and say what goes where in any case.

Downloads go on where they were interrupted, archives are unpacked file by file and removed, and what is there already
is not fetched again.  profiles/reference/sources.yaml lists the sources; `doctor` checks what has come of it.
"""

import hashlib
import json
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from workbook.paths import ROOT, RunPaths
from workbook.profile import Profile
from workbook.scale import doctor, estimates, hub
from workbook.schema import build, known

CHUNK = 2**20


@dataclass(frozen=True)
class Source:
    """One thing to bring: from a `url`, from a data set on the `hub`, or `by_hand`."""

    name: str
    to: str
    gb: float
    url: str | None = None
    hub: str | None = None
    files: list[str] = field(default_factory=list)
    by_hand: str | None = None
    unzip: bool = False
    strip: int = 0

    @property
    def origin(self) -> str:
        return self.url or self.by_hand or f"https://huggingface.co/datasets/{self.hub} ({', '.join(self.files)})"


def sources(profile: Profile) -> list[Source]:
    """What a profile's `data.downloads` names, with its paths."""
    listed, places = estimates.reference("sources"), asdict(profile.data)
    out = []
    for group in profile.data.downloads:
        known("group of downloads", group, listed, f"profiles/{profile.name}.yaml: data.downloads")
        for item in listed[group]:
            item = {**item, "to": item["to"].format(**places)}
            out.append(build(Source, item, f"sources.yaml: {item['name']}"))
    return out


def present(source: Source) -> bool:
    """Whether a source's file is there, or a folder with something in it that is not half unpacked."""
    path = ROOT / source.to
    if not source.unzip and not source.hub:
        return path.is_file()
    return path.is_dir() and any(path.iterdir()) and not _archive(source).exists() and not _mark(source).exists()


def missing(profile: Profile) -> list[Source]:
    """Sources that are not there yet."""
    return [source for source in sources(profile) if not present(source)]


def listing(profile: Profile) -> str:
    """Every source with where it comes from, where it goes and whether it is there."""
    lines = [f"Data of profile {profile.name}: put each where the arrow points (paths from the repository's root)."]
    for source in sources(profile):
        there = "there" if present(source) else f"missing, about {source.gb:g} GB"
        lines += [f"  {source.name}  [{there}]", f"    {source.origin}", f"    -> {source.to}{'/' * source.unzip}"]
    if not profile.data.downloads:
        lines.append("  nothing: the pipeline draws it" if profile.world else "  nothing is listed in data.downloads")
    return "\n".join(lines)


def run(profile: Profile) -> bool:
    """Fetch models and data; what fails or has to be done by hand is listed at the end.  True if all is there."""
    failed = []
    for model in doctor.hub_models(profile):
        pin = ROOT / RunPaths(profile.name).pin(model.path)
        try:
            commit = model.revision or hub.read_pin(pin) or hub.commit(model.path)
            hub.write_pin(pin, model.path, commit)
            if hub.snapshot(model.path, commit, getattr(model, "subfolder", "")) is None:
                print(f"model {model.path}@{commit[:8]}")
                hub.download(model.path, commit, subfolder=getattr(model, "subfolder", ""))
        except Exception as error:  # of whichever http library the hub's client uses
            failed.append(f"model {model.path}: {_reason(error)}")
    for source in missing(profile):
        if source.by_hand:
            failed.append(f"{source.name}: by hand, put {source.by_hand} at {source.to}")
            continue
        print(f"{source.name} -> {source.to}")
        try:
            bring(source)
        except Exception as error:
            failed.append(f"{source.name}: {_reason(error)}; get it from {source.origin} and put it at {source.to}")
    print("\n".join(["not there:", *(f"  {line}" for line in failed)]) if failed else "all there")
    return not failed


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def bring(source: Source) -> None:
    """Download a source to its place, and unpack it there.

    Raises:
        OSError: no access, or no such file.
        ValueError: an archive that is damaged; it is removed, so that the next call downloads it again.
    """
    target = ROOT / source.to
    if source.hub:
        target.mkdir(parents=True, exist_ok=True)
        _mark(source).touch()
        hub.download_dataset(source.hub, target, source.files)
        _mark(source).unlink()
        return
    archive = _archive(source) if source.unzip else target
    if not archive.exists():
        download(source.url, archive)
    if source.unzip:
        _unpack(archive, target, source.strip)
        with archive.open("rb") as whole:
            facts = {"url": source.url, "sha256": hashlib.file_digest(whole, "sha256").hexdigest()}
        archive.with_name(archive.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")
        archive.unlink()


def _archive(source: Source) -> Path:
    """Where the archive of a folder lies until it is unpacked: beside the folder."""
    target = ROOT / source.to
    return target.with_name(f"{target.name}.zip")


def _mark(source: Source) -> Path:
    """Exists while a data set of the hub is being downloaded."""
    target = ROOT / source.to
    return target.with_name(f"{target.name}.incomplete")


def download(url: str, file: Path) -> None:
    """Download to `file` through `<file>.part`, from where an earlier call has stopped."""
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    begin = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "viral-workbook"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: the part is the whole
            raise OSError(f"{url} answers {error.code} {error.reason}") from error
        answer = None
    if answer is not None:
        with answer, part.open("ab" if answer.status == 206 else "wb") as out:
            begin = begin if answer.status == 206 else 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = begin + length if length else None
            with tqdm(total=total, initial=begin, desc=file.name, unit="B", unit_scale=True) as bar:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise OSError(f"{url} broke off after {part.stat().st_size} of {total} bytes: call again to go on")
    part.rename(file)


def _unpack(archive: Path, folder: Path, strip: int) -> None:
    """Unpack a zip below `folder`, without `strip` leading folders; files that are there are left alone."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for member in tqdm(members, f"unpacking {archive.name}", unit="file"):
                parts = PurePosixPath(member.filename).parts
                if len(parts) <= strip or ".." in parts or parts[0] in ("/", "__MACOSX"):
                    continue
                target = folder.joinpath(*parts[strip:])
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(f"{archive.name} is damaged ({error}) and was removed: call again to download it") from error
