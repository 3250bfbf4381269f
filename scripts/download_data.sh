#!/usr/bin/env bash
# Run it on the login node of a cluster, after setup_environment.sh: it fetches the text, makes
# tokenizer and tokens of it, fetches the evaluation data, and reads every byte that the job will read.
#
#   bash scripts/download_data.sh [SCRIPT]     speedrun.sh (default), or scripts/local_cpu_train.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/slurm/environment.sh
mkdir -p logs
FETCH_ONLY=1 PYTHON=$python bash "${1:-speedrun.sh}"
echo "the data are here and were read; next: sbatch scripts/speedrun.slurm${1:+ $1}"
