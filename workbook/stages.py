"""The stages of the pipeline: each takes the profile and its line of `params.yaml` and writes what `dvc.yaml` says.

A stage only connects: the work is done by the modules it imports.
"""

import dataclasses
import math
from pathlib import Path

import torch
from transformers import AutoConfig

from viral_core import distributed
from viral_core.aligned import AlignedModel
from viral_core.cache import FeatureCache, write_cache
from viral_core.conversations import load_conversations, shuffle_targets
from viral_core.images import find_image
from viral_core.llava import add_lora, scale_projector
from viral_core.recipe import Recipe
from viral_core.run_folder import PROJECTOR
from viral_core.teachers import load_encoder
from viral_core.templates import TEMPLATES
from viral_core.tiles import View, tile_processor
from viral_core.trainer import train_stage1, train_stage2
from workbook import models
from workbook.evaluate import evaluate_run
from workbook.measurements import measure_run
from workbook.paths import Paths
from workbook.scale.launch import deepspeed_config
from workbook.scale.pretrained import prepare
from workbook.scale.projector import import_projector
from workbook.sections import Profile


def pretrained(settings: Profile, item: dict) -> None:
    """Make a model folder of a language model that a package ships."""
    prepare(settings.languages[item["language"]].package, item["out"])


def world(settings: Profile, item: dict) -> None:
    """Draw the embedded world: training data, benchmarks and pictures for probes."""
    from workbook.world.conversations import write_world  # which is not installed at the paper's scale

    write_world(item["out"], settings.seed, dict(settings.world))


def cache(settings: Profile, item: dict) -> None:
    """Keep features of the training images: a teacher's, a VAE's latents, or the encoder's own."""
    encoder, tiled = settings.visions[item["vision"]], item["views"] == "tiles"
    folder = settings.data.caption_images if item["part"] == "captions" else settings.data.conversation_images
    samples = load_conversations(item["json"], folder)
    images = {name: find_image(folder, name) for sample in samples for name in sample.images}
    if item["model"]:
        source = models.teacher(settings, item["model"], item["vision"], item["state"])
        kind = settings.cache_type(item["model"], tiled)
        if source.kind == "oracle":
            truths = Path(settings.teachers[item["model"]].path)
            images = {name: truths / Path(name).with_suffix(".png") for name in images}
    else:
        kind, device = encoder.cache, distributed.device()
        source = load_encoder(encoder.path, encoder.feature_layer, revision=encoder.revision, device=device)
    tiles = None
    if tiled:
        config = models.vision_config(encoder)
        pixels = tile_processor(encoder.path, config.image_size, settings.tiles.grids, encoder.revision)
        tiles = View(pixels, config.patch_size)
    write_cache(source, images, item["out"], tiles=tiles, dtype=kind, workers=settings.stage2.workers)


def _llava(settings: Profile, item: dict, recipe: Recipe, **options):
    """The LLaVA of a training, in the recipe's precision, on this process's device (ZeRO-3 places it itself)."""
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    zero = (recipe.deepspeed or {}).get("zero_optimization", {})
    device = "cpu" if zero.get("stage") == 3 else distributed.device()
    return models.llava(settings, item["language"], item["vision"], dtype, device, **options)


def _features(settings: Profile, item: dict) -> dict:
    """The encoder's cached features as an option of a training, where the profile keeps them."""
    cached = settings.visions[item["vision"]].cache and item.get("views") != "tiles"
    return {"encoder_features": FeatureCache(item["features"])} if cached else {}


def stage1(settings: Profile, item: dict) -> None:
    """Stage 1: train the projector on captions, in the profile's template or else in the language model's own."""
    recipe = dataclasses.replace(settings.stage1, seed=settings.seed, deepspeed=deepspeed_config(settings.launch))
    template = TEMPLATES[settings.template or settings.languages[item["language"]].template]
    torch.manual_seed(settings.seed)
    samples = load_conversations(settings.data.captions, settings.data.caption_images)
    llava, processor = _llava(settings, item, recipe)
    scale_projector(llava, settings.projector_scale)
    train_stage1(llava, processor, samples, recipe, item["out"], template=template, **_features(settings, item))


def projector(settings: Profile, item: dict) -> None:
    """Take existing projector weights instead of training stage 1."""
    model, encoder = settings.languages[item["language"]], models.vision_config(settings.visions[item["vision"]])
    language = AutoConfig.from_pretrained(model.path, revision=model.revision)
    import_projector(item["source"], item["out"], encoder.hidden_size, language.hidden_size)


def stage2(settings: Profile, item: dict) -> None:
    """Stage 2: train LoRA, projector and, with alignment, the head on the instruction mix."""
    system, seed, name = settings.systems[item["run"]], item["seed"], f"{item['run']}-s{item['seed']}"
    recipe = dataclasses.replace(settings.recipe(item["run"], seed), deepspeed=deepspeed_config(settings.launch))
    samples = load_conversations(settings.data.conversations, settings.data.conversation_images)
    if system.images:
        samples = first_images(samples, system.images)
    torch.manual_seed(seed)
    weights = Path(item["projector"]) / PROJECTOR
    llava, processor = _llava(settings, item, recipe, projector=weights, tiled=system.tiled)
    llava = add_lora(llava, **dict(settings.lora))
    sources, align, reconstruct = _features(settings, item), system.align, system.reconstruct
    if system.teacher:
        if settings.cache_type(system.teacher, system.tiled):
            target = sources["features"] = FeatureCache(item["targets"])
        else:
            target = sources["teacher"] = models.teacher(settings, system.teacher, item["vision"], align.teacher_state)
        align = dataclasses.replace(align, dim=target.dim)
        if align.shuffled:
            samples = shuffle_targets(samples, seed)
    if reconstruct:
        latents = sources["latents"] = FeatureCache(item["latents"])
        reconstruct = dataclasses.replace(reconstruct, dim=latents.dim, grid=math.isqrt(latents.tokens))
    residuals = (system.residual,) if system.residual else ()
    aligned = AlignedModel(llava, align, residuals, reconstruct)
    template = TEMPLATES[settings.languages[item["language"]].template]
    origin = {"run": item["run"], "name": name, "profile": settings.name, "stage": item}
    train_stage2(aligned, processor, samples, recipe, item["out"], template=template, training=origin, **sources)


def first_images(samples: list, n: int) -> list:
    """The conversations about the first `n` images, and the same share of those without; ValueError: fewer images."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.images))
    if n > len(names):
        raise ValueError(f"the instruction mix has {len(names)} images, not {n}: lower `images` in the run's entry")
    first, texts = set(names[:n]), [sample for sample in samples if not sample.images]
    images = [sample for sample in samples if sample.images and first.issuperset(sample.images)]
    return images + texts[: round(len(texts) * n / len(names))]


def evaluate(settings: Profile, item: dict) -> None:
    """Ask one run every benchmark of the profile, and the checkpoints it has kept those of the learning curve."""
    out = Paths(settings.name).evaluation(item["run"], item["seed"])
    evaluate_run(settings, item["run"], Path(item["out"]), out)


def measure(settings: Profile, item: dict) -> None:
    """Measure one run, loaded once: what the profile asks of it of CKNNA, attention, permutation and probes."""
    measure_run(settings, item["run"], Path(item["trained"]), Path(item["out"]))
