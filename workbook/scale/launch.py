"""Start a stage on several GPUs: `python -m workbook STAGE KEY` becomes torchrun, srun or deepspeed of itself.

What the profile's `launch` says decides:
- one node: torchrun, a process for each GPU;
- several nodes in a SLURM allocation: srun starts one torchrun a node (`profiles/launch/slurm.sh` asks for it);
- several nodes of a `hostfile`: DeepSpeed's own launcher, which reaches them through ssh.

DVC, make and the user always call the same command; a process that is one of the group already goes on with the stage.
"""

import json
import os
import subprocess
import sys

from workbook.paths import DEEPSPEED
from workbook.sections import Launch, ProfileError

TRAININGS = ("stage1", "stage2")
# Stages whose work is divided among processes.
SHARED = ("cache", *TRAININGS, "evaluate", "measure")
PORT = 29500  # of the first node, where the others meet


def spread(stage: str, settings: Launch) -> None:
    """Become the launcher of this command, if the profile wants several processes; join them in a launched process.

    ProfileError: more GPUs than this machine has, or several nodes without a hostfile or SLURM.
    """
    if stage not in SHARED:
        return
    import torch

    from viral_core import distributed

    engine = settings.deepspeed if stage in TRAININGS else None
    if distributed.launched():
        distributed.join(deepspeed=engine is not None)
    elif settings.gpus * settings.nodes == 1 and not engine:  # one process takes one GPU, however many there are
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[0]
    else:
        here = torch.cuda.device_count()
        if settings.gpus > here and (here or not settings.cpu):
            less = f"set it to {here} or less in the profile; the global batch stays as it is"
            remedy = less if here else "take one that has GPUs"
            raise ProfileError(f"launch.gpus is {settings.gpus} and this machine has {here}: {remedy}")
        command = launcher(settings, sys.argv[1:], os.environ)
        os.environ.setdefault("OMP_NUM_THREADS", "1" if settings.gpus > 1 else str(os.cpu_count()))
        print("starting", " ".join(command), flush=True)
        os.execvp(command[0], command)


def launcher(settings: Launch, arguments: list[str], environment: dict[str, str]) -> list[str]:
    """The command that starts `python -m workbook <arguments>` in every process; errors as of `spread`."""
    gpus, nodes = str(settings.gpus), str(settings.nodes)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", gpus]
    stage = ["-m", "workbook", *arguments]
    if settings.nodes == 1:
        return [*torchrun, "--standalone", *stage]
    if settings.hostfile:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_local_rank"]
        deepspeed = [*runner, "--hostfile", settings.hostfile]
        return [*deepspeed, "--num_nodes", nodes, "--num_gpus", gpus, "--module", "workbook", *arguments]
    if environment.get("SLURM_JOB_NUM_NODES") != nodes:
        raise ProfileError(
            f"launch: {nodes} nodes need a hostfile (`launch: {{hostfile: ...}}`) or a SLURM allocation of as many "
            f"(SLURM_JOB_NUM_NODES is {environment.get('SLURM_JOB_NUM_NODES')}; see profiles/launch/slurm.sh)"
        )
    meet = ["--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-id", environment["SLURM_JOB_ID"],
            "--rdzv-endpoint", f"{_first_node(environment)}:{PORT}"]  # fmt: skip
    return ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", *torchrun, *meet, *stage]


def _first_node(environment: dict[str, str]) -> str:
    names = ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]
    return subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()[0]


def deepspeed_config(settings: Launch) -> dict | None:
    """DeepSpeed's configuration for a training, from profiles/launch; None without DeepSpeed."""
    if settings.deepspeed is None:
        return None
    import torch

    config = json.loads((DEEPSPEED / f"{settings.deepspeed}.json").read_text(encoding="utf-8"))
    if not torch.cuda.is_available():  # there are no streams to overlap, and nothing to pin
        config["zero_optimization"]["overlap_comm"] = False
    return config
