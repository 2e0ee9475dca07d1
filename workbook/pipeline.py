"""The stages of a profile, and `params.yaml`, which holds the profile that DVC and the stages read.

`python -m workbook profile laptop` writes it: the profile as it is when everything is resolved, and an index of the
stages, a line each, with what a stage is made of by name and its folders.  `dvc.yaml` says which settings a kind of
stage depends on (`runs.${item.run}`, `stage2`, ...), so that a change re-runs the stages it concerns and no others.
"""

from pathlib import Path

import yaml

from viral_core.files import write_text
from workbook.config import PARAMS, Profile, ProfileError, System, active, known, load, names
from workbook.paths import Paths
from workbook.scale import hub

INDEXED = ("pretrained", "world", "cache", "stage1", "projector", "stage2", "measure")
KINDS = (*INDEXED, "evaluate")  # the last is of the runs that stage2 has
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
    for language, vision in sorted({(system.language, system.vision) for system in systems.values()}):
        name, out = f"{language}-{vision}", paths.stage1(language, vision)
        models = _models(profile, language, vision)
        if name in profile.projectors:
            add("projector", name, **models, source=profile.projectors[name], out=out)
        else:
            add("stage1", name, **models, features=_features(add, profile, vision, part="captions"), out=out)
    for run, seeds in profile.runs.items():
        inputs = _inputs(add, profile, systems[run])
        for seed in seeds:
            name, one, trained = f"{run}-s{seed}", {"run": run, "seed": seed}, paths.run(run, seed)
            curve = profile.learning_curve and run in profile.learning_curve.runs
            asked = "learning_curve.benchmarks" if curve else "evaluation"  # which all are asked
            add("stage2", name, **one, **inputs, asked=asked, out=trained)
            if profile.measurements(run):
                probes = paths.data / "probes" if profile.world else inputs["vision_files"]
                read = {"trained": trained, "projector": inputs["projector"], "probes": probes}
                add("measure", name, **one, **read, out=paths.measurement(run, seed))
    return index


def _models(profile: Profile, language: str, vision: str) -> dict[str, str]:
    return {
        "language": language,
        "vision": vision,
        "language_files": tracked(profile.languages[language].path),
        "vision_files": tracked(profile.visions[vision].path),
    }


def _features(add, profile: Profile, vision: str, model=None, *, part="conversations", state="intact", tiled=False):
    """What a training reads of an encoder, or of a teacher or VAE (`model`) on its grid.

    That is the folder of cached features, whose stage is added to the index, or the model where it runs along.
    """
    paths, encoder = Paths(profile.name), profile.visions[vision]
    source = profile.teachers[model] if model else encoder
    if not (profile.tiles.cache if tiled else source.cache):
        return tracked(source.path)
    out = paths.cache(model, vision, state, tiled) if model else paths.encoder_cache(vision, part)
    add(
        "cache",
        out.name,
        model=model,
        settings=f"teachers.{model}" if model else f"visions.{vision}",  # what the features depend on, by name
        views="tiles" if tiled else f"visions.{vision}",
        state=state,
        model_files=tracked(source.path),
        vision=vision,
        vision_files=tracked(encoder.path),
        **_images(profile, part),
        out=out,
    )
    return out


def _images(profile: Profile, part: str) -> dict[str, str]:
    """The json file of `captions` or `conversations`, and what DVC tracks for the images: a folder, or the manifest."""
    folders = {"captions": profile.data.caption_images, "conversations": profile.data.conversation_images}
    images = folders[part] if profile.world else str(Paths(profile.name).manifest(part))
    return {"part": part, "json": getattr(profile.data, part), "images": images}


def _inputs(add, profile: Profile, system: System) -> dict:
    """What the instruction tuning of a run reads, data and settings apart."""
    models, paths = _models(profile, system.language, system.vision), Paths(profile.name)
    encoder, settings = models["vision_files"], f"visions.{system.vision}"
    targets = latents = features = encoder
    if system.teacher:
        state = system.align.teacher_state
        targets = _features(add, profile, system.vision, system.teacher, state=state, tiled=system.tiled)
    if system.reconstruct:
        latents = _features(add, profile, system.vision, system.reconstruct.vae)
    if not system.tiled:
        features = _features(add, profile, system.vision)
    return {
        **models,
        "views": "tiles" if system.tiled else settings,
        "teacher": f"teachers.{system.teacher}" if system.teacher else settings,
        "targets": targets,
        "latents": latents,
        "features": features,
        "projector": paths.stage1(system.language, system.vision),
    }


def parameters(profile: Profile) -> dict:
    """What `params.yaml` holds: settings by name, then the index of stages."""
    settings, paths = profile.model_dump(mode="json"), Paths(profile.name)
    settings = {"profile": settings.pop("name"), **settings}
    settings["trained"] = settings.pop("runs")
    settings["seeds"] = {run: profile.runs.get(run, []) for run in profile.systems}  # on which notebooks depend
    settings["runs"] = {run: entry for run, entry in settings.pop("systems").items() if run in profile.runs}
    settings["measured"] = {  # each run's own, so that another run that joins a section changes no stage of these
        run: {name: part.model_dump(exclude={"runs"}) for name, part in profile.measurements(run).items()}
        for run in profile.runs
        if profile.measurements(run)
    }
    settings["images"] = {part: _images(profile, part)["images"] for part in ("captions", "conversations")}
    settings["weights"] = {  # of a run's first seed; an empty folder where none is trained
        run: str(paths.run(run, profile.runs[run][0]) if run in profile.runs else paths.run(run, 0).parent)
        for run in profile.systems
    }
    settings["embedded"] = [profile.name] if profile.world else []  # notebooks about the embedded world run there
    return {**settings, "stages": stages(profile)}


def select(name: str) -> bool:
    """Write `params.yaml` for a profile, and the folders that its notebooks look into; say whether it changed."""
    profile = load(name)
    _check_keys(profile)
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


def _check_keys(profile: Profile) -> None:
    """ProfileError if a stage has the key of another profile's: of `mine`'s `13b-viral` and of `mine-13b`'s `viral`."""
    own = stages(profile)
    for other in names():
        if other.startswith(f"{profile.name}-") or profile.name.startswith(f"{other}-"):
            index = stages(load(other))
            if shared := [f"{kind}@{key}" for kind in INDEXED for key in own[kind] if key in index[kind]]:
                raise ProfileError(f"profiles {profile.name} and {other} share {shared[0]}: rename one of them")


def stage(kind: str, key: str) -> tuple[Profile, dict]:
    """The active profile and one of its stages; ProfileError, with those there are, for an unknown one."""
    profile, index = active()
    entries = index[kind if kind in INDEXED else "stage2"]
    known(f"{kind} stage", key, entries, PARAMS)
    return profile, entries[key]
