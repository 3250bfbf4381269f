#!/usr/bin/env bash
# Run it on the login node, in the checkout: it fetches what the settings files name, and then loads
# it with the hub switched off, as the job will.
#
#   scripts/slurm/prefetch.sh FILE...
set -euo pipefail
source scripts/slurm/environment.sh
[ $# -gt 0 ] || { echo "error: usage: $0 FILE..." >&2; exit 2; }
mkdir -p logs # SLURM does not create the folder of a job's log, and the job then fails silently
for file in "$@"; do
  "$python" -m pt_app.cli prefetch --recipe "$JUDGE_RECIPE" --config "$file"
done
