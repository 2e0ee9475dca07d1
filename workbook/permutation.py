"""Answers of a model to a benchmark whose images' features are shuffled (Table 3)."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd

from viral_core.measure.permutation import PatchPermutation
from viral_core.measure.tables import label, write_csv
from viral_core.templates import Template
from workbook.benchmarks.registry import read
from workbook.evaluate import evaluate


def permuted_accuracy(
    model,
    processor,
    template: Template,
    rows: Sequence[dict],
    folder,
    *,
    benchmark: str,
    model_id: str,
    run: str,
    seed: int,
    permutations: int = 5,
    csv=None,
    **options,
) -> pd.DataFrame:
    """Answers of a model to a benchmark as it is and under several permutations: Table 3.

    Args:
        model, processor, template, rows, benchmark, model_id: as `workbook.evaluate.evaluate`.
        folder: of the answer files, `original.jsonl` and `permuted-<p>.jsonl`, which are continued where they exist.
        run, seed: name the run in the table.
        permutations: how many; permutation p has seed p.
        csv: where to write the table.
        options: for `evaluate`, such as batch_size and max_new_tokens.

    Returns:
        One row per variant and category of the benchmark (CV-Bench2D: Count and Relation): run, seed, benchmark,
        variant ("original", "permuted-0", ...), category, correct (by the official rule), n, accuracy.

    Raises:
        ValueError: as `evaluate`.
    """
    frames = []
    for number in (None, *range(permutations)):
        variant = "original" if number is None else f"permuted-{number}"
        with nullcontext() if number is None else PatchPermutation(model, number) as permuted:
            runs = evaluate(
                model, processor, template, rows, Path(folder) / f"{variant}.jsonl", benchmark=benchmark,
                model_id=model_id, variant="" if number is None else variant,
                on_batch=permuted and permuted.set_samples, **options,
            )  # fmt: skip
        answered = sum(runs, [])  # one list for each sampled run, one for greedy answers
        right = [
            named == row["answer"] for named, row in zip(read(benchmark, answered, "official"), answered, strict=True)
        ]
        scored = pd.DataFrame({"category": [row["category"] for row in answered], "right": right})
        table = scored.groupby("category")["right"].agg(correct="sum", n="count", accuracy="mean").reset_index()
        table.insert(0, "benchmark", benchmark)
        table.insert(1, "variant", variant)
        frames.append(table)
    return write_csv(label(pd.concat(frames, ignore_index=True), run, seed), csv)
