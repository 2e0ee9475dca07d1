"""`python -m viral_core profile NAME` selects a profile, `python -m viral_core STAGE KEY` runs a stage of it."""

import argparse
import os
import shutil
import sys

from viral_core import pipeline, profile


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m viral_core", description=__doc__)
    parser.add_argument("stage", choices=("profile", *pipeline.KINDS))
    parser.add_argument("key", help="a profile's name, or a stage's key in params.yaml")
    parser.add_argument("--limit", type=int, help="evaluate: a trial with about so many rows per benchmark")
    args = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed a search and a warning in every stage
    try:
        if args.stage == "profile":
            changed = pipeline.activate(args.key)
            print(f"params.yaml: profile {args.key}{'' if changed else ' (unchanged)'}")
        else:
            from viral_core import distributed, launch, stages

            entry = pipeline.entry(args.stage, args.key)
            launch.spread(args.stage, profile.load(entry["profile"]).launch)
            options = {"limit": args.limit} if args.stage == "evaluate" else {}
            getattr(stages, args.stage)(entry, **options)
            distributed.leave()
    except profile.ProfileError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
