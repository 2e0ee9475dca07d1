"""A trained run on disk: what trains, in float32 safetensors, and the identity of the frozen parts it belongs to."""

import zlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import LlavaProcessor

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.checkpoints import read_json, read_weights, save_weights, write_json
from viral_core.llava import Base, assemble, check_base, connector, load_into, save_projector
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import base_llava
from viral_core.templates import TEMPLATES, Template
from viral_core.tiles import is_tiled

PROJECTOR, HEADS, RUN = "projector.safetensors", "heads.safetensors", "run.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter", "adapter_model.safetensors"  # peft's own names


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
    if LoRA is on), and `run.json`. Under DeepSpeed every rank must call it; rank 0 writes.
    """
    folder, checksum, additions = Path(folder), None, _additions(aligned)
    with gathered({*additions.parameters(), *(p for p in aligned.parameters() if p.requires_grad)}):
        if not distributed.is_main():
            return
        save_projector(aligned.llava, folder / PROJECTOR)
        if state := additions.state_dict():
            save_weights(state, folder / HEADS)
        if isinstance(aligned.llava, PeftModel):
            adapter = folder / ADAPTER
            state = get_peft_model_state_dict(aligned.llava, save_embedding_layers=False)
            save_weights(state, adapter / ADAPTER_WEIGHTS)
            aligned.llava.peft_config["default"].save_pretrained(adapter)
            checksum = zlib.crc32((adapter / CONFIG_NAME).read_bytes())
    description = {
        "architecture": aligned.config.model_type,
        "base": asdict(base_llava(aligned.llava).base),
        "template": template.name,
        "align": aligned.align and asdict(aligned.align),
        "residuals": [asdict(residual) for residual in aligned.residuals],
        "reconstruct": aligned.reconstruct and asdict(aligned.reconstruct),
        "adapter_config": checksum,  # of its file, which is peft's
        "seed": seed,
        "training": training or {},
    }
    write_json(folder / RUN, description, indent=2)


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
    folder: str | Path, vision: str | Path | None = None, language: str | Path | None = None, **options
) -> Run:
    """Load what `save_run` wrote; in eval mode. `vision` and `language` say where the base is, if it has moved.

    `options` are dtype, device and attn_implementation, as of `assemble`. FileNotFoundError where there is no run, or a
    model is not where it was; ValueError where the base is another, or files are damaged.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"no {RUN} in {folder}: train that run first")
    saved = read_json(folder / RUN, "train that run again")
    base = Base(**saved["base"])
    parts = {name: value for name, value in asdict(base).items() if not name.endswith("sha256")}
    parts["vision"] = vision or _locate(base.vision, folder)
    parts["language"] = language or _locate(base.language, folder)
    llava, processor = assemble(**parts, projector=folder / PROJECTOR, **options)
    check_base(folder, base, llava.base)
    config = saved.get("adapter_config")
    if config is not None or (folder / ADAPTER).is_dir():
        llava = _load_adapter(llava, folder / ADAPTER, config)
        for p in connector(llava):
            p.requires_grad_(True)
    aligned = AlignedModel(
        llava,
        Align(**saved["align"]) if saved["align"] else None,
        tuple(Residual(**residual) for residual in saved["residuals"]),
        Reconstruct(**saved["reconstruct"]) if saved.get("reconstruct") else None,
    )
    additions = _additions(aligned)
    if additions.state_dict():
        load_into(additions, folder / HEADS)
    template = TEMPLATES[saved["template"]]
    aligned = aligned.to(options.get("device", "cpu")).eval()
    return Run(aligned, processor, template, base, saved["seed"], saved["training"])


def _load_adapter(llava: nn.Module, folder: Path, checksum: int | None) -> PeftModel:
    """LoRA of a run: peft looks at no checksums, and leaves at random what it does not find."""
    config, weights = folder / CONFIG_NAME, folder / ADAPTER_WEIGHTS
    if not config.is_file() or checksum not in (None, zlib.crc32(config.read_bytes())):
        raise ValueError(f"{config} is damaged or missing: train that run again")
    state, _ = read_weights(weights)
    model = PeftModel.from_pretrained(llava, folder, is_trainable=True)
    if get_peft_model_state_dict(model, save_embedding_layers=False).keys() != state.keys():
        raise ValueError(f"{weights} does not fit this model, names differ: train that run again")
    return model


def _locate(model: str, folder: Path) -> str:
    """Where a run's model lies: its path is relative to where the run was trained, a folder above the run."""
    places = [Path(), *folder.resolve().parents]
    return next((str(place / model) for place in places if (place / model).is_dir()), model)
