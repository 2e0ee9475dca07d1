"""The stages of a profile, and `params.yaml`, which holds the profile that DVC and the stages read.

`python -m workbook profile laptop` writes it: the profile as it is when everything is resolved, and an index of the
stages, a line each, with what a stage is made of by name and its folders.  `dvc.yaml` says which settings a kind of
stage depends on (`runs.${item.run}`, `stage2`, ...), so that a change re-runs the stages it concerns and no others.
"""

from pathlib import Path

import yaml

from viral_core.atomic import write_text
from workbook.config import PARAMS, Profile, System, active, known, load
from workbook.paths import Paths
from workbook.scale import hub

INDEXED = ("pretrained", "world", "cache", "stage1", "projector", "stage2")
KINDS = (*INDEXED, "evaluate", "measure")  # the last two are of the runs that stage2 has
HEADER = (
    "# Made from profiles/{name}.yaml and profiles/runs.yaml by `python -m workbook profile {name}`: change those.\n"
)


def tracked(path: str) -> str:
    """What DVC tracks for a model: its folder.

    A model by hub id is known by its revision, which is a setting: a file that its stages depend on anyway.
    """
    return "viral_core/llava.py" if hub.is_hub_id(path) else path


def stages(profile: Profile) -> dict[str, dict[str, dict]]:
    """The index of a profile's stages: for each kind, by key `<profile>-<thing>`, the names and folders of one.

    Keys carry the profile's name because DVC deletes a stage's recorded outputs before it runs the stage again: with
    the same key, running one profile would delete the other's results.  Where a stage needs no teacher, cache or
    latents, the place of it in `dvc.yaml` is taken by its encoder, which it depends on anyway.
    """
    paths = Paths(profile.name)
    systems = {run: profile.systems[run] for run in profile.runs}
    index: dict[str, dict[str, dict]] = {kind: {} for kind in INDEXED}

    def add(kind: str, thing: str, **item) -> None:
        index[kind][f"{profile.name}-{thing}"] = {key: str(v) if isinstance(v, Path) else v for key, v in item.items()}

    for name, model in profile.languages.items():
        if model.package:
            add("pretrained", name, language=name, out=model.path)
    if profile.world:
        add("world", "world", out=paths.data)
    for system in systems.values():
        _add_caches(add, profile, system, paths)
    for language, vision in sorted({(system.language, system.vision) for system in systems.values()}):
        name, out = f"{language}-{vision}", paths.stage1(language, vision)
        models = _models(profile, language, vision)
        if name in profile.projectors:
            add("projector", name, **models, source=profile.projectors[name], out=out)
        else:
            add("stage1", name, **models, features=_features(profile, vision, "captions", paths), out=out)
    for run, seeds in profile.runs.items():
        for seed in seeds:
            inputs = _inputs(profile, systems[run], paths)
            add("stage2", f"{run}-s{seed}", run=run, seed=seed, **inputs, out=paths.run(run, seed))
    return index


def _models(profile: Profile, language: str, vision: str) -> dict[str, str]:
    return {
        "language": language,
        "vision": vision,
        "language_files": tracked(profile.languages[language].path),
        "vision_files": tracked(profile.visions[vision].path),
    }


def _features(profile: Profile, vision: str, part: str, paths: Paths) -> Path | str:
    """The cached features of an encoder, or the encoder."""
    encoder = profile.visions[vision]
    return paths.encoder_cache(vision, part) if encoder.cache else tracked(encoder.path)


def _add_caches(add, profile: Profile, system: System, paths: Paths) -> None:
    """Caches that a run reads: of its teacher's features, of its VAE's latents, of its encoder's features.

    `settings`: what the cached values depend on beside the encoder, as `dvc.yaml` names it.
    """
    vision = system.vision
    encoder = profile.visions[vision]
    files = {"vision": vision, "vision_files": tracked(encoder.path)}

    def add_model(name: str, state: str, tiled: bool) -> None:
        model = profile.teachers[name]
        out = paths.cache(name, vision, state, tiled)
        if profile.tiles.cache if tiled else model.cache:
            views = "tiles" if tiled else f"visions.{vision}"
            add("cache", out.name, model=name, settings=f"teachers.{name}", views=views, state=state,
                model_files=tracked(model.path), **_images(profile, "conversations"), **files, out=out)  # fmt: skip

    if system.teacher:
        add_model(system.teacher, system.align.teacher_state, system.tiled)
    if system.reconstruct:
        add_model(system.reconstruct.vae, "intact", False)
    for part in ("captions", "conversations") if encoder.cache else ():
        if part == "captions" or not system.tiled:
            out = paths.encoder_cache(vision, part)
            add("cache", out.name, model=None, settings=f"visions.{vision}", views=f"visions.{vision}", state="intact",
                model_files=files["vision_files"], **_images(profile, part), **files, out=out)  # fmt: skip


def _images(profile: Profile, part: str) -> dict[str, str]:
    """The json file of `captions` or `conversations`, and what DVC tracks for the images: a folder, or the manifest."""
    folders = {"captions": profile.data.caption_images, "conversations": profile.data.conversation_images}
    images = folders[part] if profile.world else str(Paths(profile.name).manifest(part))
    return {"part": part, "json": getattr(profile.data, part), "images": images}


def _inputs(profile: Profile, system: System, paths: Paths) -> dict:
    """What the instruction tuning of a run reads, data and settings apart."""
    models = _models(profile, system.language, system.vision)
    encoder = models["vision_files"]
    targets = target_settings = latents = None
    if system.teacher:
        teacher = profile.teachers[system.teacher]
        cached = profile.tiles.cache if system.tiled else teacher.cache
        folder = paths.cache(system.teacher, system.vision, system.align.teacher_state, system.tiled)
        targets = folder if cached else tracked(teacher.path)
        target_settings = f"teachers.{system.teacher}"
    if system.reconstruct:
        latents = paths.cache(system.reconstruct.vae, system.vision)
    return {
        **models,
        "views": "tiles" if system.tiled else f"visions.{system.vision}",
        "teacher": target_settings or f"visions.{system.vision}",
        "targets": targets or encoder,
        "latents": latents or encoder,
        "features": encoder if system.tiled else _features(profile, system.vision, "conversations", paths),
        "projector": paths.stage1(system.language, system.vision),
        "probes": paths.data / "probes" if profile.world else encoder,  # of its measurements
    }


def parameters(profile: Profile) -> dict:
    """What `params.yaml` holds: settings by name, then the index of stages."""
    settings = profile.model_dump(mode="json")
    settings = {"profile": settings.pop("name"), **settings}
    settings["seeds"] = settings.pop("runs")
    settings["runs"] = {run: entry for run, entry in settings.pop("systems").items() if run in profile.runs}
    settings["images"] = {part: _images(profile, part)["images"] for part in ("captions", "conversations")}
    settings["embedded"] = [profile.name] if profile.world else []  # notebooks about the embedded world run there
    return {**settings, "stages": stages(profile)}


def select(name: str) -> bool:
    """Write `params.yaml` for a profile, and the folders that its notebooks look into; say whether it changed."""
    profile = load(name)
    text = HEADER.format(name=name) + yaml.safe_dump(
        parameters(profile), sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True
    )
    paths = Paths(name)
    for run in profile.systems:  # those that are not trained stay empty: "not run"
        for folder in (paths.run(run, 0), paths.evaluation(run, 0), paths.measurement(run, 0)):
            folder.parent.mkdir(parents=True, exist_ok=True)
    if not profile.world:
        paths.results("premises").mkdir(parents=True, exist_ok=True)  # of the embedded world alone
    paths.notebook("").parent.mkdir(parents=True, exist_ok=True)
    file = Path(PARAMS)
    changed = not file.is_file() or file.read_text(encoding="utf-8") != text
    if changed:
        write_text(file, text)
    return changed


def stage(kind: str, key: str) -> tuple[Profile, dict]:
    """The active profile and one of its stages.

    Raises:
        ProfileError: `params.yaml` has no such stage; the message lists those it has.
    """
    profile, index = active()
    entries = index[kind if kind in INDEXED else "stage2"]
    known(f"{kind} stage", key, entries, PARAMS)
    return profile, entries[key]
