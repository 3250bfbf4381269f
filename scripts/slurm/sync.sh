#!/usr/bin/env bash
# On the login node, after the jobs: sends to W&B and Weave what they kept on disk.
#
#   scripts/slurm/sync.sh FILE...
set -euo pipefail
source scripts/slurm/environment.sh
[ $# -gt 0 ] || { echo "error: usage: $0 FILE..." >&2; exit 2; }
for file in "$@"; do
  "$python" -m pt_app.cli sync "$(output_dir --config "$file")"
done
