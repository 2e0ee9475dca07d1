"""Profiles and runs: what is trained, on what, at what size.  Everything here is read from `profiles/*.yaml`.

A profile is data.  `load("laptop")` reads `profiles/laptop.yaml` (on top of the profile it `extends`) and the registry
`profiles/runs.yaml`, checks every key, and returns a `Profile`.  `python -m viral_core profile laptop` writes what it
resolves to into `params.yaml`, one entry per pipeline stage, which is what DVC and the stages read: an entry holds all
that its stage depends on, so that a change re-runs the stages it concerns and no others.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from viral_core import registry
from viral_core.paths import DEEPSPEED, PROFILES, ROOT, RunPaths
from viral_core.registry import Run
from viral_core.schema import ProfileError, build, merge
from viral_core.schema import known as _known


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
    blocks: int | None = None  # of a model that is not trained here: which layers a run aligns follows from it
    package: str | None = None  # pip requirement of a package that ships the model as GGUF (viral_core.pretrained)

    def __post_init__(self):
        if (self.blocks is None) == (self.train is None):
            raise ValueError("a language model states its number of `blocks`, an embedded one within `train`")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.blocks or self.train["blocks"]


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
class Head:
    """The alignment head: its width, and the deviation its weights start with."""

    hidden: int = 2048
    init_std: float = 0.02


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
class Compute:
    """How finished models answer and are measured, and which attention every model uses (trainings: `bf16`)."""

    dtype: str = "float32"  # or "bfloat16"
    attention: str = "sdpa"  # or "eager", or "flash_attention_2", which needs the package flash-attn and a GPU

    def __post_init__(self):
        _known("dtype", self.dtype, ("float32", "bfloat16"), "compute.dtype")
        _known("attention", self.attention, ("sdpa", "flash_attention_2", "eager"), "compute.attention")


@dataclass(frozen=True)
class Launch:
    """How many processes share a stage, one GPU each (`viral_core.launch`).

    It is no part of any stage's parameters: the global batch is kept, so that results do not depend on it.
    """

    gpus: int = 1  # a node
    nodes: int = 1
    hostfile: str | None = None  # DeepSpeed's list of nodes; without it several nodes are SLURM's
    deepspeed: str | None = None  # for the trainings: a file of profiles/deepspeed, such as zero2

    def __post_init__(self):
        if min(self.gpus, self.nodes) < 1:
            raise ProfileError(f"launch: gpus and nodes are 1 or more, not {self.gpus} and {self.nodes}")
        if self.deepspeed is not None:
            _known("DeepSpeed configuration", self.deepspeed, deepspeed_names(), "launch.deepspeed")


@dataclass(frozen=True)
class LearningCurve:
    """Learning curves (Fig. 6): runs whose checkpoints are kept after these fractions of stage 2, and asked."""

    runs: list[str]
    fractions: list[float]
    benchmarks: list[str]


@dataclass(frozen=True)
class Attention:
    """Settings of the spatial entropy (Fig. 4): the first `questions` of one category of a benchmark, of these runs."""

    runs: list[str]
    benchmark: str
    category: str
    questions: int
    maps: int = 0  # attention maps of the first so many questions are kept, for Fig. 12


@dataclass(frozen=True)
class Permutation:
    """Settings of the patch permutation (Table 3): how often each of these runs is asked with shuffled features."""

    runs: list[str]
    benchmark: str
    permutations: int


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
    learning_curve: LearningCurve | None = None
    attention: Attention | None = None
    permutation: Permutation | None = None
    compute: Compute = field(default_factory=Compute)
    launch: Launch = field(default_factory=Launch)
    seed: int = 0


def names() -> list[str]:
    """Names of the profiles that exist."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml") if p.stem != "runs")


def deepspeed_names() -> list[str]:
    """Names of the DeepSpeed configurations that a profile may choose."""
    return sorted(p.stem for p in DEEPSPEED.glob("*.json"))


def _read(name: str) -> dict:
    if name not in names():
        raise ProfileError(f"no profile {name!r}; there are: {', '.join(names())}")
    data = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    return merge(_read(data.pop("extends")), data) if "extends" in data else data


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
    data = {"name": name, **_expand(_read(name), name), "registry": {}}
    runs = registry.read(PROFILES / "runs.yaml")
    profile = dataclasses.replace(build(Profile, data, f"profiles/{name}.yaml"), registry=runs)
    for run, seeds in profile.runs.items():
        _known("run", run, runs, "profiles/runs.yaml")
        spec, where = runs[run], f"run {run} of {name}"
        if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ProfileError(f"profiles/{name}.yaml: runs.{run}: expected a list of different seeds, found {seeds!r}")
        _known("language", spec.language, profile.languages, where)
        _known("vision", spec.vision, profile.visions, where)
        if spec.teacher:
            _known("teacher", spec.teacher, profile.teachers, where)
        try:
            spec.check_layers(profile.languages[spec.language].depth)
        except ValueError as error:
            raise ProfileError(f"{where}: {error}") from error
    for notebook in profile.notebooks:
        _known("notebook", notebook, NOTEBOOKS, f"profiles/{name}.yaml")
    for measurement in MEASUREMENTS:
        for run in getattr(getattr(profile, measurement), "runs", ()):
            _known("run", run, runs, f"profiles/{name}.yaml: {measurement}")
    return profile


def _needed_models(profile: Profile, used: list[Run]) -> set[str]:
    """Paths of the models that the runs need, those that a teacher is distilled from included."""
    teachers = [profile.teachers[run.teacher] for run in used if run.teacher]
    models = [
        *(profile.languages[run.language] for run in used), *(profile.visions[run.vision] for run in used), *teachers
    ]  # fmt: skip
    distilled = [teacher.train.get("teachers", {}).values() for teacher in teachers if teacher.train]
    return {model.path for model in models}.union(*distilled)


def stages(profile: Profile) -> dict:
    """The pipeline of a profile: for each kind of stage, one entry per thing to make, keyed `<profile>-<thing>`.

    Keys carry the profile's name because DVC deletes a stage's recorded outputs before it runs the stage again: with
    the same key, running one profile would delete the other's results.
    """
    paths, plain = RunPaths(profile.name), dataclasses.asdict
    used = [profile.registry[r] for r in profile.runs]
    bases = sorted({(r.language, r.vision) for r in used})
    taught = sorted({(r.teacher, r.align.teacher_state, r.vision) for r in used if r.teacher})
    needed = _needed_models(profile, used)
    out: dict = {kind: {} for kind in KINDS}
    compute = {"compute": plain(profile.compute)}
    common = {"seed": profile.seed, "data": plain(profile.data), **compute}

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
                add(stage, name, out=model.path, seed=profile.seed, pool=str(paths.data / "pool"), **facts)
    for teacher, state, vision in taught:
        kept, folder = profile.teachers[teacher], paths.cache(teacher, vision, state)
        if kept.cache:
            add("cache", folder.name, data=common["data"], teacher={**plain(kept), "state": state},
                vision=plain(profile.visions[vision]), out=str(folder))  # fmt: skip
    for language, vision in bases:
        base = {"language": plain(profile.languages[language]), "vision": plain(profile.visions[vision])}
        name = f"{language}-{vision}"
        add("stage1", name, **common, **base, recipe=profile.stage1, out=str(paths.stage1(language, vision)))
    for run, seeds in profile.runs.items():
        spec = profile.registry[run]
        language, vision = profile.languages[spec.language], profile.visions[spec.vision]
        teacher = profile.teachers[spec.teacher] if spec.teacher else None
        targets = vision.path  # for DVC: where alignment targets come from
        if teacher:
            cached = str(paths.cache(spec.teacher, spec.vision, spec.align.teacher_state))
            targets = cached if teacher.cache else teacher.path
        align = {**plain(spec.align), **plain(profile.head)} if spec.align else None
        curve = profile.learning_curve
        checkpoints = curve.fractions if curve and run in curve.runs else []
        for seed in seeds:
            name = f"{run}-s{seed}"
            add("stage2", name, run=run, name=name, **{**common, "seed": seed},
                language=plain(language), vision=plain(vision), align=align,
                residual=plain(spec.residual) if spec.residual else None,
                teacher={**plain(teacher), "state": spec.align.teacher_state} if teacher else None,
                recipe={**profile.stage2, "checkpoints": checkpoints},
                projector=str(paths.stage1(spec.language, spec.vision)), targets=targets, out=str(paths.run(name)))  # fmt: skip
            add("evaluate", name, name=name, run=str(paths.run(name)), **plain(profile.evaluation), **compute,
                rows=profile.data.benchmarks, out=str(paths.evaluation(name)))  # fmt: skip
            add("cknna", name, name=name, run=str(paths.run(name)), **plain(profile.cknna), **compute,
                rows=profile.data.benchmarks, out=str(paths.cknna(name)))  # fmt: skip
            for kind, settings in _measurements(profile, run).items():
                add(kind, name, name=name, run=str(paths.run(name)), **settings, **compute,
                    rows=profile.data.benchmarks, out=str(paths.measured(kind) / name))  # fmt: skip
    for name in profile.notebooks:
        reads = [kind for kind in NOTEBOOKS[name] if out[kind]] or ["evaluate"]
        add({1: "notebook", 2: "notebook2"}[len(reads)], name, source=f"notebooks/{name}.py",
            out=str(paths.notebook(name)), results=str(paths.results(name)),
            reads=[str(paths.measured(kind)) for kind in reads])  # fmt: skip
    return out


def _measurements(profile: Profile, run: str) -> dict[str, dict]:
    """Settings of the measurements that a profile makes of a run, by kind."""
    asked = {"batch_size": profile.evaluation.batch_size, "max_new_tokens": profile.evaluation.max_new_tokens}
    wanted = {kind: getattr(profile, kind) for kind in MEASUREMENTS}
    return {
        kind: {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("runs", "fractions")} | asked
        for kind, settings in wanted.items()
        if settings and run in settings.runs
    }


MEASUREMENTS = ("learning_curve", "attention", "permutation")  # fields of a profile, and stages

# Notebooks, and the stages whose outputs each of them reads: it runs again when these change, and only then.
NOTEBOOKS = {
    "method_walkthrough": ("stage1", "cache"),
    "pilot_study": ("evaluate", "cknna"),
    "residual_variants": ("evaluate", "cknna"),
    "main_table": ("evaluate",),
    "ablations": ("evaluate",),
    "attention": ("attention",),
    "robustness": ("permutation",),
    "qualitative": ("stage2", "evaluate"),
    "efficiency": ("evaluate", "learning_curve"),
    "ross": ("evaluate",),
    "llava_next": ("cknna",),
}

KINDS = (
    "pretrained", "world", "language", "vision", "teacher", "distil", "cache", "stage1", "stage2", "evaluate", "cknna",
    *MEASUREMENTS, "notebook", "notebook2",
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
