"""Stages of the pipeline side by side, forked from one process that has imported the libraries.

`dvc repro` runs one stage at a time, starts a Python for each, and rewrites `dvc.lock` after each with a parser in pure
Python: for the two hundred short stages of an embedded profile that takes longer than what they do.  Here DVC runs in
several processes, with two of its functions replaced (`_run` and `_modify_yaml`).  A stage that fails says why and is
left, with what waits for it, to the plain `dvc repro` that `make` lets follow, and which checks all that was done here.

    python -m workbook.side_by_side 2
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import shlex
import sys
from collections import OrderedDict
from collections.abc import Iterator
from multiprocessing.connection import wait

from workbook.paths import ROOT

# Groups of kinds of stages, one after the other, each with how many of its stages one `dvc repro` does.  No stage may
# be in a group with what it waits for, as DVC refuses to read what another of its processes writes.  `distil` and
# `cache` come early where one process would wait for the others; those that fail then have another turn later.
GROUPS = (
    (("pretrained", "world"), 1),
    (("language", "vision", "teacher", "distil", "vae", "cache"), 1),
    (("grow", "distil"), 1),
    (("cache", "words"), 1),
    (("stage1", "projector"), 1),
    (("stage2",), 4),
    (("evaluate", "cknna", "learning_curve", "attention", "permutation"), 6),
    (("notebook", "notebook2"), 4),
)
# Imported once, for all stages.  Nothing of this project: each stage reads the code as it is when the stage begins.
LIBRARIES = (
    "torch", "transformers.trainer", "transformers.models.llava.modeling_llava", "peft", "accelerate", "pandas",
    "pyarrow.parquet", "dvc.cli", "dvc.stage.run", "dvc.dvcfile",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")


def reproduce(jobs: int) -> None:
    """Bring the stages of `params.json` up to date, `jobs` at a time, as far as that goes without a failure."""
    entries = json.loads((ROOT / "params.json").read_text())
    for library in LIBRARIES:
        importlib.import_module(library)
    for kinds, size in GROUPS:
        stages = [f"{kind}@{key}" for kind in kinds for key in entries[kind]]
        print(f"{len(stages)} stages of {', '.join(kinds)}, {jobs} at a time", flush=True)
        running = []
        for start in range(0, len(stages), size):
            if len(running) == jobs:
                ended = wait([process.sentinel for process in running])
                for process in [process for process in running if process.sentinel in ended]:
                    process.join()
                    running.remove(process)
            running.append(FORK.Process(target=_repro, args=(stages[start : start + size],)))
            running[-1].start()
        for process in running:
            process.join()


def _repro(stages: list[str]) -> None:
    """`dvc repro` of these stages and no others."""
    import dvc.cli
    import dvc.dvcfile
    import dvc.stage.run

    dvc.stage.run._run = _run
    dvc.dvcfile.modify_yaml = _modify_yaml
    sys.exit(dvc.cli.main(["--wait-for-lock", "repro", "--keep-going", "--single-item", *stages]))


def _run(executable: str | None, command: str, *, cwd: str, env: dict, **_) -> None:
    """DVC's way to run a stage's command, `python -m MODULE ...`, which is forked here instead of started."""
    from dvc.stage.exceptions import StageCmdFailedError

    python, option, *argv = shlex.split(command)
    if (python, option) != ("python", "-m"):
        raise StageCmdFailedError(command)
    stage = FORK.Process(target=_stage, args=(argv, cwd, env))
    stage.start()
    stage.join()
    if stage.exitcode:
        raise StageCmdFailedError(command, stage.exitcode)


def _stage(argv: list[str], cwd: str, env: dict) -> None:
    """`python -m` of these arguments, in this process."""
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _modify_yaml(path: str, fs=None) -> Iterator[dict]:
    """DVC's way to change `dvc.lock`, compiled: without the comments and line breaks that only a person's file has."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.Representer.add_representer(OrderedDict, yaml.Representer.represent_dict)
    data = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            data = yaml.load(file) or {}
    yield data
    with open(path, "w", encoding="utf-8") as file:
        yaml.dump(data, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=int, help="how many stages at a time")
    jobs = parser.parse_args().jobs
    if jobs < 1:
        parser.error(f"at least one stage at a time, not {jobs}")
    try:
        reproduce(jobs)
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept")
