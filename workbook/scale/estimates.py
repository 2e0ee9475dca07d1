"""What a run needs, by arithmetic: weights, memory of a GPU, operations of a step, bytes on disk.  No torch.

These are estimates to plan with: within some ten per cent for weights and files, within a fifth or so for memory, and
for time as good as the utilisation that profiles/reference/hardware.yaml states.
"""

import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path

import yaml

from workbook import pipeline
from workbook.config import Launch, Profile
from workbook.paths import DEEPSPEED, PROFILES, Paths

GIB = 2**30
CACHED_BYTES = {"float16": 2, "int8": 1}  # of a feature; int8 has 4 bytes more per token


@cache
def reference(name: str) -> dict:
    """A file of profiles/reference: `architectures`, `hardware` or `sources`."""
    return yaml.safe_load((PROFILES / "reference" / f"{name}.yaml").read_text())


def architecture(path: str) -> dict | None:
    """Config of a model, flat, with its number of `parameters` where it is known; None before a stage has made it."""
    if known := reference("architectures").get(path):
        return {**known["config"], **{key: known[key] for key in known if key != "config"}}
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text())
    return config.get("vision_config") or config.get("backbone_config") or config


def entries(profile: Profile) -> dict[str, dict[str, dict]]:
    """Stages that take a GPU, by kind and key, each with the settings that its cost follows from."""
    paths, index, out = Paths(profile.name), pipeline.stages(profile), {}

    def models(item: dict, tiled: bool = False) -> dict:
        vision = {"path": profile.visions[item["vision"]].path, "tile_grids": profile.tiles.grids if tiled else None}
        language = {"path": profile.languages[item["language"]].path} if "language" in item else {}
        return {"language": language, "vision": vision, "out": item["out"]}

    out["cache"] = {}
    for key, item in index["cache"].items():
        tiled = item["views"] == "tiles"
        if item["model"]:
            model = profile.teachers[item["model"]]
            teacher = {"path": model.path, "kind": model.kind, "cache": profile.tiles.cache if tiled else model.cache}
        else:
            encoder = profile.visions[item["vision"]]
            teacher = {"path": encoder.path, "kind": "encoder", "cache": encoder.cache}
        out["cache"][key] = {**models(item, tiled), "teacher": teacher}
    out["stage1"] = {key: {**models(item), "recipe": asdict(profile.stage1)} for key, item in index["stage1"].items()}
    out["projector"] = {key: models(item) for key, item in index["projector"].items()}
    out["stage2"], out["evaluate"], out["measure"] = {}, {}, {}
    for key, item in index["stage2"].items():
        system, run, seed = profile.systems[item["run"]], item["run"], item["seed"]
        align = system.align and {**asdict(system.align), "layers": system.align.blocks(profile.blocks(run))}
        teacher = None
        if system.teacher:
            model = profile.teachers[system.teacher]
            teacher = {"path": model.path, "cache": profile.tiles.cache if system.tiled else model.cache}
        recipe = {**asdict(profile.recipe(run, seed)), "lora": dict(profile.lora)}
        links = {name: item[name] for name in ("projector", "targets")}
        out["stage2"][key] = {**models(item, system.tiled), "recipe": recipe, "align": align, "teacher": teacher,
                              "run": run, **links}  # fmt: skip
        out["evaluate"][key] = {**dict(profile.evaluation), "run": run, "out": str(paths.evaluation(run, seed))}
        out["measure"][key] = {"run": run, "max_new_tokens": profile.evaluation.max_new_tokens,
                               "out": str(paths.measurement(run, seed))}  # fmt: skip
    return out


def language_parameters(config: dict) -> int:
    """Parameters of a Llama or Qwen2 language model."""
    width, inner, blocks = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    values = width * config["num_key_value_heads"] // config["num_attention_heads"]
    bias = width + 2 * values if config["model_type"] == "qwen2" else 0
    block = 2 * width * width + 2 * width * values + bias + 3 * width * inner + 2 * width
    tables = 1 if config.get("tie_word_embeddings") else 2
    return tables * config["vocab_size"] * width + blocks * block + width


def vision_parameters(config: dict) -> int:
    """Parameters of a vision transformer: as listed, or those of its blocks."""
    width = config["hidden_size"]
    inner = config.get("intermediate_size") or config.get("mlp_dim") or 4 * width
    return config.get("parameters") or config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)


def visual_tokens(vision: dict) -> int:
    """Visual tokens N of a square view of an image."""
    return (vision["image_size"] // vision["patch_size"]) ** 2


def views(entry: dict) -> int:
    """Views of an image that the encoder sees: one; with LLaVA-NeXT's tiles those of the largest grid, and one."""
    return 1 + max((rows * columns for rows, columns in entry["vision"].get("tile_grids") or ()), default=0)


def trained_parameters(entry: dict, language: dict, vision: dict) -> int:
    """What a `stage1` or `stage2` entry trains: the projector, LoRA, alignment heads (of a teacher of 768 features)."""
    width, inner = language["hidden_size"], language["intermediate_size"]
    values = width * language["num_key_value_heads"] // language["num_attention_heads"]
    projector = vision["hidden_size"] * width + width * width + 2 * width
    lora = (entry["recipe"].get("lora") or {}).get("r", 0)
    pairs = 2 * 2 * width + 2 * (width + values) + 3 * (width + inner)  # inputs and outputs of the seven matrices
    heads = 0
    if align := entry.get("align"):
        count = 1 if align["shared_head"] else len(align["layers"])
        heads = count * (width * align["hidden"] + align["hidden"] ** 2 + align["hidden"] * 768)
    return projector + language["num_hidden_layers"] * lora * pairs + heads


def shapes(entry: dict) -> tuple[dict, dict] | None:
    """Configs of a stage's language model and vision encoder, None where one is not made yet."""
    language, vision = architecture(entry["language"]["path"]), architecture(entry["vision"]["path"])
    return (language, vision) if language and vision else None


def memory(entry: dict, launch: Launch) -> float | None:
    """GiB that a training takes on each GPU, at the longest batch.

    Weights, their gradients and AdamW's states as the profile's DeepSpeed configuration divides them; the inputs of all
    blocks (gradient checkpointing) or what every block keeps; one block at work; logits with their gradient; and a
    tenth with 1.5 GiB more for the CUDA context, buffers and fragmentation.
    """
    known = shapes(entry)
    if known is None:
        return None
    (language, vision), recipe, gpus = known, entry["recipe"], launch.gpus * launch.nodes
    zero = json.loads((DEEPSPEED / f"{launch.deepspeed}.json").read_text()) if launch.deepspeed else {}
    zero = zero.get("zero_optimization", {})
    width, inner, blocks = (language[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    size = 2 if recipe.get("bf16") else 4
    block = size * (4 * width * width + 3 * width * inner)
    frozen = size * (language_parameters(language) + vision_parameters(vision))
    if "offload_param" in zero:
        frozen = 3 * block  # those that are being fetched
    elif zero.get("stage") == 3:
        frozen = frozen / gpus + 2 * block
    states = 16 / gpus if zero else 16  # float32 weight, gradient, two moments
    states = (0 if "offload_optimizer" in zero else states) + 2
    micro = recipe.get("micro_batch") or recipe["batch_size"] // gpus or 1
    tuned = bool(recipe.get("lora"))
    tokens = micro * (recipe.get("max_length", 2048) if tuned else visual_tokens(vision) + 128)
    work = tokens * size * ((14 * width + 8 * inner) if tuned else (10 * width + 4 * inner))
    kept = blocks * (tokens * width * size if recipe.get("gradient_checkpointing") else work)
    logits = tokens * language["vocab_size"] * (size + 8)
    total = frozen + states * trained_parameters(entry, language, vision) + kept + work + logits
    return 1.1 * total / GIB + 1.5


def steps(entry: dict, samples: int) -> int:
    """Optimiser steps of a training on so many samples."""
    recipe = entry["recipe"]
    return recipe.get("steps") or math.ceil(recipe.get("epochs", 1) * math.ceil(samples / recipe["batch_size"]))


def training_operations(stage: str, entry: dict, facts: dict) -> float | None:
    """Floating-point operations of one optimiser step of `stage1` or `stage2`; `facts` are hardware.yaml's `data`."""
    known = shapes(entry)
    if known is None:
        return None
    (language, vision), recipe = known, entry["recipe"]
    width, n = language["hidden_size"], visual_tokens(vision) * views(entry)
    images = facts["with_image"] if stage == "stage2" else 1.0
    length = images * n + facts["text_tokens"][stage]
    matrices = language_parameters(language) - language["vocab_size"] * width  # a look-up multiplies nothing
    forward = 2 * matrices * length + 2 * language["num_hidden_layers"] * width * length**2
    passes = 3 if recipe.get("gradient_checkpointing") else 2
    trained = 4 * trained_parameters(entry, language, vision) * length
    seen = 2 * vision_parameters(vision) * n * images
    teacher = entry.get("teacher")
    if teacher and not teacher["cache"] and (model := architecture(teacher["path"])):
        seen += 2 * vision_parameters(model) * n * images
    return recipe["batch_size"] * (passes * forward + trained + seen)


def benchmark_operations(shape: dict, checkpointing: bool) -> float:
    """Floating-point operations of one step of `workbook.scale.benchmark_step`, whose `shape` this is."""
    width, tokens, visual = shape["width"], shape["tokens"], (shape["image_size"] // shape["patch"]) ** 2
    blocks, inner = shape["blocks"], shape["mlp"]
    matrices = blocks * (4 * width * width + 3 * width * inner) + shape["vocabulary"] * width
    forward = 2 * matrices * tokens + 2 * blocks * width * tokens**2
    encoder = shape["vision_blocks"] * (
        4 * shape["vision_width"] ** 2 + 2 * shape["vision_width"] * shape["vision_mlp"]
    )
    trained = 4 * blocks * shape["lora"] * (8 * width + 3 * (width + inner)) * tokens
    return shape["samples"] * ((3 if checkpointing else 2) * forward + trained + 2 * encoder * visual)


def cache_operations(entry: dict, images: int) -> float | None:
    """Floating-point operations of writing a teacher's features of so many images."""
    teacher, vision = architecture(entry["teacher"]["path"]), architecture(entry["vision"]["path"])
    if not teacher or not vision:
        return None
    if "hidden_size" not in teacher:
        return teacher.get("operations") and teacher["operations"] * images
    tokens = 4096 if entry["teacher"]["kind"] == "sam" else visual_tokens(vision)  # SAM's whole canvas
    return 2 * vision_parameters(teacher) * tokens * images * views(entry)


def answer_operations(entry: dict, language: dict, vision: dict, questions: int) -> float:
    """Floating-point operations of answering so many questions with an image each."""
    length = visual_tokens(vision) + 80 + entry["max_new_tokens"]
    return questions * 2 * (language_parameters(language) * length + vision_parameters(vision) * visual_tokens(vision))


def cache_bytes(entry: dict, images: int, dtype: str | None = None) -> int | None:
    """Bytes of a teacher's cached features: float16, or int8 with one float32 scale per token."""
    teacher, vision = architecture(entry["teacher"]["path"]), architecture(entry["vision"]["path"])
    if not teacher or not vision:
        return None
    dtype = dtype or entry["teacher"]["cache"]
    dim = teacher.get("dim") or teacher.get("output_channels") or teacher.get("hidden_size")
    if dim is None:
        return None
    tokens = images * views(entry) * visual_tokens(vision)
    return tokens * (dim * CACHED_BYTES[dtype] + (4 if dtype == "int8" else 0))


def run_bytes(entry: dict) -> int | None:
    """Bytes of a run folder: what trains, in float32, once for the result and once for each kept checkpoint."""
    known = shapes(entry)
    if known is None:
        return None
    return 4 * trained_parameters(entry, *known) * (1 + len(entry["recipe"].get("checkpoints") or ()))


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder, 0 without it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
