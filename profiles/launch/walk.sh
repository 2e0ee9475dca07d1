#!/bin/bash
# The stages of a profile one after the other, without DVC, notebooks and report: what a machine without them can check.
#
#     bash profiles/launch/walk.sh PROFILE
#
# runs/PROFILE/costs.jsonl gets the seconds of each stage.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${1:?name a profile}
python -m workbook fetch "$profile"
python -m workbook profile "$profile"
for kind in cache stage1 stage2 evaluate measure; do
  for key in $(python -c "from workbook import config; print(*config.active()[1].get('$kind', config.active()[1]['stage2']))"); do
    echo "== $kind $key"
    python -m workbook "$kind" "$key"
  done
done
