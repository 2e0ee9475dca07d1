#!/bin/bash
# What this project does on this machine's GPU, in about three minutes on an H200:
#
#     bash profiles/launch/check_gpu.sh OUT         # or, to try the script: check_gpu.sh OUT tiny
#
# OUT gets step.json (seconds and memory of a step of stage 2, 7B shape, random weights: without alignment, with cached
# features, with the teacher online, as the released code does it), cknna.csv (CKNNA against its formula), and of a walk
# through all stages of the profile rehearsal_gpu the seconds of each and the log of a run.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?name a folder for the results}
shape=${2:-7b}
mkdir -p "$out"
sizes=(576 1000 4000)
[ "$shape" = 7b ] || sizes=(576)
device=$(python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
python -m workbook.scale.benchmark_cknna --device "$device" --sizes "${sizes[@]}" --out "$out/cknna.csv"
python -m workbook.scale.benchmark_step --shape "$shape" --rounds 3 --steps 3 --out "$out/step.json"
python -m workbook.scale.rehearsal bash profiles/launch/walk.sh rehearsal_gpu
cp runs/rehearsal_gpu/costs.jsonl "$out/stages.jsonl"
cp runs/rehearsal_gpu/stage2/viral/s0/log.jsonl "$out/log.jsonl"
cp runs/rehearsal_gpu/stage2/viral/s0/environment.json "$out/environment.json"
