"""Commands in a copy of the repository."""

import os
import subprocess
import sys
from pathlib import Path

# Those that come with the repository; a user's own, beside them, may be anything.
PROFILES = ("gpu", "laptop", "paper", "rehearsal", "rehearsal_gpu", "smoke", "study")


def environment(folder: Path) -> dict[str, str]:
    """Variables under which a command uses this Python and the copy's package."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "passive"}


def run(folder: Path, *command: str) -> str:
    """Run a command in the copy; its output, or a failure that shows it."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def replace(settings, **changes):
    """A section of a profile with other values, unchecked."""
    return settings.model_copy(update=changes)
