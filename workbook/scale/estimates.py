"""What a run needs, by arithmetic: weights, memory of a GPU, operations of a step, bytes on disk.  No torch.

These are estimates to plan with: within some ten per cent for weights and files, within a fifth or so for memory, and
for time as good as the utilisation that profiles/reference/hardware.yaml states.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from viral_core.recipe import Recipe
from viral_core.specs import Align
from workbook.paths import DEEPSPEED, PROFILES
from workbook.sections import Launch, Profile, TeacherModel

GIB = 2**30
CACHED_BYTES = {"float16": 2, "int8": 1}  # of a feature; int8 has 4 bytes more per token
DVC_COPIES = 2  # DVC keeps a copy of what stages write
LOGIT_BYTES = 10  # beside the logit itself: its float32 copy, log-softmax and gradients, at their peak
TEACHER_WIDTH = 768  # of most teachers' features
PROMPT = 80  # tokens of text of a question: assumed


@cache
def reference(name: str) -> dict:
    """A file of profiles/reference: `architectures` or `hardware`."""
    return yaml.safe_load((PROFILES / "reference" / f"{name}.yaml").read_text(encoding="utf-8"))


def architecture(path: str) -> dict | None:
    """Config of a model, flat, with its number of `parameters` where it is known; None before a stage has made it."""
    if known := reference("architectures").get(path):
        return {**known, **known["config"]}
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("vision_config") or config.get("backbone_config") or config


def language_parameters(config: dict) -> int:
    """Parameters of a Llama or Qwen2 language model."""
    width, inner, blocks = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    values = value_width(config)
    bias = width + 2 * values if config["model_type"] == "qwen2" else 0
    block = 2 * width * width + 2 * width * values + bias + 3 * width * inner + 2 * width
    tables = 1 if config.get("tie_word_embeddings") else 2
    return tables * config["vocab_size"] * width + blocks * block + width


def value_width(config: dict) -> int:
    """Width of a block's keys, and of its values."""
    return config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"]


def vision_parameters(config: dict) -> int:
    """Parameters of a vision transformer: as listed, or those of its blocks."""
    width = config["hidden_size"]
    inner = config.get("intermediate_size") or config.get("mlp_dim") or 4 * width
    return config.get("parameters") or config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)


def visual_tokens(vision: dict) -> int:
    """Visual tokens N of a square view of an image."""
    return (vision["image_size"] // vision["patch_size"]) ** 2


def views(profile: Profile, tiled: bool) -> int:
    """Views of an image that the encoder sees: one; with LLaVA-NeXT's tiles those of the largest grid, and one."""
    return 1 + max(rows * columns for rows, columns in profile.tiles.grids) if tiled else 1


@dataclass(frozen=True)
class Training:
    """A stage 1 or stage 2, as far as its cost depends on it.  `lora` is LoRA's rank, 0 in stage 1."""

    language: dict
    vision: dict
    recipe: Recipe
    lora: int = 0
    align: Align | None = None
    views: int = 1
    online: dict | None = None  # architecture of a teacher that runs in every step

    @property
    def parameters(self) -> int:
        """What is trained: the projector, LoRA, alignment heads."""
        width, inner, values = (
            self.language["hidden_size"],
            self.language["intermediate_size"],
            value_width(self.language),
        )
        projector = self.vision["hidden_size"] * width + width * width + 2 * width
        pairs = 2 * 2 * width + 2 * (width + values) + 3 * (width + inner)  # inputs and outputs of seven matrices
        heads = 0
        if self.align:
            count = 1 if self.align.shared_head else len(self.align.blocks(self.language["num_hidden_layers"]))
            hidden = self.align.hidden
            heads = count * (width * hidden + hidden**2 + hidden * TEACHER_WIDTH)
        return projector + self.language["num_hidden_layers"] * self.lora * pairs + heads

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
        frozen = size * (language_parameters(language) + vision_parameters(self.vision))
        if "offload_param" in zero:
            frozen = 3 * block  # those that are being fetched
        elif zero.get("stage") == 3:
            frozen = frozen / gpus + 2 * block
        states = 16 / gpus if zero else 16  # float32 weight, gradient, two moments
        states = (0 if "offload_optimizer" in zero else states) + 2
        micro = recipe.micro_batch or recipe.batch_size // gpus or 1
        tokens = micro * (recipe.max_length if self.lora else visual_tokens(self.vision) + 128)
        work = tokens * size * (14 * width + 8 * inner if self.lora else 10 * width + 4 * inner)
        activations = blocks * (tokens * width * size if recipe.gradient_checkpointing else work)
        logits = tokens * language["vocab_size"] * (size + LOGIT_BYTES)
        total = frozen + states * self.parameters + activations + work + logits
        return 1.1 * total / GIB + 1.5

    @property
    def operations(self) -> float:
        """Floating-point operations of one optimiser step."""
        data = reference("hardware")["data"]
        images, text = (data["with_image"], "stage2") if self.lora else (1.0, "stage1")
        width, n = self.language["hidden_size"], visual_tokens(self.vision) * self.views
        length = images * n + data["text_tokens"][text]
        matrices = language_parameters(self.language) - self.language["vocab_size"] * width  # a look-up: nothing
        forward = 2 * matrices * length + 2 * self.language["num_hidden_layers"] * width * length**2
        passes = 3 if self.recipe.gradient_checkpointing else 2
        encoders = vision_parameters(self.vision) + (vision_parameters(self.online) if self.online else 0)
        return self.recipe.batch_size * (passes * forward + 4 * self.parameters * length + 2 * encoders * n * images)

    @property
    def bytes(self) -> int:
        """Of a run folder: what trains, in float32, once for the result and once for each kept checkpoint."""
        return 4 * self.parameters * (1 + len(self.recipe.checkpoints))


def stage1(profile: Profile, language: str, vision: str) -> Training | None:
    """A stage 1; None where a model is not made yet."""
    models = architecture(profile.languages[language].path), architecture(profile.visions[vision].path)
    return Training(*models, profile.stage1) if all(models) else None


def stage2(profile: Profile, run: str) -> Training | None:
    """A stage 2; None where a model is not made yet."""
    system = profile.systems[run]
    models = [architecture(profile.languages[system.language].path), architecture(profile.visions[system.vision].path)]
    online = None
    if system.teacher:
        cached, teacher = teacher_cache(profile, system.teacher, system.tiled)
        online = None if cached else architecture(teacher.path)
    if not all(models):
        return None
    seen = views(profile, system.tiled)
    return Training(*models, profile.recipe(run, 0), profile.lora.r, system.align, seen, online)


def teacher_cache(profile: Profile, name: str, tiled: bool) -> tuple[str | None, TeacherModel]:
    """How the features of a teacher are kept, and the teacher."""
    teacher = profile.teachers[name]
    return (profile.tiles.cache if tiled else teacher.cache), teacher


def evaluation_memory(profile: Profile, run: str) -> float | None:
    """GiB that the answers of a run take on each GPU: weights, and keys and values of a batch; None without models."""
    training = stage2(profile, run)
    if training is None:
        return None
    language, size = training.language, 4 if profile.compute.dtype == "float32" else 2
    length = visual_tokens(training.vision) * training.views + PROMPT + profile.evaluation.max_new_tokens
    cached = 2 * language["num_hidden_layers"] * value_width(language) * length * profile.evaluation.batch_size
    weights = language_parameters(language) + vision_parameters(training.vision)
    return 1.1 * size * (weights + cached) / GIB + 1.5


def answer_operations(profile: Profile, run: str, questions: int) -> float | None:
    """Floating-point operations of answering so many questions with an image each."""
    training = stage2(profile, run)
    if training is None:
        return None
    visual = visual_tokens(training.vision) * training.views
    length = visual + PROMPT + profile.evaluation.max_new_tokens
    language, vision = language_parameters(training.language), vision_parameters(training.vision)
    return questions * 2 * (language * length + vision * visual)


@dataclass(frozen=True)
class Cache:
    """Features of the instruction images, as far as their cost depends on it."""

    model: dict
    tokens: int  # of an image
    dtype: str
    whole_canvas: bool  # SAM sees 4096 patches, whatever is kept

    def operations(self, images: int) -> float | None:
        """Floating-point operations of writing it."""
        if "hidden_size" not in self.model:
            return self.model.get("operations") and self.model["operations"] * images
        return 2 * vision_parameters(self.model) * (4096 if self.whole_canvas else self.tokens) * images

    def bytes(self, images: int, dtype: str | None = None) -> int:
        """Features as float16, or int8 with one float32 scale per token."""
        dtype = dtype or self.dtype
        dim = self.model.get("dim") or self.model.get("output_channels") or self.model.get("hidden_size") or 64
        return images * self.tokens * (dim * CACHED_BYTES[dtype] + (4 if dtype == "int8" else 0))


def cached(profile: Profile, item: dict) -> Cache | None:
    """A line of the pipeline's `cache` stages; None where a model is not made yet."""
    encoder, tiled = profile.visions[item["vision"]], item["views"] == "tiles"
    dtype, kind, path = encoder.cache, "encoder", encoder.path
    if item["model"]:
        dtype, teacher = teacher_cache(profile, item["model"], tiled)
        kind, path = teacher.kind, teacher.path
    model, vision = architecture(path), architecture(encoder.path)
    if not model or not vision:
        return None
    return Cache(model, visual_tokens(vision) * views(profile, tiled), dtype, kind == "sam")


def benchmark_operations(shape: dict) -> float:
    """Floating-point operations of one step of `workbook.scale.benchmark_step`, whose `shape` this is."""
    width, tokens, visual = shape["width"], shape["tokens"], (shape["image_size"] // shape["patch"]) ** 2
    blocks, inner = shape["blocks"], shape["mlp"]
    matrices = blocks * (4 * width * width + 3 * width * inner) + shape["vocabulary"] * width
    forward = 2 * matrices * tokens + 2 * blocks * width * tokens**2
    encoder_block = 4 * shape["vision_width"] ** 2 + 2 * shape["vision_width"] * shape["vision_mlp"]
    trained = 4 * blocks * shape["lora"] * (8 * width + 3 * (width + inner)) * tokens
    return shape["samples"] * (3 * forward + trained + 2 * shape["vision_blocks"] * encoder_block * visual)
