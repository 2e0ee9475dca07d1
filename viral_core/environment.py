"""What a result was made with: code, packages and machine, kept beside the result."""

import json
import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from viral_core.files import write_text

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "pillow", "timm", "diffusers",
    "deepspeed", "flash-attn",
)  # fmt: skip
CODE = ("viral_core", "workbook", "profiles", "notebooks", "dvc.yaml", "pyproject.toml")  # what a result may depend on


def describe(root: str | Path = ".") -> dict:
    """Git commit (with what differs from it), Python, packages (null: not installed), platform, CPU, GPUs, threads."""
    import torch

    from viral_core import distributed

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "git": git_state(root),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": {"model": _cpu(), "cores": os.cpu_count()},
        "gpus": [{"model": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def git_state(root: str | Path = ".") -> dict:
    """`commit`, and `changed`: the files of the code that differ from it.  Both are "unknown" without git."""
    options = {"cwd": root, "stderr": subprocess.DEVNULL, "text": True, "timeout": 60}
    try:
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **options).strip()
        changed = subprocess.check_output(["git", "status", "--porcelain", "--", *CODE], **options).splitlines()
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "changed": "unknown"}
    return {"commit": commit, "changed": [line[3:] for line in changed]}


def record(file: Path, step: int) -> None:
    """Note the environment in which a training goes on from `step`: a json list, one entry per start.

    Of a training that was interrupted the entries up to `step` stay; what is unreadable is written anew.
    """
    before = []
    with suppress(OSError, ValueError, TypeError, KeyError):
        before = [entry for entry in json.loads(file.read_text(encoding="utf-8")) if entry["from_step"] < step]
    write_text(file, json.dumps([*before, {"from_step": step, **describe()}], indent=2) + "\n")


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)


def _cpu() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor()
