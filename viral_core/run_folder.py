"""A trained run on disk: the projector, LoRA, alignment heads and residual adapters, and the base that they belong to.

A run folder holds what trains, in float32 safetensors, with the identity of the frozen parts; `load_run` puts
everything back together.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import LlavaProcessor

from viral_core.aligned import AlignedModel
from viral_core.llava import (
    Base,
    assemble,
    connector,
    cpu_state,
    expect_base,
    load_weights,
    save_projector,
)
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import base_llava
from viral_core.templates import TEMPLATES, Template
from viral_core.tiles import is_tiled

PROJECTOR, ADAPTER, HEADS, RUN = "projector.safetensors", "adapter", "heads.safetensors", "run.json"


def gathered(parameters):
    """Context in which ZeRO-3's partitioned parameters are whole; nothing to do without ZeRO-3."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def _additions(aligned: AlignedModel) -> nn.ModuleDict:
    """The new modules that are neither LoRA nor projector, as they are named in `heads.safetensors`."""
    parts = {"heads": aligned.heads, "adapters": aligned.adapters}
    if is_tiled(aligned.config):
        parts["newline"] = nn.ParameterDict({"image_newline": base_llava(aligned.llava).model.image_newline})
    if aligned.reconstruction is not None:
        parts["reconstruction"] = aligned.reconstruction
    return nn.ModuleDict(parts)


def save_run(
    folder: str | Path, aligned: AlignedModel, template: Template, seed: int, training: dict | None = None
) -> None:
    """Write everything that trains, and what it belongs to, into `folder` (about the size of the LoRA adapter).

    Files: `projector.safetensors`, `heads.safetensors` (heads, residual adapters, denoiser, if any), `adapter/` (peft,
    if LoRA is on), and `run.json`: base and fingerprints, template, alignment, residuals, reconstruction, seed and
    `training` (any json).
    Under DeepSpeed every rank must call it; rank 0 writes.
    """
    folder = Path(folder)
    trained = [p for p in aligned.parameters() if p.requires_grad]
    with gathered(trained):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_projector(aligned.llava, folder / PROJECTOR)
        heads = cpu_state(_additions(aligned))
        if heads:
            save_file(heads, folder / HEADS)
        if isinstance(aligned.llava, PeftModel):
            state = get_peft_model_state_dict(aligned.llava, save_embedding_layers=False)
            (folder / ADAPTER).mkdir(exist_ok=True)
            save_file(
                {name: p.detach().float().cpu().contiguous() for name, p in state.items()},
                folder / ADAPTER / "adapter_model.safetensors",
            )
            aligned.llava.peft_config["default"].save_pretrained(folder / ADAPTER)
    description = {
        "architecture": aligned.config.model_type,
        "base": asdict(base_llava(aligned.llava).base),
        "template": template.name,
        "align": None if aligned.align is None else asdict(aligned.align),
        "residuals": [asdict(residual) for residual in aligned.residuals],
        "reconstruct": None if aligned.reconstruct is None else asdict(aligned.reconstruct),
        "seed": seed,
        "training": training or {},
    }
    (folder / RUN).write_text(json.dumps(description, indent=2) + "\n")


@dataclass
class Run:
    """A trained model, ready: `model` generates with LoRA and residuals active, `aligned` can go on training."""

    aligned: AlignedModel
    processor: LlavaProcessor
    template: Template
    base: Base
    seed: int
    training: dict

    @property
    def model(self) -> nn.Module:
        return self.aligned.llava


def load_run(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    vision: str | Path | None = None,
    language: str | Path | None = None,
) -> Run:
    """Load what `save_run` wrote; in eval mode. `vision` and `language` say where the base is, if it has moved.

    Raises:
        FileNotFoundError: `folder` holds no run.
        ValueError: the base is not the one the run was trained on, or weights do not fit.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"no {RUN} in {folder}: train that run first")
    saved = json.loads((folder / RUN).read_text())
    base = Base(**saved["base"])
    llava, processor = assemble(
        vision or base.vision,
        language or base.language,
        vision_revision=base.vision_revision,
        language_revision=base.language_revision,
        projector=folder / PROJECTOR,
        dtype=dtype,
        attn_implementation=attn_implementation,
        vision_feature_layer=base.vision_feature_layer,
        tile_grids=base.tile_grids,
        device=device,
    )
    expect_base(folder, base, llava.base)
    if (folder / ADAPTER).is_dir():
        llava = PeftModel.from_pretrained(llava, folder / ADAPTER, is_trainable=True)
        for p in connector(llava):
            p.requires_grad_(True)
    aligned = AlignedModel(
        llava,
        None if saved["align"] is None else Align(**saved["align"]),
        tuple(Residual(**residual) for residual in saved["residuals"]),
        Reconstruct(**saved["reconstruct"]) if saved.get("reconstruct") else None,
    )
    additions = _additions(aligned)
    if additions.state_dict():
        load_weights(additions, folder / HEADS)
    template = TEMPLATES[saved["template"]]
    return Run(aligned.to(device).eval(), processor, template, base, saved["seed"], saved["training"])
