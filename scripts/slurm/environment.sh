# shellcheck shell=bash
# The folders of this cluster; the login node's scripts and the job both read this file.
# Each variable can be set beforehand, best in the file that the shell reads at login.

JUDGE_ENV=${JUDGE_ENV:-$PWD/.venv} # of Python
# Home folders are small and slow on many clusters: downloads and caches are kept on scratch.
JUDGE_SCRATCH=${JUDGE_SCRATCH:-${SCRATCH:-$HOME/.cache}/judge}
# It is stated, not detected: a login node has no GPU, and each recipe has a base of its own.
[ ! -e RECIPE ] || JUDGE_RECIPE=${JUDGE_RECIPE:-$(cat RECIPE)} # of a bundle
JUDGE_RECIPE=${JUDGE_RECIPE:-cuda}

export HF_HOME=${HF_HOME:-$JUDGE_SCRATCH/huggingface}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$JUDGE_SCRATCH/cache} # pip, torch, matplotlib, W&B
export JUDGE_CACHE=${JUDGE_CACHE:-$JUDGE_SCRATCH} # converted and fetched bases, evaluation data
export WANDB_DATA_DIR=${WANDB_DATA_DIR:-$JUDGE_SCRATCH/wandb}
export TRITON_HOME=${TRITON_HOME:-$JUDGE_SCRATCH}

python=$JUDGE_ENV/bin/python

# Print the output_dir that results from the recipe's flags, which may include --config FILE.
output_dir() {
  "$python" -c '
import sys
from pt_app.core.errors import exit_with
from pt_app.core.settings import resolve
recipe, *flags = sys.argv[1:]
exit_with(lambda: print(resolve(recipe, flags, "judge train", "").output_dir))' \
    "$JUDGE_RECIPE" "$@"
}
