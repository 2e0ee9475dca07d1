"""Inside a stage that several processes share: who this one is, which device it has, what its share of the work is.

A stage that was not launched (`workbook.scale.launch`) is a group of one, and the same code runs.
"""

import datetime
import importlib
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(days=2)  # between processes whose shares take different times


def launched() -> bool:
    """Whether torchrun or DeepSpeed has started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join(deepspeed: bool = False) -> None:
    """Take this process's GPU and join the others; nothing to do in a process that was not launched.

    Has to come before TrainingArguments and models are made, which look at the group.
    """
    if not launched() or dist.is_initialized():
        return
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if deepspeed:
        _init_deepspeed(here)
    else:
        backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)


def _init_deepspeed(here: torch.device) -> None:
    import deepspeed

    if here.type == "cpu":  # spares a compilation of a minute for an operator that gloo does without
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="nccl" if here.type == "cuda" else "gloo", verbose=False)


def leave() -> None:
    """Take leave of the others, at the end of a stage."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the others; through the CPU, where no watchdog counts the minutes that a long share takes."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def share(items: Sequence) -> list:
    """This process's items: every world_size-th, from its own rank on."""
    return list(items[rank() :: world_size()])


def gather(part) -> list | None:
    """Everybody's part, by rank, at the main process; None at the others.  Parts travel pickled: keep them small."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * world_size() if is_main() else None
    dist.gather_object(part, parts)
    return parts


def gather_everywhere(part) -> list:
    """Everybody's part, by rank, at every process."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * world_size()
    dist.all_gather_object(parts, part)
    return parts
