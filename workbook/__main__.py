"""`python -m workbook profile NAME` selects a profile, `python -m workbook STAGE KEY` runs a stage of it."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from viral_core.files import DISK
from workbook import config, fork_server, lock, pipeline
from workbook.paths import Paths

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
ProfileName = Annotated[str, typer.Argument(help="name of a profile, a file of profiles/", metavar="PROFILE")]
Key = Annotated[str, typer.Argument(help="the stage's key in params.yaml")]


@app.command()
def profile(name: ProfileName) -> None:
    """Select a profile: write params.yaml, which DVC and the stages read."""
    with lock.alone(f"python -m workbook profile {name}"):
        changed = pipeline.select(name)
    print(f"params.yaml: profile {name}{'' if changed else ' (unchanged)'}")


@app.command()
def repro(
    name: ProfileName,
    targets: Annotated[list[str] | None, typer.Argument(help="stages, such as pilot_study; all by default")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="stages at a time; by default one for each core")] = None,
) -> None:
    """Bring the pipeline of a profile up to date, stages side by side."""
    from workbook import side_by_side
    from workbook.scale import doctor

    settings = config.load(name)
    if not (doctor.run(settings) and side_by_side.reproduce(settings, targets or [], jobs)):
        raise typer.Exit(1)


@app.command()
def doctor(
    name: ProfileName,
    drop_faulty: Annotated[bool, typer.Option(help="take entries found faulty out of the json")] = False,
) -> None:
    """Check what a profile needs, and say how to get what is missing."""
    from workbook.scale import doctor

    if not doctor.run(config.load(name), drop_faulty):
        raise typer.Exit(1)


@app.command()
def fetch(
    name: ProfileName,
    only_list: Annotated[bool, typer.Option("--list", help="only say what comes from where and goes where")] = False,
) -> None:
    """Bring the models and data of a profile here, where there is a network."""
    from workbook.scale import fetch

    if not fetch.run(config.load(name), only_list):
        raise typer.Exit(1)


@app.command()
def plan(name: ProfileName) -> None:
    """What a profile costs, run by run, and what of it is done."""
    from workbook.scale import plan

    print(plan.show(config.load(name)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    out: Annotated[Path, typer.Argument(help="the folder to write")],
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Write a run as a folder that transformers loads alone."""
    from workbook.scale.export import export

    try:
        export(run, out, dtype)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")


@app.command()
def score(
    benchmark: Annotated[str, typer.Argument(help="such as mmvp, pope_random or pope")],
    answers: Annotated[list[Path], typer.Argument(help="a file of answers, or two to compare")],
    rows: Annotated[Path | None, typer.Option(help="folder of the official files [default: the profile's]")] = None,
) -> None:
    """Score answers that the workbook, LLaVA's scripts, lmms-eval or VLMEvalKit wrote; of two files, the difference."""
    from workbook.benchmarks.foreign import score_files

    if len(answers) > 2:
        sys.exit(f"error: {len(answers)} files of answers: give one, or two to compare")
    rows = rows or Path(config.active()[0].data.benchmarks)
    try:
        table = score_files(benchmark, answers, rows)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(table.to_string(float_format=lambda value: repr(float(value))))
    unparsed = " and ".join(f"{share:.2%}" for share in table.attrs["unparsed"])
    print(
        f"{table.attrs['questions']} questions of {rows}; {unparsed} of the answers name no option, or several (strict)"
    )


@app.command()
def pack(name: ProfileName) -> None:
    """Keep what a profile's runs have answered and measured in an archive for git."""
    from workbook.recorded import pack

    with lock.alone(f"python -m workbook pack {name}"):
        print(pack(name) or "nothing new")


@app.command()
def unpack(name: ProfileName) -> None:
    """Put back, from the archives in git, what a profile's runs have answered and measured."""
    from workbook.recorded import unpack

    try:
        with lock.alone(f"python -m workbook unpack {name}"):
            pipeline.select(name)
            back = unpack(name)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    print(f"{len(back)} folders of profile {name} are back; what was there stays as it is")


@app.command()
def report(name: ProfileName) -> None:
    """Render the report of a profile from what its stages have made."""
    from workbook.report import build

    print(f"report: {build(name, Paths(name).report)}")


def _stage(kind: str, help: str) -> None:
    @app.command(kind, help=f"Stage: {help}")
    def run(key: Key) -> None:
        _run(kind, key)


_stage("pretrained", "make a model folder of a language model that a package ships.")
_stage("world", "draw the embedded world.")
_stage("cache", "keep features of the training images.")
_stage("stage1", "train a projector on captions.")
_stage("projector", "take existing projector weights instead.")
_stage("stage2", "instruction tuning of one run.")
_stage("evaluate", "ask one run, and the checkpoints it has kept, the benchmarks.")


@app.command()
def notebook(name: Annotated[str, typer.Argument(help="such as main_table")], profile: ProfileName) -> None:
    """Stage: execute a notebook for a profile."""
    from papermill.exceptions import PapermillExecutionError

    from workbook.notebook import execute, notebooks

    config.known("notebook", name, notebooks(config.load(profile)), "dvc.yaml")
    with lock.stage(f"{name}@{profile}"):
        try:
            execute(name, profile)
        except PapermillExecutionError as error:
            sys.exit(f"{error}\nThe notebook up to there: {Paths(profile).notebook(name)}")


@app.command()
def measure(
    what: Annotated[str, typer.Argument(help="a stage's key; or cknna, attention, permutation or pca of a model")],
    model: Annotated[str | None, typer.Argument(help="folder or hub id of a LLaVA or LLaVA-NeXT")] = None,
    images: Annotated[Path | None, typer.Argument(help="folder of images")] = None,
    out: Annotated[Path, typer.Argument(help="folder for the table")] = Path("measurements"),
    question: Annotated[str, typer.Option(help="what the model is asked")] = "Describe the image.",
    template: Annotated[str | None, typer.Option(help="of the conversation; by default the model's own")] = None,
    k: Annotated[int, typer.Option(help="neighbours of CKNNA")] = 10,
) -> None:
    """Stage: measure one run.  With a model and a folder of images: measure any LLaVA, such as an exported one."""
    if model is None:
        _run("measure", what)
        return
    from workbook.measure_model import measure

    try:
        print(measure(what, model, images or Path("images"), out, question, template, k))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _run(kind: str, key: str) -> None:
    """Run one stage of the active profile, in as many processes as the profile launches."""
    from workbook.scale import costs, hub, launch

    with lock.stage(f"{kind}@{key}"):
        settings, item = pipeline.stage(kind, key)
        hub.go_offline(hub.models(settings))
        launch.spread(kind, settings.launch)  # which may start this command again, and not return
        with costs.timed(Paths(settings.name).root, kind, key):
            # Only now: the libraries take seconds, and read whether they are offline.
            from viral_core import distributed
            from workbook import stages

            getattr(stages, kind)(settings, item)
    distributed.leave()


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding: a message is never lost
    if shutil.which("nvidia-smi") is None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed a search and a warning in every stage
    try:
        app()
    except (config.ProfileError, lock.LockedError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not DISK.search(str(error)):
            raise
        sys.exit(  # a progress bar may stand in the line
            f"\nerror: {str(error).splitlines()[0]}: make room, or give the right to write there, and start the same "
            "command again; it goes on from what is whole"
        )


if __name__ == "__main__":
    status = fork_server.handed_over()  # only stages that `repro` starts find a server
    main() if status is None else sys.exit(status)
