"""The stages of the pipeline: each takes its entry of params.yaml and writes what `dvc.yaml` says it writes.

A stage only connects: the work is done by the modules it imports, when it needs them.
"""

import hashlib
from pathlib import Path


def world(entry: dict) -> None:
    """Draw the embedded world: training data, benchmarks and the pool that encoders and teachers learn from."""
    from viral_core.world import write

    write.write_world(
        entry["out"], entry["seed"], captions=entry["captions"], conversations=entry["conversations"],
        turns=entry["turns"], text_only=entry["text_only"], benchmarks=entry["benchmarks"], pool=entry["pool"],
    )  # fmt: skip


def language(entry: dict) -> None:
    """Teach an embedded language model from text."""
    from viral_core.world.language import train_language

    train_language(entry["out"], entry["template"], entry["seed"], **entry["train"])


def vision(entry: dict) -> None:
    """Train an embedded vision encoder by image-text contrast."""
    from viral_core.world.vision import train_encoder

    train_encoder(pool=entry["pool"], out=entry["out"], seed=entry["seed"], **entry["train"])


def teacher(entry: dict) -> None:
    """Train an embedded teacher by its own family's objective."""
    from viral_core.world.vision import train_teacher

    train_teacher(entry["kind"], entry["pool"], entry["out"], seed=entry["seed"], **entry["train"])


def distil(entry: dict) -> None:
    """Distil several embedded teachers into one, as RADIO is."""
    teacher(entry)


def _assemble(entry: dict, projector: str | None = None):
    from viral_core.model import assemble

    language, vision = entry["language"], entry["vision"]
    return assemble(
        vision["path"], language["path"], vision_revision=vision["revision"], language_revision=language["revision"],
        vision_feature_layer=vision["feature_layer"], projector=projector,
    )  # fmt: skip


def stage1(entry: dict) -> None:
    """Stage 1: train the projector on captions."""
    import torch

    from viral_core.data import load_conversations
    from viral_core.model import scale_projector
    from viral_core.templates import TEMPLATES
    from viral_core.trainer import Recipe, train_stage1

    recipe = dict(entry["recipe"])
    template = TEMPLATES[recipe.pop("template")]
    torch.manual_seed(entry["seed"])
    samples = load_conversations(entry["data"]["captions"], entry["data"]["caption_images"])
    llava, processor = _assemble(entry)
    scale_projector(llava, recipe.pop("projector_scale", 1.0))
    recipe = Recipe(**recipe, seed=entry["seed"])
    train_stage1(llava, processor, samples, recipe, entry["out"], template=template)


def cache(entry: dict) -> None:
    """Keep a teacher's features of the instruction images."""
    from viral_core.cache import write_cache
    from viral_core.data import load_conversations

    data = entry["data"]
    samples = load_conversations(data["conversations"], data["conversation_images"])
    images = {name: Path(data["conversation_images"]) / name for sample in samples for name in sample.images}
    write_cache(_teacher(entry), images, entry["out"], dtype=entry["teacher"]["cache"])


def _teacher(entry: dict):
    from transformers import AutoConfig

    from viral_core.teachers import load_teacher

    teacher, vision = entry["teacher"], entry["vision"]
    student = AutoConfig.from_pretrained(vision["path"], revision=vision["revision"])
    student = getattr(student, "vision_config", student)
    grid = student.image_size // student.patch_size
    return load_teacher(teacher["kind"], teacher["path"], grid, revision=teacher["revision"])


def stage2(entry: dict) -> None:
    """Stage 2: train LoRA, projector and, with alignment, the head on the instruction mix."""
    import torch

    from viral_core.cache import FeatureCache
    from viral_core.data import load_conversations
    from viral_core.model import AlignedModel, add_lora
    from viral_core.templates import TEMPLATES
    from viral_core.trainer import Recipe, train_stage2

    data, teacher, recipe = entry["data"], entry["teacher"], dict(entry["recipe"])
    samples = load_conversations(data["conversations"], data["conversation_images"])
    torch.manual_seed(entry["seed"])
    llava, processor = _assemble(entry, Path(entry["projector"]) / "projector.safetensors")
    llava = add_lora(llava, **recipe.pop("lora"))
    template = TEMPLATES[entry["language"]["template"]]
    sources = {}
    if teacher and teacher["cache"]:
        sources["features"] = FeatureCache(entry["targets"])
    elif teacher:
        sources["teacher"] = _teacher(entry)
    align = _align(entry["align"], llava.config.text_config.num_hidden_layers, *sources.values())
    aligned = AlignedModel(llava, align)
    facts = {"run": entry["run"], "name": entry["name"], "profile": entry["profile"], "entry": entry}
    recipe = Recipe(**recipe, seed=entry["seed"])
    train_stage2(aligned, processor, samples, recipe, entry["out"], template=template, training=facts, **sources)


def _align(spec: dict | None, blocks: int, source=None):
    from viral_core import profile
    from viral_core.model import Align

    if spec is None:
        return None
    spec = dict(spec)
    head = {name: spec.pop(name) for name in ("hidden", "init_std")}
    wanted = profile.Align(**spec)
    return Align(
        layers=wanted.layers(blocks), target=wanted.target, objective=wanted.objective, weight=wanted.weight,
        shared_head=wanted.shared_head, dim=source and source.dim, **head,
    )  # fmt: skip


def evaluate(entry: dict, limit: int | None = None) -> None:
    """Ask one run every benchmark of the profile; answers continue where an interrupted evaluation stopped.

    With a `limit` of rows it is a trial: its answers lie in a folder beside the run's, and enter no table.
    """
    from viral_core.benchmarks import load_rows
    from viral_core.evaluate import evaluate as ask
    from viral_core.evaluate import sampled, summarise
    from viral_core.model import load_run

    asked = {name: load_rows(name, entry["rows"]) for name in entry["benchmarks"]}
    run, out = load_run(entry["run"]), Path(entry["out"])
    out = out if limit is None else out.with_name(f"{out.name}.limit-{limit}")
    digest = hashlib.sha256()
    for file in sorted(Path(entry["run"]).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    model_id = f"{entry['name']}@{digest.hexdigest()[:12]}"  # answers of other weights are refused, not continued
    for name, rows in asked.items():
        answers = out / f"{name}.jsonl"
        ask(
            run.model, run.processor, run.template, rows, answers, benchmark=name, model_id=model_id,
            batch_size=entry["batch_size"], max_new_tokens=entry["max_new_tokens"], limit=limit,
            protocol=sampled(entry["sampled"][name]) if name in entry["sampled"] else None,
        )  # fmt: skip
        summarise(answers, name, out / f"{name}.json")


def cknna(entry: dict) -> None:
    """Similarity of one run's visual tokens to its encoder's features, layer by layer (Fig. 2d)."""
    from viral_core.benchmarks import load_rows, open_image
    from viral_core.metrics import layerwise_cknna
    from viral_core.model import load_run
    from viral_core.templates import IMAGE_MARKER, prompt

    rows = load_rows(entry["benchmark"], entry["rows"])
    images = {row["group"]: row["image"] for row in rows}
    chosen = sorted(images)[: entry["images"]]
    if len(chosen) < entry["images"]:
        raise ValueError(f"{entry['benchmark']} has {len(chosen)} images, CKNNA is to measure {entry['images']}")
    run = load_run(entry["run"])
    layerwise_cknna(
        run.model, run.processor, [open_image(images[name]) for name in chosen], prompt(run.template, IMAGE_MARKER),
        run=run.training["run"], seed=run.seed, ids=chosen, k=entry["k"], csv=entry["out"],
    )  # fmt: skip


def notebook(entry: dict) -> None:
    """Execute a notebook for the active profile; its tables and figures go to the results folder."""
    from viral_core.notebook import execute

    execute(entry["source"], entry["out"], {"profile": entry["profile"]})
