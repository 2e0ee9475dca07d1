"""Everything that a profile needs, checked before anything long starts; what is missing comes with how to get it.

`python -m workbook doctor NAME` prints one line per finding and fails if something needed is missing.  Cheap checks
come first: images are opened only when nothing else is wrong, and only those that have changed since the last time.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from workbook import pipeline
from workbook.config import Profile
from workbook.paths import ROOT, Paths
from workbook.scale import estimates, fetch, hub, manifest, plan

GB = 1e9
OK, NOTE, MISSING = "ok", "note", "missing"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, a `note` to know about, or `missing`: then nothing is started."""

    level: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        level = self.level.upper() if self.level == MISSING else self.level
        remedy = f"\n{'':8}-> {self.remedy}" if self.remedy else ""
        return f"{level:8}{self.what}{remedy}"


def examine(profile: Profile, drop_faulty: bool = False) -> Iterator[Finding]:
    """Findings of all checks, in order; training images come last, and only if nothing before is missing."""
    missing = False
    for check in (packages, gpus, memory, models, files, disk):
        for finding in check(profile):
            missing |= finding.level == MISSING
            yield finding
    if profile.world:
        return
    if missing:
        yield Finding(NOTE, "training images not opened yet: that follows when the rest is there")
        return
    yield from images(profile, drop_faulty)


def run(profile: Profile, drop_faulty: bool = False) -> bool:
    """Print the findings; whether nothing is missing."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of samples may have letters that a terminal lacks
    print(f"doctor: profile {profile.name} ({profile.label})")
    missing = 0
    for finding in examine(profile, drop_faulty):
        print(finding, flush=True)
        missing += finding.level == MISSING
    print(f"{missing} missing: nothing is started" if missing else "all there")
    return not missing


def needs_gpu(profile: Profile) -> bool:
    """Whether a profile is made for GPUs: several processes, DeepSpeed, or half precision."""
    half = profile.compute.dtype != "float32" or profile.stage1.bf16 or profile.stage2.bf16
    several = bool(profile.launch.deepspeed) or profile.launch.gpus * profile.launch.nodes > 1
    return (half or several) and not profile.launch.cpu


def packages(profile: Profile) -> Iterator[Finding]:
    """The packages of pyproject.toml that this profile uses, in their ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    kinds = {getattr(model, "kind", None) for model in hub.used(profile)}
    extras = {
        "workbook": True,
        "world": profile.world,
        "deepspeed": profile.launch.deepspeed,
        "ross": "vae" in kinds,
        "gguf": any(model.package for model in profile.languages.values()),
    }
    needed = list(project["dependencies"])
    for extra, used in extras.items():
        needed += project["optional-dependencies"][extra] if used else []
    if "radio" in kinds:
        needed.append("transformers>=5.23")  # the first with RadioModel
    if profile.compute.attention == "flash_attention_2":
        needed.append("flash-attn")
    whole = True
    for requirement in map(Requirement, needed):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            fault = f"package {requirement} is not installed"
        else:
            if requirement.specifier.contains(version, prereleases=True):
                continue
            fault = f"package {requirement.name} is {version}, not {requirement.specifier}"
        whole = False
        other = ", or leave compute.attention at sdpa" if requirement.name == "flash-attn" else ""
        yield Finding(MISSING, fault, f"make setup, or: python -m pip install '{requirement}'{other}")
    if whole:
        yield Finding(OK, f"{len(needed)} packages, Python {sys.version.split()[0]}")


def visible_gpus() -> list[tuple[str, float]]:
    """(name, GiB) of the GPUs of this machine, as nvidia-smi lists them; torch is not loaded for it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    return [(name.strip(), float(mib) / 1024) for name, mib in rows if re.fullmatch(r"\s*[\d.]+\s*", mib)]


def gpus(profile: Profile) -> Iterator[Finding]:
    """As many GPUs as the profile launches processes on this node."""
    here, processes = visible_gpus(), profile.launch.gpus
    if not needs_gpu(profile):
        yield Finding(OK, "no GPU needed")
    elif len(here) < processes:
        remedy = "set launch.gpus in the profile" if here else "run this on a GPU machine, or take PROFILE=laptop"
        yield Finding(MISSING, f"{len(here)} of {processes} GPUs", f"{remedy}; nvidia-smi lists what there is")
    else:
        sizes = ", ".join(f"{name} {gib:.0f} GiB" for name, gib in here[:processes])
        nodes = f"; of {profile.launch.nodes} nodes only this one was looked at" if profile.launch.nodes > 1 else ""
        yield Finding(OK, f"{processes} of {len(here)} GPUs: {sizes}{nodes}")


def memory(profile: Profile) -> Iterator[Finding]:
    """The estimated memory of every kind of training and evaluation against that of the smallest GPU."""
    if not needs_gpu(profile):
        return
    room = min((gib for _, gib in visible_gpus()[: profile.launch.gpus]), default=None)
    users: dict[tuple[str, int], list[str]] = {}
    for run in profile.runs:
        system = profile.systems[run]
        trainings = {
            ("stage1", f"{system.language}-{system.vision}"): estimates.stage1(profile, system.language, system.vision),
            ("stage2", run): estimates.stage2(profile, run),
        }
        needs = {key: training and training.memory(profile.launch) for key, training in trainings.items()}
        needs["evaluation", run] = estimates.evaluation_memory(profile, run)
        for (stage, name), gib in needs.items():
            if gib is not None and name not in users.setdefault((stage, round(gib)), []):
                users[stage, round(gib)].append(name)
    for (stage, gib), names in sorted(users.items()):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"about {gib} GiB of a GPU for {stage} of {', '.join(names[:3])}{more}"
        if room is None or gib <= room:
            yield Finding(OK if room else NOTE, what)
        elif stage == "evaluation":
            remedy = f"in the profile, try evaluation.batch_size below {profile.evaluation.batch_size}"
            yield Finding(MISSING, f"{what}: there are {room:.0f}", remedy)
        else:
            yield Finding(MISSING, f"{what}: there are {room:.0f}", _smaller(profile, stage))


def _smaller(profile: Profile, stage: str) -> str:
    """What would make a training fit."""
    recipe = getattr(profile, stage)
    micro = recipe.micro_batch or recipe.batch_size // (profile.launch.gpus * profile.launch.nodes)
    hints = [f"{stage}.micro_batch below {micro}" if micro > 1 else ""]
    hints += ["" if recipe.gradient_checkpointing else f"{stage}.gradient_checkpointing: true"]
    hints += ["" if (profile.launch.deepspeed or "").startswith("zero3") else "launch.deepspeed: zero3"]
    return "in the profile, try " + ", or ".join(filter(None, hints)) + " (the global batch stays the same)"


def models(profile: Profile) -> Iterator[Finding]:
    """Every model that the runs use and no stage makes: a folder here, in the hub cache, or to be had from the hub."""
    for model in hub.used(profile):
        if hub.is_hub_id(model.path):
            yield _hub_model(profile, model)
        elif not (getattr(model, "package", None) or getattr(model, "kind", None) == "oracle"):  # made by stages
            yield _folder(model)
    for source in profile.projectors.values():
        if not Path(source).is_file():
            yield Finding(MISSING, f"no projector {source}", "put it there, or take `projectors` out of the profile")


def _folder(model) -> Finding:
    if lacking := hub.missing_files(Path(model.path) / getattr(model, "subfolder", "")):
        remedy = "put a model there as save_pretrained writes it, or name a hub id in the profile"
        return Finding(MISSING, f"model folder {model.path} lacks {', '.join(lacking[:3])}", remedy)
    return Finding(OK, f"model folder {model.path}")


def _hub_model(profile: Profile, model) -> Finding:
    name = f"model {model.path}@{model.revision[:8]}"
    if hub.snapshot(model.path, model.revision, getattr(model, "subfolder", "")):
        return Finding(OK, f"{name}, on this machine")
    try:
        hub.commit(model.path, model.revision)
    except hub.HubError as error:
        remedy = f"where the hub can be reached: make fetch PROFILE={profile.name}; or name a local folder"
        return Finding(MISSING, f"{name} is not on this machine: {error}", remedy)
    remedy = f"make fetch PROFILE={profile.name} does it now"
    return Finding(NOTE, f"{name} will be downloaded when a stage needs it", remedy)


def files(profile: Profile) -> Iterator[Finding]:
    """Training json, image folders and benchmarks of a profile that does not draw them itself."""
    if profile.world:
        yield Finding(OK, "data: drawn by the pipeline")
        return
    remedy = f"make fetch PROFILE={profile.name}; what goes where: python -m workbook fetch {profile.name} --list"
    for path in (profile.data.captions, profile.data.conversations):
        yield Finding(OK, path) if Path(path).is_file() else Finding(MISSING, f"no file {path}", remedy)
    for path in (profile.data.caption_images, profile.data.conversation_images):
        filled = Path(path).is_dir() and any(Path(path).iterdir())
        yield Finding(OK, path) if filled else Finding(MISSING, f"no images in {path}", remedy)
    from workbook.benchmarks import load_rows

    for benchmark in profile.evaluation.benchmarks:
        try:
            rows = load_rows(benchmark, profile.data.benchmarks)
        except (FileNotFoundError, ValueError) as error:
            yield Finding(MISSING, f"benchmark {benchmark}: {error}", remedy)
        else:
            yield Finding(OK, f"benchmark {benchmark}: {len(rows)} rows")


def disk(profile: Profile) -> Iterator[Finding]:
    """Room for what is not there yet: caches, runs with their checkpoints, resume states, downloads.

    Two resume states are kept, and a third may be being written.
    """
    index, images = pipeline.stages(profile), plan.samples_of(profile)["images"]
    missing = [item for item in index["stage2"].values() if not Path(item["out"]).exists()]
    trainings = [training for item in missing if (training := estimates.stage2(profile, item["run"]))]
    caches = [estimates.cached(profile, item) for item in index["cache"].values() if not Path(item["out"]).exists()]
    copies = estimates.DVC_COPIES
    sizes = {
        "runs": copies * sum(training.bytes for training in trainings),
        "caches": copies * sum(cache.bytes(images) for cache in caches if cache),
        "resume states": 3 * 4 * max((training.parameters for training in trainings), default=0),
    }
    int8 = copies * sum(cache.bytes(images, "int8") for cache in caches if cache)
    if profile.data.downloads:
        sizes["data"] = int(sum(source.gb * GB for source in fetch.sources(profile) if not source.present))
    free, needed = shutil.disk_usage(".").free, sum(sizes.values())
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in sizes.items() if size)
    what = f"about {needed / GB:.0f} GB of disk ({parts}; DVC's copies included), {free / GB:.0f} GB free"
    if needed <= free:
        yield Finding(OK, what)
        return
    hints = ["free some"]
    if sizes["caches"]:
        hints.append(f"with teachers' `cache: int8` the caches take {int8 / GB:.0f} GB, with `cache: null` nothing")
        hints.append("`dvc config cache.type hardlink` spares the copies")
    yield Finding(MISSING, what, "; ".join(hints))


def images(profile: Profile, drop_faulty: bool = False) -> Iterator[Finding]:
    """The manifest of both training sets: every image opened once (`workbook.scale.manifest`)."""
    data, paths = profile.data, Paths(profile.name)
    for part, folder in (("captions", data.caption_images), ("conversations", data.conversation_images)):
        json_file, out = Path(getattr(data, part)), paths.manifest(part)
        try:
            summary = manifest.write_manifest(json_file, Path(folder), out)
        except (FileNotFoundError, ValueError) as error:
            dropped = manifest.drop_faulty(json_file, out) if drop_faulty else 0
            if not dropped:
                remedy = "restore the images (make fetch), or take the faulty entries out: "
                yield Finding(MISSING, str(error), f"{remedy}python -m workbook doctor {profile.name} --drop-faulty")
                continue
            yield Finding(NOTE, f"{dropped} faulty entries taken out of {json_file.name}; the original beside it")
            summary = manifest.write_manifest(json_file, Path(folder), out)
        renamed = summary["under_another_suffix"]
        also = f", {renamed} under another suffix than the json says" if renamed else ""
        yield Finding(OK, f"{part}: {summary['samples']} samples, {summary['images']} images, all of which open{also}")
        for what, count in summary["adapted"].items():
            yield Finding(NOTE, f"{part}: {count} conversations with {what}")
