# shellcheck shell=bash
# Where things are on this cluster; the login node's scripts and the job read the same lines.
# Each name can be set beforehand, best in the file that the shell reads at login.

JUDGE_ENV=${JUDGE_ENV:-$PWD/.venv} # of Python
# Home folders are small and slow on many clusters: what is fetched or cached lies on scratch.
JUDGE_SCRATCH=${JUDGE_SCRATCH:-${SCRATCH:-$HOME/.cache}/judge}
# Said rather than found out: a login node has no GPU, and each recipe has a base of its own.
[ ! -e RECIPE ] || JUDGE_RECIPE=${JUDGE_RECIPE:-$(cat RECIPE)} # of a bundle
JUDGE_RECIPE=${JUDGE_RECIPE:-cuda}

export HF_HOME=${HF_HOME:-$JUDGE_SCRATCH/huggingface}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$JUDGE_SCRATCH/cache} # pip, torch, matplotlib, W&B
export WANDB_DATA_DIR=${WANDB_DATA_DIR:-$JUDGE_SCRATCH/wandb}
export TRITON_HOME=${TRITON_HOME:-$JUDGE_SCRATCH}

python=$JUDGE_ENV/bin/python

# Print the output_dir that the recipe's flags given, --config FILE among them, come to.
output_dir() {
  "$python" -c '
import sys
from pt_app.core.errors import exit_with
from pt_app.core.settings import resolve
recipe, *flags = sys.argv[1:]
exit_with(lambda: print(resolve(recipe, flags, "judge train", "").output_dir))' \
    "$JUDGE_RECIPE" "$@"
}
