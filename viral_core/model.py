"""Assemble, adapt, save and load: a vision tower and a language model as one LLaVA with alignment.

Design choices:
- The parts are loaded by `from_pretrained` and put into transformers' own LLaVA class; nothing of a loaded part is ever
  initialised again (one of the released code's defects, method facts section 1).
- What trains is the projector, LoRA, alignment heads and residual adapters. A run folder holds just these, in
  safetensors, with the identity of the base they belong to; `load_run` puts everything back together.
- A residual (Eq. 3 and 7) is part of the model: its hook is active in training and in generation.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.utils import cached_file

from viral_core.head import AlignmentHead
from viral_core.losses import OBJECTIVES
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import VisualTap, base_llava
from viral_core.templates import IMAGE_MARKER, TEMPLATES, Template
from viral_core.tiles import NEWLINE, batch_patch_index, is_tiled, tile_count, tile_processor

# Vision classes by model type. LLaVA drops CLIP's class token; SigLIP (and fixed-resolution SigLIP2) has none.
VISION = {
    "clip": (CLIPVisionModel, "default"),
    "clip_vision_model": (CLIPVisionModel, "default"),
    "siglip": (SiglipVisionModel, "full"),
    "siglip_vision_model": (SiglipVisionModel, "full"),
}
RESAMPLERS = ("blip-2", "instructblip", "instructblipvideo", "idefics", "idefics2", "kosmos-2", "perceiver")
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
PROJECTOR, ADAPTER, HEADS, RUN = "projector.safetensors", "adapter", "heads.safetensors", "run.json"


@dataclass(frozen=True)
class Base:
    """The frozen parts of a model: folders or hub ids, revisions, fingerprints, and the encoder layer read.

    `tile_grids`: of a LLaVA-NeXT, (rows, columns) each; None for LLaVA-1.5.
    """

    vision: str
    language: str
    vision_revision: str | None = None
    language_revision: str | None = None
    vision_sha256: str | None = None
    language_sha256: str | None = None
    vision_feature_layer: int = -2
    tile_grids: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        if self.tile_grids is not None:
            object.__setattr__(self, "tile_grids", tuple(map(tuple, self.tile_grids)))


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
) -> tuple[LlavaForConditionalGeneration | LlavaNextForConditionalGeneration, LlavaProcessor | LlavaNextProcessor]:
    """Build LLaVA-1.5 from a CLIP or SigLIP vision tower and a causal language model (folders or hub ids).

    With `tile_grids`, (rows, columns) each, it is LLaVA-NeXT: it has a newline token too, which is new and trains like
    the projector.

    Everything is frozen but the projector, a new two-layer GELU MLP unless `projector` names saved weights. The
    tokenizer gets an `<image>` token and, if it has none, a padding token; embedding rows that the language model lacks
    start at the mean row, so that assembling again gives the same model. The parts' identity is kept as `llava.base`.
    The loaded parts go to `device`, the projector starts on the CPU. For ZeRO-3 assemble on the CPU, without a live
    `HfDeepSpeedConfig`: the trainer's DeepSpeed partitions the model.

    Raises:
        ValueError: a vision tower of another kind, or a projector that does not fit or joins other models.
    """
    kind = AutoConfig.from_pretrained(vision, revision=vision_revision).model_type
    if kind in RESAMPLERS or kind.endswith("_qformer"):
        raise ValueError(
            f"{vision} is a {kind!r} model, which reads images through a resampler or Q-Former: its queries mix all "
            "patches, so that no visual token belongs to one patch and none can be aligned (the paper's limitation)"
        )
    if kind not in VISION:
        raise ValueError(f"{vision} is a {kind!r} model; LLaVA takes a fixed-size vision tower: {', '.join(VISION)}")
    vision_class, strategy = VISION[kind]
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}  # straight to the GPU, whatever the number of processes
    tower = vision_class.from_pretrained(vision, revision=vision_revision, **options)
    lm = AutoModelForCausalLM.from_pretrained(language, revision=language_revision, **options)
    tokenizer = AutoTokenizer.from_pretrained(language, revision=language_revision)
    _prepare_tokens(tokenizer, lm)

    if tile_grids is None:
        config_class, llava_class, processor_class = LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
        images, own = AutoImageProcessor.from_pretrained(vision, revision=vision_revision), {}
    else:
        config_class, llava_class = LlavaNextConfig, LlavaNextForConditionalGeneration
        processor_class = LlavaNextProcessor
        images = tile_processor(vision, tower.config.image_size, tile_grids, vision_revision)
        own = {"image_grid_pinpoints": images.image_grid_pinpoints}
    processor = processor_class(
        images,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
    )
    config = config_class(
        vision_config=tower.config,
        text_config=lm.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=vision_feature_layer,
        tie_word_embeddings=lm.config.tie_word_embeddings,
        dtype=dtype,
        **own,
    )
    with torch.device("meta"):
        llava = llava_class(config)
    llava.model.vision_tower, llava.model.language_model, llava.lm_head = tower, lm.model, lm.lm_head
    llava.model.multi_modal_projector = LlavaMultiModalProjector(config).to(dtype)
    if tile_grids is not None:
        width = config.text_config.hidden_size
        llava.model.image_newline = nn.Parameter(torch.randn(width, dtype=dtype) / width**0.5)  # as transformers does
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    llava.requires_grad_(False)
    for p in connector(llava):
        p.requires_grad_(True)
    llava.base = Base(
        str(vision),
        str(language),
        vision_revision,
        language_revision,
        fingerprint(vision, vision_revision),
        fingerprint(language, language_revision),
        vision_feature_layer,
        tile_grids,
    )
    if projector is not None:
        load_projector(llava, projector)
    return llava.eval(), processor


def connector(llava: nn.Module) -> list[nn.Parameter]:
    """What joins encoder and language model, and always trains: the projector and LLaVA-NeXT's newline token."""
    core = base_llava(llava).model
    newline = [core.image_newline] if is_tiled(core.config) else []
    return [*core.multi_modal_projector.parameters(), *newline]


def _prepare_tokens(tokenizer, lm: PreTrainedModel) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if IMAGE_MARKER not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_MARKER, special=True, normalized=False)], special_tokens=True)
    rows = lm.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for weight in {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}:
            weight.data[rows:] = weight.data[:rows].mean(0)


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


def add_lora(llava: LlavaForConditionalGeneration, r: int, alpha: int, dropout: float = 0.0) -> PeftModel:
    """LoRA, without bias, on q, k, v, o, gate, up and down of the language model only.

    The projector goes on training; everything else is frozen. LoRA starts at random: set the seed before.
    """
    model = get_peft_model(
        llava, LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=LORA_TARGETS)
    )
    for p in connector(model):
        p.requires_grad_(True)
    return model


class AlignedModel(nn.Module):
    """A LLaVA with visual representation alignment (Eq. 5): L = L_LM + weight * L_VRA, or ROSS's reconstruction.

    Without either it is the baseline, and the same code runs. `state_dict` holds only what trains, and
    `load_state_dict` takes such a state: training checkpoints stay small under any wrapper. The vision tower is always
    in eval mode. Heads, adapters and denoiser start at random: set the seed before.
    """

    accepts_loss_kwargs = True  # transformers' Trainer counts tokens over the global batch

    def __init__(
        self,
        llava: nn.Module,
        align: Align | None = None,
        residuals: tuple[Residual, ...] = (),
        reconstruct: Reconstruct | None = None,
    ):
        """`llava` is what `assemble` or `add_lora` returns.

        Raises:
            ValueError: a layer that the language model does not have; residuals or reconstruction in a LLaVA-NeXT.
        """
        super().__init__()
        self.llava = llava
        blocks = self.config.text_config.num_hidden_layers
        self.align = align and replace(align, layers=align.blocks(blocks))
        self.residuals = tuple(replace(residual, layer=residual.block(blocks)) for residual in residuals)
        self.reconstruct = reconstruct and replace(reconstruct, layer=reconstruct.block(blocks))
        if (self.residuals or reconstruct) and is_tiled(self.config):
            raise ValueError("re-injection and reconstruction take the one map of tokens that LLaVA-1.5 has")
        core = base_llava(llava).model
        width, encoder_width = self.config.text_config.hidden_size, self.config.vision_config.hidden_size
        self.heads, self.adapters = nn.ModuleDict(), nn.ModuleDict()
        if align is not None:
            dim = {"teacher": align.dim, "encoder": encoder_width, "projector": width}[align.target]
            if dim is None:
                raise ValueError("the head's output is as wide as the teacher's features: give Align their `dim`")
            for key in ["shared"] if align.shared_head else map(str, self.align.layers):
                self.heads[key] = AlignmentHead(width, dim, align.hidden, align.init_std)
            self.heads.requires_grad_(align.train_head)
        self.reconstruction = None
        if reconstruct is not None:
            from viral_core.ross import Reconstruction  # loads diffusers

            self.reconstruction = Reconstruction(
                width,
                reconstruct.dim,
                reconstruct.grid,
                blocks=reconstruct.blocks,
                width=reconstruct.width,
                heads=reconstruct.heads,
                mlp_ratio=reconstruct.mlp_ratio,
                repeats=reconstruct.repeats,
            )
        # Before the tap, whose hook on the language model reads what this one writes.
        self._guard = core.language_model.register_forward_pre_hook(self._keep_in_graph, with_kwargs=True)
        tapped = list(self.align.layers) if align else []
        if reconstruct:
            tapped.append(self.reconstruct.layer)
        self.tap = VisualTap(llava, tapped)
        for residual in self.residuals:
            self._attach(residual, encoder_width, width)
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_expect_no_frozen)

    @property
    def config(self) -> LlavaConfig:
        return base_llava(self.llava).config

    def _attach(self, residual: Residual, encoder_width: int, width: int) -> None:
        if residual.source == "projector":
            self.tap.edit(residual.layer, lambda tap: tap.states[0])
            return
        adapter = nn.Linear(encoder_width, width)
        nn.init.normal_(adapter.weight, std=0.02)
        nn.init.zeros_(adapter.bias)
        self.adapters[str(residual.layer)] = adapter
        self.tap.edit(residual.layer, lambda tap: adapter(tap.features.flatten(0, 1).to(adapter.weight.dtype)))

    def _keep_in_graph(self, _module, args, kwargs):
        """In a training batch without images, run the vision path on a blank one and add zero times its output.

        Every rank then runs the same modules and every trained parameter has a gradient (zero, not None): without it,
        DDP and ZeRO wait for each other forever.
        """
        if not self.training or self.tap.features is not None:
            return None
        core, side = base_llava(self.llava).model, self.config.vision_config.image_size
        embeddings = kwargs["inputs_embeds"]
        tiles, sizes = 1, {}
        if is_tiled(self.config):
            tiles = tile_count((side, side), self.config.image_grid_pinpoints, side)
            sizes = {"image_sizes": [[side, side]]}
        blank = embeddings.new_zeros(tiles, self.config.vision_config.num_channels, side, side)
        projected = torch.cat(core.get_image_features(pixel_values=blank, **sizes, return_dict=True).pooler_output)
        self.tap.features = self.tap.features[:0]
        return args, {**kwargs, "inputs_embeds": embeddings + 0 * projected.sum().to(embeddings.dtype)}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_tokens: list[int] = (),
        teacher_features: Tensor | None = None,
        latents: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch of B conversations with n images (n may be 0).

        Args:
            input_ids, attention_mask, labels: (B, S), padded on the right.
            pixel_values: (n, 3, H, W) in reading order. LLaVA-NeXT: (n, tiles, 3, H, W), filled up with blank tiles.
            image_sizes: LLaVA-NeXT only: (n, 2) heights and widths.
            image_tokens: the visual tokens of each of the n images; they sum to T.
            teacher_features: (n, N, d), or (T, d) where images differ in their number of tokens. LLaVA-NeXT:
                (tiles of all images, N, d), of which unpadding leaves out some, as of the visual tokens.
            latents: (n, N, c) VAE latents of the images, for the reconstruction.
            totals: (2,) supervised tokens and images of the global batch of which this one is a part. Losses are then
                parts of its mean over tokens and images: summed over micro-batches and ranks they give it exactly.
                Without totals the means are over this batch.

        Returns:
            Scalars `loss`, `lm_loss` (Eq. 2) and, unweighted, with alignment `vra_loss` (Eq. 4 / 6), with
            reconstruction `ross_loss`.

        Raises:
            ValueError: teacher features or latents are missing or do not match the visual tokens.
        """
        sizes = {} if image_sizes is None else {"image_sizes": image_sizes}
        lm_loss = self.llava(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            **sizes,
            labels=labels,
            num_items_in_batch=None if totals is None else totals[0],
            use_cache=False,
        ).loss
        share = 1 if totals is None else len(image_tokens) / totals[1].clamp(min=1)
        losses = {"loss": lm_loss, "lm_loss": lm_loss}
        if self.align is not None:
            losses["vra_loss"] = self._alignment(image_tokens, teacher_features, image_sizes) * share
            losses["loss"] = losses["loss"] + self.align.weight * losses["vra_loss"]
        if self.reconstruct is not None:
            losses["ross_loss"] = self.reconstruction(self._reconstructed_from(), latents) * share
            losses["loss"] = losses["loss"] + self.reconstruct.weight * losses["ross_loss"]
        return losses

    def _reconstructed_from(self) -> Tensor:
        layer = self.reconstruct.layer
        last = layer == self.config.text_config.num_hidden_layers
        return self.tap.post_norm(layer) if last else self.tap.states[layer]

    def _alignment(
        self, image_tokens: list[int], teacher_features: Tensor | None, image_sizes: Tensor | None
    ) -> Tensor:
        tokens = self.tap.token_index.numel()
        image_ids = torch.arange(len(image_tokens)).repeat_interleave(torch.tensor(image_tokens, dtype=torch.long))
        target = {
            "teacher": teacher_features,
            "encoder": self.tap.features,
            "projector": self.tap.states[0],
        }[self.align.target]
        if target is None and tokens:
            raise ValueError("the alignment loss needs teacher features for a batch with images: give cache or teacher")
        target = None if target is None else target.reshape(-1, target.shape[-1])
        shown = slice(None)  # the visual positions that show a patch; without tiles, all of them
        if image_sizes is not None:
            patches = torch.cat(batch_patch_index(self.config, image_sizes))
            shown = (patches != NEWLINE).nonzero().squeeze(1)
            chosen = shown if self.align.target == "projector" else patches[shown]
            rows = tokens if chosen is shown else self.tap.features.shape[:2].numel()
            if len(target) != rows:
                raise ValueError(f"alignment target of {len(target)} rows does not match the {rows} of the tiles")
            target = target[chosen]
            image_ids = image_ids[shown]
        losses = []
        for layer in self.align.layers:
            head = self.heads["shared" if self.align.shared_head else str(layer)]
            pred = head(self.tap.states[layer][shown])
            wanted = pred.new_zeros(pred.shape) if target is None else target
            if wanted.shape != pred.shape or len(image_ids) != len(pred):
                raise ValueError(
                    f"alignment target {tuple(wanted.shape)} does not match the {tuple(pred.shape)} projected visual "
                    f"tokens of {len(image_tokens)} images: resample the teacher to the student's grid"
                )
            losses.append(OBJECTIVES[self.align.objective](pred, wanted, image_ids))
        return torch.stack(losses).mean()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What trains: "projector", and "rest" (LoRA and all that is new, which shares LoRA's learning rate)."""
        projector = [p for p in connector(self.llava) if p.requires_grad]
        own = {id(p) for p in projector}
        return {"rest": [p for p in self.parameters() if p.requires_grad and id(p) not in own], "projector": projector}

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recompute the language model's blocks in the backward pass (never reentrant: hooks and LoRA rely on it)."""
        options = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        base_llava(self.llava).model.language_model.gradient_checkpointing_enable(options)

    def train(self, mode: bool = True) -> "AlignedModel":
        super().train(mode)
        base_llava(self.llava).model.vision_tower.eval()
        return self

    def remove(self) -> None:
        """Detach from the LLaVA: no taps, no residuals."""
        self.tap.remove()
        self._guard.remove()


def _drop_frozen(module: nn.Module, state: dict, prefix: str, _metadata) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({prefix + name: p.detach() for name, p in module.named_parameters() if p.requires_grad})


def _expect_no_frozen(module: nn.Module, keys) -> None:
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key in trained]


def gathered(parameters):
    """Context in which ZeRO-3's partitioned parameters are whole; nothing to do without ZeRO-3."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


@torch.no_grad()
def scale_projector(llava: nn.Module, factor: float) -> None:
    """Multiply the output of a new projector, so that it starts at the size of the word embeddings."""
    last = base_llava(llava).model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    last.bias.mul_(factor)


def _additions(aligned: AlignedModel) -> nn.ModuleDict:
    """The new modules that are neither LoRA nor projector, as they are named in `heads.safetensors`."""
    parts = {"heads": aligned.heads, "adapters": aligned.adapters}
    if is_tiled(aligned.config):
        parts["newline"] = nn.ParameterDict({"image_newline": base_llava(aligned.llava).model.image_newline})
    if aligned.reconstruction is not None:
        parts["reconstruction"] = aligned.reconstruction
    return nn.ModuleDict(parts)


def save_projector(llava: nn.Module, path: str | Path) -> None:
    """Write the projector's weights as float32 safetensors, with the base that they join as json in its metadata."""
    llava = base_llava(llava)
    save_file(_cpu_state(llava.model.multi_modal_projector), path, metadata={"base": json.dumps(asdict(llava.base))})


def load_projector(llava: nn.Module, path: str | Path) -> None:
    """Read a projector written by `save_projector`, or by `import_projector`, which knows of no base.

    Raises:
        FileNotFoundError: no such file.
        ValueError: its weights do not fit this model, or join another encoder or language model.
    """
    llava = base_llava(llava)
    _load(llava.model.multi_modal_projector, path)
    with safe_open(path, "pt") as file:
        saved = (file.metadata() or {}).get("base")
    if saved is not None:
        _expect_base(path, Base(**json.loads(saved)), llava.base)


def _expect_base(path: str | Path, trained_on: Base, here: Base) -> None:
    """Refuse what was trained on models of other content; where they lie does not matter."""
    if (trained_on.vision_sha256, trained_on.language_sha256) != (here.vision_sha256, here.language_sha256):
        raise ValueError(f"{path} was trained on {trained_on}, but the models here are {here}: train it again")


def _cpu_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().float().cpu().contiguous() for name, p in module.state_dict().items()}


def _load(module: nn.Module, path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: run the stage that writes them first")
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error


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
        heads = _cpu_state(_additions(aligned))
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
    _expect_base(folder, base, llava.base)
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
        _load(additions, folder / HEADS)
    template = TEMPLATES[saved["template"]]
    return Run(aligned.to(device).eval(), processor, template, base, saved["seed"], saved["training"])
