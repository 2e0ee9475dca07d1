"""The runner of all benchmarks: greedy (or sampled) answers in batches, appended to a file that can be continued.

Design choices:
- Images are padded to squares (LLaVA-NeXT cuts them as they are) and prompts built by the functions that training uses.
- Batches are padded on the left and sorted by length, the longest first, so that running out of memory shows at once;
  rows come back in their own order.  Padding does not change an answer (tested).
- Nothing is asked twice: answers are appended after every batch, and a finished file is only read.
- Processes that were launched together share the batches, whole, so that every answer is what one process would give;
  the main one appends them all.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from tqdm.auto import tqdm

from viral_core import distributed
from viral_core.files import write_text
from viral_core.measure.inputs import batches
from viral_core.run_folder import Run
from viral_core.templates import IMAGE_MARKER, prompt, stop_token_id
from workbook.benchmarks import load_rows, open_image, score
from workbook.benchmarks.answers import append, continue_file, read_answers, settings
from workbook.config import Profile
from workbook.logs import read_log
from workbook.models import load, load_start, model_id, stage1_folder


def sampled(runs: int = 10, temperature: float = 0.1, seed: int = 0) -> dict:
    """The paper's protocol for MMVP, made reproducible: the mean of `runs` seeded runs (temperature as released)."""
    return {"runs": runs, "temperature": temperature, "seed": seed}


def evaluate_run(settings: Profile, run: str, folder: Path, out: Path) -> None:
    """Ask one run every benchmark of the profile, and its checkpoints those of the learning curve.

    A curve begins at checkpoint 0, the model before stage 2, which is asked every benchmark once, for the baseline.
    Answers continue where an interrupted evaluation stopped; those of other weights or settings, which are there when
    something has changed, are asked for again.  Beside them lies what tables need to know of the run without its
    weights: `run.json`, `environment.json`, `log.csv`, the log of the training; and `scores.json`, what `dvc metrics`
    shows: the official and the strict score of each benchmark, a fraction or MME's points.
    """
    curve, system, asked = settings.learning_curve, settings.systems[run], settings.evaluation
    targets = [(partial(load, settings, folder), folder, out, asked.benchmarks)]
    if curve and run in curve.runs:
        if system.plain:
            start = partial(load_start, settings, run)
            targets.append((start, stage1_folder(settings, run), out / "checkpoint-0", asked.benchmarks))
        for trained in sorted(folder.glob("checkpoint-*")):
            targets.append((partial(load, settings, trained), trained, out / trained.name, curve.benchmarks))
    names = dict.fromkeys(name for *_, benchmarks in targets for name in benchmarks)
    rows = {name: load_rows(name, settings.data.benchmarks) for name in names}  # a fault shows before anything is asked
    for load_model, weights, target, benchmarks in targets:
        model, options = load_model(), {"batch_size": asked.batch_size, "max_new_tokens": asked.max_new_tokens}
        options["model_id"] = model_id(weights)
        for name in benchmarks:
            protocol = sampled(asked.sampled[name]) if name in asked.sampled else None
            evaluate(model, rows[name], target / f"{name}.jsonl", benchmark=name, protocol=protocol, **options)
        del model  # before the next is loaded
    if distributed.is_main():
        for old in set(out.glob("checkpoint-*")) - {target for _, _, target, _ in targets}:
            shutil.rmtree(old)  # of a training with other steps
        for file in folder.glob("*.json"):
            write_text(out / file.name, file.read_text(encoding="utf-8"))
        write_text(out / "log.csv", read_log(folder).to_csv(index=False))
        metrics = {}
        for name in asked.benchmarks:
            scored = [score(name, rows) for rows in read_answers(out / f"{name}.jsonl")[1]]
            metrics[name] = {rule: mean(one[rule] for one in scored) for rule in ("official", "strict")}
        write_text(out / "scores.json", json.dumps(metrics, indent=1) + "\n")


def evaluate(
    run: Run,
    rows: Sequence[dict],
    out: str | Path,
    *,
    benchmark: str,
    model_id: str,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    protocol: dict | None = None,
    variant: str = "",
    on_batch: Callable[[list[str]], None] | None = None,
) -> list[list[dict]]:
    """Ask a model every question of a benchmark, or the rest of them where `out` holds answers already.

    The run's model answers with any hooks attached, `rows` are from `benchmarks.load_rows`.  An answer file `out` that
    was made under other settings is set aside: of other weights (`model_id`), with another `protocol` (None: greedy; or
    `sampled(...)`), or another `variant`, which names what else was done to the model, such as a permutation of its
    visual features.  `on_batch` is called with the ids of the rows before each batch is generated.  Returns the
    answered rows of each sampled run, in the order of `rows`.
    """
    out = Path(out)
    ids = [row["id"] for row in rows]
    prompts = [prompt(run.template, f"{IMAGE_MARKER}\n{row['prompt'].replace(IMAGE_MARKER, '')}") for row in rows]
    if protocol:  # a sampled answer depends on its batch, so the size of a batch is part of the settings
        protocol = protocol | {"batch_size": batch_size}
    conditions = {"model": model_id, "template": run.template.name, "max_new_tokens": max_new_tokens}
    header = settings(benchmark, rows, prompts, **conditions, protocol=protocol, variant=variant)
    lengths = [len(tokens) for tokens in run.processor.tokenizer(prompts)["input_ids"]]
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if distributed.is_main():
        continue_file(out, header)
    distributed.barrier()
    answered = continue_file(out, header)
    todo = []  # (sample, number of the group, rows without an answer)
    for sample in range(header["runs"]):
        for number, batch in enumerate(groups):
            missing = [i for i in batch if (sample, ids[i]) not in answered]
            if missing:
                todo.append((sample, number, missing))

    def answer(sample: int, number: int, missing: list[int]) -> list[dict]:
        # A sampled answer depends on its batch: then the whole batch is drawn again.
        batch = groups[number] if protocol else missing
        if protocol:
            torch.manual_seed(protocol["seed"] + sample * len(groups) + number)
        if on_batch is not None:
            on_batch([ids[i] for i in batch])
        images = [open_image(rows[i]["image"]) for i in batch]
        temperature = protocol["temperature"] if protocol else None
        responses = generate(run, images, [prompts[i] for i in batch], max_new_tokens, temperature)
        by_row = dict(zip(batch, responses, strict=True))
        return [rows[i] | {"run": sample, "response": by_row[i]} for i in missing]

    total = len(answered) + sum(len(missing) for *_, missing in todo)
    quiet = not distributed.is_main()
    with tqdm(total=total, initial=len(answered), desc=benchmark, unit="q", disable=quiet) as bar:
        for first in range(0, len(todo), distributed.world_size()):  # a batch for each process
            own = todo[first + distributed.rank() :][:1]
            for part in distributed.gather([row for batch in own for row in answer(*batch)]) or ():
                append(out, part)
                bar.update(len(part))
    distributed.barrier()
    _, samples = read_answers(out)
    place = {name: i for i, name in enumerate(ids)}
    return [sorted(sample, key=lambda row: place[row["id"]]) for sample in samples]


@torch.inference_mode()
def generate(
    run: Run, images: Sequence, prompts: Sequence[str], max_new_tokens: int, temperature: float | None = None
) -> list[str]:
    """Answers of a batch: an image (PIL, RGB) and a prompt with its marker for each; greedy without temperature."""
    ((_, inputs),) = batches(run.model, run.processor, images, prompts, len(images), "")
    tokenizer = run.processor.tokenizer
    stop = stop_token_id(tokenizer, run.template)
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    produced = run.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id if stop is None else stop,
        pad_token_id=tokenizer.pad_token_id,
        **({"do_sample": False} | draw),
    )
    new = produced[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
