#!/usr/bin/env bash
# Run it on the login node of a cluster, in the checkout: it makes the Python environment of the jobs,
# and the folder of their logs, without which SLURM lets a job die silently.
#
#   bash scripts/setup_environment.sh [TARGET]     of make: install (default), install-cpu, install-rocm
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/slurm/environment.sh
mkdir -p logs
make "${1:-install}" VENV="$JUDGE_ENV"
echo "environment: $JUDGE_ENV; next: bash scripts/download_data.sh"
