"""What a profile costs before it is run: GPU-hours, wall time, money and disk, run by run, and what is done already.

Times on "this machine" are measured: the wall times that stages have noted; a training or an evaluation takes as long
as others of the same models, a measurement as others of the same kind.  For the machines of
profiles/reference/hardware.yaml they come from operations, peak and utilisation; those of caches are left out: a GPU
waits there for images to be read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from viral_core.files import read_entries
from workbook import paper, pipeline
from workbook.paths import Paths
from workbook.scale import estimates
from workbook.scale.costs import read_costs
from workbook.scale.estimates import Cache, Training
from workbook.scale.launch import TRAININGS
from workbook.sections import Launch, Profile

GB = 1e9
MEASURED = {  # the file that ends each part of a measurement
    "cknna": "cknna.csv",
    "attention": "attention/maps.npz",
    "permutation": "permutation/accuracy.csv",
    "probes": "probes.csv",
}


@dataclass(frozen=True)
class Job:
    """One stage that takes a GPU, with its line of the pipeline's index and its cost; None: nothing tells."""

    stage: str
    key: str
    item: dict
    done: bool  # whether its output is complete
    work: Cache | Training | None  # of an evaluation and a measurement the training whose run they ask
    operations: float | None
    seconds: float | None  # on this machine

    @property
    def owner(self) -> str:
        """The run, or for what several runs share the stage and its name."""
        return self.item.get("run", f"{self.stage} {self.key}")

    @property
    def bytes(self) -> int:
        """Of what it writes, with DVC's copies; answers are small."""
        return estimates.DVC_COPIES * self.work.bytes if self.work and self.stage in ("cache", *TRAININGS) else 0


def samples_of(profile: Profile) -> dict[str, int]:
    """Samples of the two training files and distinct images of the second: as drawn, counted, or else stated."""
    if profile.world:
        world, images = profile.world, profile.world.conversations
        return {"captions": world.captions, "conversations": images + world.text_only, "images": images}
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
    seconds = {(cost["stage"], cost["key"]): cost["seconds"] for cost in read_costs(paths.root)}
    data = estimates.reference("hardware")["data"]
    steps = {
        "cache": 0,
        "stage1": profile.stage1.total_steps(samples["captions"]),
        "stage2": profile.stage2.total_steps(samples["conversations"]),
    }
    steps |= {"evaluate": data["answers"] * steps["stage2"], "measure": 0}
    for stage, all_steps in steps.items():
        for key, item in index.get(stage, index["stage2"]).items():
            out, count = Path(item["out"]), all_steps
            if stage == "cache":
                out /= "index.json"  # written last
            elif stage == "evaluate":
                out = paths.evaluation(item["run"], item["seed"]) / "scores.json"
            elif stage == "stage2" and (images := profile.systems[item["run"]].images):
                count = profile.stage2.total_steps(round(images / data["with_image"]))
            work, operations = _work(profile, stage, item, samples, count)
            name = key.removeprefix(f"{profile.name}-")
            wanted = profile.measurements(item["run"]) if stage == "measure" else ()
            done = all((out / MEASURED[part]).exists() for part in wanted) if wanted else out.exists()
            yield Job(stage, name, item, done, work, operations, seconds.get((stage, key)))


def _work(profile: Profile, stage: str, item: dict, samples: dict[str, int], steps: int):
    """What a stage computes, and the operations of so many steps.

    None: it takes a model that is not made yet, or one of another kind, of which `doctor` tells.
    """
    try:
        if stage == "cache":
            images = samples["captions" if item["part"] == "captions" else "images"]
            return estimates.feature_cache(profile, item, images), 0.0
        if stage == "stage1":
            work = estimates.stage1(profile, item["language"], item["vision"])
        else:
            work = estimates.stage2(profile, item["run"])
        return work, steps * work.operations
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        return None, None if steps else 0.0


def table(profile: Profile) -> pd.DataFrame:
    """One row per run and shared job; NaN: unknown.

    Columns: jobs, done, GB and hours `here`, below ""; and below each machine wall hours `h`, `GPU-h`, `USD`, and `*`:
    how many of the trainings do not fit its GPUs.
    """
    hardware, rows = estimates.reference("hardware"), []
    engine = profile.launch.deepspeed or "zero2"
    for job in jobs(profile):
        trained, work = job.stage in TRAININGS, float("nan") if job.operations is None else job.operations
        measured = list(profile.measurements(job.owner)) if job.stage == "measure" else job.key
        kind = f"{job.stage} {job.item.get('language', measured)} {job.item.get('vision')}"
        row = {"owner": job.owner, "kind": kind, ("", "jobs"): 1, ("", "done"): int(job.done)}
        row |= {("", "GB"): job.bytes / GB, ("", "here"): job.seconds and job.seconds / 3600}
        for name, machine in {} if profile.world else hardware["machines"].items():
            card, launch = hardware["gpus"][machine["gpu"]], Launch(gpus=machine["gpus"], deepspeed=engine)
            share = card["utilisation"].get(job.stage, card["utilisation"]["stage2"])
            row[name, "h"] = work / (machine["gpus"] * card["peak"] * 1e12 * share) / 3600
            row[name, "GPU-h"] = row[name, "h"] * machine["gpus"]
            row[name, "USD"] = row[name, "GPU-h"] * machine["price"]
            fits = not (trained and job.work) or job.work.memory(launch) <= machine["memory"] * GB / estimates.GIB
            row[name, "*"] = int(not fits)
        rows.append(row)
    frame = pd.DataFrame(rows)
    here = frame["", "here"].astype(float)
    frame["", "here"] = here.fillna(here.groupby(frame["kind"]).transform("mean"))
    frame = frame.drop(columns="kind").groupby("owner", sort=False).agg(lambda column: column.sum(skipna=False))
    return frame.set_axis(pd.MultiIndex.from_tuples(frame.columns), axis=1)


def show(profile: Profile) -> str:
    """The plan as text."""
    owners = table(profile)
    left = owners[owners["", "done"] < owners["", "jobs"]]
    totals = {"all": owners.sum(skipna=False), "still to do": left.sum(skipna=False)}
    shown = pd.concat([owners.astype(float), pd.DataFrame(totals).T])
    done, total = (shown["", column].map("{:.0f}".format) for column in ("done", "jobs"))
    shown["", "done"] = done + "/" + total
    for column in [column for column in shown if column[1] == "*"]:
        shown[column] = shown[column].map(lambda count: "*" if count else "")
    lines = [
        f"Plan of profile {profile.name}: {profile.label}",
        "",
        "Estimates, not measurements, but for `here` (hours on this machine); how they are made and what they assume:",
        "profiles/reference/hardware.yaml.  GB with DVC's copies; of caches only these.  * does not fit a GPU: lower",
        "micro_batch, or take launch.deepspeed zero3.",
        "",
        shown.drop(columns=[("", "jobs")]).to_string(na_rep="?", float_format="{:.2f}".format),
        *(["?: nothing of this kind has run here yet"] if owners["", "here"].isna().any() else []),
        "",
        "Which runs give which table:",
    ]
    for number in paper.TABLES:
        runs = list(dict.fromkeys(paper.table(number)["run"]))
        here = owners.loc[[run for run in runs if run in owners.index], ""]
        absent = [run for run in runs if run not in owners.index]
        ready = (here["done"] == here["jobs"]).sum()
        lines.append(f"  Table {number}: {ready} of {len(runs)} done: {' '.join(here.index)}")
        if absent:
            lines.append(f"      not in this profile: {' '.join(absent)}")
    return "\n".join(lines)
