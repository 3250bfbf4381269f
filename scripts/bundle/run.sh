#!/usr/bin/env bash
# The judge command of this bundle, with the hub off and tracking kept on disk: ./run.sh train ...
set -euo pipefail
# huggingface_hub reads it once, when it is imported: it must stand before Python starts.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
exec "$(dirname "$0")/.venv/bin/judge" "$@"
