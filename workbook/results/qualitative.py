"""Pictures of visual tokens (Section 5.6): states of finished runs and features of teachers, for a few images."""

from collections.abc import Sequence

import numpy as np
import torch

from viral_core import distributed
from viral_core.measure.pca import pca_map
from viral_core.measure.states import stream_states
from viral_core.templates import IMAGE_MARKER, prompt
from workbook.paths import ROOT, Paths
from workbook.results.reading import settings_of


def layer_states(profile: str, run: str, images: Sequence) -> list[np.ndarray]:
    """(layers + 1, N, D) hidden states of the visual tokens of each image, of a run's first seed; [] if not trained."""
    from viral_core.run_folder import load_run

    settings = settings_of(profile)
    seeds = settings.runs.get(run)
    folder = Paths(profile).run(run, seeds[0]) if seeds else None
    if folder is None or not (folder / "run.json").is_file():
        return []
    loaded = load_run(folder, dtype=getattr(torch, settings.compute.dtype), device=distributed.device())
    layers = range(loaded.model.config.text_config.num_hidden_layers + 1)
    asked = prompt(loaded.template, IMAGE_MARKER)
    found = stream_states(loaded.model, loaded.processor, images, asked, layers, 8, run)
    return [image.states.float().cpu().numpy() for image in found]


def token_colours(states: list[np.ndarray], layer: int, count: int) -> list[np.ndarray | None]:
    """PCA map (H, W, 3) of a layer for the first `count` images of `layer_states`; None where there are no states."""
    return [pca_map(image[layer]) for image in states[:count]] or [None] * count


def teacher_of(profile: str, name: str):
    """A teacher of a profile, on the grid of the encoder `clip`; None if it is an embedded one that is not made."""
    from transformers import AutoConfig

    from viral_core.teachers import load_teacher

    settings = settings_of(profile)
    teacher, vision = settings.teachers.get(name), settings.visions["clip"]
    if teacher is None or (teacher.path.startswith("runs/") and not (ROOT / teacher.path).is_dir()):
        return None
    student = AutoConfig.from_pretrained(vision.path, revision=vision.revision)
    student = getattr(student, "vision_config", student)
    grid = student.image_size // student.patch_size
    return load_teacher(teacher.kind, teacher.path, grid, revision=teacher.revision, device=distributed.device())


def teacher_tokens(profile: str, name: str, image) -> np.ndarray | None:
    """PCA map of a teacher's features of an image; None if it has not been made."""
    teacher = teacher_of(profile, name)
    return None if teacher is None else pca_map(teacher([image])[0].float().cpu())
