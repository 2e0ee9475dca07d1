"""`python -m workbook profile NAME` selects a profile, `python -m workbook STAGE KEY` runs a stage of it.

doctor NAME checks what a profile needs, fetch NAME brings models and data, plan NAME says what it costs, and
export RUN OUT writes a run as a folder that transformers loads alone.
"""

import argparse
import os
import shutil
import sys

from workbook import pipeline, profile
from workbook.paths import RunPaths


def _doctor(args) -> None:
    from workbook.scale import doctor

    sys.exit(0 if doctor.run(profile.load(args.key), args.drop_faulty) else 1)


def _fetch(args) -> None:
    from workbook.scale import fetch

    wanted = profile.load(args.key)
    if args.list:
        print(fetch.listing(wanted))
    else:
        sys.exit(0 if fetch.run(wanted) else 1)


def _plan(args) -> None:
    from workbook.scale import plan

    print(plan.show(profile.load(args.key), args.price))


def _export(args) -> None:
    from workbook.scale.export import export

    if args.out is None:
        sys.exit("error: export needs a folder to write: export RUN OUT")
    try:
        export(args.key, args.out, args.dtype)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")


COMMANDS = {"doctor": _doctor, "fetch": _fetch, "plan": _plan, "export": _export}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workbook", description=__doc__)
    parser.add_argument("stage", choices=("profile", *COMMANDS, *pipeline.KINDS))
    parser.add_argument("key", help="a profile's name, a stage's key in params.json, or (export) a run's folder")
    parser.add_argument("out", nargs="?", help="export: the folder to write")
    parser.add_argument("--limit", type=int, help="evaluate: a trial with about so many rows per benchmark")
    parser.add_argument("--drop-faulty", action="store_true", help="doctor: take entries found faulty out of the json")
    parser.add_argument("--list", action="store_true", help="fetch: only say what comes from where and goes where")
    parser.add_argument("--price", type=float, help="plan: USD per GPU-hour")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="export")
    args = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed a search and a warning in every stage
    try:
        if args.stage == "profile":
            changed = pipeline.activate(args.key)
            print(f"params.json: profile {args.key}{'' if changed else ' (unchanged)'}")
        elif args.stage in COMMANDS:
            COMMANDS[args.stage](args)
        else:
            from viral_core import distributed
            from workbook import stages
            from workbook.scale import costs, launch

            entry = pipeline.entry(args.stage, args.key)
            launch.spread(args.stage, profile.load(entry["profile"]).launch)
            options = {"limit": args.limit} if args.stage == "evaluate" else {}
            with costs.timed(RunPaths(entry["profile"]).root, args.stage, args.key):
                getattr(stages, args.stage)(entry, **options)
            distributed.leave()
    except profile.ProfileError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
