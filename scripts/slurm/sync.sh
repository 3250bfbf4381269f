#!/usr/bin/env bash
# Run it on the login node, after the jobs: it sends to W&B and Weave what they kept on disk.
#
#   scripts/slurm/sync.sh FILE...
set -euo pipefail
source scripts/slurm/environment.sh
[ $# -gt 0 ] || { echo "error: usage: $0 FILE..." >&2; exit 2; }
for file in "$@"; do
  folder=$(output_dir --config "$file") # on its own: as an argument its failure would not be seen
  "$python" -m pt_app.cli sync "$folder"
done
