"""What a profile costs before it is run: GPU-hours, wall time, money and disk, run by run, and what is done already.

Times on "this machine" are measured: the wall times that stages have noted, and the logs of trainings, from which those
of the same models follow.  For the machines of profiles/reference/hardware.yaml they come from operations, peak and
utilisation; where runs/gpu/benchmark holds a step that was measured on such a GPU, its utilisation is used for stage 2.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbook import paper
from workbook.benchmarks.registry import EXPECTED
from workbook.config import Launch, Profile
from workbook.paths import Paths
from workbook.scale import estimates
from workbook.scale.costs import read_costs

PARTS = ("cache", "stage1", "projector", "stage2", "evaluate", "measure")
GB = 1e9


@dataclass(frozen=True)
class Job:
    """One stage: what it belongs to, whether its output exists, and its cost; None where nothing tells."""

    stage: str
    key: str
    owner: str  # the run, or for what several runs share the stage and its name
    done: bool
    operations: float | None
    bytes: int | None
    measured: float | None  # seconds on this machine
    fits: dict[str, bool]  # by machine


def samples_of(profile: Profile) -> dict[str, int]:
    """Samples of the two training files and distinct images of the second: as drawn, counted, or else stated."""
    if profile.world:
        mix = profile.world.conversations
        return {"captions": profile.world.captions, "conversations": mix, "images": mix - profile.world.text_only}
    facts, found = estimates.reference("hardware")["data"], {}
    for part in ("captions", "conversations"):
        file = Paths(profile.name).manifest(part)
        summary = json.loads(file.read_text()) if file.is_file() else {}
        found[part] = summary.get("samples", facts["samples"][part])
    return {**found, "images": summary.get("images", facts["images"])}


def jobs(profile: Profile) -> list[Job]:
    """Every stage of a profile that takes a GPU, with its cost."""
    entries, samples = estimates.entries(profile), samples_of(profile)
    paces, noted = _step_seconds(entries), _noted(profile)
    return [
        _job(stage, key, entry, profile, samples, paces, noted.get((stage, key)))
        for stage in PARTS
        for key, entry in entries.get(stage, {}).items()
    ]


def _noted(profile: Profile) -> dict[tuple[str, str], float]:
    """Seconds of each stage as it last finished here, its interrupted attempts included."""
    return read_costs(Paths(profile.name).root)


def _job(stage: str, key: str, entry: dict, profile: Profile, samples: dict, paces: dict, seconds: float | None) -> Job:
    name = key.removeprefix(f"{profile.name}-")
    owner = entry.get("run") or f"{stage} {name}"
    operations = size = None
    fits = {}
    out = Path(entry["out"])
    if stage in ("stage1", "stage2"):
        steps = estimates.steps(entry, samples["captions" if stage == "stage1" else "conversations"])
        step = estimates.training_operations(stage, entry, estimates.reference("hardware")["data"])
        operations = step and step * steps
        size = estimates.run_bytes(entry)
        own, pace = _logged(out), paces.get((stage, entry["language"]["path"], entry["vision"]["path"]))
        seconds = seconds or (own[1] if own else pace and pace * steps)
        for machine, facts in estimates.reference("hardware")["machines"].items():
            launch = Launch(gpus=facts["gpus"], deepspeed=profile.launch.deepspeed or "zero2")
            needed = estimates.memory(entry, launch)
            fits[machine] = needed is None or needed <= facts["memory"] * GB / estimates.GIB
    elif stage == "cache":
        operations = estimates.cache_operations(entry, samples["images"])
        size = estimates.cache_bytes(entry, samples["images"])
    elif stage != "projector":
        operations = _asked(stage, entry, profile)
    done = out.exists() if stage != "evaluate" else all((out / f"{b}.json").is_file() for b in entry["benchmarks"])
    return Job(stage, name, owner, done, operations, size, seconds, fits)


def _asked(stage: str, entry: dict, profile: Profile) -> float | None:
    """Operations of the answers and forward passes of an evaluation, its checkpoints included, or of measurements."""
    run = entry["run"]
    spec = profile.systems[run]
    parts = profile.languages[spec.language].path, profile.visions[spec.vision].path
    language, vision = map(estimates.architecture, parts)
    if not language or not vision:
        return None
    if stage == "evaluate":
        count, curve = _answers(profile, entry["benchmarks"]), profile.learning_curve
        if curve and run in curve.runs:
            count += len(curve.fractions) * _answers(profile, curve.benchmarks)
    else:
        attention, permutation = profile.attention, profile.permutation
        count = profile.cknna.images
        if attention and run in attention.runs:
            count += attention.questions
        if permutation and run in permutation.runs:
            count += (1 + permutation.permutations) * _answers(profile, [permutation.benchmark])
    return estimates.answer_operations(entry, language, vision, count)


def _answers(profile: Profile, benchmarks: list[str]) -> int:
    """Answers that are generated for some benchmarks."""
    return sum(_rows(profile, name) * profile.evaluation.sampled.get(name, 1) for name in benchmarks)


def _rows(profile: Profile, benchmark: str) -> int:
    if profile.world:
        return profile.world.benchmarks.get(benchmark, 0)
    rows = EXPECTED[benchmark]["rows"]
    return max(rows) if isinstance(rows, tuple | list) else rows


def _logged(out: Path) -> tuple[int, float] | None:
    """(steps, seconds) of a training that has ended, from its log."""
    log = out / "log.jsonl"
    if not log.is_file() or not (lines := log.read_text().splitlines()):
        return None
    last = json.loads(lines[-1])
    return last["step"], last["seconds"]


def _step_seconds(entries: dict) -> dict[tuple, float]:
    """Seconds of a step by stage and models, over the trainings that this machine has done."""
    found: dict[tuple, list[float]] = {}
    for stage in ("stage1", "stage2"):
        for entry in entries[stage].values():
            if logged := _logged(Path(entry["out"])):
                key = (stage, entry["language"]["path"], entry["vision"]["path"])
                found.setdefault(key, []).append(logged[1] / logged[0])
    return {key: sum(paces) / len(paces) for key, paces in found.items()}


def gpus() -> tuple[dict[str, dict], list[str]]:
    """The GPUs of hardware.yaml, with the utilisation of stage 2 that benchmarks have reached, and a note on each."""
    found = {name: {**gpu, "utilisation": {**gpu["utilisation"]}} for name, gpu in
             estimates.reference("hardware")["gpus"].items()}  # fmt: skip
    notes = []
    for file in sorted(Path("runs/gpu/benchmark").glob("*.json")):
        step = json.loads(file.read_text())
        if "shape" not in step or not (devices := step["environment"]["gpus"]):
            continue
        work = estimates.benchmark_operations(step["shape"], step["settings"]["gradient_checkpointing"])
        for name, gpu in found.items():
            if name in devices[0]["model"]:
                share = work / (step["arms"]["baseline"]["seconds"]["median"] * gpu["peak"] * 1e12)
                gpu["utilisation"]["stage2"] = share
                notes.append(f"Stage 2 on {name}: utilisation {share:.2f}, measured by {file}.")
    return found, notes


def hours(job: Job, machine: dict, gpu: dict) -> float | None:
    """Wall time in hours of a job on a machine of hardware.yaml."""
    if job.operations is None:
        return 0.0 if job.stage == "projector" else None
    share = gpu["utilisation"].get(job.stage, gpu["utilisation"]["evaluate"])
    return job.operations / (machine["gpus"] * gpu["peak"] * 1e12 * share) / 3600


def table(profile: Profile, price: float | None = None) -> pd.DataFrame:
    """One row per run and shared job: status, GB, and per machine wall hours, GPU-hours and cost; `None`: unknown."""
    hardware, rows, cards = estimates.reference("hardware"), {}, gpus()[0]
    for job in jobs(profile):
        row = rows.setdefault(job.owner, {"jobs": 0, "done": 0, "GB": 0.0, "this machine, h": 0.0})
        row["jobs"] += 1
        row["done"] += job.done
        row["GB"] = _add(row["GB"], (job.bytes or 0) / GB)
        if job.measured is not None or job.stage in ("stage1", "stage2"):
            row["this machine, h"] = _add(row["this machine, h"], job.measured and job.measured / 3600)
        for name, machine in hardware["machines"].items():
            wall = hours(job, machine, cards[machine["gpu"]])
            row[f"{name}, h"] = _add(row.get(f"{name}, h", 0.0), wall)
            gpu_hours = wall and wall * machine["gpus"]
            row[f"{name}, GPU-h"] = _add(row.get(f"{name}, GPU-h", 0.0), gpu_hours)
            cost = gpu_hours and gpu_hours * (machine["price"] if price is None else price)
            row[f"{name}, USD"] = _add(row.get(f"{name}, USD", 0.0), cost)
            row[f"{name}, fits"] = row.get(f"{name}, fits", True) and job.fits.get(name, True)
    return pd.DataFrame.from_dict(rows, orient="index")


def _add(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def places(profile: Profile, found: pd.DataFrame) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each table of the paper, the owners of what it needs in this profile, and the runs it lacks here."""
    entries = estimates.entries(profile)
    for number in paper.TABLES:
        place, wanted = f"Table {number}", list(dict.fromkeys(paper.table(number)["run"]))
        needed: list[str] = []
        for name in wanted:
            seeds = profile.runs.get(name, [])
            for seed in seeds[:1]:
                entry = entries["stage2"][f"{profile.name}-{name}-s{seed}"]
                shared = [f"{stage} {Path(path).name}" for path in (entry["projector"], entry["targets"])
                          for stage in ("stage1", "projector", "cache")]  # fmt: skip
                needed += [owner for owner in shared if owner in found.index] + [name]
        yield place, list(dict.fromkeys(needed)), [name for name in wanted if name not in profile.runs]


def show(profile: Profile, price: float | None = None) -> str:
    """The plan as text."""
    hardware, found = estimates.reference("hardware"), table(profile, price)
    machines = [] if profile.world else list(hardware["machines"])
    lines = [f"Plan of profile {profile.name}: {profile.label}", ""]
    lines += ["Estimates, not measurements, but for `here` (this machine); how they are made and what they assume:",
              "profiles/reference/hardware.yaml.  * does not fit a GPU as configured: lower micro_batch, or take",
              "launch.deepspeed zero3.", ""]  # fmt: skip
    lines += gpus()[1]
    width = max(map(len, found.index)) + 2
    head = f"{'':{width}}{'done':>7}{'GB':>8}{'here h':>9}"
    lines.append(head + "".join(f"{machine + ': h':>18}{'GPU-h':>8}{'USD':>8}" for machine in machines))
    for owner, row in found.iterrows():
        lines.append(_line(owner, row, machines, width, f"{row['done']}/{row['jobs']}"))
    total = found.sum(min_count=len(found)) if len(found) else found
    left = found[found["done"] < found["jobs"]]
    lines.append(_line("all", total, machines, width, f"{found['done'].sum()}/{found['jobs'].sum()}"))
    lines.append(_line("still to do", left.sum(min_count=len(left)), machines, width, ""))
    lines += ["", "Which part of it gives which table (with what several runs share):"]
    for place, needed, lacking in places(profile, found):
        part = found.loc[needed]
        todo = part[part["done"] < part["jobs"]]
        times = ", ".join(f"{_number(todo[f'{m}, h'].sum(min_count=len(todo)))} h on {m}" for m in machines)
        note = f"  not in this profile: {', '.join(lacking)}" if lacking else ""
        status = "done" if len(part) and not len(todo) else f"{len(part) - len(todo)} of {len(part)} parts done"
        lines.append(f"  {place}: {status}{f'; to do {times}' if machines and len(todo) else ''}{note}")
        lines.append(f"      {' '.join(needed)}" if needed else "      nothing")
    return "\n".join(lines)


def _line(owner: str, row: pd.Series, machines: list[str], width: int, status: str) -> str:
    text = f"{owner:{width}}{status:>7}{_number(row['GB']):>8}{_number(row['this machine, h'], 2):>9}"
    for machine in machines:
        mark = "" if row[f"{machine}, fits"] in (True, None) or owner in ("all", "still to do") else "*"
        cells = [_number(row[f"{machine}, {unit}"]) for unit in ("h", "GPU-h", "USD")]
        text += f"{mark + cells[0]:>18}{cells[1]:>8}{cells[2]:>8}"
    return text


def _number(value, digits: int = 1) -> str:
    return "?" if value is None or pd.isna(value) else f"{value:.{digits}f}"
