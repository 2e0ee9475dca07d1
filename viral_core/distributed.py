"""Inside a stage that several processes share: who this one is, which device it has, what its share of the work is.

A process that was not launched is a group of one, and the same code runs.
"""

import datetime
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(days=2)  # between processes whose shares take different times


def launched() -> bool:
    """Whether torchrun, accelerate or DeepSpeed has started this process as one of a group."""
    return "RANK" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join(deepspeed: bool = False) -> None:
    """Take this process's GPU and join the others, before TrainingArguments and models look at the group."""
    if not launched() or dist.is_initialized():
        return
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not deepspeed:
        dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo", timeout=PATIENCE)
        return
    from deepspeed import comm, ops

    if here.type == "cpu":  # spares a compilation of a minute for an operator that gloo does without
        ops.__compatible_ops__ = {}
    comm.init_distributed(dist_backend="nccl" if here.type == "cuda" else "gloo", verbose=False)


def leave() -> None:
    """Take leave of the others, at the end of a stage."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the others."""
    if dist.is_initialized():
        dist.barrier()


def share(items: Sequence) -> list:
    """This process's items: every world_size-th, from its own rank on."""
    return list(items[rank() :: world_size()])


def gather(part, everywhere: bool = False) -> list | None:
    """Everybody's part, by rank, at the main process or `everywhere`, else None.  Parts travel pickled."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * world_size()
    dist.all_gather_object(parts, part)
    return parts if everywhere or is_main() else None
