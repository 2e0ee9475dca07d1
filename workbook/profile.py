"""Profiles and runs: what is trained, on what, at what size.  Everything here is read from `profiles/*.yaml`.

A profile is data.  `load("laptop")` reads `profiles/laptop.yaml` (on top of the profile it `extends`) and the registry
`profiles/runs.yaml`, checks every key, and returns a `Profile`; `workbook.pipeline` makes the stages out of it.
"""

import dataclasses
from dataclasses import dataclass, field

import yaml

from viral_core.recipe import Recipe
from workbook import registry
from workbook.paths import DEEPSPEED, PROFILES
from workbook.registry import Run
from workbook.scale import hub
from workbook.schema import ProfileError, build, merge
from workbook.schema import known as _known


@dataclass(frozen=True)
class World:
    """The embedded world: how many scenes are drawn for what (`workbook.world`)."""

    pool: int  # scenes that encoders and teachers learn from
    captions: int  # scenes with a stage-1 caption
    conversations: int  # scenes of the instruction mix
    turns: int  # questions per scene at the most
    text_only: int  # conversations without an image
    benchmarks: dict[str, int]  # rows per benchmark


@dataclass(frozen=True)
class Data:
    """Training data in LLaVA's json format, and the folder of benchmarks.

    `downloads` names the groups of profiles/reference/sources.yaml that `fetch` brings there.
    """

    captions: str
    caption_images: str
    conversations: str
    conversation_images: str
    benchmarks: str
    downloads: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Language:
    """A language model: hub id or folder, and the template it is trained and asked with."""

    path: str
    template: str
    revision: str | None = None
    train: dict | None = None  # embedded stand-in: hyper-parameters of workbook.world.language
    blocks: int | None = None  # of a model that is not trained here: which layers a run aligns follows from it
    package: str | None = None  # pip requirement of a package that ships the model as GGUF (workbook.scale.pretrained)

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
    """A vision foundation model, or ROSS's VAE, and how its features are kept: online, or cached as float16 or int8."""

    kind: str
    path: str
    cache: str | None = "float16"
    revision: str | None = None
    train: dict | None = None
    subfolder: str = ""  # of the hub repository, for the VAE of a diffusion model


@dataclass(frozen=True)
class Denoiser:
    """The denoiser of ROSS, a DiT: its sizes, and how many timesteps are drawn for each image of a batch."""

    blocks: int = 3
    width: int = 1024
    heads: int = 16
    mlp_ratio: float = 4.0
    repeats: int = 4


@dataclass(frozen=True)
class Head:
    """The alignment head: its width, and the deviation its weights start with."""

    hidden: int = 2048
    init_std: float = 0.02


@dataclass(frozen=True)
class Tiles:
    """LLaVA-NeXT's tiles, of the encoder's input size: the grids that an image may fill, and what follows from them.

    An image takes the grid that keeps most of its pixels, of several the smallest. `cache`: as a teacher's; online by
    default, because the tiles of an image take the room of several images and few runs read them. `max_length`: of
    stage 2, in place of the recipe's.
    """

    grids: list = field(default_factory=lambda: [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]])  # (rows, columns)
    cache: str | None = None
    max_length: int = 4096  # LLaVA-NeXT's: its own grids give up to 2928 visual tokens of 576 a tile

    def __post_init__(self):
        grids = [grid for grid in self.grids if isinstance(grid, list) and len(grid) == 2]
        if not grids or len(grids) < len(self.grids) or not all(type(n) is int and n > 0 for g in grids for n in g):
            raise ProfileError(f"tiles.grids: expected a list of [rows, columns], found {self.grids!r}")


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
    """How many processes share a stage, one GPU each (`workbook.scale.launch`).

    It is no part of any stage's parameters: the global batch is kept, so that results do not depend on it.
    """

    gpus: int = 1  # a node
    nodes: int = 1
    hostfile: str | None = None  # DeepSpeed's list of nodes; without it several nodes are SLURM's
    deepspeed: str | None = None  # for the trainings: a file of profiles/launch, such as zero2

    def __post_init__(self):
        if min(self.gpus, self.nodes) < 1:
            raise ProfileError(f"launch: gpus and nodes are 1 or more, not {self.gpus} and {self.nodes}")
        if self.deepspeed is not None:
            _known("DeepSpeed configuration", self.deepspeed, deepspeed_names(), "launch.deepspeed")


@dataclass(frozen=True)
class LearningCurve:
    """Learning curves (Fig. 6): `runs` keep checkpoints after these fractions of stage 2, and are asked."""

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
    tiles: Tiles = field(default_factory=Tiles)
    denoiser: Denoiser = Denoiser()
    learning_curve: LearningCurve | None = None
    attention: Attention | None = None
    permutation: Permutation | None = None
    compute: Compute = field(default_factory=Compute)
    launch: Launch = field(default_factory=Launch)
    words: dict | None = None  # embedded: what projectors start from, workbook.world.words
    projectors: dict[str, str] = field(default_factory=dict)  # <language>-<vision>: weights to use instead of stage 1
    seed: int = 0


MEASUREMENTS = ("learning_curve", "attention", "permutation")  # fields of a profile, and stages

# Notebooks, and the stages whose outputs each of them reads: it runs again when these change, and only then.
NOTEBOOKS = {
    "stand_ins": ("vision", "words"),
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
    "paper_arithmetic": (),
    "claims": ("stage2", "evaluate", "cknna", *MEASUREMENTS),
    "explorer": ("stage2", "evaluate"),
}


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
    for model in (*profile.languages.values(), *profile.visions.values(), *profile.teachers.values()):
        if hub.is_hub_id(model.path) and not hub.is_commit(model.revision):
            raise ProfileError(
                f"profiles/{name}.yaml: no folder {model.path} here, and as a model of the hub it needs its "
                f"commit as `revision` (https://huggingface.co/{model.path}/commits lists them)"
            )
    for run, seeds in profile.runs.items():
        _known("run", run, runs, "profiles/runs.yaml")
        spec, where = runs[run], f"run {run} of {name}"
        if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ProfileError(f"profiles/{name}.yaml: runs.{run}: expected a list of different seeds, found {seeds!r}")
        _known("language", spec.language, profile.languages, where)
        _known("vision", spec.vision, profile.visions, where)
        if spec.teacher:
            teachers = [name for name, model in profile.teachers.items() if model.kind != "vae"]
            _known("teacher", spec.teacher, teachers, where)
        if spec.reconstruct:
            vae = spec.reconstruct.vae
            _known("vae", vae, [name for name, model in profile.teachers.items() if model.kind == "vae"], where)
            if not profile.teachers[vae].cache:
                raise ProfileError(f"{where}: reconstruction reads cached latents: give teacher {vae} a cache")
        try:
            spec.check_layers(profile.languages[spec.language].depth)
        except ValueError as error:
            raise ProfileError(f"{where}: {error}") from error
    pairs = [f"{language}-{vision}" for language in profile.languages for vision in profile.visions]
    for pair in profile.projectors:
        _known("pair of language and vision", pair, pairs, f"profiles/{name}.yaml: projectors")
    for stage, beside in (("stage1", {"template", "projector_scale"}), ("stage2", {"lora"})):
        recipe = {key: value for key, value in getattr(profile, stage).items() if key not in beside}
        build(Recipe, recipe, f"profiles/{name}.yaml: {stage}")
    for notebook in profile.notebooks:
        _known("notebook", notebook, NOTEBOOKS, f"profiles/{name}.yaml")
    for measurement in MEASUREMENTS:
        for run in getattr(getattr(profile, measurement), "runs", ()):
            _known("run", run, runs, f"profiles/{name}.yaml: {measurement}")
    return profile
