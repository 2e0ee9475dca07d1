#!/bin/bash
# What this project does on this machine's GPU, in about three minutes on an H200:
#
#     bash profiles/launch/check_gpu.sh OUT         # or, to try the script: check_gpu.sh OUT rehearsal
#
# OUT gets step.json (seconds and memory of a step of stage 2, 7B, random weights: without alignment, with cached
# features, with the teacher online, as the released code does it), cknna.csv (CKNNA against its formula), and of a walk
# through all stages of the profile rehearsal_gpu the seconds of each and the log of a run.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?name a folder for the results}
mkdir -p "$out"
export PYTHONPATH=$PWD
python tests/speed.py "${2:-paper}" "$out"
python tests/rehearsal.py bash profiles/launch/walk.sh rehearsal_gpu
cp runs/rehearsal_gpu/costs.jsonl "$out/stages.jsonl"
cp runs/rehearsal_gpu/stage2/viral/s0/log.jsonl "$out/log.jsonl"
cp runs/rehearsal_gpu/stage2/viral/s0/environment.json "$out/environment.json"
