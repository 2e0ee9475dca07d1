"""The stages of the pipeline: each takes its entry of params.json and writes what `dvc.yaml` says it writes.

A stage only connects: the work is done by the modules it imports, when it needs them.
"""

import hashlib
import math
import shutil
from pathlib import Path
from types import SimpleNamespace


def pretrained(entry: dict) -> None:
    """Make a model folder of a language model that a package ships."""
    from workbook.scale.pretrained import prepare

    prepare(entry["package"], entry["out"])


def world(entry: dict) -> None:
    """Draw the embedded world: training data, benchmarks and the pool that encoders and teachers learn from."""
    from workbook.world import write

    write.write_world(
        entry["out"], entry["seed"], captions=entry["captions"], conversations=entry["conversations"],
        turns=entry["turns"], text_only=entry["text_only"], benchmarks=entry["benchmarks"], pool=entry["pool"],
    )  # fmt: skip


def language(entry: dict) -> None:
    """Teach an embedded language model from text."""
    from workbook.world.language import train_language

    train_language(entry["out"], entry["template"], entry["seed"], **entry["train"])


def grow(entry: dict) -> None:
    """Grow an embedded language model from another one and teach it from text."""
    language(entry)


def vision(entry: dict) -> None:
    """Train an embedded vision encoder by image-text contrast."""
    from workbook.world.vision import train_encoder

    train_encoder(pool=entry["pool"], out=entry["out"], seed=entry["seed"], **entry["train"])


def teacher(entry: dict) -> None:
    """Train an embedded teacher by its own family's objective."""
    from workbook.world.vision import train_teacher

    train_teacher(entry["kind"], entry["pool"], entry["out"], seed=entry["seed"], **entry["train"])


def distil(entry: dict) -> None:
    """Distil several embedded teachers into one, as RADIO is."""
    teacher(entry)


def vae(entry: dict) -> None:
    """Train the embedded VAE, whose latents the ROSS runs reconstruct."""
    from workbook.world.vae import train_vae

    train_vae(entry["pool"], entry["out"], seed=entry["seed"], **entry["train"])


def _assemble(entry: dict, projector: str | None = None):
    """The LLaVA of a training, in the recipe's precision, on this process's device (ZeRO-3 places it itself)."""
    import torch

    from viral_core import distributed
    from viral_core.llava import assemble

    language, vision = entry["language"], entry["vision"]
    partitioned = (_launch(entry).deepspeed or "").startswith("zero3")
    return assemble(
        vision["path"], language["path"], vision_revision=vision["revision"], language_revision=language["revision"],
        vision_feature_layer=vision["feature_layer"], tile_grids=vision.get("tile_grids"), projector=projector,
        dtype=torch.bfloat16 if entry["recipe"].get("bf16") else torch.float32,
        attn_implementation=entry["compute"]["attention"], device="cpu" if partitioned else distributed.device(),
    )  # fmt: skip


def _launch(entry: dict):
    """How the profile wants its stages launched: read from the profile, as it is no parameter of a stage."""
    from workbook import profile

    return profile.load(entry["profile"]).launch


def _load_run(entry: dict):
    """A finished run on this process's device, in the precision that the profile says."""
    import torch

    from viral_core import distributed
    from viral_core.run_folder import load_run

    compute = entry["compute"]
    return load_run(
        entry["run"], dtype=getattr(torch, compute["dtype"]), device=distributed.device(),
        attn_implementation=compute["attention"],
    )  # fmt: skip


def words(entry: dict) -> None:
    """Fit an embedded projector, before stage 1, to the words of what a patch shows."""
    from workbook.world.words import train_words

    train_words(
        entry["vision"]["path"], entry["language"]["path"], entry["pool"], entry["out"], steps=entry["steps"],
        feature_layer=entry["vision"]["feature_layer"], seed=entry["seed"],
    )  # fmt: skip


def stage1(entry: dict) -> None:
    """Stage 1: train the projector on captions, in the recipe's template or else in the language model's own."""
    import torch

    from viral_core.data import load_conversations
    from viral_core.llava import scale_projector
    from viral_core.recipe import Recipe
    from viral_core.templates import TEMPLATES
    from viral_core.trainer import train_stage1
    from workbook.scale.launch import deepspeed_config

    recipe = dict(entry["recipe"])
    template = TEMPLATES[recipe.pop("template", entry["language"]["template"])]
    torch.manual_seed(entry["seed"])
    samples = load_conversations(entry["data"]["captions"], entry["data"]["caption_images"])
    llava, processor = _assemble(entry, Path(entry["start"]) / "projector.safetensors" if entry["words"] else None)
    scale_projector(llava, recipe.pop("projector_scale", 1.0))
    recipe = Recipe(**recipe, seed=entry["seed"], deepspeed=deepspeed_config(_launch(entry)))
    train_stage1(llava, processor, samples, recipe, entry["out"], template=template)


def projector(entry: dict) -> None:
    """Take existing projector weights instead of training stage 1."""
    from transformers import AutoConfig

    from workbook.scale.projector import import_projector

    language = AutoConfig.from_pretrained(entry["language"]["path"], revision=entry["language"]["revision"])
    import_projector(entry["source"], entry["out"], _encoder(entry["vision"]).hidden_size, language.hidden_size)


def cache(entry: dict) -> None:
    """Keep a teacher's features of the instruction images."""
    from viral_core.cache import write_cache
    from viral_core.data import find_image, load_conversations
    from viral_core.tiles import tile_processor

    data, vision = entry["data"], entry["vision"]
    samples = load_conversations(data["conversations"], data["conversation_images"])
    images = {name: find_image(data["conversation_images"], name) for sample in samples for name in sample.images}
    cutter = None
    if grids := vision.get("tile_grids"):
        cutter = tile_processor(vision["path"], _encoder(vision).image_size, grids, vision["revision"])
    options = {"dtype": entry["teacher"]["cache"], "workers": entry["workers"]}
    write_cache(_teacher(entry), images, entry["out"], image_processor=cutter, **options)


def _encoder(vision: dict):
    """Configuration of a vision encoder, from a checkpoint of its own or of a pair with a text encoder."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(vision["path"], revision=vision["revision"])
    return getattr(config, "vision_config", config)


def _teacher(entry: dict):
    from viral_core import distributed
    from viral_core.teachers import load_teacher, randomise_linears

    teacher, student = entry["teacher"], _encoder(entry["vision"])
    released = teacher["state"] == "as_released"
    grid = student.image_size // student.patch_size
    loaded = load_teacher(
        teacher["kind"], teacher["path"], grid, revision=teacher["revision"], clip_pixels=released,
        subfolder=teacher["subfolder"], device=distributed.device(),
    )  # fmt: skip
    if released:
        randomise_linears(loaded, seed=0)  # one draw for all seeds of the run, as a cache holds one
    return loaded


def stage2(entry: dict) -> None:
    """Stage 2: train LoRA, projector and, with alignment, the head on the instruction mix."""
    import torch

    from viral_core.aligned import AlignedModel
    from viral_core.cache import FeatureCache
    from viral_core.data import load_conversations, shuffle_targets
    from viral_core.llava import add_lora
    from viral_core.recipe import Recipe
    from viral_core.specs import Align, Reconstruct, Residual
    from viral_core.templates import TEMPLATES
    from viral_core.trainer import train_stage2
    from workbook.scale.launch import deepspeed_config

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
    dim = next((source.dim for source in sources.values()), None)
    align = Align(**{**entry["align"], "dim": dim}) if entry["align"] else None
    residuals = (Residual(**entry["residual"]),) if entry["residual"] else ()
    reconstruct = None
    if entry["reconstruct"]:
        sources["latents"] = latents = FeatureCache(entry["latents"])
        reconstruct = Reconstruct(**{**entry["reconstruct"], "dim": latents.dim, "grid": math.isqrt(latents.tokens)})
    aligned = AlignedModel(llava, align, residuals, reconstruct)
    if teacher and teacher["shuffled"]:
        samples = shuffle_targets(samples, entry["seed"])
    facts = {"run": entry["run"], "name": entry["name"], "profile": entry["profile"], "entry": entry}
    recipe = Recipe(**recipe, seed=entry["seed"], deepspeed=deepspeed_config(_launch(entry)))
    train_stage2(aligned, processor, samples, recipe, entry["out"], template=template, training=facts, **sources)


def _model_id(entry: dict) -> str:
    """Name and weights of a run: answers of other weights are not continued."""
    digest = hashlib.sha256()
    for file in sorted(Path(entry["run"]).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return f"{entry['name']}@{digest.hexdigest()[:12]}"


def evaluate(entry: dict, limit: int | None = None) -> None:
    """Ask one run every benchmark of the profile; answers continue where an interrupted evaluation stopped.

    Answers of other weights or settings, which are there when something has changed, are asked for again.

    With a `limit` of rows it is a trial: its answers lie in a folder beside the run's, and enter no table.
    """
    from workbook.benchmarks import load_rows
    from workbook.evaluate import evaluate as ask
    from workbook.evaluate import sampled

    asked = {name: load_rows(name, entry["rows"]) for name in entry["benchmarks"]}
    run, out = _load_run(entry), Path(entry["out"])
    out = out if limit is None else out.with_name(f"{out.name}.limit-{limit}")
    model_id = _model_id(entry)
    for name, rows in asked.items():
        answers = out / f"{name}.jsonl"
        ask(
            run.model, run.processor, run.template, rows, answers, benchmark=name, model_id=model_id,
            batch_size=entry["batch_size"], max_new_tokens=entry["max_new_tokens"], limit=limit, renew=True,
            protocol=sampled(entry["sampled"][name]) if name in entry["sampled"] else None,
        )  # fmt: skip


def cknna(entry: dict) -> None:
    """Similarity of one run's visual tokens to its encoder's features, layer by layer (Fig. 2d)."""
    from workbook import measurements

    table = measurements.cknna(_load_run(entry), entry["rows"], SimpleNamespace(**entry))
    if table is not None:
        _write(table, entry["out"])


def _write(table, file: str | Path) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)


def learning_curve(entry: dict) -> None:
    """Ask the checkpoints that one run has kept, and keep its log beside their answers (Fig. 6, overhead)."""
    from viral_core import distributed
    from workbook.logs import read_log

    run, out = Path(entry["run"]), Path(entry["out"])
    kept = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    if not kept:
        raise FileNotFoundError(f"{run} keeps no checkpoints: name fractions in the profile's learning_curve")
    if distributed.is_main():
        for old in set(out.glob("checkpoint-*")) - {out / folder.name for folder in kept}:
            shutil.rmtree(old)  # of a training with other steps
    for folder in kept:
        name = f"{entry['name']}/{folder.name}"
        evaluate(entry | {"name": name, "run": str(folder), "out": str(out / folder.name)})
    if distributed.is_main():
        _write(read_log(run), out / "log.csv")


def attention(entry: dict) -> None:
    """Spatial entropy of one run's text-to-image attention, and maps of a few questions (Fig. 4 and 12)."""
    import numpy as np

    from workbook import measurements

    tables = measurements.attention(
        _load_run(entry), entry["rows"], SimpleNamespace(**entry), entry["batch_size"], entry["max_new_tokens"]
    )
    if tables is not None:
        _write(tables[1], Path(entry["out"]) / "heads.csv")
        _write(tables[0], Path(entry["out"]) / "questions.csv")
        np.savez(Path(entry["out"]) / "maps.npz", **tables[2])


def permutation(entry: dict) -> None:
    """Answers of one run to a benchmark whose images' features are shuffled, several times (Table 3)."""
    from viral_core import distributed
    from workbook import measurements

    out = Path(entry["out"])
    table = measurements.permutation(
        _load_run(entry), entry["rows"], SimpleNamespace(**entry), out, _model_id(entry),
        batch_size=entry["batch_size"], max_new_tokens=entry["max_new_tokens"], renew=True,
    )  # fmt: skip
    if distributed.is_main():
        _write(table, out / "accuracy.csv")


def notebook(entry: dict) -> None:
    """Execute a notebook for the active profile; its tables and figures go to the results folder."""
    from workbook.notebook import execute

    execute(entry["source"], entry["out"], {"profile": entry["profile"]})


def notebook2(entry: dict) -> None:
    """Execute a notebook that reads the outputs of two kinds of stages."""
    notebook(entry)


def claims(entry: dict) -> None:
    """Execute the notebook that evaluates the ledger of claims."""
    notebook(entry)


def report(entry: dict) -> None:
    """Render the report of the profile."""
    from workbook.report import build

    print(f"report: {build(entry['profile'], entry['out'])}")
