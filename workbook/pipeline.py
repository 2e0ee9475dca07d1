"""The pipeline of a profile: one entry of `params.json` per stage, which is what DVC and the stages read.

`python -m workbook profile laptop` writes it.  An entry holds all that its stage depends on, models by path and
layers by number, so that a change re-runs the stages it concerns and no others.
"""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

from workbook.paths import ROOT, RunPaths
from workbook.profile import MEASUREMENTS, NOTEBOOKS, Language, Profile, Teacher, Vision, load
from workbook.registry import Run
from workbook.scale import hub
from workbook.schema import known

KINDS = (
    "pretrained", "world", "language", "grow", "vision", "teacher", "distil", "vae", "cache", "words", "stage1",
    "projector", "stage2", "evaluate", "cknna", *MEASUREMENTS, "notebook", "notebook2", "claims", "report",
)  # fmt: skip
# Where a notebook's stage has more places for what it reads than the profile has: files that it depends on anyway.
SPARE = ("profiles/runs.yaml", "workbook/registry.py", "workbook/profile.py")


def _needed_models(profile: Profile, used: list[Run]) -> set[str]:
    """Paths of the models that the runs need, those that one is distilled or grown from included."""
    teachers = [profile.teachers[run.teacher] for run in used if run.teacher]
    teachers += [profile.teachers[run.reconstruct.vae] for run in used if run.reconstruct]
    models = [
        *(profile.languages[run.language] for run in used), *(profile.visions[run.vision] for run in used), *teachers
    ]  # fmt: skip
    distilled = [teacher.train.get("teachers", {}).values() for teacher in teachers if teacher.train]
    grown = [model.train["start"] for model in models if model.train and "start" in model.train]
    return {model.path for model in models}.union(grown, *distilled)


def _model(model: Language | Vision | Teacher) -> dict:
    """Facts of a model and what DVC tracks for it: its folder; a hub id's commit is a parameter of its own."""
    return {**dataclasses.asdict(model), "tracked": SPARE[0] if hub.is_hub_id(model.path) else model.path}


def _vision(profile: Profile, name: str, tiled: bool) -> dict:
    """Facts of a vision encoder, with the grids of tiles where images are cut into them."""
    facts = _model(profile.visions[name])
    return {**facts, "tile_grids": profile.tiles.grids} if tiled else facts


def _teacher(profile: Profile, name: str, tiled: bool) -> dict:
    """Facts of a teacher, with the way its features are kept."""
    facts = _model(profile.teachers[name])
    return {**facts, "cache": profile.tiles.cache} if tiled else facts


def _data(profile: Profile, paths: RunPaths) -> dict:
    """Where the data are, and what DVC tracks for the images: a drawn world's folders, else the manifests."""
    facts = {key: value for key, value in dataclasses.asdict(profile.data).items() if key != "downloads"}
    images = {"captions": profile.data.caption_images, "conversations": profile.data.conversation_images}
    tracked = {part: folder if profile.world else str(paths.manifest(part)) for part, folder in images.items()}
    return {**facts, **{f"{part}_tracked": path for part, path in tracked.items()}}


def stages(profile: Profile) -> dict:
    """The pipeline of a profile: for each kind of stage, one entry per thing to make, keyed `<profile>-<thing>`.

    Keys carry the profile's name because DVC deletes a stage's recorded outputs before it runs the stage again: with
    the same key, running one profile would delete the other's results.
    """
    paths, plain = RunPaths(profile.name), dataclasses.asdict
    used = [profile.registry[r] for r in profile.runs]
    bases = sorted({(r.language, r.vision) for r in used})
    taught = sorted(
        {(r.teacher, r.align.teacher_state, r.vision, r.tiled) for r in used if r.teacher}
        | {(r.reconstruct.vae, "intact", r.vision, False) for r in used if r.reconstruct}
    )
    needed = _needed_models(profile, used)
    out: dict = {kind: {} for kind in KINDS}
    compute = {"compute": plain(profile.compute)}
    common = {"seed": profile.seed, "data": _data(profile, paths), **compute}

    def add(stage: str, thing: str, /, **entry) -> None:
        out[stage][f"{profile.name}-{thing}"] = {"profile": profile.name, **entry}

    for name, model in profile.languages.items():
        if model.package:
            add("pretrained", name, out=model.path, package=model.package)
    if profile.world:
        add("world", "world", out=str(paths.data), seed=profile.seed, **plain(profile.world))
    for kind, group in (("language", profile.languages), ("vision", profile.visions), ("teacher", profile.teachers)):
        for name, model in group.items():
            if model.train and model.path in needed:
                facts = {k: v for k, v in plain(model).items() if k in ("kind", "template", "train")}
                stage = "distil" if kind == "teacher" and "teachers" in model.train else kind
                stage = "grow" if "start" in model.train else stage
                stage = "vae" if facts.get("kind") == "vae" else stage
                add(stage, name, out=model.path, seed=profile.seed, pool=str(paths.data / "pool"), **facts)
    for teacher, state, vision, tiled in taught:
        kept, folder = _teacher(profile, teacher, tiled), paths.cache(teacher, vision, state, tiled)
        if kept["cache"]:
            add("cache", folder.name, data=common["data"], workers=profile.stage2.get("workers", 0),
                teacher={**kept, "state": state},
                vision=_vision(profile, vision, tiled), out=str(folder))  # fmt: skip
    for language, vision in bases:
        base = {
            "language": _model(profile.languages[language]), "vision": _model(profile.visions[vision])
        }  # fmt: skip
        name, folder = f"{language}-{vision}", str(paths.stage1(language, vision))
        if name in profile.projectors:
            add("projector", name, **base, source=profile.projectors[name], out=folder)
        else:
            start = base["vision"]["tracked"]  # for DVC
            if profile.words:
                start = str(paths.words(language, vision))
                add("words", name, **base, **profile.words, seed=profile.seed, pool=str(paths.data / "pool"), out=start)
            add("stage1", name, **common, **base, recipe=profile.stage1, words=bool(profile.words), start=start,
                out=folder)  # fmt: skip
    for run, seeds in profile.runs.items():
        system = _system(profile, run)
        for seed in seeds:
            name = f"{run}-s{seed}"
            add("stage2", name, run=run, name=name, seed=seed, data=common["data"], **compute, **system,
                out=str(paths.run(name)))  # fmt: skip
            add("evaluate", name, name=name, run=str(paths.run(name)), **plain(profile.evaluation), **compute,
                rows=profile.data.benchmarks, out=str(paths.evaluation(name)))  # fmt: skip
            add("cknna", name, name=name, run=str(paths.run(name)), **plain(profile.cknna), **compute,
                rows=profile.data.benchmarks, out=str(paths.cknna(name)))  # fmt: skip
            for kind, settings in _measurements(profile, run).items():
                add(kind, name, name=name, run=str(paths.run(name)), **settings, **compute,
                    rows=profile.data.benchmarks, out=str(paths.measured(kind) / name))  # fmt: skip
    for name in profile.notebooks:
        reads = [str(paths.measured(kind)) for kind in NOTEBOOKS[name] if out[kind]]
        kind = {0: "notebook", 1: "notebook", 2: "notebook2"}.get(len(reads), "claims")
        places = {"notebook": 1, "notebook2": 2, "claims": 6}[kind]
        add(kind, name, source=f"notebooks/{name}.py", out=str(paths.notebook(name)), results=str(paths.results(name)),
            reads=[*reads, *SPARE][:places])  # fmt: skip
    if profile.notebooks:
        add("report", "report", out=str(paths.root / "report"), results=str(paths.root / "results"),
            notebooks=str(paths.root / "notebooks"), runs=str(paths.root / "stage2"))  # fmt: skip
    return out


def _system(profile: Profile, run: str) -> dict:
    """What the instruction tuning of a run depends on, seed and data aside; layers are numbers, folders are paths."""
    spec, paths, plain = profile.registry[run], RunPaths(profile.name), dataclasses.asdict
    language, align, reconstruct = profile.languages[spec.language], spec.align, spec.reconstruct
    vision = _vision(profile, spec.vision, spec.tiled)
    teacher, targets = None, vision["tracked"]  # for DVC: where alignment targets come from
    if spec.teacher:
        kept = _teacher(profile, spec.teacher, spec.tiled)
        teacher = {**kept, "state": align.teacher_state, "shuffled": align.shuffled}
        cached = str(paths.cache(spec.teacher, spec.vision, align.teacher_state, spec.tiled))
        targets = cached if kept["cache"] else kept["tracked"]
    curve = profile.learning_curve
    return {
        "language": _model(language),
        "vision": vision,
        "align": align and plain(replace(align, layers=align.blocks(language.depth), **plain(profile.head))),
        "residual": spec.residual and plain(replace(spec.residual, layer=spec.residual.block(language.depth))),
        "reconstruct": reconstruct
        and plain(replace(reconstruct, layer=reconstruct.block(language.depth), **plain(profile.denoiser))),
        "teacher": teacher,
        "recipe": {
            **profile.stage2,
            **({"max_length": profile.tiles.max_length} if spec.tiled else {}),
            "checkpoints": curve.fractions if curve and run in curve.runs else [],
        },
        "projector": str(paths.stage1(spec.language, spec.vision)),
        "targets": targets,
        "latents": str(paths.cache(reconstruct.vae, spec.vision)) if reconstruct else vision["tracked"],
    }  # fmt: skip


def _measurements(profile: Profile, run: str) -> dict[str, dict]:
    """Settings of the measurements that a profile makes of a run, by kind."""
    asked = {"batch_size": profile.evaluation.batch_size, "max_new_tokens": profile.evaluation.max_new_tokens}
    wanted = {kind: getattr(profile, kind) for kind in MEASUREMENTS}
    more = {"learning_curve": {"sampled": profile.evaluation.sampled}}
    return {
        kind: {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("runs", "fractions")}
        | asked
        | more.get(kind, {})
        for kind, settings in wanted.items()
        if settings and run in settings.runs
    }


def activate(name: str) -> bool:
    """Write `params.json` for a profile; say whether it changed.  Edit profiles/, not params.json."""
    profile = load(name)
    text = json.dumps({"profile": name, **stages(profile)}, indent=1) + "\n"
    params = ROOT / "params.json"
    if params.exists() and params.read_text() == text:
        return False
    params.write_text(text)
    return True


def entry(kind: str, key: str, params: Path = ROOT / "params.json") -> dict:
    """The entry of one stage of the active profile.

    Raises:
        ProfileError: `params.json` has no such stage; the message lists those it has.
    """
    entries = json.loads(params.read_text())[kind]
    known(f"{kind} stage", key, entries, str(params.name))
    return entries[key]
