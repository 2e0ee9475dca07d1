"""What a model's folder or hub id holds, and weights of our own as files: whole, named where they are damaged."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel, PreTrainedModel, SiglipVisionModel
from transformers.utils import cached_file

from viral_core.files import replacement, write_text

# Vision classes by model type. LLaVA drops CLIP's class token; SigLIP (and fixed-resolution SigLIP2) has none.
VISION = {
    "clip": (CLIPVisionModel, "default"),
    "clip_vision_model": (CLIPVisionModel, "default"),
    "siglip": (SiglipVisionModel, "full"),
    "siglip_vision_model": (SiglipVisionModel, "full"),
}


def require_model(name: str | Path) -> None:
    """Raise FileNotFoundError for a path that is no folder here (a hub id is `owner/name`)."""
    text = str(name)
    is_path = Path(text).is_absolute() or text.startswith(".") or text.count("/") > 1
    if is_path and not Path(text).is_dir():
        raise FileNotFoundError(f"no folder {text}: make or fetch that model, or say where it lies now")


def vision_class(name: str | Path, kind: str) -> tuple[type[PreTrainedModel], str]:
    """The class of the vision tower `name`, whose model type is `kind`, and LLaVA's strategy for its tokens.

    The strategy is "default", which drops the class token, or "full". ValueError for a tower of another kind.
    """
    if kind not in VISION:
        raise ValueError(
            f"{name} is a {kind!r} model; LLaVA takes a fixed-size vision tower: {', '.join(VISION)}. Not a resampler "
            "or Q-Former: its queries mix all patches, so that no visual token belongs to one patch and none can be "
            "aligned (the paper's limitation)"
        )
    return VISION[kind]


def load_vision_tower(name: str | Path, revision: str | None = None, **options) -> tuple[PreTrainedModel, str]:
    """A CLIP or SigLIP tower, and LLaVA's strategy for its tokens.

    FileNotFoundError where there is no such folder, ValueError for a tower of another kind, or without all weights.
    """
    require_model(name)
    model_class, strategy = vision_class(name, AutoConfig.from_pretrained(name, revision=revision).model_type)
    return load_whole(model_class, name, revision, **options), strategy


def load_whole(model_class, name: str | Path, revision: str | None = None, **options):
    """`from_pretrained`, but ValueError for a checkpoint without all weights, where it would draw them at random."""
    require_model(name)
    model, report = model_class.from_pretrained(name, revision=revision, output_loading_info=True, **options)
    if normalisers := sorted(key for key in report["unexpected_keys"] if "normaliz" in key):
        raise ValueError(f"{name} normalises its features ({normalisers[0]}): take a checkpoint that does not")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of {model_class.__name__}, such as {missing[0]}")
    return model


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


def save_weights(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as float32 safetensors, at once, with their checksum in the metadata."""
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(state, path, {**(metadata or {}), "crc32": str(checksum(state))})


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """`save_file` at once, and with the same bytes each time: it writes metadata in an order of chance."""
    with replacement(path) as temporary:
        save_file(dict(tensors), temporary, dict(metadata))
        with temporary.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(metadata.items()))
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; FileNotFoundError without one, ValueError where a bit is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: run the stage that writes them first")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        float32 = all(tensor.dtype == torch.float32 for tensor in state.values())
        if "crc32" in metadata and not (float32 and metadata["crc32"] == str(checksum(state))):
            raise ValueError("its checksum differs")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run the stage that writes it again") from error
    return state, metadata


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over the bytes of tensors, by name."""
    value = 0
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous()
        value = zlib.crc32(data.flatten().view(torch.uint8).numpy(), value)
    return value


def write_json(path: str | Path, content: dict, indent: int | None = None) -> None:
    """Write a json object, at once, with a checksum of the rest as its last entry."""
    content = json.loads(json.dumps(content))
    write_text(path, json.dumps({**content, "crc32": _seal(content)}, indent=indent) + "\n")


def read_json(path: str | Path, remedy: str) -> dict:
    """Read what `write_json` wrote, or an older file without a checksum; ValueError with the remedy if damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("crc32", None) not in (None, _seal(content)):
            raise ValueError("its checksum differs")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    return content


def _seal(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
