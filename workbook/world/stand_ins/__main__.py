"""Make the stand-ins: `python -m workbook.world.stand_ins`, from nothing, on one GPU or on CPUs.

Pictures and texts are made first, then models are trained side by side, each by a process of its own, as many as there
are cores.  What is complete is not made again, and a training that was killed goes on where it was.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from workbook.world.stand_ins import FOLDER, lessons
from workbook.world.stand_ins import pictures as drawings
from workbook.world.stand_ins.recipes import RECIPES, train


def main(
    names: Annotated[list[str] | None, typer.Argument(help="which stand-ins; all if none is named")] = None,
    out: Annotated[Path, typer.Option(help="folder of the stand-ins")] = FOLDER,
    work: Annotated[Path, typer.Option(help="folder for what is drawn")] = Path("runs/stand_ins"),
    pictures: Annotated[int, typer.Option(help="pictures to draw")] = 48000,
    texts: Annotated[int, typer.Option(help="lessons, and conversations, to write")] = 96000,
    seed: int = 0,
    again: Annotated[bool, typer.Option(help="make also what is complete")] = False,
) -> None:
    """Make the stand-ins that are missing."""
    cores, start = len(os.sched_getaffinity(0)), time.perf_counter()
    unknown = set(names or ()) - set(RECIPES)
    if unknown:
        raise typer.BadParameter(f"no stand-in {', '.join(sorted(unknown))}; there are: {', '.join(RECIPES)}")
    names = [name for name in names or RECIPES if again or not (out / name / "metrics.json").is_file()]
    if any("template" in RECIPES[name] for name in names):
        lessons.write(work / "texts", texts, seed, cores)
    if any("template" not in RECIPES[name] for name in names):
        drawings.write(work / "pictures", pictures, seed, cores)
    print(f"{time.perf_counter() - start:.0f} s: texts written, pictures drawn", flush=True)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes:
        for group in ([name for name in names if name != "radio"], [name for name in names if name == "radio"]):
            trainings = {processes.submit(train, name, work, out, seed): name for name in group}
            for training in as_completed(trainings):
                metrics, seconds = training.result(), time.perf_counter() - start
                result = metrics.get("probe") or metrics["text_accuracy"]
                print(f"{seconds:.0f} s: {trainings[training]}, {metrics['steps']} steps: {result}", flush=True)


if __name__ == "__main__":
    typer.run(main)
