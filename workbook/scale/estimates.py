"""What a run needs, by arithmetic: weights, memory of a GPU, operations of a step, bytes on disk.  No torch.

These are estimates to plan with: within some ten per cent for weights and files, within a fifth or so for memory, and
for time as good as the utilisation that profiles/reference/hardware.yaml states.
"""

import json
from dataclasses import dataclass
from functools import cache

import yaml

from viral_core.recipe import Recipe
from viral_core.specs import Align
from workbook.paths import DEEPSPEED, PROFILES
from workbook.scale import hub
from workbook.sections import Launch, Profile

GIB = 2**30
CACHED_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a feature; int8 has 4 bytes more per token
DVC_COPIES = 2  # DVC keeps a copy of what stages write
LOGIT_BYTES = 10  # beside the logit itself: its float32 copy, log-softmax and gradients, at their peak
TEACHER_WIDTH = 768  # of most teachers' features
PROMPT = 80  # tokens of text of a question: assumed


@cache
def reference(name: str) -> dict:
    """A file of profiles/reference: `architectures` or `hardware`."""
    return yaml.safe_load((PROFILES / "reference" / f"{name}.yaml").read_text(encoding="utf-8"))


def architecture(model) -> dict:
    """Config of a profile's model, flat, with its number of `parameters`: stated, or by the size of its weights here.

    FileNotFoundError where the model is neither listed nor here: it is to be fetched, or a stage has not made it yet.
    """
    if known := reference("architectures").get(model.path):
        return {**known, **known["config"]}
    folder = hub.folder(model)
    if folder is None:
        raise FileNotFoundError(f"{model.path} is not on this machine")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in hub.weight_files(folder))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"  # its name before transformers 5
    parameters = size // (4 if dtype == "float32" else 2)
    return {"parameters": parameters, **(config.get("vision_config") or config.get("backbone_config") or config)}


def value_width(config: dict) -> int:
    """Width of a block's keys, and of its values."""
    heads = config["num_attention_heads"]
    return config["hidden_size"] * config.get("num_key_value_heads", heads) // heads


def visual_tokens(profile: Profile, vision: dict, tiled: bool) -> int:
    """Visual tokens of an image: N of a square view; with LLaVA-NeXT's tiles those of the largest grid, and N."""
    tiles = max(rows * columns for rows, columns in profile.tiles.grids) if tiled else 0
    return (1 + tiles) * (vision["image_size"] // vision["patch_size"]) ** 2


@dataclass(frozen=True)
class Training:
    """A stage 1 or stage 2, as far as its cost depends on it."""

    language: dict
    vision: dict
    recipe: Recipe
    visual: int  # visual tokens of an image
    lora: int = 0  # LoRA's rank; 0 in stage 1
    align: Align | None = None
    online: dict | None = None  # architecture of a teacher that runs in every step

    @property
    def parameters(self) -> int:
        """What is trained: the projector, LoRA, alignment heads."""
        width, inner, blocks = (self.language[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        projector = self.vision["hidden_size"] * width + width * width + 2 * width
        # Inputs and outputs of a block's seven matrices: q and o, k and v, gate, up and down.
        pairs = 2 * 2 * width + 2 * (width + value_width(self.language)) + 3 * (width + inner)
        heads = 0
        if self.align:
            count = 1 if self.align.shared_head else len(self.align.blocks(blocks))
            hidden = self.align.hidden
            heads = count * (width * hidden + hidden**2 + hidden * TEACHER_WIDTH)
        return projector + blocks * self.lora * pairs + heads

    def memory(self, launch: Launch) -> float:
        """GiB that it takes on each GPU, at the longest batch.

        Weights, their gradients and AdamW's states as the profile's DeepSpeed configuration divides them; the inputs of
        all blocks (gradient checkpointing) or what every block keeps; one block at work; logits with their gradient;
        and a tenth with 1.5 GiB more for the CUDA context, buffers and fragmentation.
        """
        language, recipe, gpus = self.language, self.recipe, launch.gpus * launch.nodes
        width, inner, blocks = (language[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        zero = {}
        if launch.deepspeed:
            zero = json.loads((DEEPSPEED / f"{launch.deepspeed}.json").read_text(encoding="utf-8"))["zero_optimization"]
        size = 2 if recipe.bf16 else 4
        block = size * (4 * width * width + 3 * width * inner)
        frozen = size * (language["parameters"] + self.vision["parameters"])
        if "offload_param" in zero:
            frozen = 3 * block  # those that are being fetched
        elif zero.get("stage") == 3:
            frozen = frozen / gpus + 2 * block
        states = 16 / gpus if zero else 16  # float32 weight, gradient, two moments
        states = (0 if "offload_optimizer" in zero else states) + 2
        micro = recipe.micro_batch or recipe.batch_size // gpus or 1
        tokens = micro * (recipe.max_length if self.lora else self.visual + 128)
        work = tokens * size * (14 * width + 8 * inner if self.lora else 10 * width + 4 * inner)
        activations = blocks * (tokens * width * size if recipe.gradient_checkpointing else work)
        logits = tokens * language["vocab_size"] * (size + LOGIT_BYTES)
        total = frozen + states * self.parameters + activations + work + logits
        return 1.1 * total / GIB + 1.5

    def sample_operations(self, images: float, length: float) -> float:
        """Floating-point operations of a training step on one sample of so many images and tokens."""
        width = self.language["hidden_size"]
        matrices = self.language["parameters"] - self.language["vocab_size"] * width  # a look-up: nothing
        forward = 2 * matrices * length + 2 * self.language["num_hidden_layers"] * width * length**2
        passes = 3 if self.recipe.gradient_checkpointing else 2
        encoders = self.vision["parameters"] + (self.online["parameters"] if self.online else 0)
        return passes * forward + 4 * self.parameters * length + 2 * encoders * self.visual * images

    @property
    def operations(self) -> float:
        """Floating-point operations of one optimiser step, on samples of mean length."""
        data = reference("hardware")["data"]
        images, text = (data["with_image"], "stage2") if self.lora else (1.0, "stage1")
        length = images * self.visual + data["text_tokens"][text]
        return self.recipe.batch_size * self.sample_operations(images, length)

    @property
    def bytes(self) -> int:
        """Of a run folder: what trains, in float32, once for the result and once for each kept checkpoint."""
        return 4 * self.parameters * (1 + len(self.recipe.checkpoints))


def stage1(profile: Profile, language: str, vision: str) -> Training:
    """A stage 1; raises as `architecture`."""
    tower = architecture(profile.visions[vision])
    visual = visual_tokens(profile, tower, tiled=False)
    return Training(architecture(profile.languages[language]), tower, profile.stage1, visual)


def stage2(profile: Profile, run: str) -> Training:
    """A stage 2; raises as `architecture`."""
    system, online = profile.systems[run], None
    if system.teacher and not profile.cache_type(system.teacher, system.tiled):
        online = architecture(profile.teachers[system.teacher])
    tower = architecture(profile.visions[system.vision])
    visual = visual_tokens(profile, tower, system.tiled)
    language = architecture(profile.languages[system.language])
    return Training(language, tower, profile.recipe(run, 0), visual, profile.lora.r, system.align, online)


def evaluation_memory(profile: Profile, run: str) -> float:
    """GiB that the answers of a run take on each GPU: weights, and keys and values of a batch."""
    training, evaluation = stage2(profile, run), profile.evaluation
    language, size = training.language, 4 if profile.compute.dtype == "float32" else 2
    length = training.visual + PROMPT + evaluation.max_new_tokens
    cached = 2 * language["num_hidden_layers"] * value_width(language) * length * evaluation.batch_size
    weights = language["parameters"] + training.vision["parameters"]
    return 1.1 * size * (weights + cached) / GIB + 1.5


@dataclass(frozen=True)
class Cache:
    """Features of images on disk."""

    images: int
    tokens: int  # of an image
    dim: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Features as they are kept; int8 has one float32 scale per token."""
        return self.images * self.tokens * (self.dim * CACHED_BYTES[self.dtype] + (4 if self.dtype == "int8" else 0))


def feature_cache(profile: Profile, item: dict, images: int) -> Cache:
    """A line of the pipeline's `cache` stages; raises as `architecture`."""
    encoder, tiled = profile.visions[item["vision"]], item["views"] == "tiles"
    dtype, model = encoder.cache, encoder
    if item["model"]:
        dtype, model = profile.cache_type(item["model"], tiled), profile.teachers[item["model"]]
    tokens, config = visual_tokens(profile, architecture(encoder), tiled), architecture(model)
    dim = config.get("dim") or config.get("output_channels") or config.get("hidden_size") or 64
    return Cache(images, tokens, dim, dtype)
