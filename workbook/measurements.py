"""What is measured on one finished run: similarity, attention, permuted answers and probes, as tidy tables.

Processes that were launched together share the images or questions; the main process has the tables.
"""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from viral_core import distributed
from viral_core.files import replacement, write_text
from viral_core.measure.attention import entropy_per_head, question_entropies
from viral_core.measure.permutation import PatchPermutation
from viral_core.measure.probes import Labels, layer_probes
from viral_core.measure.states import layerwise_cknna
from viral_core.templates import IMAGE_MARKER, prompt, stop_token_id
from workbook.benchmarks import load_rows, open_image
from workbook.benchmarks.registry import read
from workbook.config import Profile
from workbook.evaluate import evaluate
from workbook.models import load, load_start, model_id
from workbook.paths import Paths

PROBES = ("category", "number", "facing", "position", "extent")


def measure_run(settings: Profile, run: str, folder: Path, out: Path) -> None:
    """Measure the trained run in `folder`, loaded once: what the profile wants of it.

    Writes `cknna.csv`, `attention/` (heads.csv, questions.csv, maps.npz), `permutation/` (answers, accuracy.csv) and
    `probes.csv`; of a baseline that is probed also, of the model before stage 2, its probes (source "before") and its
    CKNNA, `cknna_start.csv`.
    """
    benchmarks = settings.data.benchmarks
    options = {"batch_size": settings.evaluation.batch_size, "max_new_tokens": settings.evaluation.max_new_tokens}
    parts = settings.measurements(run)
    if distributed.is_main():
        for outdated in {"attention", "permutation"} - set(parts):
            shutil.rmtree(out / outdated, ignore_errors=True)  # of a profile that had it measured
        for file in ("cknna.csv", "probes.csv", "cknna_start.csv"):
            (out / file).unlink(missing_ok=True)
    loaded = load(settings, folder)
    if "cknna" in parts:
        _write(cknna(loaded, benchmarks, parts["cknna"]), out / "cknna.csv")
    if "attention" in parts:
        tables = attention(loaded, benchmarks, parts["attention"], **options)
        if tables is not None:
            questions, heads, maps = tables
            _write(heads, out / "attention" / "heads.csv")
            _write(questions, out / "attention" / "questions.csv")
            with replacement(out / "attention" / "maps.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **maps)
    if "permutation" in parts:
        answers = out / "permutation"
        table = permutation(loaded, benchmarks, parts["permutation"], answers, model_id(folder), **options)
        _write(table, answers / "accuracy.csv")
    if "probes" in parts and distributed.is_main():
        pictures = probe_images(Paths(settings.name).data / "probes", parts["probes"].scenes)
        text = prompt(loaded.template, IMAGE_MARKER)
        tables = [layer_probes(loaded.model, loaded.processor, *pictures, text)]
        del loaded
        if settings.systems[run].plain:
            start = load_start(settings, run)
            if "cknna" in parts:
                _write(cknna(start, benchmarks, parts["cknna"]), out / "cknna_start.csv")
            table = layer_probes(start.model, start.processor, *pictures, text)
            tables.append(table.query("source == 'model'").assign(source="before"))
        _write(pd.concat(tables, ignore_index=True), out / "probes.csv")


def probe_images(folder: Path, scenes: int) -> tuple[list[Path], Labels, list[Path], Labels]:
    """Images and labels that probes are fitted to, the first `scenes` of the training split, and all for validation.

    FileNotFoundError where the profile's data have no labels of tokens.
    """
    parts = []
    for split, count in (("train", scenes), ("val", None)):
        file = folder / split / "labels.npz"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: probes need a world whose scenes are known")
        with np.load(file) as arrays:
            images = [folder / split / "images" / str(name) for name in arrays["names"][:count]]
            labels = {name: arrays[name][:count].astype(int) for name in PROBES}
        parts += [images, labels]
    return tuple(parts)


def _write(table: pd.DataFrame | None, file: Path) -> None:
    """Only the main process writes; the others may have no table."""
    if distributed.is_main():
        write_text(file, table.to_csv(index=False))


def cknna(run, benchmarks: Path, settings) -> pd.DataFrame | None:
    """CKNNA per image and layer (Figure 2(d)) of a run, on the first images of a benchmark."""
    images = {row["group"]: row["image"] for row in load_rows(settings.benchmark, benchmarks)}
    names = sorted(images)[: settings.images]
    if len(names) < settings.images:
        raise ValueError(f"{settings.benchmark} has {len(names)} images, CKNNA is to measure {settings.images}")
    own, table = distributed.share(names), None
    if own:
        pictures, text = [open_image(images[name]) for name in own], prompt(run.template, IMAGE_MARKER)
        table = layerwise_cknna(run.model, run.processor, pictures, text, ids=own, k=settings.k)
    return _merge(table, "image", names)


def attention(run, benchmarks: Path, settings, batch_size: int, max_new_tokens: int):
    """Spatial entropy of text-to-image attention (Figures 4 and 12), on the first questions of a category.

    Returns questions (mean over the heads: reading, question, layer, entropy, tokens, undefined), heads (mean over the
    questions: `entropy_per_head`), maps ({question: (layers, H, W)}); None but at the main process.
    """
    rows = [row for row in load_rows(settings.benchmark, benchmarks) if row["category"] == settings.category]
    if len(rows) < settings.questions:
        raise ValueError(
            f"{settings.benchmark} has {len(rows)} questions of category {settings.category}, "
            f"the attention to {settings.questions} is to be measured"
        )
    rows = rows[: settings.questions]
    own, maps, table = distributed.share(rows), {}, None
    if own:
        table = question_entropies(
            run.model,
            run.processor,
            [open_image(row["image"]) for row in own],
            [prompt(run.template, f"{IMAGE_MARKER}\n{row['prompt']}") for row in own],
            ids=[row["id"] for row in own],
            maps=maps,
            stop=stop_token_id(run.processor.tokenizer, run.template),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
    shown = {row["id"] for row in rows[: settings.maps]}
    parts = distributed.gather({name: grid for name, grid in maps.items() if name in shown})
    table = _merge(table, "question", [row["id"] for row in rows])
    if table is None:
        return None
    groups = table.groupby(["reading", "question", "layer"], sort=False)
    questions = groups.agg({"entropy": "mean", "tokens": "first", "undefined": "sum"}).reset_index()
    return questions, entropy_per_head(table), {name: grid for part in parts for name, grid in part.items()}


def permutation(run, benchmarks: Path, settings, out: Path, model_id: str, **options) -> pd.DataFrame:
    """Answers to a benchmark as it is and under permutations of the visual features with seeds 0, 1, ... (Table 3).

    `out` gets the answer files, `original.jsonl` and `permuted-<p>.jsonl`; `options` are for `evaluate`.  Returns one
    row per variant ("original", "permuted-0", ...) and question: variant, id, category, right (official rule).
    """
    rows, tables = load_rows(settings.benchmark, benchmarks), []
    for number in (None, *range(settings.permutations)):
        variant = "original" if number is None else f"permuted-{number}"
        with nullcontext() if number is None else PatchPermutation(run.model, number) as permuted:
            answered = evaluate(
                run,
                rows,
                out / f"{variant}.jsonl",
                benchmark=settings.benchmark,
                model_id=model_id,
                variant="" if number is None else variant,
                on_batch=permuted and permuted.set_samples,
                **options,
            )
        answered = sum(answered, [])
        named = read(settings.benchmark, answered, "official")
        right = [name == row["answer"] for name, row in zip(named, answered, strict=True)]
        table = pd.DataFrame(answered)[["id", "category"]].assign(right=right)
        table.insert(0, "variant", variant)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _merge(table: pd.DataFrame | None, column: str, order: Sequence) -> pd.DataFrame | None:
    """Tables of all processes as one, its rows in the `order` of a column's values; None but at the main process."""
    parts = distributed.gather(table)
    if parts is None:
        return None
    place = {value: i for i, value in enumerate(order)}
    return pd.concat(parts).sort_values(column, key=lambda values: values.map(place), kind="stable", ignore_index=True)
