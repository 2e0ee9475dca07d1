"""Bring a profile's models and data here where there is a network, and say what goes where in any case.

Downloads go on where they were interrupted, what comes is compared with its checksum, archives are unpacked file by
file and removed, and what is there already is not fetched again.  profiles/reference/sources.yaml lists the sources;
`doctor` checks what has come of it.  Paths are relative to the repository's root, where the commands run.
"""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import yaml
from huggingface_hub import constants, file_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm import tqdm

from workbook.config import validate
from workbook.paths import ROOT
from workbook.scale import hub
from workbook.scale.estimates import reference
from workbook.sections import Profile, ProfileError, check_keys, known


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
        page = f"https://huggingface.co/datasets/{self.hub}/tree/{self.revision} ({', '.join(self.files)})"
        return self.url or self.by_hand or page

    @property
    def unfinished(self) -> Path:
        """Lies beside a folder that is not whole yet: its archive, or a mark of a download from the hub."""
        return Path(f"{self.to}.zip" if self.unzip else f"{self.to}.incomplete")

    @property
    def present(self) -> bool:
        """Whether a file is there, or a whole folder."""
        path = Path(self.to)
        if self.unzip or self.hub:
            return path.is_dir() and any(path.iterdir()) and not self.unfinished.exists()
        return path.is_file()


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
            where = f"{profile.data.sources}: {entry.get('name', group)}"
            check_keys(entry, Source.__annotations__, f"{where}: ")
            entry = {**entry, "to": entry["to"].format(**dict(profile.data))}
            out.append(validate(Source, entry, where))
    return out


def run(profile: Profile, only_list: bool = False) -> bool:
    """Fetch models and data, or only say what comes from where and goes where.

    What fails or has to be done by hand is listed at the end; True if that is nothing, and with `only_list`.
    """
    failures = []
    for model in hub.models(profile):
        here, gb = hub.folder(model), reference("architectures").get(model.path, {}).get("gb")
        status = "there" if here else f"missing, about {gb:g} GB" if gb else "missing"
        page = f"https://huggingface.co/{model.path}/tree/{model.revision}"
        to = here or f"the hub's cache: hf download {model.path} --revision {model.revision}"
        if inside := hub.subfolder(model):
            page, to = f"{page}/{inside}", here or f"{to} --include '{inside}/*'"
        print(f"model {model.path}@{model.revision[:8]}  [{status}]\n    {page}\n    -> {to}")
        if not (here or only_list):
            try:
                hub.download(model)
            except Exception as error:  # of whichever http library the hub's client uses
                failures.append(f"model {model.path}: {_first_line(error)}")
    for source in sources(profile):
        status = "there" if source.present else f"missing, about {source.gb:g} GB"
        print(f"{source.name}  [{status}]\n    {source.origin}\n    -> {source.to}{'/' if source.unzip else ''}")
        if source.present or only_list:
            continue
        if source.by_hand:
            failures.append(f"{source.name}: by hand, put {source.by_hand} at {source.to}")
            continue
        try:
            bring(source)
        except Exception as error:
            reason = f"{source.name}: {_first_line(error)}"
            failures.append(f"{reason}; get it from {source.origin} and put it at {source.to}")
    if not only_list:
        print("\n  ".join(["not there:", *failures]) if failures else "all there")
    return not failures


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def bring(source: Source) -> None:
    """Download a source to its place, and unpack it there.

    OSError: no access, or no such file.  ValueError: a file with another checksum, or a damaged archive; it is removed,
    so that the next call downloads it again.
    """
    target, unfinished = Path(source.to), source.unfinished
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.hub:
        options = {"revision": source.revision, "allow_patterns": source.files, "local_dir": target}
        unfinished.touch()
        huggingface_hub.snapshot_download(source.hub, repo_type="dataset", **options)
        unfinished.unlink()
    elif source.unzip:
        checksum = sha256(unfinished) if unfinished.exists() else download(source, unfinished)
        _unpack(unfinished, target, source.strip)
        record = json.dumps({"url": source.url, "sha256": checksum}, indent=2)
        Path(f"{unfinished}.json").write_text(f"{record}\n", encoding="utf-8")
        unfinished.unlink()
    else:
        download(source, target)


def download(source: Source, file: Path) -> str:
    """Download to `file` through `<file>.part`, from where an earlier call has stopped; its sha256.

    Errors as of `bring`.
    """
    part = Path(f"{file}.part")
    with part.open("ab") as out:
        try:
            file_download.http_get(source.url, out, resume_size=out.tell(), displayed_filename=file.name)
        except HfHubHTTPError as error:
            if error.response.status_code != 416:  # nothing is left to send: the part is the whole
                raise
    received, stated = sha256(part), source.sha256 or hub_checksum(source.url)
    if stated not in (received, None):
        part.unlink()
        raise ValueError(f"{source.url} has sha256 {received}, not {stated}: it was removed, call again to download it")
    part.rename(file)
    return received


def hub_checksum(url: str) -> str | None:
    """The sha256 that the hub states of a large file of its own, None for what lies elsewhere."""
    etag = file_download.get_hf_file_metadata(url).etag if url.startswith(f"{constants.ENDPOINT}/") else ""
    return etag if re.fullmatch("[0-9a-f]{64}", etag or "") else None


def _unpack(archive: Path, folder: Path, strip: int) -> None:
    """Unpack a zip below `folder`, without `strip` leading folders; files that are there are left alone."""
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in tqdm(packed.infolist(), f"unpacking {archive.name}", unit="file"):
                parts = member.filename.split("/")
                if member.is_dir() or len(parts) <= strip or ".." in parts or parts[0] in ("", "__MACOSX"):
                    continue
                target = folder.joinpath(*parts[strip:])
                if not target.is_file() or target.stat().st_size != member.file_size:
                    member.filename = "/".join(parts[strip:])
                    packed.extract(member, folder)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(f"{archive.name} is damaged ({error}) and was removed: call again to download it") from error


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
