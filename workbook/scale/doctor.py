"""Everything that a profile needs, checked before anything long starts; what is missing comes with how to get it.

`python -m workbook doctor NAME` prints one line per finding and fails if something needed is missing.  Cheap checks
come first: conversations and images are read only when nothing else is wrong, images only if they have changed since.
"""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from viral_core.files import write_text
from workbook.benchmarks import BENCHMARKS, PAPER, load_rows
from workbook.benchmarks.registry import FAMILIES, family
from workbook.paths import ROOT, Paths
from workbook.scale import estimates, fetch, hub, manifest, plan
from workbook.scale.launch import TRAININGS
from workbook.scale.plan import GB
from workbook.sections import Profile, ProfileError, known

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


def run(profile: Profile, drop_faulty: bool = False) -> bool:
    """Print the findings of all checks, training data last; whether nothing is missing."""
    print(f"doctor: profile {profile.name} ({profile.label})")
    without = _show(packages(profile))
    missing = without + _show(gpus(profile))
    lacking = _show(models(profile))
    if not without:
        lacking += _show(misfits(profile))
        missing += _show(objectives(profile))
    missing += lacking + _show(files(profile))
    if lacking:
        _show([Finding(NOTE, "memory and disk not estimated yet: that follows when the models are there")])
    else:
        missing += _show(resources(profile))
    if not profile.world and missing:
        _show([Finding(NOTE, "training images not opened yet: that follows when the rest is there")])
    elif not profile.world:
        missing += _show(images(profile, drop_faulty))
    print(f"{missing} missing: nothing is started" if missing else "all there")
    return not missing


def _show(findings: Iterable[Finding]) -> int:
    """Print findings as they come; how many are missing."""
    missing = 0
    for finding in findings:
        print(finding, flush=True)
        missing += finding.level == MISSING
    return missing


def _finding(good: bool, what: str, fault: str, remedy: str) -> Finding:
    return Finding(OK, what) if good else Finding(MISSING, fault, remedy)


def needs_gpu(profile: Profile) -> bool:
    """Whether a profile is made for GPUs: for several processes, or in half precision."""
    return (profile.stage2.bf16 or profile.launch.gpus > 1) and not profile.launch.cpu


def packages(profile: Profile) -> Iterator[Finding]:
    """The packages of pyproject.toml that this profile uses, in their ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        "workbook": True,
        "world": profile.world,
        "deepspeed": profile.launch.deepspeed,
        "ross": any(getattr(model, "kind", None) == "vae" for model in hub.used(profile)),
        "gguf": any(model.package for model in profile.languages.values()),
    }
    needed = list(project["dependencies"])
    for extra, used in extras.items():
        needed += project["optional-dependencies"][extra] if used else []
    if profile.compute.attention == "flash_attention_2":
        needed.append("flash-attn")
    installed = {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    wrong = {}
    for requirement in map(Requirement, needed):
        version = installed.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong[str(requirement)] = f"{requirement} ({version or 'not installed'})"
    remedy = f"make setup, or: python -m pip install {shlex.join(wrong)}"
    if "flash-attn" in wrong:
        remedy += "; or leave compute.attention at sdpa"
    what = f"{len(needed)} packages, Python {sys.version.split()[0]}"
    yield _finding(not wrong, what, f"packages {', '.join(wrong.values())}", remedy)


def visible_gpus() -> list[tuple[str, float]]:
    """(name, GiB) of the GPUs of this machine, as nvidia-smi lists them; torch is not loaded for it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    return [(name, float(mib) / 1024) for name, mib in re.findall(r"^(.+), *([\d.]+)\s*$", listed, re.MULTILINE)]


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


def resources(profile: Profile) -> Iterator[Finding]:
    """Memory and disk that the plan's jobs take."""
    jobs = list(plan.jobs(profile))
    if needs_gpu(profile):
        yield from memory(profile, jobs)
    yield disk(profile, jobs)


def memory(profile: Profile, jobs: list[plan.Job]) -> Iterator[Finding]:
    """The estimated memory of every kind of training and evaluation against that of the smallest GPU."""
    room = min((gib for _, gib in visible_gpus()[: profile.launch.gpus]), default=None)
    owners: dict[tuple[str, int], dict[str, None]] = {}
    jobs = [job for job in jobs if job.stage not in ("cache", "measure")]
    if unknown := dict.fromkeys(job.owner for job in jobs if not job.work):
        yield Finding(NOTE, f"memory and disk of {', '.join(unknown)} are unknown: a model of theirs is not here yet")
    for job in jobs:
        if job.work:
            answers = job.stage == "evaluate"
            gib = estimates.evaluation_memory(profile, job.owner) if answers else job.work.memory(profile.launch)
            owners.setdefault((job.stage, round(gib)), {})[job.owner.removeprefix("stage1 ")] = None
    for (stage, gib), names in sorted(owners.items()):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"about {gib} GiB of a GPU for {stage} of {', '.join([*names][:3])}{more}"
        if room is None or gib <= room:
            yield Finding(OK if room else NOTE, what)
            continue
        remedy = "lower evaluation.batch_size (greedy answers stay the same, sampled ones are drawn anew)"
        if stage != "evaluate":
            remedy = f"lower {stage}.micro_batch, set its gradient_checkpointing, or take launch.deepspeed zero3"
            remedy += " (the results stay the same)"
        yield Finding(MISSING, f"{what}: there are {room:.0f}", f"in the profile, {remedy}")


def disk(profile: Profile, jobs: list[plan.Job]) -> Finding:
    """Room for what is not there yet: caches, runs with their checkpoints, resume states, downloads.

    Of resume states, each weight with AdamW's two moments, two are kept, and a third may be being written.
    """
    missing = [job for job in jobs if not job.done and job.work]
    trainings = [job for job in missing if job.stage in TRAININGS]
    caches = [job for job in missing if job.stage == "cache"]
    sizes = {
        "runs": sum(job.bytes for job in trainings),
        "caches": sum(job.bytes for job in caches),
        "resume states": 3 * 12 * max((job.work.parameters for job in trainings), default=0),
    }
    if profile.data.downloads:
        sizes["data"] = int(sum(source.gb * GB for source in fetch.sources(profile) if not source.present))
    free, needed = shutil.disk_usage(".").free, sum(sizes.values())
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in sizes.items() if size)
    what = f"about {needed / GB:.0f} GB of disk ({parts}; DVC's copies included), {free / GB:.0f} GB free"
    remedy = "free some; `dvc config cache.type hardlink` spares the copies"
    if caches:
        int8 = sum(replace(job, work=replace(job.work, dtype="int8")).bytes for job in caches)
        remedy += f"; with teachers' `cache: int8` the caches take {int8 / GB:.0f} GB, with `cache: null` nothing"
    return _finding(needed <= free, what, what, remedy)


def models(profile: Profile) -> Iterator[Finding]:
    """Every model that the runs use and no stage makes: in the hub's cache, or a folder here; and what it is."""
    for model in hub.used(profile):
        if hub.is_hub_id(model.path):
            name = f"model {model.path}@{model.revision[:8]}"
            remedy = f"where the hub can be reached: make fetch PROFILE={profile.name}; or name a local folder"
            there = hub.snapshot(model) is not None
            yield _finding(there, f"{name}, on this machine", f"{name} is not on this machine", remedy)
        elif not (getattr(model, "package", None) or getattr(model, "kind", None) == "oracle"):  # made by stages
            name, lacking = f"model folder {model.path}", hub.missing_files(Path(model.path) / hub.subfolder(model))
            remedy = "put a model there as save_pretrained writes it, or name a hub id in the profile"
            yield _finding(not lacking, name, f"{name} lacks {', '.join(lacking[:3])}", remedy)
    for source in profile.projectors.values():
        remedy = "put it there, or take `projectors` out of the profile"
        yield _finding(Path(source).is_file(), f"projector {source}", f"no projector {source}", remedy)


def misfits(profile: Profile) -> Iterator[Finding]:
    """What the models are not that the profile says they are, by their folders without the weights."""
    from viral_core.teachers import KINDS  # loads torch, as what `_faults` takes

    kinds = [*KINDS, "vae", "oracle"]
    for (section, name), model in hub.roles(profile).items():
        what = f"{section}.{name}"
        if section == "teachers" and model.kind not in kinds:
            yield Finding(MISSING, f"{what}: no kind {model.kind!r}", f"there are: {', '.join(kinds)}")
        elif folder := hub.folder(model):
            for fault, remedy in _faults(section, model, folder):
                yield Finding(MISSING, f"{what}: {model.path} {fault}", remedy)


def objectives(profile: Profile) -> Iterator[Finding]:
    """Runs whose alignment objective is a name alone, without a function."""
    from viral_core import losses

    for run in profile.runs:
        align = profile.systems[run].align
        if align and not hasattr(losses, align.objective):
            what = f"runs.{run}: no function {align.objective} in viral_core/losses.py"
            yield Finding(MISSING, what, "write it there, under the name that is in viral_core.specs.OBJECTIVES")


def _faults(section: str, model, folder: Path) -> Iterator[tuple[str, str]]:
    """What the folder of a language model, encoder or teacher is not, or lacks, each with the remedy."""
    from transformers import AutoTokenizer

    from viral_core.templates import TEMPLATES, stop_token_id

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"has a damaged config.json ({error})", "restore it"
        return
    whole = "put it there, as save_pretrained of the model's processor writes it"
    try:
        yield from _unlike(section, model, config.get("model_type"), folder)
    except Exception as error:  # transformers raises what it likes where a config is wrong
        yield f"has a config.json that transformers does not take ({error})", "restore it, or name another model"
    if section != "languages":
        if getattr(model, "kind", None) != "vae" and not (folder / "preprocessor_config.json").is_file():
            yield "lacks preprocessor_config.json", whole
        return
    if not any(file for names in ("tokenizer.json", "*.model", "vocab.*") for file in folder.glob(names)):
        yield "lacks a tokenizer (tokenizer.json or tokenizer.model)", whole
        return
    try:
        stop_token_id(AutoTokenizer.from_pretrained(folder), TEMPLATES[model.template])
    except (OSError, ValueError) as error:
        yield f"does not fit its template: {error}", "correct its `template` in the profile"


def _unlike(section: str, model, kind: str | None, folder: Path) -> Iterator[tuple[str, str]]:
    """What of a model's architecture, by its config, is not what its role in a run takes, with the remedy."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from viral_core.checkpoints import VISION
    from viral_core.llava import LORA_TARGETS
    from viral_core.teachers import MODEL_TYPES

    if section == "teachers" and kind not in MODEL_TYPES.get(model.kind, [kind]):
        types = ", ".join(MODEL_TYPES[model.kind])
        yield f"is a {kind!r} model, not of kind {model.kind!r} ({types})", "correct its `kind` or its path"
    elif section == "visions" and kind not in VISION:
        yield f"is a {kind!r} model", f"name a vision tower of a fixed size: {', '.join(VISION)}"
    elif section == "visions":
        tower = AutoConfig.from_pretrained(folder)
        blocks = getattr(tower, "vision_config", tower).num_hidden_layers
        if not -blocks - 1 <= model.feature_layer <= blocks:  # 0 is what the first block reads
            yield f"has {blocks} blocks, and no layer {model.feature_layer}", "correct its `feature_layer`"
    elif section == "languages":
        layers = None  # where the tap looks for them
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            with torch.device("meta"):
                language = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
            layers = getattr(getattr(language, "model", None), "layers", None)
        parts = [f"language_model.layers.0.{name}" for name, _ in layers[0].named_modules()] if layers else []
        if sum(bool(re.fullmatch(LORA_TARGETS, part)) for part in parts) < 7:  # q, k, v, o; gate, up, down
            yield f"is a {kind!r} model", "name a causal language model with a llama's parts, which LoRA trains"
        elif len(layers) != model.blocks:
            yield f"has {len(layers)} blocks, not {model.blocks}", "correct its `blocks` in the profile"


def check_benchmarks(profile: Profile) -> list[str]:
    """The benchmarks that a profile asks or measures.

    ProfileError for one, or a category of one, that there is not; and for parts of one that are not sampled alike.
    """
    where, evaluation, curve = f"profiles/{profile.name}.yaml", profile.evaluation, profile.learning_curve
    valid = [name for name in BENCHMARKS if not profile.world or name in profile.world.benchmarks]
    named = {"evaluation.benchmarks": evaluation.benchmarks, "evaluation.sampled": evaluation.sampled}
    named |= {"learning_curve.benchmarks": curve.benchmarks} if curve else {}
    measured = {name: getattr(profile, name) for name in ("cknna", "attention", "permutation")}
    named |= {f"{name}.benchmark": [section.benchmark] for name, section in measured.items() if section}
    for place, names in named.items():
        for name in names:
            known("benchmark", name, valid, f"{where}: {place}")
    for parts in PAPER.values():
        times = {evaluation.sampled.get(part) for part in parts if part in evaluation.benchmarks}
        if len(times) > 1:
            raise ProfileError(f"{where}: evaluation.sampled: {' and '.join(parts)} need the same number of runs")
    if attention := profile.attention:
        categories = FAMILIES[family(attention.benchmark)].categories
        known("category", attention.category, categories, f"{where}: attention.category")
    return list(dict.fromkeys(name for names in named.values() for name in names))


def files(profile: Profile) -> Iterator[Finding]:
    """Training json, image folders and benchmarks of a profile that does not draw them itself."""
    benchmarks = check_benchmarks(profile)
    if profile.world:
        yield Finding(OK, "data: drawn by the pipeline")
        measured = [section.benchmark for section in (profile.cknna, profile.attention) if section]
        for benchmark in dict.fromkeys(measured):
            with suppress(FileNotFoundError, ValueError):  # not drawn yet, or half of it
                rows = load_rows(benchmark, profile.data.benchmarks)
                yield from (replace(fault, level=NOTE) for fault in _too_few(profile, benchmark, rows))  # as drawn now
        return
    remedy = f"make fetch PROFILE={profile.name}; what goes where: python -m workbook fetch {profile.name} --list"
    for path in (profile.data.captions, profile.data.conversations):
        yield _finding(Path(path).is_file(), path, f"no file {path}", remedy)
    for path in (profile.data.caption_images, profile.data.conversation_images):
        filled = Path(path).is_dir() and any(Path(path).iterdir())
        yield _finding(filled, path, f"no images in {path}", remedy)
    for benchmark in benchmarks:
        try:
            rows = load_rows(benchmark, profile.data.benchmarks)
        except (FileNotFoundError, ValueError) as error:
            yield Finding(MISSING, f"benchmark {benchmark}: {error}", remedy)
        else:
            yield Finding(OK, f"benchmark {benchmark}: {len(rows)} rows")
            yield from _too_few(profile, benchmark, rows)


def _too_few(profile: Profile, benchmark: str, rows: list[dict]) -> Iterator[Finding]:
    """Measurements that ask for more images or questions than their benchmark has."""
    needed = []
    if profile.cknna.benchmark == benchmark:
        needed.append(("cknna.images", profile.cknna.images, len({row["group"] for row in rows})))
    if (attention := profile.attention) and attention.benchmark == benchmark:
        there = sum(row["category"] == attention.category for row in rows)
        needed.append(("attention.questions", attention.questions, there))
    for name, asked, there in needed:
        if asked > there:
            yield Finding(MISSING, f"{name} is {asked}, and {benchmark} has {there}", "lower it in the profile")


def images(profile: Profile, drop_faulty: bool = False) -> Iterator[Finding]:
    """The manifest of both training sets: every image opened once (`workbook.scale.manifest`)."""
    data, paths = profile.data, Paths(profile.name)
    for part, folder in (("captions", data.caption_images), ("conversations", data.conversation_images)):
        json_file = Path(getattr(data, part))
        try:
            summary = manifest.write_manifest(json_file, Path(folder), paths.manifest(part), drop_faulty)
        except (FileNotFoundError, ValueError) as error:
            remedy = f"restore the json or the images (make fetch PROFILE={profile.name} brings what is not there)"
            if isinstance(error, manifest.FaultyEntriesError):
                remedy += f", or take the faulty entries out: python -m workbook doctor {profile.name} --drop-faulty"
            yield Finding(MISSING, str(error), remedy)
            continue
        if dropped := summary["dropped"]:
            yield Finding(NOTE, f"{dropped} faulty entries taken out of {json_file.name}; the original beside it")
        renamed = summary["under_another_suffix"]
        also = f", {renamed} under another suffix than the json says" if renamed else ""
        yield Finding(OK, f"{part}: {summary['samples']} samples, {summary['images']} images, all of which open{also}")
        for what, count in summary["adapted"].items():
            yield Finding(NOTE, f"{part}: {count} conversations with {what}")
        if part == "conversations":
            for run in profile.runs:
                if (asked := profile.systems[run].images or 0) > summary["images"]:
                    what = f"run {run} takes {asked} images of the conversations, and there are {summary['images']}"
                    yield Finding(MISSING, what, "lower `images` in the run's entry")
            yield from lengths(profile, summary["conversations_sha256"])


def lengths(profile: Profile, content: str) -> Iterator[Finding]:
    """What `max_length` cuts off the conversations, by the trainer's own rule, for each tokenizer and view of images.

    At the paper's size each takes minutes, and is kept beside the manifest until `content`, a checksum, changes.
    """
    from viral_core.conversations import load_conversations
    from viral_core.data import ConversationDataset
    from viral_core.llava import load_processor
    from viral_core.templates import TEMPLATES

    hub.go_offline(hub.models(profile))
    file = Paths(profile.name).manifest("conversations").with_suffix(".lengths.json")
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    samples, systems = None, [profile.systems[run] for run in profile.runs]
    for words, view, tiled in dict.fromkeys((system.language, system.vision, system.tiled) for system in systems):
        language, vision = profile.languages[words], profile.visions[view]
        max_length = profile.tiles.max_length if tiled else profile.stage2.max_length
        name = f"conversations with {words}, {view}{' in tiles' if tiled else ''}"
        key = f"{language} {vision} {profile.tiles if tiled else ''} {max_length} {content}"
        if key not in found:
            samples = samples or load_conversations(profile.data.conversations, profile.data.conversation_images)
            options = {"vision_revision": vision.revision, "language_revision": language.revision}
            options["tile_grids"] = profile.tiles.grids if tiled else None
            try:
                processor = load_processor(vision.path, language.path, **options)
                found[key] = ConversationDataset(samples, processor, TEMPLATES[language.template], max_length).cut
            except ValueError as error:
                yield Finding(MISSING, f"{name}: {error}", "correct the entry, or the language model's template")
                continue
            write_text(file, json.dumps(found, indent=1) + "\n")
        what = ", ".join(f"{count} {part}" for part, count in found[key].items())
        yield Finding(NOTE if any(found[key].values()) else OK, f"{name}: cut at {max_length} tokens: {what}")
