"""Take over an existing projector, such as LLaVA-1.5's published `mm_projector.bin`, as the result of stage 1.

The file is read as weights and nothing else: a pickle that asks for code is refused.  Only a two-layer MLP fits, which
maps each patch to one visual token: the alignment loss compares these with the teacher's patches one to one.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from viral_core.checkpoints import save_weights
from viral_core.run_folder import PROJECTOR
from workbook.scale.fetch import sha256

LAYERS = {"0": "linear_1", "2": "linear_2", "linear_1": "linear_1", "linear_2": "linear_2"}  # LLaVA's names and ours
NAME = re.compile(r"(?:^|\.)(?:(?:mm_projector|multi_modal_projector)\.)?(0|2|linear_1|linear_2)\.(weight|bias)$")


def read_projector(path: str | Path) -> dict[str, Tensor]:
    """Weights, float32, under the names of transformers' LLaVA, of LLaVA's `mm_projector.bin` or of safetensors.

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
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} is no file of weights alone, and is not opened as anything else: {error}") from error
    weights = {}
    for name, value in state.items():
        match = NAME.search(name)
        if match is None:
            raise ValueError(
                f"{path} holds {name}: it is not LLaVA-1.5's two-layer MLP projector; a resampler or Q-Former cannot "
                "be taken: its queries mix all patches, so that no visual token belongs to one patch, to be aligned"
            )
        weights[f"{LAYERS[match[1]]}.{match[2]}"] = value.float().contiguous()
    return weights


def import_projector(source: str | Path, folder: str | Path, encoder_width: int, width: int) -> None:
    """Write `projector.safetensors`, as stage 1 does, and `source.json`: where it comes from, with its sha256.

    Errors as of `read_projector`; ValueError for weights of another encoder or language model, too.
    """
    weights, folder = read_projector(source), Path(folder)
    matrices = {"linear_1.weight": (width, encoder_width), "linear_2.weight": (width, width)}
    for name, shape in {**matrices, "linear_1.bias": (width,), "linear_2.bias": (width,)}.items():
        found = tuple(weights[name].shape) if name in weights else "absent"
        if found != shape:
            raise ValueError(f"{source}: {name} is {found}, and this encoder and language model need {shape}")
    save_weights(weights, folder / PROJECTOR)
    origin = json.dumps({"source": str(source), "sha256": sha256(Path(source))}, indent=2)
    (folder / "source.json").write_text(f"{origin}\n", encoding="utf-8")
