"""Answer files: what a model said to a benchmark, appended as it says it, and the scores of a finished file.

The first line holds the settings under which the answers were made, every further line one answered row (without its
image) and the number of the sampled run.  A file is only ever continued under the same settings.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from workbook.benchmarks.registry import PAPER, family, read
from workbook.benchmarks.stats import intervals, point_scores

Runs = list[list[dict]]  # answered rows of each run; greedy decoding has one


def settings(
    benchmark: str,
    rows: Sequence[Mapping],
    *,
    model: str,
    template: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    protocol: Mapping | None = None,
    limit: int | None = None,
    variant: str = "",
) -> dict:
    """All that answers depend on.  `protocol` is None for greedy decoding, else how it samples."""
    asked = json.dumps([[row["id"], row["category"], row["answer"], p] for row, p in zip(rows, prompts, strict=True)])
    return {
        "benchmark": benchmark,
        "model": model,
        "template": template,
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "protocol": dict(protocol) if protocol else "greedy",
        "limit": limit,
        "variant": variant,
        "rows": len(rows),
        "runs": protocol["runs"] if protocol else 1,
    }


def continue_file(path: Path, wanted: Mapping) -> set[tuple[int, str]]:
    """Create the file, or check that it may be continued and cut off a half-written last line.

    Returns:
        (run, row id) of the answers that are there.

    Raises:
        ValueError: the file was made under other settings; names them.
    """
    if not path.is_file() or not path.read_bytes().strip():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": wanted}) + "\n", encoding="utf-8")
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    if not whole:
        return continue_file(path, wanted)
    found, runs = read_answers(path)
    other = [f"{k}: {found.get(k)!r} there, {wanted[k]!r} now" for k in wanted if found.get(k) != wanted[k]]
    if other:
        raise ValueError(f"{path} holds answers made under other settings ({'; '.join(other)}): remove or rename it")
    return {(i, row["id"]) for i, run in enumerate(runs) for row in run}


def remove_outdated(path: Path, wanted: Mapping) -> None:
    """Remove the file and its parts where they were made under other settings, with a warning that says so."""
    for file in (path, *path.parent.glob(f"{path.name}.part-*")):
        first = file.read_text(encoding="utf-8").partition("\n")[0] if file.is_file() else ""
        if first and json.loads(first).get("settings") != wanted:
            warnings.warn(f"{file} holds answers made under other settings: asking again", stacklevel=2)
            file.unlink()


def part_file(path: Path, rank: int) -> Path:
    """Where one of several processes appends its answers to `path`."""
    return path.with_name(f"{path.name}.part-{rank:04d}")


def merge_parts(path: Path, wanted: Mapping, order: Sequence[str]) -> None:
    """Move what the part files hold into `path`, its rows in `order` of their ids, run by run; parts are removed.

    Interrupted and called again, it goes on: a row that is in several files is kept once.

    Raises:
        ValueError: a file was made under other settings.
    """
    parts = sorted(path.parent.glob(f"{path.name}.part-*"))
    if not parts:
        return
    rows = {}
    for file in (path, *parts):
        continue_file(file, wanted)
        rows |= {(row["run"], row["id"]): row for run in read_answers(file)[1] for row in run}
    place = {name: i for i, name in enumerate(order)}
    temporary = path.with_name(f"{path.name}.merging")
    temporary.unlink(missing_ok=True)
    continue_file(temporary, wanted)
    append(temporary, [rows[key] for key in sorted(rows, key=lambda key: (key[0], place[key[1]]))])
    os.replace(temporary, path)
    for part in parts:
        part.unlink()


def append(path: Path, answered: Sequence[Mapping]) -> None:
    """Add answered rows, each with its `run` and `response`."""
    with path.open("a", encoding="utf-8") as file:
        for row in answered:
            kept = {k: v for k, v in row.items() if k != "image" or isinstance(v, str)}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def read_answers(path: str | Path) -> tuple[dict, Runs]:
    """Settings and answered rows of each run, complete or not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that cannot be read, or a row answered twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}: evaluate the model on the benchmark first")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: cannot be read ({error}); remove the file") from error
    if not rows or "settings" not in rows[0]:
        raise ValueError(f"{path} does not begin with settings: it is no answer file")
    runs: Runs = [[] for _ in range(rows[0]["settings"]["runs"])]
    for row in rows[1:]:
        runs[row["run"]].append(row)
    for run in runs:
        if len({row["id"] for row in run}) != len(run):
            raise ValueError(f"{path} holds a row twice: remove the file and evaluate again")
    return rows[0]["settings"], runs


def summarise(files: str | Path | Sequence[str | Path], benchmark: str, out: str | Path | None = None) -> dict:
    """Scores with intervals of finished answer files; several for a benchmark of the paper that has several (`PAPER`).

    Returns:
        what `score` returns (means over sampled runs), the settings (`model`, `template`, `protocol`, `variant`),
        `partial`, `clusters`, `runs`, and `intervals` and `strict_intervals`, [low, high] by score.  Also written as
        json to `out`, by default `<benchmark>.json` beside the answers.

    Raises:
        ValueError: unfinished answers, or files of other benchmarks, models or protocols.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    read_files = [read_answers(file) for file in files]
    wanted = PAPER.get(benchmark, (benchmark,))
    if sorted(found["benchmark"] for found, _ in read_files) != sorted(wanted):
        raise ValueError(
            f"{benchmark} is scored from answers to {' and '.join(wanted)}, got {', '.join(map(str, files))}"
        )
    for file, (found, runs) in zip(files, read_files, strict=True):
        if any(len(run) != found["rows"] for run in runs):
            done = sum(map(len, runs))
            raise ValueError(f"{file}: {done} of {found['rows'] * len(runs)} answers; continue the evaluation")
    first = read_files[0][0]
    same = ("model", "template", "protocol", "variant", "max_new_tokens")
    for file, (found, _) in zip(files, read_files, strict=True):
        if any(found[k] != first[k] for k in same):
            raise ValueError(f"{file} and {files[0]} differ in {', '.join(k for k in same if found[k] != first[k])}")

    runs = [sum(parts, []) for parts in zip(*(runs for _, runs in read_files), strict=True)]
    means, bounds = {}, {}
    for rule in ("official", "strict"):
        scored = pandas.DataFrame([point_scores(benchmark, run, read(benchmark, run, rule)) for run in runs])
        means[rule] = {name: _number(values.mean()) for name, values in scored.items()}
        bounds[rule] = intervals(benchmark, runs, rule=rule)
    one = bounds["official"]["official"]
    unparsed = np.mean([[answer is None for answer in read(benchmark, run, "strict")] for run in runs])
    summary = means["official"] | {
        "benchmark": benchmark,
        "n": one.n,
        "clusters": one.clusters,
        "runs": len(runs),
        "strict": means["strict"]["official"],
        "unparsed": float(unparsed),
        "strict_scores": means["strict"],
        "partial": any(found["limit"] is not None for found, _ in read_files),
        **{key: first[key] for key in same},
        **{
            key: {name: [_number(i.low), _number(i.high)] for name, i in bounds[rule].items()}
            for key, rule in (("intervals", "official"), ("strict_intervals", "strict"))
        },
    }
    out = Path(files[0]).with_name(f"{benchmark}.json") if out is None else Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def results_table(summaries: Sequence[Mapping]) -> pandas.DataFrame:
    """Tidy table of summaries: percentages, MME in points; the strict score too where it differs by over one point.

    Columns: model, variant, benchmark, rule, value, low, high, n, clusters, runs, protocol.

    Raises:
        ValueError: a partial result, which is for trials only.
    """
    lines = []
    for s in summaries:
        if s["partial"]:
            name = f"{s['model']} on {s['benchmark']}"
            raise ValueError(f"{name} is partial (a trial with a limit): evaluate it in full to put it in a table")
        unit = 1 if family(s["benchmark"]) == "mme" else 100
        for rule, bounds in (("official", "intervals"), ("strict", "strict_intervals")):
            if rule == "official" or abs(s["strict"] - s["official"]) * unit > 1:
                low, high = (math.nan if bound is None else bound * unit for bound in s[bounds]["official"])
                protocol = "greedy" if s["protocol"] == "greedy" else f"mean of {s['runs']} sampled runs"
                about = {key: s[key] for key in ("n", "clusters", "runs")} | {"protocol": protocol}
                lines.append({key: s[key] for key in ("model", "variant", "benchmark")}
                             | {"rule": rule, "value": s[rule] * unit, "low": low, "high": high} | about)  # fmt: skip
    return pandas.DataFrame(lines)
