#!/usr/bin/env bash
# On the login node, from the checkout: fetches what the settings files name, and then loads it
# with the hub switched off, as the job will.
#
#   scripts/slurm/prefetch.sh FILE...
set -euo pipefail
source scripts/slurm/environment.sh
[ $# -gt 0 ] || { echo "error: usage: $0 FILE..." >&2; exit 2; }
mkdir -p logs # SLURM does not make the folder of a job's log, and the job then fails without a word
for file in "$@"; do
  "$python" -m pt_app.cli prefetch --recipe "$JUDGE_RECIPE" --config "$file"
done
