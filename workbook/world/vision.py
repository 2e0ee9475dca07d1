"""The embedded vision models: which kinds there are, and one call to train any of them.

Every training takes a pool (`workbook.world.pool`) and writes a folder that `from_pretrained` and `load_teacher`
load, with metrics.json beside the weights: loss, seconds, and linear probes on scenes kept from the training.
The teacher `clip` is not trained here: it is the student's own encoder.
"""

from pathlib import Path

from .vision_encoders import train_clip, train_siglip
from .vision_teachers import train_depth_anything, train_dinov2, train_radio, train_sam

ENCODERS = {"clip": train_clip, "siglip": train_siglip}
TEACHERS = {
    "dinov2": train_dinov2,
    "sam": train_sam,
    "depth_anything": train_depth_anything,
    "radio": train_radio,
}


def train_encoder(kind: str, pool: str | Path, out: str | Path, *, steps: int, seed: int, **recipe) -> dict:
    """Train a vision encoder, `clip` or `siglip`; returns the metrics.  Raises ValueError for another kind."""
    return _known(kind, ENCODERS)(pool, out, steps=steps, seed=seed, **recipe)


def train_teacher(kind: str, pool: str | Path, out: str | Path, *, steps: int, seed: int, **recipe) -> dict:
    """Train a teacher of one of `TEACHERS`; returns the metrics.  Raises ValueError for another kind.

    `radio` also takes `teachers`, the folders of the trained ones that it distils: {kind: folder}.
    """
    return _known(kind, TEACHERS)(pool, out, steps=steps, seed=seed, **recipe)


def _known(kind: str, trainings: dict):
    if kind not in trainings:
        raise ValueError(f"no embedded training for {kind!r}; there are: {', '.join(trainings)}")
    return trainings[kind]
