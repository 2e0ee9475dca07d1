"""A vision tower and a language model, loaded by `from_pretrained`, as one LLaVA of transformers, and LoRA on it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from viral_core.checkpoints import fingerprint, load_vision_tower, load_whole, read_weights, save_weights, vision_class
from viral_core.tap import base_llava
from viral_core.templates import IMAGE_MARKER
from viral_core.tiles import is_tiled, tile_processor

LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"


@dataclass(frozen=True)
class Base:
    """The frozen parts of a model: folders or hub ids, revisions, fingerprints, and the encoder layer read."""

    vision: str
    language: str
    vision_revision: str | None = None
    language_revision: str | None = None
    vision_sha256: str | None = None
    language_sha256: str | None = None
    vision_feature_layer: int = -2
    tile_grids: Sequence[Sequence[int]] | None = None  # of a LLaVA-NeXT, (rows, columns) each


def assemble(
    vision: str | Path,
    language: str | Path,
    *,
    vision_revision: str | None = None,
    language_revision: str | None = None,
    projector: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    vision_feature_layer: int = -2,
    tile_grids: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    """Build LLaVA-1.5 from a CLIP or SigLIP vision tower and a causal language model (folders or hub ids).

    With `tile_grids`, (rows, columns) each, it is LLaVA-NeXT: it has a new newline token, which trains like the
    projector. Everything else is frozen. The projector is a new two-layer GELU MLP unless `projector` names weights.

    The tokenizer gets an `<image>` token and, if it has none, a padding token; embedding rows that the language model
    lacks start at the mean row. The parts' identity is kept as `llava.base`. The loaded parts go to `device`, the
    projector starts on the CPU. For ZeRO-3 assemble on the CPU: the trainer's DeepSpeed partitions the model.

    FileNotFoundError where there is no such folder of a model, ValueError for a vision tower of another kind, a
    checkpoint that lacks weights, or a projector of other models.
    """
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}  # straight to the GPU, whatever the number of processes
    tower, strategy = load_vision_tower(vision, vision_revision, **options)
    lm = load_whole(transformers.AutoModelForCausalLM, language, language_revision, **options)
    revisions = {"vision_revision": vision_revision, "language_revision": language_revision}
    processor = load_processor(vision, language, **revisions, tile_grids=tile_grids)
    tokenizer = processor.tokenizer
    _add_rows(lm, len(tokenizer))
    family, own = "Llava", {}
    if tile_grids is not None:
        family, own = "LlavaNext", {"image_grid_pinpoints": processor.image_processor.image_grid_pinpoints}
    config = getattr(transformers, f"{family}Config")(
        vision_config=tower.config,
        text_config=lm.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=vision_feature_layer,
        tie_word_embeddings=lm.config.tie_word_embeddings,
        dtype=dtype,
        attn_implementation=attn_implementation,  # without it the parts' own is forgotten
        **own,
    )
    with torch.device("meta"):
        llava = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    llava.model.vision_tower, llava.model.language_model, llava.lm_head = tower, lm.model, lm.lm_head
    llava.model.multi_modal_projector = LlavaMultiModalProjector(config).to(dtype)
    if tile_grids is not None:
        width = config.text_config.hidden_size
        llava.model.image_newline = nn.Parameter(torch.randn(width, dtype=dtype) / width**0.5)  # as transformers does
    llava.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    llava.requires_grad_(False)
    for p in connector(llava):
        p.requires_grad_(True)
    checksums = (fingerprint(vision, vision_revision), fingerprint(language, language_revision))
    llava.base = Base(str(vision), str(language), *revisions.values(), *checksums, vision_feature_layer, tile_grids)
    if projector is not None:
        load_projector(llava, projector)
    return llava.eval(), processor


def connector(llava: nn.Module) -> list[nn.Parameter]:
    """What joins encoder and language model, and always trains: the projector and LLaVA-NeXT's newline token."""
    core = base_llava(llava).model
    newline = [core.image_newline] if is_tiled(core.config) else []
    return [*core.multi_modal_projector.parameters(), *newline]


def load_processor(
    vision: str | Path,
    language: str | Path,
    *,
    vision_revision: str | None = None,
    language_revision: str | None = None,
    tile_grids: Sequence[Sequence[int]] | None = None,
) -> transformers.LlavaProcessor | transformers.LlavaNextProcessor:
    """The processor of the LLaVA that `assemble` builds of the same parts, or its ValueError; no weights are read."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(language, revision=language_revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if IMAGE_MARKER not in tokenizer.get_vocab():
        marker = transformers.AddedToken(IMAGE_MARKER, special=True, normalized=False)
        tokenizer.add_tokens([marker], special_tokens=True)
    config = transformers.AutoConfig.from_pretrained(vision, revision=vision_revision)
    _, strategy = vision_class(vision, config.model_type)
    config = getattr(config, "vision_config", config)
    if tile_grids is None:
        kind = transformers.LlavaProcessor
        images = transformers.AutoImageProcessor.from_pretrained(vision, revision=vision_revision)
    else:
        kind = transformers.LlavaNextProcessor
        images = tile_processor(vision, config.image_size, tile_grids, vision_revision)
    return kind(
        images,
        tokenizer,
        patch_size=config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
    )


def _add_rows(lm: transformers.PreTrainedModel, count: int) -> None:
    """Embedding rows for tokens beyond the language model's own, at the mean row."""
    rows = lm.get_input_embeddings().num_embeddings
    if count > rows:
        lm.resize_token_embeddings(count, mean_resizing=False)
        for weight in {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}:
            weight.data[rows:] = weight.data[:rows].mean(0)


def add_lora(llava: transformers.LlavaForConditionalGeneration, r: int, alpha: int, dropout: float = 0.0) -> PeftModel:
    """LoRA on q, k, v, o, gate, up and down of the language model alone, at random; the projector goes on training."""
    lora = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=LORA_TARGETS)
    model = get_peft_model(llava, lora)
    for p in connector(model):
        p.requires_grad_(True)
    return model


@torch.no_grad()
def scale_projector(llava: nn.Module, factor: float) -> None:
    """Multiply the output of a new projector, so that it starts at the size of the word embeddings."""
    for p in base_llava(llava).model.multi_modal_projector.linear_2.parameters():
        p.mul_(factor)


def save_projector(llava: nn.Module, path: str | Path) -> None:
    """Write the projector's weights as float32 safetensors, with the base that they join as json in its metadata."""
    llava = base_llava(llava)
    save_weights(llava.model.multi_modal_projector.state_dict(), path, {"base": json.dumps(asdict(llava.base))})


def load_projector(llava: nn.Module, path: str | Path) -> None:
    """Read a projector of `save_projector`, or a foreign one, which knows no base; ValueError if it does not belong."""
    llava = base_llava(llava)
    metadata = load_into(llava.model.multi_modal_projector, path)
    if "base" in metadata:
        try:
            base = Base(**json.loads(metadata["base"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): run the stage that writes it again") from error
        check_base(path, base, llava.base)


def check_base(path: str | Path, trained_on: Base, here: Base) -> None:
    """Refuse what was trained on models of other content, or another layer's features; where they lie is no matter."""
    content = attrgetter("vision_sha256", "language_sha256", "vision_feature_layer")
    if content(trained_on) != content(here):
        raise ValueError(f"{path} was trained on {trained_on}, but the models here are {here}: train it again")


def load_into(module: nn.Module, path: str | Path) -> dict[str, str]:
    """Load weights that `save_weights` wrote into a module; returns the file's metadata, errors as `load_projector`."""
    state, metadata = read_weights(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error
    return metadata
