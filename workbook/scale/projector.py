"""Take over an existing projector, such as LLaVA-1.5's published `mm_projector.bin`, as the result of stage 1.

The file is read as weights and nothing else: a pickle that asks for code is refused.  Only a two-layer MLP fits, which
maps each patch to one visual token: the alignment loss compares these with the teacher's patches one to one.
"""

import hashlib
import json
import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from viral_core.run_folder import PROJECTOR

LAYERS = {"0": "linear_1", "2": "linear_2", "linear_1": "linear_1", "linear_2": "linear_2"}  # LLaVA's names and ours
NAME = re.compile(r"(?:^|\.)(?:(?:mm_projector|multi_modal_projector)\.)?(0|2|linear_1|linear_2)\.(weight|bias)$")
WANTED = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")


def read_projector(path: str | Path) -> dict[str, Tensor]:
    """Weights of a two-layer MLP projector, float32, under the names of transformers' LLaVA.

    Args:
        path: `mm_projector.bin` of LLaVA (a torch file), or safetensors with its names or ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights alone, or a projector of another kind; says why that does not do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no projector at {path}: put the file there, or take `projectors` out of the profile")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of weights alone, and is not opened as anything else: {reason}") from error
    found = {name: NAME.search(name) for name in state}
    if strange := [name for name, match in found.items() if match is None]:
        if any(re.search(r"quer(y|ies)|q_?former|resampler|latent|perceiver", name, re.I) for name in strange):
            raise ValueError(
                f"{path} is a resampler or Q-Former ({strange[0]}): its queries mix all patches, so that no visual "
                "token belongs to one patch and there is nothing to align with the teacher's patches (the paper's "
                "limitation); use a LLaVA with an MLP projector"
            )
        raise ValueError(f"{path} holds {strange[0]}: it is not LLaVA-1.5's two-layer MLP projector")
    weights = {f"{LAYERS[m[1]]}.{m[2]}": state[name].float().contiguous() for name, m in found.items()}
    if sorted(weights) != sorted(WANTED):
        lacking = sorted(set(WANTED) - set(weights))
        raise ValueError(f"{path} lacks {', '.join(lacking)} of LLaVA-1.5's two-layer MLP projector")
    return weights


def import_projector(source: str | Path, folder: str | Path, encoder_width: int, width: int) -> None:
    """Write `projector.safetensors`, as stage 1 does, and `source.json`: where it comes from, with its sha256.

    Raises:
        FileNotFoundError, ValueError: as `read_projector`, or weights of another encoder or language model.
    """
    weights = read_projector(source)
    expected = dict(zip(WANTED, [(width, encoder_width), (width,), (width, width), (width,)], strict=True))
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{source}: {name} is {tuple(weights[name].shape)}, this encoder and language model need {shape}: "
                "it belongs to other models"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / PROJECTOR)
    facts = {"source": str(source), "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
    (folder / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
