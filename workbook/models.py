"""The models that a profile names: assembled for training, or as a run has left them, on this process's device."""

import hashlib
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoImageProcessor

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.images import mean_color
from viral_core.llava import assemble
from viral_core.run_folder import PROJECTOR, Run, load_run
from viral_core.teachers import load_teacher, randomise_linears
from viral_core.templates import TEMPLATES
from workbook.paths import Paths
from workbook.sections import Profile, VisionEncoder


def vision_config(encoder: VisionEncoder):
    """Configuration of a vision encoder, from a checkpoint of its own or of a pair with a text encoder."""
    config = AutoConfig.from_pretrained(encoder.path, revision=encoder.revision)
    return getattr(config, "vision_config", config)


def teacher(settings: Profile, name: str, vision: str, state: str):
    """A teacher on the grid of an encoder, intact or with its linear layers drawn anew as in the released code."""
    spec, encoder = settings.teachers[name], settings.visions[vision]
    if spec.kind == "oracle":
        from workbook.world.oracle import Oracle

        return Oracle()
    student, released = vision_config(encoder), state == "as_released"
    pixels = AutoImageProcessor.from_pretrained(encoder.path, revision=encoder.revision)
    loaded = load_teacher(
        spec.kind,
        spec.path,
        student.image_size // student.patch_size,
        revision=spec.revision,
        clip_pixels=released,
        subfolder=spec.subfolder,
        device=distributed.device(),
        color=mean_color(pixels),
    )
    if released:
        randomise_linears(loaded, seed=0)  # one draw for all seeds of the run, as a cache holds one
    return loaded


def llava(
    settings: Profile,
    language: str,
    vision: str,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    projector: Path | None = None,
    tiled: bool = False,
):
    """A LLaVA of two parts of the profile, LLaVA-NeXT if `tiled`, and its processor; a new projector without a file."""
    model, encoder = settings.languages[language], settings.visions[vision]
    return assemble(
        encoder.path,
        model.path,
        vision_revision=encoder.revision,
        language_revision=model.revision,
        projector=projector,
        dtype=dtype,
        attn_implementation=settings.compute.attention,
        vision_feature_layer=encoder.feature_layer,
        tile_grids=settings.tiles.grids if tiled else None,
        device=device,
    )


def load(settings: Profile, folder: Path) -> Run:
    """A trained run that is not trained on, in the precision that the profile says; its LoRA merged into the weights,
    as LLaVA's evaluation does.
    """
    run = load_run(
        folder,
        dtype=getattr(torch, settings.compute.dtype),
        device=distributed.device(),
        attn_implementation=settings.compute.attention,
    )
    if isinstance(run.model, PeftModel):
        run.model.merge_adapter()
    return run


def stage1_folder(settings: Profile, run: str) -> Path:
    """Where the projector lies that a run's stage 2 started from."""
    system = settings.systems[run]
    return Paths(settings.name).stage1(system.language, system.vision)


def load_start(settings: Profile, run: str) -> Run:
    """A run as it was before stage 2: its language model with the projector of stage 1."""
    system, dtype = settings.systems[run], getattr(torch, settings.compute.dtype)
    projector = stage1_folder(settings, run) / PROJECTOR
    device, options = distributed.device(), {"projector": projector, "tiled": system.tiled}
    start, processor = llava(settings, system.language, system.vision, dtype, device, **options)
    template = TEMPLATES[settings.languages[system.language].template]
    return Run(AlignedModel(start).to(device).eval(), processor, template, start.base, settings.seed, {})


def model_id(folder: Path) -> str:
    """Name and weights of a run: answers of other weights are not continued."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{folder.parent.name}-{folder.name}@{digest.hexdigest()[:12]}"
