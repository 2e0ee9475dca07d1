"""The sections of a profile and the entry of a run: typed, checked where they are read (`workbook.config`)."""

import math
import typing
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from types import NoneType
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from viral_core.recipe import Recipe
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.templates import TEMPLATES
from workbook.paths import DEEPSPEED
from workbook.scale import hub

SYSTEMS = "profiles/runs.yaml"
# Names of models and runs are parts of folders, and of keys that DVC separates with dots.
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
Count = Annotated[int, Field(gt=0)]
Grid = Annotated[list[Count], Field(min_length=2, max_length=2)]  # rows, columns
CacheType = Literal["float32", "float16", "int8"]
TemplateName = Literal[*TEMPLATES]


class ProfileError(ValueError):
    """A profile or a run has an unknown key or name, lacks one or contradicts itself; the message says where."""


def known(what: str, name: str, valid, where: str) -> None:
    """Raise ProfileError, with the valid names, those like it first, unless `name` is one of them."""
    if name not in valid:
        names = dict.fromkeys([*get_close_matches(str(name), valid), *valid])
        raise ProfileError(f"{where}: no {what} {name!r}; there are: {', '.join(names)}")


def check_keys(data: dict, valid, where: str = "") -> None:
    """Raise ProfileError, with the valid keys, if `data` has others."""
    if unknown := sorted(map(str, set(data) - set(valid))):
        raise ProfileError(f"{where}unknown key {', '.join(unknown)}; valid keys: {', '.join(valid)}")


def _keys(kind, data):
    """Unknown keys are an error that lists the valid ones; null is "not given" where a field is never null.

    YAML has no tuples: a list becomes one where the field is one.
    """
    if not isinstance(data, dict):
        return data
    hints = kind.__annotations__
    check_keys(data, hints)
    out = {key: value for key, value in data.items() if value is not None or NoneType in typing.get_args(hints[key])}
    for key, value in out.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}: give a finite number")
        if isinstance(value, list) and "tuple" in str(hints[key]):
            out[key] = tuple(value)
    return out


def _spec(kind):
    """A dataclass of `viral_core` as the type of a key, with checked keys."""
    return Annotated[kind, BeforeValidator(partial(_keys, kind))]


class Section(BaseModel):
    """A mapping of a profile: no unknown keys, no conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data):
        return _keys(cls, data)


class World(Section):
    """The embedded world: how many scenes are drawn for what (`workbook.world`)."""

    captions: Count  # scenes with a stage-1 caption
    conversations: Count  # scenes of the instruction mix
    turns: Count  # questions per scene at the most
    text_only: Annotated[int, Field(ge=0)]  # conversations without an image
    benchmarks: dict[str, Count]  # rows per benchmark
    probes: dict[str, Count]  # scenes with labelled tokens per split, train, val and test


class Data(Section):
    """Training data in LLaVA's json format, and the folder of benchmarks.

    `downloads` names the groups of `sources` that `fetch` brings there.
    """

    captions: str
    caption_images: str
    conversations: str
    conversation_images: str
    benchmarks: str
    downloads: list[str] = []
    sources: str = "profiles/reference/sources.yaml"


class LanguageModel(Section):
    """A language model: hub id or folder, and the template it is trained and asked with."""

    path: str
    template: TemplateName
    blocks: Count  # which layers a run aligns follows from it
    revision: str | None = None
    package: str | None = None  # pip requirement of a package that ships the model as GGUF (workbook.scale.pretrained)


class VisionEncoder(Section):
    """A vision encoder, which of its layers is the visual feature z, and how z is kept: computed anew, or cached."""

    path: str
    feature_layer: int = -2
    cache: CacheType | None = None
    revision: str | None = None


class TeacherModel(Section):
    """A vision foundation model, or ROSS's VAE, and how its features are kept: online, or cached."""

    kind: str
    path: str
    cache: CacheType | None = "float16"
    revision: str | None = None
    subfolder: str = ""  # of the hub repository, for the VAE of a diffusion model


class Tiles(Section):
    """LLaVA-NeXT's tiles, of the encoder's input size: the grids that an image may fill, and what follows from them.

    An image takes the grid that keeps most of its pixels, of several the smallest.
    """

    grids: Annotated[list[Grid], Field(min_length=1)] = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    cache: CacheType | None = None  # as a teacher's; null because the tiles of an image take the room of several images
    max_length: Count = 4096  # of stage 2.  LLaVA-NeXT's: its own grids give up to 2928 visual tokens of 576 a tile


class Lora(Section):
    """LoRA on the language model."""

    r: Count
    alpha: Count
    dropout: float = 0.0


class Evaluation(Section):
    """What every run is asked."""

    benchmarks: list[str]
    batch_size: Count = 64
    max_new_tokens: Count = 8
    sampled: dict[str, Count] = {}  # benchmarks answered by so many sampled runs, not greedily


class LearningCurve(Section):
    """Learning curves (Fig. 6): `runs` keep checkpoints after these fractions of stage 2, and are asked."""

    runs: list[str]
    fractions: list[Annotated[float, Field(gt=0, le=1)]]
    benchmarks: list[str]


class Cknna(Section):
    """Settings of the layer-wise CKNNA (Fig. 2d, 8, 9) of these runs: images, and neighbours counted."""

    runs: list[str]
    benchmark: str
    images: Count
    k: Count = 10


class Attention(Section):
    """Settings of the spatial entropy (Fig. 4): the first `questions` of one category of a benchmark, of these runs."""

    runs: list[str]
    benchmark: str
    category: str
    questions: Count
    maps: Annotated[int, Field(ge=0)] = 0  # attention maps of the first so many questions are kept, for Fig. 12


class Permutation(Section):
    """Settings of the patch permutation (Table 3): how often each of these runs is asked with shuffled features."""

    runs: list[str]
    benchmark: str
    permutations: Count


class Probes(Section):
    """Settings of the linear probes of every layer: of these runs, fitted to so many labelled scenes of the world."""

    runs: list[str]
    scenes: Count


class Compute(Section):
    """How finished models answer and are measured, and which attention every model uses (trainings: `bf16`)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"  # flash needs the package flash-attn and a GPU


class Launch(Section):
    """How many processes share a stage, one GPU each (`workbook.scale.launch`).

    It is no parameter of any stage: the global batch is kept, so that results do not depend on it.
    """

    gpus: Count = 1  # a node
    nodes: Count = 1
    hostfile: str | None = None  # DeepSpeed's list of nodes; without it several nodes are SLURM's
    deepspeed: str | None = None  # for the trainings: a file of profiles/launch, such as zero2
    cpu: bool = False  # where there are no GPUs the processes may run on the CPU

    @model_validator(mode="after")
    def _check_deepspeed(self):
        if self.deepspeed is not None:
            known("DeepSpeed configuration", self.deepspeed, deepspeed_names(), "launch.deepspeed")
        return self


class System(Section):
    """One system of the paper, as it differs from the baseline.

    `architecture`: "llava" (LLaVA-1.5) or "llava_next", which takes images in tiles and LLaVA's stage-1 projector.
    """

    architecture: Literal["llava", "llava_next"] = "llava"
    language: str = "vicuna-7b"
    vision: str = "clip"
    images: Count | None = None  # stage 2 takes the conversations of so many images; null: all
    align: _spec(Align) | None = None
    residual: _spec(Residual) | None = None
    reconstruct: _spec(Reconstruct) | None = None
    checkpoints: list[float] = []  # fractions of stage 2 after which it is kept, from the profile's learning curve

    @model_validator(mode="after")
    def _check_tiles(self):
        if self.tiled and (self.residual or self.reconstruct or (self.align and self.align.shuffled)):
            raise ValueError("residual, reconstruct and shuffled take whole images: choose architecture llava")
        return self

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self.architecture == "llava_next"

    @property
    def plain(self) -> bool:
        """Whether nothing is added to LLaVA's own training."""
        return not (self.align or self.residual or self.reconstruct)

    @property
    def teacher(self) -> str | None:
        """Name of the teacher whose features this run needs."""
        return self.align.teacher if self.align else None


MEASUREMENTS = ("cknna", "attention", "permutation", "probes")  # sections of a profile, each of some runs


class Profile(Section):
    """A profile, checked.  `runs` says which systems are trained, and with which seeds."""

    name: Name
    label: str
    data: Data
    languages: dict[Name, LanguageModel]
    visions: dict[Name, VisionEncoder]
    teachers: dict[Name, TeacherModel]
    stage1: _spec(Recipe)
    stage2: _spec(Recipe)
    lora: Lora
    evaluation: Evaluation
    cknna: Cknna
    runs: dict[str, Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]]
    systems: dict[Name, System] = Field(repr=False)
    world: World | None = None
    template: TemplateName | None = None  # of stage 1; null: the language model's own
    projector_scale: float = 1.0  # of the projector that stage 1 starts from
    tiles: Tiles = Tiles()
    learning_curve: LearningCurve | None = None
    attention: Attention | None = None
    permutation: Permutation | None = None
    probes: Probes | None = None
    compute: Compute = Compute()
    launch: Launch = Launch()
    projectors: dict[str, str] = {}  # <language>-<vision>: weights to use instead of stage 1
    seed: int = 0

    def blocks(self, run: str) -> int:
        """Number of blocks of a run's language model."""
        return self.languages[self.systems[run].language].blocks

    def cache_type(self, teacher: str, tiled: bool) -> CacheType | None:
        """How the features of a teacher, or a VAE's latents, are kept, of whole images or tiles; None: not at all."""
        return self.tiles.cache if tiled else self.teachers[teacher].cache

    def recipe(self, run: str, seed: int) -> Recipe:
        """Hyperparameters of a run's instruction tuning."""
        system = self.systems[run]
        changes = {"max_length": self.tiles.max_length} if system.tiled else {}
        return replace(self.stage2, seed=seed, checkpoints=tuple(system.checkpoints), **changes)

    def measurements(self, run: str) -> dict[str, Section]:
        """Settings of what is measured of a run, by name."""
        sections = {name: getattr(self, name) for name in MEASUREMENTS}
        return {name: section for name, section in sections.items() if section and run in section.runs}

    @model_validator(mode="after")
    def _check_names(self):
        for run, seeds in self.runs.items():
            known("run", run, self.systems, "runs")
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"runs.{run}: seeds must differ, found {seeds}")
            self._check_system(self.systems[run], f"run {run} of {self.name}")
        for run in {*getattr(self.attention, "runs", ()), *getattr(self.permutation, "runs", ())} & set(self.systems):
            if self.systems[run].tiled:
                raise ValueError(f"attention and permutation measure images that are whole, {run} takes them in tiles")
        for model in (*self.languages.values(), *self.visions.values(), *self.teachers.values()):
            if hub.is_hub_id(model.path) and not hub.is_commit(model.revision):
                raise ValueError(
                    f"no folder {model.path} here, and as a model of the hub it needs its commit as "
                    f"`revision` (https://huggingface.co/{model.path}/commits lists them)"
                )
        if self.learning_curve and (more := set(self.learning_curve.benchmarks) - set(self.evaluation.benchmarks)):
            raise ValueError(
                f"learning_curve.benchmarks: {', '.join(sorted(more))} not in evaluation.benchmarks, asked of all"
            )
        if self.probes and not self.world:
            raise ValueError("probes read labels of drawn scenes, and nothing is drawn here: set `probes: null`")
        if self.probes and self.probes.scenes > (there := self.world.probes.get("train", 0)):
            raise ValueError(f"probes.scenes: {self.probes.scenes}, of {there} (world.probes.train)")
        pairs = [f"{language}-{vision}" for language in self.languages for vision in self.visions]
        for pair in self.projectors:
            known("pair of language and vision", pair, pairs, "projectors")
        return self

    def _check_system(self, system: System, where: str) -> None:
        if self.world and system.images and system.images > self.world.conversations:
            raise ValueError(f"{where}: {system.images} images, of {self.world.conversations} (world.conversations)")
        if system.align and system.align.layers and system.align.span:
            raise ValueError(f"{where}: align.layers stand in place of depth and span: set `span: 0` beside them")
        if system.teacher and system.align.dim:
            raise ValueError(f"{where}: its teacher says the features' size: set `dim: null`")
        known("language", system.language, self.languages, where)
        known("vision", system.vision, self.visions, where)
        vaes = [name for name, model in self.teachers.items() if model.kind == "vae"]
        if system.teacher:
            known("teacher", system.teacher, [name for name in self.teachers if name not in vaes], where)
        if system.reconstruct:
            known("vae", system.reconstruct.vae, vaes, where)
            if not self.teachers[system.reconstruct.vae].cache:
                raise ValueError(f"{where}: reconstruction reads cached latents: give {system.reconstruct.vae} a cache")
        blocks = self.languages[system.language].blocks
        try:
            if system.align:
                system.align.blocks(blocks)
            for part in filter(None, (system.residual, system.reconstruct)):
                part.block(blocks)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def deepspeed_names() -> list[str]:
    """Names of the DeepSpeed configurations that a profile may choose."""
    return sorted(path.stem for path in DEEPSPEED.glob("*.json"))
