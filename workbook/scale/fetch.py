"""Bring a profile's models and data here where there is a network, and say what goes where in any case.

Downloads go on where they were interrupted, what comes is compared with its checksum, archives are unpacked file by
file and removed, and what is there already is not fetched again.  profiles/reference/sources.yaml lists the sources;
`doctor` checks what has come of it.  Paths are relative to the repository's root, where the commands run.
"""

import hashlib
import json
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml
from tqdm import tqdm

from workbook.config import Profile, ProfileError, known, validate
from workbook.paths import ROOT
from workbook.scale import hub

CHUNK = 2**20


@dataclass(frozen=True)
class Source:
    """One thing to bring: from a `url`, from a data set on the `hub` at a commit, or `by_hand`."""

    name: str
    to: str
    gb: float
    url: str | None = None
    sha256: str | None = None  # of what the url gives
    hub: str | None = None
    revision: str | None = None
    files: list[str] = field(default_factory=list)
    by_hand: str | None = None
    unzip: bool = False
    strip: int = 0

    @property
    def origin(self) -> str:
        return self.url or self.by_hand or f"{hub.page(self.hub, self.revision)} ({', '.join(self.files)})"

    @property
    def archive(self) -> Path:
        """Where the archive of a folder lies until it is unpacked: beside the folder."""
        return Path(f"{self.to}.zip")

    @property
    def incomplete(self) -> Path:
        """Exists while a data set of the hub is being downloaded."""
        return Path(f"{self.to}.incomplete")

    @property
    def present(self) -> bool:
        """Whether a file is there, or a folder with something in it that is not half unpacked."""
        path = Path(self.to)
        if not self.unzip and not self.hub:
            return path.is_file()
        unfinished = self.archive.exists() or self.incomplete.exists()
        return path.is_dir() and any(path.iterdir()) and not unfinished


def sources(profile: Profile) -> list[Source]:
    """What a profile's `data.downloads` names, with its paths."""
    file = ROOT / profile.data.sources
    if not file.is_file():
        raise ProfileError(f"profiles/{profile.name}.yaml: data.sources: there is no {profile.data.sources}")
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))
    out = []
    for group in profile.data.downloads:
        known("group of downloads", group, groups, f"profiles/{profile.name}.yaml: data.downloads")
        for entry in groups[group]:
            entry = {**entry, "to": entry["to"].format(**dict(profile.data))}
            out.append(validate(Source, entry, f"sources.yaml: {entry['name']}"))
    return out


def listing(profile: Profile) -> str:
    """Every source with where it comes from, where it goes and whether it is there."""
    lines = [f"Data of profile {profile.name}: put each where the arrow points (paths from the repository's root)."]
    for source in sources(profile):
        status = "there" if source.present else f"missing, about {source.gb:g} GB"
        lines.append(f"  {source.name}  [{status}]")
        lines.append(f"    {source.origin}")
        lines.append(f"    -> {source.to}{'/' if source.unzip else ''}")
    if not profile.data.downloads:
        lines.append("  nothing: the pipeline draws it" if profile.world else "  nothing is listed in data.downloads")
    return "\n".join(lines)


def run(profile: Profile) -> bool:
    """Fetch models and data; what fails or has to be done by hand is listed at the end.  True if all is there."""
    failures = []
    for model in hub.models(profile):
        subfolder = getattr(model, "subfolder", "")
        try:
            if hub.snapshot(model.path, model.revision, subfolder) is None:
                print(f"model {model.path}@{model.revision[:8]}")
                hub.download(model.path, model.revision, subfolder)
        except Exception as error:  # of whichever http library the hub's client uses
            failures.append(f"model {model.path}: {hub.first_line(error)}")
    for source in sources(profile):
        if source.present:
            continue
        if source.by_hand:
            failures.append(f"{source.name}: by hand, put {source.by_hand} at {source.to}")
            continue
        print(f"{source.name} -> {source.to}")
        try:
            bring(source)
        except Exception as error:
            reason = f"{source.name}: {hub.first_line(error)}"
            failures.append(f"{reason}; get it from {source.origin} and put it at {source.to}")
    print("\n  ".join(["not there:", *failures]) if failures else "all there")
    return not failures


def bring(source: Source) -> None:
    """Download a source to its place, and unpack it there.

    Raises:
        OSError: no access, or no such file.
        ValueError: a file with another checksum, or a damaged archive; it is removed, so that the next call downloads
            it again.
    """
    target = Path(source.to)
    if source.hub:
        target.mkdir(parents=True, exist_ok=True)
        source.incomplete.touch()
        hub.download_dataset(source.hub, source.revision, target, source.files)
        source.incomplete.unlink()
        return
    if not source.unzip:
        download(source.url, target, source.sha256 or hub.checksum(source.url))
        return
    if not source.archive.exists():
        download(source.url, source.archive, source.sha256 or hub.checksum(source.url))
    _unpack(source.archive, target, source.strip)
    record = {"url": source.url, "sha256": sha256(source.archive)}
    text = json.dumps(record, indent=2) + "\n"
    source.archive.with_name(f"{source.archive.name}.json").write_text(text, encoding="utf-8")
    source.archive.unlink()


def download(url: str, file: Path, checksum: str | None = None) -> None:
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
    else:
        _receive(answer, part, begin if answer.status == 206 else 0)
    received = sha256(part)
    if received != (checksum or received):
        part.unlink()
        raise ValueError(f"{url} has sha256 {received}, not {checksum}: it was removed, call again to download it")
    part.rename(file)


def _receive(answer, part: Path, begin: int) -> None:
    """Write what a server sends from byte `begin` on."""
    length = answer.headers.get("Content-Length")
    total = begin + int(length) if length else None
    bar = tqdm(total=total, initial=begin, desc=part.stem, unit="B", unit_scale=True)
    with answer, bar, part.open("ab" if begin else "wb") as out:
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{answer.url} broke off after {part.stat().st_size} of {total} bytes: call again to go on")


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


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
