#!/bin/bash
# The paper profile on SLURM.  With `launch: {gpus: 8, nodes: 2, hostfile: null, deepspeed: zero2}` in profiles/paper.yaml:
#
#     sbatch --nodes 2 profiles/launch/slurm.sh
#
# The pipeline runs on the first node; each stage that several GPUs share starts itself on all nodes with srun
# (workbook/scale/launch.py).  The repository and its environment have to lie on a file system that all nodes see.  Killed
# and submitted again, it goes on where it was.
#SBATCH --job-name viral
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 64
#SBATCH --time 48:00:00
#SBATCH --output viral-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the root of the repository}"
export OMP_NUM_THREADS=8
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-64}"  # srun does not take it over by itself
make repro PROFILE="${PROFILE:-paper}"
