#!/usr/bin/env bash
# The judge command of this bundle, with the hub off and tracking kept on disk: ./run.sh train ...
set -euo pipefail
# huggingface_hub reads it once, when it is imported: it must stand before Python starts.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
home=$(dirname "$0")
if [ "${1:-}" = train ]; then
  # judge train would go by the hardware; the settings and the wheels here are for one recipe.
  recipe=$(cat "$home/RECIPE")
  exec "$home/.venv/bin/python" -m "pt_app.eval_model.judge_train_$recipe" "${@:2}"
fi
exec "$home/.venv/bin/judge" "$@"
