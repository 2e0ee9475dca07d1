"""Make the stand-ins: `python -m workbook.world.stand_ins`, from nothing, on one GPU or on CPUs.

Pictures and texts are drawn first, by as many processes as there are cores; then models are trained side by side, each
by a process of its own, the distilled ones when their teachers are done.  What is complete is not made again, and a
training that was killed goes on where it was.
"""

import os
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from workbook.world.stand_ins import FOLDER, lessons
from workbook.world.stand_ins import pictures as drawings
from workbook.world.stand_ins.recipes import DISTILLED, RECIPES, train


def main(
    names: Annotated[list[str] | None, typer.Argument(help="which stand-ins; all if none is named")] = None,
    out: Annotated[Path, typer.Option(help="folder of the stand-ins")] = FOLDER,
    work: Annotated[Path, typer.Option(help="folder for what is drawn")] = Path("runs/stand_ins"),
    pictures: Annotated[int, typer.Option(help="pictures to draw")] = 48000,
    texts: Annotated[int, typer.Option(help="lessons, and conversations, to write")] = 96000,
    minutes: Annotated[float, typer.Option(help="limit of time for a training")] = 240.0,
    distil_minutes: Annotated[float, typer.Option(help="limit of time for a distillation")] = 60.0,
    side_by_side: Annotated[int, typer.Option(help="trainings at a time; 0: one for each core")] = 0,
    seed: int = 0,
    again: Annotated[bool, typer.Option(help="make also what is complete")] = False,
) -> None:
    """Make the stand-ins that are missing."""
    cores = len(os.sched_getaffinity(0))
    side_by_side = side_by_side or cores
    names = [name for name in names or RECIPES if again or not (out / name / "metrics.json").is_file()]
    unknown = set(names) - set(RECIPES)
    if unknown:
        raise typer.BadParameter(f"no stand-in {', '.join(sorted(unknown))}; there are: {', '.join(RECIPES)}")
    start = time.perf_counter()
    if any("family" in RECIPES[name] for name in names):
        lessons.write(work / "texts", texts, seed, cores)
        print(f"{time.perf_counter() - start:.0f} s: texts written", flush=True)
    if any("family" not in RECIPES[name] for name in names):
        drawings.draw(work / "pictures", pictures, seed, cores)
        print(f"{time.perf_counter() - start:.0f} s: pictures drawn", flush=True)

    waiting, running, threads = list(names), {}, max(1, cores // side_by_side)
    with ProcessPoolExecutor(side_by_side, mp_context=get_context("spawn")) as processes:
        while waiting or running:
            for name in list(waiting):
                needs = set(DISTILLED.get(name, ())) & {*waiting, *running.values()}
                if not needs:
                    waiting.remove(name)
                    limit = distil_minutes if name in DISTILLED else minutes
                    running[processes.submit(train, name, work, out, seed, limit, threads)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, metrics = running.pop(future), future.result()
                result = metrics.get("probe") or metrics["text_accuracy"]
                print(f"{time.perf_counter() - start:.0f} s: {name}, {metrics['steps']} steps: {result}", flush=True)


if __name__ == "__main__":
    typer.run(main)
