"""What a profile costs before it is run: GPU-hours, wall time, money and disk, run by run, and what is done already.

Times on "this machine" are measured: the wall times that stages have noted, and the logs of trainings, from which those
of the same models follow.  For the machines of profiles/reference/hardware.yaml they come from operations, peak and
utilisation; where runs/gpu/results/benchmark holds a step that was measured on such a GPU, it gives that of stage 2.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from viral_core.files import read_entries
from workbook import paper, pipeline
from workbook.benchmarks.registry import EXPECTED
from workbook.paths import Paths
from workbook.scale import estimates
from workbook.scale.costs import read_costs
from workbook.sections import Launch, Profile

GB = 1e9


@dataclass(frozen=True)
class Job:
    """One stage: what it belongs to, whether its output exists, and its cost; None where nothing tells."""

    stage: str
    key: str
    owner: str  # the run, or for what several runs share the stage and its name
    done: bool
    operations: float | None = None
    bytes: int = 0
    measured: float | None = None  # seconds on this machine
    fits: dict[str, bool] = field(default_factory=dict)  # by machine


def samples_of(profile: Profile) -> dict[str, int]:
    """Samples of the two training files and distinct images of the second: as drawn, counted, or else stated."""
    if profile.world:
        mix = profile.world.conversations
        return {"captions": profile.world.captions, "conversations": mix, "images": mix - profile.world.text_only}
    stated, samples = estimates.reference("hardware")["data"], {}
    for part in ("captions", "conversations"):
        manifest = Paths(profile.name).manifest(part)
        if manifest.is_file():
            summary = json.loads(manifest.read_text(encoding="utf-8"))
        else:
            summary = _count(Path(getattr(profile.data, part)))
        samples[part] = summary.get("samples", stated["samples"][part])
    return {**samples, "images": summary.get("images", stated["images"])}


def _count(conversations: Path) -> dict[str, int]:
    """Samples and distinct images of a json file, where there is one that can be read."""
    try:
        entries = [entry for entry in read_entries(conversations) if isinstance(entry, dict)]
    except (FileNotFoundError, ValueError):
        return {}
    return {"samples": len(entries), "images": len({str(entry["image"]) for entry in entries if entry.get("image")})}


def jobs(profile: Profile) -> Iterator[Job]:
    """Every stage of a profile that takes a GPU, with its cost."""
    index, samples, paths = pipeline.stages(profile), samples_of(profile), Paths(profile.name)
    seconds, paces = read_costs(paths.root), _step_seconds(index)
    for key, item in index["cache"].items():
        cache = estimates.cached(profile, item)
        cost = (cache.operations(samples["images"]), cache.bytes(samples["images"])) if cache else ()
        yield _job(profile, "cache", key, item["out"], seconds, *cost)
    for key, item in index["projector"].items():
        yield _job(profile, "projector", key, item["out"], seconds, 0.0)
    for stage, part in (("stage1", "captions"), ("stage2", "conversations")):
        for key, item in index[stage].items():
            yield _training(profile, stage, key, item, samples[part], seconds, paces)
    for key, item in index["stage2"].items():
        run, seed = item["run"], item["seed"]
        for stage, out, questions in (
            ("evaluate", paths.evaluation(run, seed) / "log.csv", _questions(profile, run)),
            ("measure", paths.measurement(run, seed), _measured_questions(profile, run)),
        ):
            work = estimates.answer_operations(profile, run, questions)
            yield _job(profile, stage, key, out, seconds, work, owner=run)


def _job(profile: Profile, stage: str, key: str, out, seconds: dict, operations=None, size=0, **more) -> Job:
    name = key.removeprefix(f"{profile.name}-")
    options = {"owner": f"{stage} {name}", **more}
    if (stage, key) in seconds:
        options["measured"] = seconds[stage, key]
    return Job(stage, name, done=Path(out).exists(), operations=operations, bytes=size, **options)


def _training(profile: Profile, stage: str, key: str, item: dict, samples: int, seconds: dict, paces: dict) -> Job:
    if stage == "stage1":
        training = estimates.stage1(profile, item["language"], item["vision"])
    else:
        training = estimates.stage2(profile, item["run"])
    recipe = profile.stage1 if stage == "stage1" else profile.stage2
    pace = paces.get((stage, item["language"], item["vision"]))
    options = {"measured": pace and pace * recipe.total_steps(samples)}
    if stage == "stage2":
        options["owner"] = item["run"]
    if training is None:
        return _job(profile, stage, key, item["out"], seconds, **options)
    options["fits"] = {}
    for name, machine in estimates.reference("hardware")["machines"].items():
        launch = Launch(gpus=machine["gpus"], deepspeed=profile.launch.deepspeed or "zero2")
        options["fits"][name] = training.memory(launch) <= machine["memory"] * GB / estimates.GIB
    work = training.operations * recipe.total_steps(samples)
    return _job(profile, stage, key, item["out"], seconds, work, training.bytes, **options)


def _step_seconds(index: dict) -> dict[tuple, float]:
    """Seconds of a step by stage and models, over the trainings that have ended on this machine."""
    paces: dict[tuple, list[float]] = {}
    for stage in ("stage1", "stage2"):
        for item in index[stage].values():
            log = Path(item["out"]) / "log.jsonl"
            if log.is_file() and (lines := log.read_text(encoding="utf-8").splitlines()):
                last = json.loads(lines[-1])
                paces.setdefault((stage, item["language"], item["vision"]), []).append(last["seconds"] / last["step"])
    return {models: sum(values) / len(values) for models, values in paces.items()}


def _questions(profile: Profile, run: str) -> int:
    """Answers that an evaluation generates, those of the kept checkpoints included."""
    curve, count = profile.learning_curve, _rows(profile, profile.evaluation.benchmarks)
    if curve and run in curve.runs:
        count += len(curve.fractions) * _rows(profile, curve.benchmarks)
    return count


def _measured_questions(profile: Profile, run: str) -> int:
    """Images and questions that the measurements of a run take, a generated answer each."""
    attention, permutation, count = profile.attention, profile.permutation, profile.cknna.images
    if attention and run in attention.runs:
        count += attention.questions
    if permutation and run in permutation.runs:
        count += (1 + permutation.permutations) * _rows(profile, [permutation.benchmark])
    return count


def _rows(profile: Profile, benchmarks: list[str]) -> int:
    total = 0
    for name in benchmarks:
        rows = profile.world.benchmarks.get(name, 0) if profile.world else EXPECTED[name]["rows"]
        rows = max(rows) if isinstance(rows, tuple | list) else rows
        total += rows * profile.evaluation.sampled.get(name, 1)
    return total


def gpus() -> tuple[dict[str, dict], list[str]]:
    """The GPUs of hardware.yaml, with the utilisation of stage 2 that benchmarks have reached, and a note on each."""
    cards, notes = deepcopy(estimates.reference("hardware")["gpus"]), []
    for file in sorted(Path("runs/gpu/results/benchmark").glob("*.json")):
        step = json.loads(file.read_text(encoding="utf-8"))
        if "shape" not in step or not (devices := step["environment"]["gpus"]):
            continue
        for name, gpu in cards.items():
            if name in devices[0]["model"]:
                peak = step["arms"]["baseline"]["seconds"]["median"] * gpu["peak"] * 1e12
                share = gpu["utilisation"]["stage2"] = estimates.benchmark_operations(step["shape"]) / peak
                notes.append(f"Stage 2 on {name}: utilisation {share:.2f}, measured by {file}.")
    return cards, notes


def table(profile: Profile, price: float | None = None) -> pd.DataFrame:
    """One row per run and shared job: jobs, done, GB, and per machine wall hours, GPU-hours, cost; NaN: unknown."""
    rows, cards = [], gpus()[0]
    for job in jobs(profile):
        row = {"owner": job.owner, "jobs": 1, "done": int(job.done), "GB": estimates.DVC_COPIES * job.bytes / GB}
        trained = job.stage in ("stage1", "stage2")
        row["this machine, h"] = 0.0 if job.measured is None and not trained else (job.measured or float("nan")) / 3600
        for name, machine in estimates.reference("hardware")["machines"].items():
            card = cards[machine["gpu"]]
            share = card["utilisation"].get(job.stage, card["utilisation"]["evaluate"])
            work = float("nan") if job.operations is None else job.operations
            hours = work / (machine["gpus"] * card["peak"] * 1e12 * share) / 3600
            row[f"{name}, h"] = hours
            row[f"{name}, GPU-h"] = hours * machine["gpus"]
            row[f"{name}, USD"] = hours * machine["gpus"] * (machine["price"] if price is None else price)
            row[f"{name}, too small"] = int(not job.fits.get(name, True))
        rows.append(row)
    return pd.DataFrame(rows).groupby("owner", sort=False).agg(lambda column: column.sum(skipna=False))


def show(profile: Profile, price: float | None = None) -> str:
    """The plan as text."""
    owners, machines = table(profile, price), [] if profile.world else list(estimates.reference("hardware")["machines"])
    width = max(map(len, owners.index)) + 2
    lines = [
        f"Plan of profile {profile.name}: {profile.label}",
        "",
        "Estimates, not measurements, but for `here` (this machine); how they are made and what they assume:",
        "profiles/reference/hardware.yaml.  GB with DVC's copies.  * does not fit a GPU as configured: lower",
        "micro_batch, or take launch.deepspeed zero3.",
        "",
        *gpus()[1],
        f"{'':{width}}{'done':>7}{'GB':>8}{'here h':>9}"
        + "".join(f"{machine + ': h':>18}{'GPU-h':>8}{'USD':>8}" for machine in machines),
    ]
    left = owners[owners["done"] < owners["jobs"]]
    for owner, row in (*owners.iterrows(), ("all", owners.sum(skipna=False)), ("still to do", left.sum(skipna=False))):
        status = f"{row['done']:.0f}/{row['jobs']:.0f}"
        line = f"{owner:{width}}{status:>7}{_number(row['GB'])}{_number(row['this machine, h'], 9, 2)}"
        for machine in machines:
            mark = "*" if row[f"{machine}, too small"] and owner in profile.runs else " "
            cells = [_number(row[f"{machine}, {unit}"]) for unit in ("GPU-h", "USD")]
            line += mark + _number(row[f"{machine}, h"], 17) + "".join(cells)
        lines.append(line)
    lines += ["", "Which runs give which table:"]
    for number in paper.TABLES:
        runs = list(dict.fromkeys(paper.table(number)["run"]))
        here = [run for run in runs if run in owners.index]
        ready = sum(owners.loc[run, "done"] == owners.loc[run, "jobs"] for run in here)
        lines.append(f"  Table {number}: {ready} of {len(runs)} done: {' '.join(here)}")
        if absent := [run for run in runs if run not in here]:
            lines.append(f"      not in this profile: {' '.join(absent)}")
    return "\n".join(lines)


def _number(value: float, width: int = 8, digits: int = 1) -> str:
    return f"{'?' if pd.isna(value) else f'{value:.{digits}f}':>{width}}"
