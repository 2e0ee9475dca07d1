"""What a model's folder or hub id holds: kind, content, weights that are all there."""

import hashlib
from pathlib import Path

from transformers import CLIPVisionModel, SiglipVisionModel
from transformers.utils import cached_file

# Vision classes by model type. LLaVA drops CLIP's class token; SigLIP (and fixed-resolution SigLIP2) has none.
VISION = {
    "clip": (CLIPVisionModel, "default"),
    "clip_vision_model": (CLIPVisionModel, "default"),
    "siglip": (SiglipVisionModel, "full"),
    "siglip_vision_model": (SiglipVisionModel, "full"),
}


def fingerprint(name: str | Path, revision: str | None = None, subfolder: str = "") -> str:
    """Sha256 of a model's config.json and of size, first and last MiB of each weight file: cheap at any size."""
    folder = Path(name, subfolder)
    if not folder.is_dir():
        folder = Path(cached_file(str(name), "config.json", revision=revision, subfolder=subfolder)).parent
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()
