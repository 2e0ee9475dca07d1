"""Profiles and runs: what is trained, on what, at what size.  Everything here is read from `profiles/*.yaml`.

A profile is data.  `load("laptop")` reads `profiles/laptop.yaml` (on top of the profile it `extends`) and the registry
`profiles/runs.yaml`, checks every key, and returns a `Profile`.  `python -m viral_core profile laptop` writes what it
resolves to into `params.yaml`, one entry per pipeline stage, which is what DVC and the stages read: an entry holds all
that its stage depends on, so that a change re-runs the stages it concerns and no others.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from viral_core.paths import PROFILES, ROOT, RunPaths


@dataclass(frozen=True)
class World:
    """The embedded world: how many scenes are drawn for what (`viral_core.world`)."""

    pool: int  # scenes that encoders and teachers learn from
    captions: int  # scenes with a stage-1 caption
    conversations: int  # scenes of the instruction mix
    turns: int  # questions per scene at the most
    text_only: int  # conversations without an image
    benchmarks: dict[str, int]  # rows per benchmark


@dataclass(frozen=True)
class Data:
    """Training data in LLaVA's json format, and the folder of benchmarks."""

    captions: str
    caption_images: str
    conversations: str
    conversation_images: str
    benchmarks: str


@dataclass(frozen=True)
class Language:
    """A language model: hub id or folder, and the template it is trained and asked with."""

    path: str
    template: str
    revision: str | None = None
    train: dict | None = None  # embedded stand-in: hyper-parameters of viral_core.world.language


@dataclass(frozen=True)
class Vision:
    """A vision encoder and which of its layers is the visual feature z."""

    path: str
    feature_layer: int = -2
    select_strategy: str = "default"  # "default" drops the class token, "full" has none
    revision: str | None = None
    train: dict | None = None


@dataclass(frozen=True)
class Teacher:
    """A vision foundation model and how its features are kept: online, or cached as float16 or int8."""

    kind: str
    path: str
    cache: str | None = "float16"
    revision: str | None = None
    train: dict | None = None


@dataclass(frozen=True)
class Align:
    """The alignment loss of one run (Eq. 4-6): what is aligned, where, to what, how strongly."""

    target: str = "teacher"  # "encoder": its own features z (Eq. 4); "projector": post-projection features (Eq. 8)
    teacher: str | None = "dinov2"
    depth: float = 0.5  # relative depth of the aligned block: 0.5 of 32 is block 16
    objective: str = "cosine"
    weight: float = 0.5  # lambda of Eq. 5
    shared_head: bool = False

    def layers(self, blocks: int) -> list[int]:
        """Aligned blocks, 1-based, of a language model of so many blocks; a half is rounded up."""
        return [max(1, int(self.depth * blocks + 0.5))]


@dataclass(frozen=True)
class Head:
    """The alignment head: its width, and the deviation its weights start with."""

    hidden: int = 2048
    init_std: float = 0.02


@dataclass(frozen=True)
class Run:
    """One system of the paper, as it differs from the baseline."""

    language: str = "vicuna-7b"
    vision: str = "clip"
    align: Align | None = None


@dataclass(frozen=True)
class Evaluation:
    """What every run is asked."""

    benchmarks: list[str]
    batch_size: int = 64
    max_new_tokens: int = 8
    sampled: dict[str, int] = field(default_factory=dict)  # benchmarks answered by so many sampled runs, not greedily


@dataclass(frozen=True)
class Cknna:
    """Settings of the layer-wise CKNNA (Fig. 2d): images measured and neighbours counted."""

    benchmark: str
    images: int
    k: int = 10


@dataclass(frozen=True)
class Profile:
    """A profile, checked.  `runs` says which runs of the registry are trained with which seeds."""

    name: str
    label: str
    data: Data
    languages: dict[str, Language]
    visions: dict[str, Vision]
    teachers: dict[str, Teacher]
    stage1: dict
    stage2: dict
    evaluation: Evaluation
    cknna: Cknna
    runs: dict[str, list[int]]
    notebooks: list[str]
    registry: dict[str, Run] = field(repr=False)
    world: World | None = None
    head: Head = Head()
    seed: int = 0


class ProfileError(ValueError):
    """A profile or the registry holds an unknown key or name, or lacks one; the message lists the valid ones."""


def _build(kind, data, where: str):
    """Turn plain YAML into the annotated type, refusing keys that it does not have."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return None if data is None else _build(typing.get_args(kind)[0], data, where)
    if typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
        return {k: _build(typing.get_args(kind)[1], v or {}, f"{where}.{k}") for k, v in data.items()}
    if not dataclasses.is_dataclass(kind):
        plain = typing.get_origin(kind) or kind
        if plain is float and isinstance(data, int):
            data = float(data)
        if not isinstance(data, plain):
            raise ProfileError(f"{where}: expected {plain.__name__}, found {data!r}")
        return data
    if not isinstance(data, dict):
        raise ProfileError(f"{where}: expected a mapping, found {data!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise ProfileError(f"{where}: unknown key {', '.join(unknown)}; valid keys: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    missing = [
        n for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ProfileError(f"{where}: missing key {', '.join(missing)}")
    return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def names() -> list[str]:
    """Names of the profiles that exist."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml") if p.stem != "runs")


def _read(name: str) -> dict:
    if name not in names():
        raise ProfileError(f"no profile {name!r}; there are: {', '.join(names())}")
    data = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    return merge(_read(data.pop("extends")), data) if "extends" in data else data


def merge(base: dict, change: dict) -> dict:
    """`base` with the leaves of `change` laid over it; null removes a key; `runs` is replaced as a whole."""
    out = dict(base)
    for key, value in change.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict) and key != "runs":
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def _expand(data, name: str):
    """Put the profile's name into paths written with {profile}."""
    if isinstance(data, dict):
        return {k: _expand(v, name) for k, v in data.items()}
    return data.replace("{profile}", name) if isinstance(data, str) else data


def load(name: str) -> Profile:
    """Read and check a profile and the registry of runs.

    Raises:
        ProfileError: an unknown profile, key, run, model or teacher, with the valid names.
    """
    registry = yaml.safe_load((PROFILES / "runs.yaml").read_text())
    data = {"name": name, **_expand(_read(name), name), "registry": registry}
    profile = _build(Profile, data, f"profiles/{name}.yaml")
    for run in profile.runs:
        _known("run", run, profile.registry, "profiles/runs.yaml")
        spec = profile.registry[run]
        _known("language", spec.language, profile.languages, f"run {run} of {name}")
        _known("vision", spec.vision, profile.visions, f"run {run} of {name}")
        if spec.align and spec.align.target == "teacher":
            _known("teacher", spec.align.teacher, profile.teachers, f"run {run} of {name}")
    return profile


def _known(what: str, name: str, valid, where: str) -> None:
    if name not in valid:
        raise ProfileError(f"{where}: no {what} {name!r}; there are: {', '.join(valid)}")


def stages(profile: Profile) -> dict:
    """The pipeline of a profile: for each kind of stage, one entry per thing to make, keyed `<profile>-<thing>`.

    Keys carry the profile's name because DVC deletes a stage's recorded outputs before it runs the stage again: with
    the same key, running one profile would delete the other's results.
    """
    paths, plain = RunPaths(profile.name), dataclasses.asdict
    used = [profile.registry[r] for r in profile.runs]
    bases = sorted({(r.language, r.vision) for r in used})
    taught = sorted({(r.align.teacher, r.vision) for r in used if r.align and r.align.target == "teacher"})
    out: dict = {kind: {} for kind in KINDS}
    common = {"seed": profile.seed, "data": plain(profile.data)}

    def add(stage: str, thing: str, /, **entry) -> None:
        out[stage][f"{profile.name}-{thing}"] = {"profile": profile.name, **entry}

    if profile.world:
        add("world", "world", out=str(paths.data), seed=profile.seed, **plain(profile.world))
    for kind, group in (("language", profile.languages), ("vision", profile.visions), ("teacher", profile.teachers)):
        for name, model in group.items():
            if model.train:
                facts = {k: v for k, v in plain(model).items() if k in ("kind", "template", "train")}
                stage = "distil" if kind == "teacher" and "teachers" in model.train else kind
                add(stage, name, out=model.path, seed=profile.seed, pool=str(paths.data / "pool"), **facts)
    for teacher, vision in taught:
        kept = profile.teachers[teacher]
        if kept.cache:
            add("cache", f"{teacher}-{vision}", data=common["data"], teacher=plain(kept),
                vision=plain(profile.visions[vision]), out=str(paths.cache(teacher, vision)))  # fmt: skip
    for language, vision in bases:
        base = {"language": plain(profile.languages[language]), "vision": plain(profile.visions[vision])}
        name = f"{language}-{vision}"
        add("stage1", name, **common, **base, recipe=profile.stage1, out=str(paths.stage1(language, vision)))
    for run, seeds in profile.runs.items():
        spec = profile.registry[run]
        language, vision = profile.languages[spec.language], profile.visions[spec.vision]
        taught = spec.align and spec.align.target == "teacher"
        teacher = profile.teachers[spec.align.teacher] if taught else None
        targets = vision.path  # for DVC: where alignment targets come from
        if teacher:
            targets = str(paths.cache(spec.align.teacher, spec.vision)) if teacher.cache else teacher.path
        align = {**plain(spec.align), **plain(profile.head)} if spec.align else None
        for seed in seeds:
            name = f"{run}-s{seed}"
            add("stage2", name, run=run, name=name, **{**common, "seed": seed},
                language=plain(language), vision=plain(vision), align=align,
                teacher=plain(teacher) if teacher else None,
                recipe=profile.stage2, projector=str(paths.stage1(spec.language, spec.vision)),
                targets=targets, out=str(paths.run(name)))  # fmt: skip
            add("evaluate", name, name=name, run=str(paths.run(name)), **plain(profile.evaluation),
                rows=profile.data.benchmarks, out=str(paths.evaluation(name)))  # fmt: skip
            add("cknna", name, name=name, run=str(paths.run(name)), **plain(profile.cknna),
                rows=profile.data.benchmarks, out=str(paths.cknna(name)))  # fmt: skip
    for name in profile.notebooks:
        add("notebook", name, source=f"notebooks/{name}.py", out=str(paths.notebook(name)),
            results=str(paths.results(name)), evaluation=str(paths.evaluations),
            cknna=str(paths.similarities))  # fmt: skip
    return out


KINDS = (
    "world", "language", "vision", "teacher", "distil", "cache", "stage1", "stage2", "evaluate", "cknna", "notebook",
)  # fmt: skip


def activate(name: str) -> bool:
    """Write `params.yaml` for a profile; say whether it changed.  Edit profiles/, not params.yaml."""
    profile = load(name)
    header = f"# Written from profiles/{name}.yaml by: python -m viral_core profile {name}\n"
    text = header + yaml.safe_dump({"profile": name, **stages(profile)}, sort_keys=False, width=120)
    params = ROOT / "params.yaml"
    if params.exists() and params.read_text() == text:
        return False
    params.write_text(text)
    return True


def entry(kind: str, key: str, params: Path = ROOT / "params.yaml") -> dict:
    """The entry of one stage of the active profile.

    Raises:
        ProfileError: `params.yaml` has no such stage; the message lists those it has.
    """
    known = yaml.safe_load(params.read_text())[kind]
    _known(f"{kind} stage", key, known, str(params.name))
    return known[key]
