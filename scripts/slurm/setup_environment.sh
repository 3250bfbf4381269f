#!/usr/bin/env bash
# Run it on the login node, in the checkout: it makes the Python environment of the jobs.
#
#   scripts/slurm/setup_environment.sh [TARGET]     of make: install (default), install-cpu, install-rocm
set -euo pipefail
source scripts/slurm/environment.sh
make "${1:-install}" VENV="$JUDGE_ENV"
echo "environment: $JUDGE_ENV; caches: $JUDGE_SCRATCH; next: scripts/slurm/prefetch.sh FILE"
